"""Download one URL to one file, resuming interrupted downloads.

httpx2 sends the requests (proxies and SSL_CERT_FILE are taken from the environment), and
huggingface_hub resolves hf:// URLs (HF_ENDPOINT, HF_TOKEN, `hf auth login`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import socket
import ssl
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import sslzoo
from sslzoo.atomic_write import atomic_write

# A connection over which fewer than STALL_BYTES arrive within STALL_SECONDS is closed.
STALL_SECONDS = 60.0
STALL_BYTES = 1 << 16
_ATTEMPTS = 5  # attempts per URL, as long as each of them makes progress
_REDIRECTS = 10
_SHOWN = 1 << 20  # minimum bytes for a progress bar
_LOCAL = ("127.0.0.1", "localhost", "::1")


def is_url(name: str) -> bool:
    """Whether a text is a URL rather than a path or an entry's name."""
    return "://" in name


def resolved(url: str) -> str:
    """Resolve hf://OWNER/REPOSITORY[@REVISION]/PATH to https; leave other URLs unchanged.

    Raises:
        ValueError: an hf:// URL without a path, or another scheme than hf, https, http, file.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ValueError(f"a URL must be valid, got {url!r}: {error}") from None
    if parts.scheme == "hf":
        owner, (repository, _, path) = parts.netloc, parts.path.lstrip("/").partition("/")
        repository, _, revision = repository.partition("@")
        if not (owner and repository and path):
            raise ValueError(
                f"an hf:// URL must be hf://OWNER/REPOSITORY[@REVISION]/PATH, got {url!r}"
            )
        return _hub_address(f"{owner}/{repository}", path, urllib.parse.unquote(revision))
    if parts.scheme not in ("https", "http", "file"):
        raise ValueError(f"a URL must begin with hf://, https:// or file://, got {url!r}")
    if parts.scheme != "file" and not parts.hostname:
        raise ValueError(f"a URL must have a host (https://HOST/PATH), got {url!r}")
    return url


def _hub_address(repository: str, path: str, revision: str) -> str:
    from huggingface_hub import hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    path = urllib.parse.unquote(path)
    return hf_hub_url(repository, path, revision=revision or None, endpoint=endpoint)


def _own_headers(url: str) -> dict[str, str]:
    """Headers of every request; for the Hub they include the user's token, if there is one."""
    headers = {"User-Agent": f"sslzoo/{sslzoo.__version__}", "Accept-Encoding": "identity"}
    if urllib.parse.urlsplit(url).scheme == "hf":
        from huggingface_hub import constants, get_token

        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
    return headers


def local_path(url: str) -> Path:
    """Local path of a file:// URL.

    Raises:
        ValueError: the URL names another machine, or no path.
    """
    parts = urllib.parse.urlsplit(url)
    path = urllib.request.url2pathname(parts.path)
    if parts.netloc not in ("", "localhost") or not path or "\0" in path:
        raise ValueError(f"a file:// URL must be file:///PATH, got {url!r}")
    return Path(path)


class Wanted(NamedTuple):
    """Requirements of a download.

    Args:
        name: name of the file, for the progress bar.
        hashed: whether its hash is known, so that http:// is allowed.
        most: maximum size in bytes; None: as many as fit on the disk.
    """

    name: str
    hashed: bool = False
    most: int | None = None


def download(url: str, part: Path, wanted: Wanted) -> None:
    """Download a URL completely to `part`.

    If the server supports range requests (RFC 9110, section 14) and identifies the file's version
    (by an ETag or a date), the download resumes where an earlier call was interrupted.

    Args:
        url: https://, http://, file:// or hf://.
        part: the file to write; existing content is continued if it is the beginning of the same
            version of the same file, and replaced otherwise.
        wanted: see `Wanted`.

    Raises:
        FileNotFoundError: the URL has no file.
        OSError: the server does not answer, stalls or disconnects, or the disk is full.
        ValueError: http:// without a known hash, a redirect to a less secure URL, or a file
            larger than allowed.
    """
    if urllib.parse.urlsplit(url).scheme == "file":
        _copy(local_path(url), part, wanted)
        return
    address = resolved(url)
    for _ in range(_ATTEMPTS):
        half = _half(part, address)
        headers = {**_own_headers(url), **half.request}
        try:
            with _answer(address, headers, wanted) as (answer, watch):
                _write(answer, watch, part, wanted, address, half)
        except _ChangedError:
            discard(part)  # restarted
        except _BrokenOffError as error:
            grown = _half(part, address).bytes
            if not grown:
                discard(part)
            if grown <= half.bytes or error.stalled:
                raise OSError(str(error)) from None
            broken = error
        except KeyboardInterrupt:
            raise
        except BaseException:
            discard(part)
            raise
        else:
            forget_half(part)
            return
    raise OSError(f"the connection broke {_ATTEMPTS} times: {broken}")


def ask(url: str, wanted: Wanted) -> None:
    """Check that a URL has a file, without downloading it.

    Raises:
        FileNotFoundError: there is none.
        OSError: see `download`.
        ValueError: see `download`.
    """
    if urllib.parse.urlsplit(url).scheme == "file":
        _refuse_irregular(local_path(url))
        return
    try:
        with _answer(resolved(url), _own_headers(url), wanted):
            pass
    except _BrokenOffError as error:
        raise OSError(str(error)) from None


def discard(part: Path) -> None:
    """Remove an unfinished download."""
    part.unlink(missing_ok=True)
    forget_half(part)


# -- files on this machine


def _refuse_irregular(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"{str(path)!r} must be a file, got a folder or a device")


def _copy(path: Path, part: Path, wanted: Wanted) -> None:
    _refuse_irregular(path)
    _refuse_size(path.stat().st_size, 0, part, wanted)
    try:
        shutil.copyfile(path, part)
    except BaseException:
        discard(part)
        raise


def _refuse_size(size: int | None, have: int, part: Path, wanted: Wanted) -> None:
    if size is None:
        return
    if wanted.most is not None and size > wanted.most:
        raise ValueError(f"the file must have at most {wanted.most} bytes, got {size}")
    if size - have > shutil.disk_usage(part.parent).free:
        raise OSError(errno.ENOSPC, f"{size - have} bytes needed")


# -- requests


class _BrokenOffError(Exception):
    """The download is incomplete and can be resumed: no answer, early end, or a stall."""

    stalled = False


class _ChangedError(Exception):
    """The server has a different version of the file than the partial download."""


class _Watch:
    """Close a connection that is too slow, be it in the headers or the body.

    A timeout of single reads is not enough: a byte per minute never triggers it.
    """

    def __init__(self) -> None:
        self.bytes, self.stalled = 0, False
        self._socket: socket.socket | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        self._thread.join()

    def trace(self, event: str, about: Mapping[str, Any]) -> None:
        """Record the connection (httpx's request extension `trace`)."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = about["return_value"].get_extra_info("socket")
            if self.stalled:
                self._close()

    def _run(self) -> None:
        before = 0
        while not self._done.wait(STALL_SECONDS):
            if self.bytes - before < STALL_BYTES:
                self.stalled = True
                self._close()
                return
            before = self.bytes

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # The plain socket's method: that of TLS would change the object while it is read.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _broken_off(error: Exception, watch: _Watch, what: str) -> _BrokenOffError:
    import httpx2

    if not watch.stalled and not isinstance(error, httpx2.ReadTimeout):
        return _BrokenOffError(what)
    stalled = _BrokenOffError(
        f"the server stalls: fewer than {STALL_BYTES} bytes came within {STALL_SECONDS:g} seconds"
    )
    stalled.stalled = True
    return stalled


@functools.cache
def _certificates(*_: str | None) -> ssl.SSLContext:
    """The trusted certificates, whose reading takes 50 ms; called with what they depend on."""
    import httpx2

    return httpx2.create_ssl_context()


@contextlib.contextmanager
def _answer(url: str, headers: Mapping[str, str], wanted: Wanted) -> Iterator[tuple[Any, _Watch]]:
    """Send a request, follow redirects and check the status, without reading the body."""
    import httpx2

    with contextlib.ExitStack() as stack:
        try:
            watch = stack.enter_context(_Watch())
            named = _certificates(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))
            client = httpx2.Client(timeout=STALL_SECONDS, verify=named)
            stack.enter_context(client)
            request = client.build_request("GET", url, headers=headers)
            request.extensions["trace"] = watch.trace
            answer = stack.enter_context(contextlib.closing(_follow(client, request, wanted)))
        except httpx2.TransportError as error:
            raise _broken_off(error, watch, str(error) or type(error).__name__) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ValueError(str(error)) from None
        except ImportError as error:  # a kind of proxy that needs another package
            raise OSError(str(error)) from None
        _refuse_status(answer)
        yield answer, watch


def _follow(client: Any, request: Any, wanted: Wanted) -> Any:
    for _ in range(_REDIRECTS):
        url = request.url
        if url.scheme == "http" and url.host not in _LOCAL and not wanted.hashed:
            raise ValueError(f"sha256 must be given for an http:// URL, got none for {url}")
        answer = client.send(request, stream=True)
        following = answer.next_request
        if following is None:
            return answer
        answer.close()
        if following.url.scheme not in {"https", url.scheme}:
            raise ValueError(f"a redirect from https:// must lead to https://, got {following.url}")
        request = following
    raise OSError(f"the server redirects more than {_REDIRECTS} times")


def _refuse_status(answer: Any) -> None:
    status = answer.status_code
    if status in (200, 206, 416):
        return
    reason = answer.headers.get("X-Error-Message") or answer.reason_phrase  # the Hub's or HTTP's
    text = "".join(c for c in f"HTTP {status} {reason}"[:300] if c.isprintable()).strip()
    if status == 401:
        text += " (for a file on the Hub, check its name, or log in with `hf auth login`)"
    # S3 answers 403 for a missing file if listing is not public.
    if status in (403, 404, 410):
        raise FileNotFoundError(text)
    raise _BrokenOffError(text)  # the server is busy: the partial download is kept


# -- partial downloads


class _Half(NamedTuple):
    """A partial download, and how to request the rest."""

    bytes: int = 0
    version: str = ""
    size: int = -1

    @property
    def request(self) -> dict[str, str]:
        if not self.bytes:
            return {}
        return {"Range": f"bytes={self.bytes}-", "If-Range": self.version}


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.from")


def forget_half(part: Path) -> None:
    """Remove the metadata of an unfinished download."""
    _about(part).unlink(missing_ok=True)


def _half(part: Path, url: str) -> _Half:
    """The partial download at `part`, if it is the beginning of this URL's file."""
    try:
        known = json.loads(_about(part).read_text())
        have, size, version = part.stat().st_size, known["size"], known["version"]
        if known["url"] == url and 0 < have < size and isinstance(version, str):
            return _Half(have, version, size)
    except (OSError, ValueError, TypeError, KeyError):  # missing, or truncated by a kill
        pass
    return _Half()


def _version(answer: Any) -> str:
    """Validator (ETag or date) that identifies this version of the file; "" if there is none."""
    tag: str = answer.headers.get("ETag", "")
    return answer.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag


def _size(answer: Any) -> int | None:
    """Size of the complete file, if the response states it."""
    if answer.status_code == 206:
        _, _, text = answer.headers.get("Content-Range", "").rpartition("/")
    else:
        text = answer.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _goes_on(answer: Any, half: _Half) -> bool:
    """Whether the response continues the partial download."""
    begins = answer.headers.get("Content-Range", "").startswith(f"bytes {half.bytes}-")
    return begins and (_version(answer), _size(answer)) == (half.version, half.size)


def _write(answer: Any, watch: _Watch, part: Path, wanted: Wanted, url: str, half: _Half) -> None:
    """Write a response's body, appending to the partial download or replacing it."""
    import httpx2

    if answer.status_code == 416 or (answer.status_code == 206 and not _goes_on(answer, half)):
        raise _ChangedError
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise OSError(f"the server must not encode the file, got the encoding {encoding!r}")
    size, version = _size(answer), _version(answer)
    have = half.bytes if answer.status_code == 206 else 0
    _refuse_size(size, have, part, wanted)
    if not have:
        discard(part)
        if size and version and answer.headers.get("Accept-Ranges") == "bytes":
            about = {"url": url, "version": version, "size": size}
            atomic_write(_about(part), json.dumps(about))
    with part.open("ab") as file, _bar(wanted.name, size) as advance:
        advance(have)
        try:
            for chunk in answer.iter_raw():
                watch.bytes += len(chunk)
                file.write(chunk)
                advance(len(chunk))
                if wanted.most is not None and file.tell() > wanted.most:
                    raise ValueError(f"the file must have at most {wanted.most} bytes, got more")
        except httpx2.TransportError as error:
            came = f"only {file.tell()} of {'unknown' if size is None else size} bytes came"
            raise _broken_off(error, watch, came) from None
        file.flush()
        os.fsync(file.fileno())
        got = file.tell()
    if size is not None and got != size:
        raise _BrokenOffError(f"only {got} of {size} bytes came")


@contextlib.contextmanager
def _bar(name: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """Progress bar on stderr, if that is a terminal and the file is not small."""
    if not sys.stderr.isatty() or (size is not None and size < _SHOWN):
        yield lambda _: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(name, total=size)
        yield lambda count: shown.advance(task, count)
