"""Cache: files from elsewhere, each downloaded once, whole or not at all, and checked by hash.

One process downloads while the others wait for its lock; the file appears under its name by a
rename, after its hash was found right; what a killed download left is thrown away by the next.

Environment:
    SSLZOO_HOME: the folder (default: $XDG_CACHE_HOME/sslzoo or ~/.cache/sslzoo).
    SSLZOO_OFFLINE: 1: nothing is fetched.
    SSLZOO_MIRROR: a folder or an address under which files lie by their names; it is asked first.
    HF_ENDPOINT: what hf:// stands for (default: https://huggingface.co).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

import sslzoo

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
ANY = "any"


def home() -> Path:
    """The folder of the cache."""
    if os.environ.get("SSLZOO_HOME"):
        return Path(os.environ["SSLZOO_HOME"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sslzoo"


def offline() -> bool:
    """Whether SSLZOO_OFFLINE forbids the network."""
    return os.environ.get("SSLZOO_OFFLINE", "0") not in ("", "0")


def resolved(url: str) -> str:
    """hf://OWNER/REPOSITORY[@REVISION]/PATH as https; other addresses as they are.

    Raises:
        ValueError: an hf:// address without a path, or another scheme than hf, https, http, file.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "hf":
        owner, (repository, _, path) = parts.netloc, parts.path.lstrip("/").partition("/")
        repository, _, revision = repository.partition("@")
        if not (owner and repository and path):
            raise ValueError(f"hf://OWNER/REPOSITORY[@REVISION]/PATH wanted, got {url!r}")
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{endpoint}/{owner}/{repository}/resolve/{revision or 'main'}/{path}"
    if parts.scheme not in ("https", "http", "file"):
        raise ValueError(f"an address of hf://, https:// or file:// wanted, got {url!r}")
    return url


def is_url(name: str) -> bool:
    """Whether this is an address rather than a path or an entry's name."""
    return "://" in name


def check(path: Path, sha256: str | None, md5: str | None = None) -> str:
    """The file's sha256, once it and the md5 begin as they should.

    Raises:
        ValueError: they do not, or too little of the sha256 is given to tell.
    """
    _refuse_short(sha256)
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for each in hashes.values():
                each.update(chunk)
    for name, wanted in (("sha256", sha256), ("md5", md5)):
        got = hashes[name].hexdigest()
        if wanted is not None and not got.startswith(wanted.lower()):
            raise ValueError(f"{path.name} has the {name} {got}, {wanted} wanted: another file")
    return hashes["sha256"].hexdigest()


def _refuse_short(sha256: str | None) -> None:
    """An empty one would begin every hash."""
    if sha256 not in (None, ANY) and not re.fullmatch(r"[0-9a-fA-F]{8,64}", str(sha256)):
        raise ValueError(f"sha256 is 8 to 64 hex digits, or {ANY!r}; got {sha256!r}")


def place(owner: str, file: str) -> Path:
    """Where a file is kept.

    Args:
        owner: an entry's name, or an address.
        file: the file's name.
    """
    if is_url(owner):
        owner = hashlib.sha256(owner.encode()).hexdigest()[:16]
    return home() / "files" / owner / file


def fetch(
    urls: Sequence[str], target: Path, sha256: str | None = None, md5: str | None = None
) -> Path:
    """The file, from the cache or from the first address that gives it whole and right.

    Where nothing is known about its hash, `sha256="any"` takes what comes and writes its hash
    down beside it; it is enforced from then on.

    Args:
        urls: addresses of one and the same file, best first.
        target: see `place`.
        sha256: wanted, or its beginning, or "any".
        md5: the beginning of it.

    Raises:
        FileNotFoundError: it is not in the cache, and offline mode is on; or no address has it.
        ValueError: no hash is known; or every address gave a file with another one.
        OSError: no address answers, or the disk is full.
    """
    _refuse_short(sha256)
    noted = target.with_name(target.name + ".sha256")
    if sha256 in (None, ANY):
        sha256 = _note(noted) or sha256
    if target.is_file():
        check(target, None if sha256 == ANY else sha256, md5)
        return target
    known = sha256 not in (None, ANY) or md5 is not None
    addresses = [*_mirrored(target, known), *map(resolved, urls)]
    if offline():
        addresses = [url for url in addresses if url.startswith("file:")]
    if not addresses:
        raise FileNotFoundError(
            f"{target.name} is not in the cache {target.parent}"
            + (" and SSLZOO_OFFLINE is set" if offline() else ", and it has no address")
        )
    if sha256 is None and md5 is None:
        raise ValueError(
            f"nobody published a hash of {target.name}: pass sha256='...' of the file that you "
            "trust, or sha256='any' to take what comes (its hash is enforced from then on)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        wanted = None if sha256 == ANY else sha256
        if target.is_file():  # another process was faster
            check(target, _note(noted) if wanted is None else wanted, md5)
        else:
            _download_any(addresses, target, wanted, md5)
    return target


def _note(path: Path) -> str | None:
    """The sha256 that was written down beside a file, where it is whole."""
    text = path.read_text().strip() if path.is_file() else ""
    return text if len(text) == 64 else None


def _write_note(target: Path, digest: str) -> None:
    part = target.with_name(target.name + ".sha256.part")
    part.write_text(digest + "\n")
    part.replace(target.with_name(target.name + ".sha256"))


def _mirrored(target: Path, known: bool) -> list[str]:
    """Addresses at the mirror: under the owner's name; files of a known hash also by their own."""
    mirror = os.environ.get("SSLZOO_MIRROR")
    if not mirror:
        return []
    base = (mirror if is_url(mirror) else Path(mirror).resolve().as_uri()).rstrip("/")
    names = [f"{target.parent.name}/{target.name}", *([target.name] if known else [])]
    return [resolved(f"{base}/{name}") for name in names]


def _download_any(
    addresses: Sequence[str], target: Path, sha256: str | None, md5: str | None
) -> None:
    """Download from the first address that works, and write its sha256 down."""
    failed: list[Exception] = []
    part = target.with_name(target.name + ".part")
    for url in addresses:
        try:
            _download(url, part, trusted=sha256 is not None)
            _write_note(target, check(part, sha256, md5))  # first: no file is without its hash
            part.replace(target)
            return
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):
                raise OSError(
                    error.errno, f"no space for {target.name} in {target.parent}"
                ) from None
            failed.append(_named(url, error))
        finally:
            part.unlink(missing_ok=True)
    wrong = next((error for error in failed if isinstance(error, ValueError)), None)
    reasons = "; ".join(map(str, failed))
    if wrong:
        raise type(wrong)(reasons)
    absent = all(isinstance(error, FileNotFoundError) for error in failed)
    kind = FileNotFoundError if absent else OSError
    raise kind(f"{target.name} cannot be fetched: {reasons}")


def _named(url: str, error: Exception) -> Exception:
    """The error with the address in it; FileNotFoundError where the address has no file."""
    text = f"{url}: {error}"
    if isinstance(error, ValueError):
        return ValueError(text)
    # 403 is S3's answer for a file that is not there, where its names are not public.
    status = error.code if isinstance(error, urllib.error.HTTPError) else None
    absent = status in (403, 404) or isinstance(getattr(error, "reason", None), FileNotFoundError)
    return FileNotFoundError(text) if absent else OSError(text)


def _download(url: str, part: Path, trusted: bool) -> None:
    """One address into one file, whole.

    Raises:
        OSError: it does not answer, breaks off, or does not fit on the disk.
        ValueError: http:// for a file without a sha256.
    """
    host = urllib.parse.urlsplit(url).hostname
    if url.startswith("http://") and host not in ("127.0.0.1", "localhost") and not trusted:
        raise ValueError("http:// only for a file whose sha256 is known; https:// otherwise")
    request = urllib.request.Request(url, headers={"User-Agent": f"sslzoo/{sslzoo.__version__}"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, part.open("wb") as file:
        size = _size(answer)
        if size is not None and size > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f"{size} bytes wanted")
        shutil.copyfileobj(answer, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())
        got = file.tell()
    if size is not None and got != size:
        raise OSError(f"{got} of {size} bytes came")


def _size(answer: Any) -> int | None:
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None
