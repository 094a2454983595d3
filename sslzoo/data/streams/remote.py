"""Remote shards: whole files in a cache folder with a bound."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sslzoo.atomic_write import replacing
from sslzoo.checks import check_positive
from sslzoo.data.streams.shards import library

_GIB = 1 << 30
_DAY = 24 * 3600  # seconds
_VERSIONS = ("etag", "contentmd5", "md5hash", "blobid", "mtime", "lastmodified", "created")
_OWN = re.compile(r"[0-9a-f]{16}-")  # how the names of the cache's files begin
_WHOLE = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}-")  # those of whole files
_NAME = 100  # characters of an address's file name that are kept, such as of a long query
_ON_DISK = ("file://", "local://", "memory://")  # another attempt would find the same
_WAITS = (1.0, 4.0)  # seconds before another attempt to download
_DISK = {errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


class AddressError(Exception):
    """A shard cannot be downloaded.

    It is no ValueError or OSError, which are those of broken samples: the state of a network or a
    disk must not decide which samples are skipped.
    """


def default_cache() -> Path:
    """`SSLZOO_STREAMS`, or `~/.cache/sslzoo/streams`."""
    given = os.environ.get("SSLZOO_STREAMS")
    return Path(given) if given else Path.home() / ".cache" / "sslzoo" / "streams"


class ShardCache:
    """Local files of shards: those of addresses are downloaded, whole, when they are first read.

    All processes of a machine share the folder: a lock per file lets one of them download it. When
    its files are over the bound, those used longest ago are removed; a file that a process has open
    keeps its space until it is closed. Other files in the folder are left alone.

    Args:
        folder: the folder; None: `default_cache`.
        max_gb: its bound in GiB.
        local_files_only: refuse addresses.
    """

    def __init__(
        self, folder: str | None = None, max_gb: float = 100.0, local_files_only: bool = False
    ) -> None:
        check_positive("cache_gb", max_gb)
        self.folder = default_cache() if folder is None else Path(folder).expanduser()
        self.max_gb = max_gb
        self.local_files_only = local_files_only
        self._current: dict[str, Path] = {}  # address -> its file, if it was asked for its version

    @staticmethod
    def is_remote(name: str) -> bool:
        """Whether a name is an address such as https://, s3:// or hf://."""
        return "://" in name

    def path(self, name: str) -> Path:
        """The local file of a shard, downloaded if there is none or it is of another version.

        A process asks an address for its version once, and uses the file that is there if the
        address cannot be reached.

        Raises:
            AddressError: it cannot be downloaded.
            ValueError: it may not be.
        """
        with self.held(name) as path:
            return path

    @contextmanager
    def held(self, name: str) -> Iterator[Path]:
        """Context manager of `path`, whose file no process removes before it is open."""
        if not self.is_remote(name):
            yield Path(name)
            return
        self.check(name)

        def find(digest: str) -> Path:
            target = self._current.get(name)
            if target is None or not target.is_file():
                target = self._current[name] = self._tried(name, digest)
            return target

        with self._file(name, find) as path:
            yield path

    @contextmanager
    def made(self, name: str, make: Callable[[], bytes]) -> Iterator[Path]:
        """Like `held`, of a file that is no download, such as a decompressed shard.

        Args:
            name: what tells the content from others, and behind its last slash a file name.
            make: gives the content; it is called if there is no such file.

        Raises:
            AddressError: the folder has no room or is not writable.
        """

        def find(digest: str) -> Path:
            target = self.folder / f"{digest}-{digest[:8]}-{name.rpartition('/')[2][-_NAME:]}"
            if not target.is_file():
                with replacing(target, target.name[:17]) as part:
                    part.write_bytes(make())
                self._evict(target)
            return target

        with self._file(name, find) as path:
            yield path

    @contextmanager
    def _file(self, name: str, find: Callable[[str], Path]) -> Iterator[Path]:
        """The file that `find` gives for the hash of a name, under its lock."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self._lock(digest)))
                target = find(digest)
                os.utime(target)
            except OSError as error:
                raise AddressError(
                    f"the folder of downloads must have room and be writable, got {self.folder} "
                    f"for {name} ({error.strerror or error}); set cache_dir or cache_gb"
                ) from error
            yield target

    def _lock(self, digest: str) -> Path:
        return self.folder / f".{digest}.lock"

    def _tried(self, name: str, digest: str) -> Path:
        """`_updated`, in several attempts if the address is of a network."""
        for wait in () if name.startswith(_ON_DISK) else _WAITS:
            try:
                return self._updated(name, digest)
            except AddressError:
                time.sleep(wait)
        return self._updated(name, digest)

    def _updated(self, name: str, digest: str) -> Path:
        """The file of the address's version: `<hash of the address>-<version>-<file name>`."""
        file = name.rpartition("/")[2][-_NAME:]
        old = [path for path in self.folder.glob(f"{digest}-*") if _WHOLE.match(path.name)]
        try:
            with _readable(name) as (files, within):
                version = _version(files.info(within))
        except AddressError:
            if not old:
                raise
            return old[0]
        target = self.folder / f"{digest}-{version}-{file}"
        if target not in old:
            self._download(name, target)
        for path in old:
            if path != target:
                path.unlink(missing_ok=True)
        return target

    def text(self, name: str) -> str:
        """The text of a small remote file, which is not kept."""
        with self.opened(name) as file:
            return bytes(file.read()).decode()

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """Open a remote file for reading, without keeping it; see `path` for errors."""
        self.check(name)
        with _readable(name) as (files, path), files.open(path, "rb") as file:
            yield file

    def check(self, name: str) -> None:
        """Refuse an address with `local_files_only`.

        Raises:
            ValueError: it is one.
        """
        if self.local_files_only and self.is_remote(name):
            raise ValueError(
                f"the shards {name!r} of a run's config must be local, since nothing is downloaded "
                "for a file; if you trust the run, say so: --trust"
            )

    def _download(self, name: str, target: Path) -> None:
        with replacing(target, target.name[:17]) as part, _readable(name) as (files, path):
            expected = files.info(path).get("size")
            files.get_file(path, str(part))
            found = part.stat().st_size
            if expected not in (None, found):
                raise ValueError(f"it must have {expected} bytes, got {found}")
        self._evict(target)

    def _evict(self, newest: Path) -> None:
        with FileLock(self.folder / ".evict.lock"):
            found = []
            for path in self.folder.iterdir():
                if not _OWN.match(path.name) or not path.is_file():
                    continue
                try:
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
                except FileNotFoundError:
                    continue  # another process finished its download
            total = sum(size for _, size, _ in found)
            for used, size, path in sorted(found):
                is_part = not _WHOLE.match(path.name)  # of a download that goes on, or was killed
                over = total > self.max_gb * _GIB and not is_part
                if path != newest and (over or (is_part and time.time() - used > _DAY)):
                    with suppress(Timeout), FileLock(self._lock(path.name[:16]), timeout=0):
                        path.unlink(missing_ok=True)
                        total -= size


def _version(info: dict[str, Any]) -> str:
    """A short hash of a file's size, and of its hash or time under any file system's name."""
    known = {key.lower().replace("-", "").replace("_", ""): info[key] for key in info}
    told = [known[key] for key in ("size", *_VERSIONS) if known.get(key) is not None]
    return hashlib.sha256(str(told[:2]).encode()).hexdigest()[:8]


@contextmanager
def _readable(name: str) -> Iterator[tuple[Any, str]]:
    """The file system of fsspec and the path in it.

    Raises:
        AddressError: reading fails.
        ImportError: the protocol needs a package that is not installed.
        OSError: there is no space for what is read.
    """
    fsspec = library("fsspec", name)
    try:
        yield fsspec.core.url_to_fs(name)
    except (ImportError, KeyboardInterrupt):
        raise
    except Exception as error:  # of any protocol's library
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise AddressError(
            f"the address of a shard must be readable, got {name} ({type(error).__name__}: {error})"
        ) from error
