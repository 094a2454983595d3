"""Download cache: each file is fetched once, written atomically and verified by hash.

One process downloads while the others wait for its lock. A file appears under its name by a
rename, after its hash was verified and its content was parsed. Its sha256 is stored next to it and
enforced from then on, even if nobody published one (trust on first use).

Environment:
    SSLZOO_HOME: the folder (default: $XDG_CACHE_HOME/sslzoo or ~/.cache/sslzoo).
    SSLZOO_OFFLINE: 1 forbids downloads; HF_HUB_OFFLINE=1 forbids those of hf:// URLs.
    SSLZOO_MIRROR: folder or URL of a mirror, which is tried first; it has files by their names.
    HF_ENDPOINT: server of hf:// URLs (default: https://huggingface.co).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from sslzoo.atomic_write import atomic_write
from sslzoo.file_kind import other_kind
from sslzoo.zoo import download
from sslzoo.zoo.download import Wanted, is_url, resolved

__all__ = ["ANY", "check", "fetch", "forget", "home", "is_url", "offline", "place", "resolved"]

_CHUNK = 1 << 20
ANY = "any"
_LOCK = "fetching.lock"
_LONGEST = 200  # bytes of a name; file systems allow 255, and suffixes are added
# torch.hub's convention: name-0123abcd.pth. Eight digits that form a date are not a hash.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[A-Za-z0-9.]+$")
_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def home() -> Path:
    """Path of the cache folder."""
    if os.environ.get("SSLZOO_HOME"):
        return Path(os.environ["SSLZOO_HOME"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sslzoo"


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() not in ("", "0", "false", "no", "off")


def offline() -> bool:
    """Whether SSLZOO_OFFLINE forbids network access."""
    return _switched_on("SSLZOO_OFFLINE")


def plain_name(name: str) -> bool:
    """Whether a text is a plain file or folder name rather than a path."""
    return (
        0 < len(name.encode(errors="replace")) <= _LONGEST
        and name.isprintable()
        and not {"/", "\\"} & set(name)
        and name.strip(". ") != ""
        and name != _LOCK
    )


def place(owner: str, file: str) -> Path:
    """Path of a file in the cache.

    Args:
        owner: an entry's name, or a URL.
        file: the file's name.

    Raises:
        ValueError: one of them would lead out of the cache, or is not a name.
    """
    if not plain_name(file):
        if is_url(owner):
            raise ValueError(f"a URL must end in a file name, got {_short(owner)}")
        raise ValueError(f"a file's name must be plain (no path), got {_short(file)}")
    if is_url(owner):
        owner = hashlib.sha256(owner.encode()).hexdigest()[:16]
    if not plain_name(owner):
        raise ValueError(f"an entry's name must be plain (no path), got {_short(owner)}")
    return home() / "files" / owner / file


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


# -- hashes


def check(path: Path, sha256: str | None, md5: str | None = None, name: str | None = None) -> str:
    """Verify a file's sha256 and md5 prefixes and return its sha256.

    Args:
        path: the file.
        sha256: prefix of its sha256, or None.
        md5: prefix of its md5, or None.
        name: name for the error, if it differs from the path's.

    Raises:
        ValueError: a hash differs, or the sha256 prefix is too short to decide.
    """
    refuse_malformed(sha256)
    hashes = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for each in hashes.values():
                each.update(chunk)
    for kind, wanted in (("sha256", sha256), ("md5", md5)):
        got = hashes[kind].hexdigest()
        if wanted not in (None, ANY) and not got.startswith(str(wanted).lower()):
            name = name or path.name
            raise ValueError(f"the {kind} of {name} must be {wanted}, got {got}")
    return hashes["sha256"].hexdigest()


def refuse_malformed(sha256: str | None) -> None:
    """Refuse a malformed hash prefix, since an empty one would match every hash.

    Raises:
        ValueError: the text is not a prefix of a hash.
    """
    if sha256 not in (None, ANY) and not re.fullmatch(r"[0-9a-fA-F]{8,64}", str(sha256)):
        raise ValueError(f"sha256 must be 8 to 64 hex digits or {ANY!r}, got {sha256!r}")


def hash_in_name(file: str) -> str | None:
    """The sha256 prefix in a file's name (torch.hub's name-0123abcd.pth)."""
    found = _HASH_IN_NAME.search(file)
    return None if found is None or _DATE.fullmatch(found[1]) else found[1]


def note_of(target: Path) -> Path:
    """Path of the note that records a file's sha256."""
    return target.with_name(f"{target.name}.sha256")


def noted(target: Path) -> str | None:
    """The sha256 recorded for a file, if the note is complete."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = note_of(target).read_text().strip()
        return text if re.fullmatch(r"[0-9a-f]{64}", text) else None
    return None


class _Hash(NamedTuple):
    """Known hashes of a file.

    Args:
        sha256: prefix of its sha256; None if unknown.
        md5: prefix of its md5; None if unknown.
        recorded: whether the sha256 was recorded at first use.
    """

    sha256: str | None
    md5: str | None
    recorded: bool

    @property
    def known(self) -> bool:
        return self.sha256 is not None or self.md5 is not None


def _known(target: Path, sha256: str | None, md5: str | None) -> _Hash:
    """The published hash, or the one in the name, or the one recorded at first use."""
    published = None if sha256 == ANY else sha256
    published = published or hash_in_name(target.name)
    note = noted(target)
    if note is not None and note.startswith((published or "").lower()):
        return _Hash(note, md5, published is None)
    return _Hash(published, md5, False)


# -- fetching


def fetch(
    urls: Sequence[str],
    target: Path,
    sha256: str | None = None,
    md5: str | None = None,
    parse: Callable[[Path], object] | None = None,
    strict: bool = False,
    who: str | None = None,
    most: int | None = None,
) -> Path:
    """Return a cached file, or download it from the first URL with a valid copy.

    If its hash is unknown, the first download is trusted: its sha256 is recorded next to it and
    enforced from then on, even after the file itself was removed.

    Args:
        urls: URLs of the same file, best first.
        target: see `place`.
        sha256: expected sha256 or a prefix; "any": like None, even if `strict`.
        md5: prefix of the expected md5.
        parse: raises a ValueError if the file at a path is not valid. It gets a file with the
            target's suffix before the file is renamed or its hash is recorded.
        strict: refuse a file without a published, given or recorded hash.
        who: prefix of the line on stderr about a recorded hash; None: no line.
        most: maximum size in bytes.

    Raises:
        FileNotFoundError: it is not in the cache, and offline mode is on; or no URL has it.
        ValueError: every URL gave a different or unreadable file; or `strict`.
        OSError: no URL answers, or the cache cannot be written.
    """
    refuse_malformed(sha256)
    wrong = _wrong(target, _known(target, sha256, md5))
    if wrong is None:
        return target
    known = _known(target, sha256, md5)
    addresses = [*_mirrored(target, known.known), *urls]
    addresses = [url for url in addresses if _forbidden_by(url) is None]
    if not addresses:
        raise _unavailable(target, wrong, urls)
    with _locked(target):
        known = _known(target, sha256, md5)
        if _wrong(target, known) is not None:  # no other process has fetched it meanwhile
            refused = strict and not known.known and sha256 != ANY
            wanted = Wanted(target.name, known.known, most)
            digest = _first(addresses, target, known, wanted, parse, refused)
            if who is not None and not known.known:
                print(
                    f"{who}: no published hash; recorded sha256 {digest} in {note_of(target)}; it "
                    "is enforced from now on",
                    file=sys.stderr,
                )
    return target


def forget(target: Path) -> None:
    """Remove a file and its recorded hash."""
    with _locked(target):
        for path in (target, note_of(target)):
            path.unlink(missing_ok=True)


def _wrong(target: Path, known: _Hash) -> str | None:
    """Reason why a cached file cannot be used; None if it can."""
    if not target.is_file():
        return f"{target.name} is not in the cache {target.parent}"
    if not known.known:
        return f"no hash of {target} was recorded"
    try:
        check(target, known.sha256, known.md5, str(target))
    except ValueError as error:
        return str(error)
    return None


def _forbidden_by(url: str) -> str | None:
    """The environment variable that forbids access to a URL."""
    scheme = url.partition(":")[0].lower()
    if offline() and scheme != "file":
        return "SSLZOO_OFFLINE"
    return "HF_HUB_OFFLINE" if scheme == "hf" and _switched_on("HF_HUB_OFFLINE") else None


def _unavailable(target: Path, wrong: str, urls: Sequence[str]) -> Exception:
    variables = sorted({_forbidden_by(url) or "" for url in urls})
    why = f"{variables[0]} is set" if variables else "it has no URL"
    kind = ValueError if target.is_file() else FileNotFoundError
    where = f"; it is at {' or '.join(map(_shown, urls))}" if urls else ""
    return kind(f"{wrong}, and {why}{where}; {_by_hand(target)}")


def _by_hand(target: Path) -> str:
    """How a file is given to a machine that cannot download it."""
    mirrored = f"FOLDER/{target.parent.name}/{target.name}"
    return (
        f"you can download it by hand on another machine and put it at {mirrored} with "
        "SSLZOO_MIRROR=FOLDER, or pass its path (file=PATH for an entry)"
    )


def _mirrored(target: Path, known: bool) -> list[str]:
    """URLs at the mirror: under the owner's name; with a known hash also under the file's name."""
    mirror = os.environ.get("SSLZOO_MIRROR")
    if not mirror:
        return []
    base = (mirror if is_url(mirror) else Path(mirror).resolve().as_uri()).rstrip("/")
    return [f"{base}/{target.parent.name}/{target.name}", *([f"{base}/{target.name}"] * known)]


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Lock a folder for one process; remove lock and folder if no file was kept.

    A process that waited for a lock that was removed meanwhile tries again: its file handle shows
    whether the file under the lock's name is still the one that it waited for.

    Raises:
        OSError: the cache cannot be written.
    """
    lock = target.with_name(_LOCK)
    with contextlib.ExitStack() as held:
        while True:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                own = held.enter_context(lock.open("a"))
                held.enter_context(FileLock(lock))
                if lock.exists() and os.path.samestat(os.fstat(own.fileno()), lock.stat()):
                    break
            except FileNotFoundError:
                if not _writable(lock.parent):
                    raise unwritable(target, "the folder does not exist") from None
            except OSError as error:
                raise unwritable(target, error.strerror or str(error)) from None
            held.close()
        try:
            yield
        finally:
            if not target.parent.exists() or {*target.parent.iterdir()} <= {lock}:
                with contextlib.suppress(OSError):
                    lock.unlink()
                    target.parent.rmdir()
                    target.parent.parent.rmdir()


def _writable(folder: Path) -> bool:
    """Create a folder and say whether that worked: another process may have just removed it."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return True
    return False


def unwritable(target: Path, why: str) -> OSError:
    """Make the error for a cache that cannot be written."""
    return OSError(
        f"the cache {home()} cannot be written ({target.parent}: {why}); set SSLZOO_HOME to a "
        "writable folder"
    )


def _first(
    addresses: Sequence[str],
    target: Path,
    known: _Hash,
    wanted: Wanted,
    parse: Callable[[Path], object] | None,
    refused: bool,
) -> str:
    """Download from the first URL that works to the target and return the sha256.

    Args:
        addresses: URLs, see `fetch`.
        target: see there.
        known: the file's known hashes.
        wanted: see `download.download`.
        parse: see there.
        refused: whether a file is refused once a URL has it.
    """
    failed: list[Exception] = []
    part = target.with_name(f"{target.name}.part{target.suffix}")
    for url in addresses:
        try:
            if refused:
                download.ask(url, wanted)
                break
            download.download(url, part, wanted)
            digest = _refuse_other(part, target, known, parse)
            atomic_write(note_of(target), f"{digest}\n")  # first: no file lacks its hash
            part.replace(target)
            return digest
        except OSError as error:
            if error.errno in _FULL:
                text = f"no space for {target.name} in {target.parent}"
                raise OSError(error.errno, text) from None
            if str(error.filename).startswith(str(target.parent)):
                raise unwritable(target, error.strerror or str(error)) from None
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
            failed.append(kind(f"{_shown(url)}: {error}"))
        except ValueError as error:
            failed.append(ValueError(f"{_shown(url)}: {error}"))
    else:
        raise _summed_up(target, failed)
    raise ValueError(
        f"{target.name} must have a published hash with strict=True, got none; pass sha256='...' "
        "of a file that you trust, or sha256='any' to trust the first download"
    )


def _shown(url: str) -> str:
    with contextlib.suppress(ValueError):
        return resolved(url)
    return url


def _summed_up(target: Path, failed: Sequence[Exception]) -> Exception:
    """Combine the errors of all URLs into one of the most informative type."""
    reasons = "; ".join(map(str, failed))
    if any(isinstance(error, ValueError) for error in failed):
        return ValueError(reasons)
    absent = all(isinstance(error, FileNotFoundError) for error in failed)
    kind = FileNotFoundError if absent else OSError
    return kind(f"{target.name} cannot be fetched: {reasons}; {_by_hand(target)}")


def _refuse_other(
    part: Path, target: Path, known: _Hash, parse: Callable[[Path], object] | None
) -> str:
    """Return the sha256 of a download if it is valid; otherwise remove it and raise.

    Raises:
        ValueError: its hash differs, or it cannot be read.
    """
    try:
        try:
            digest = check(part, known.sha256, known.md5, target.name)
        except ValueError as error:
            text = str(error)
            if known.recorded:
                text += f", unlike at its first use (to accept it, remove {note_of(target)})"
            raise ValueError(f"{text}; {_beginning(part)}") from None
        try:
            if parse is not None:
                parse(part)
        except (ValueError, OSError) as error:
            text, began = str(error).replace(str(part), str(target)), _beginning(part)
            told = "" if began in text else f", {began}"
            raise ValueError(f"the download is not a valid {target.name}{told}: {text}") from None
    except BaseException:
        download.discard(part)
        raise
    return digest


def _beginning(part: Path) -> str:
    with part.open("rb") as file:
        head = file.read(32)
    return other_kind(part) or f"the download begins with {head!r}"
