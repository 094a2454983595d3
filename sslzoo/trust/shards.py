"""Shards: safe reading of a folder that the ranks of a run have written their parts to.

The folders are those of `torch.distributed.checkpoint`: `.metadata` says which part of a tensor is
where, and Lightning adds `meta.pt`, which has everything besides tensors. torch unpickles
`.metadata` and plain values without restriction; here neither can name any code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sslzoo.trust.checkpoint import read_checkpoint
from sslzoo.trust.pickles import refuse_deep_pickles

METADATA, EXTRA = ".metadata", "meta.pt"
WITH_EXTRA = "has_meta"  # the name of a plain value that says that EXTRA was written
_ATTEMPTS = 3
_MOST_SIDES = 64  # of a tensor, in torch
_PARTS = "torch.distributed.checkpoint."


class Part(NamedTuple):
    """A part of a tensor, or a plain value, in a file.

    Attributes:
        file: name of the file.
        start: position of its first byte.
        length: number of its bytes.
        offset: position in the tensor, one number per dimension.
        size: size of the part; for a plain value, offset and size are empty.
    """

    file: str
    start: int
    length: int
    offset: tuple[int, ...] = ()
    size: tuple[int, ...] = ()


class Stored(NamedTuple):
    """A tensor, or a plain value, of a folder.

    Attributes:
        path: its names in the nested dictionaries that were saved.
        dtype: the tensor's type; None: it is a plain value.
        size: the tensor's size.
        parts: its parts, or the single one of a plain value.
    """

    path: tuple[str | int, ...]
    dtype: torch.dtype | None
    size: tuple[int, ...]
    parts: list[Part]


def is_folder_of_shards(path: Path) -> bool:
    """Whether a path is a folder of a distributed checkpoint, even if parts are missing."""
    return path.is_dir() and any(
        (path / METADATA).exists() or part.suffix == ".distcp" for part in path.iterdir()
    )


def read_index(folder: Path) -> dict[str, Stored]:
    """Read what a folder holds by its full name, without the tensors' values.

    Raises:
        ValueError: the folder is incomplete or damaged, or `.metadata` names code.
    """
    path = folder / METADATA
    if not path.is_file():
        raise ValueError(
            f"{folder} must be a whole distributed checkpoint, got one without {METADATA}, which "
            "is written last; use an earlier checkpoint"
        )
    refuse_deep_pickles(path, single=True)
    try:
        with path.open("rb") as file:
            read = _Unpickler(file).load()
        index = _indexed(vars(read))
    except Exception as error:  # a forged file may raise anything
        line = " ".join(str(error).split())
        raise ValueError(f"{path} must be that of a distributed checkpoint: {line:.200}") from None
    sizes = {
        name: _bytes_of(folder / name) for name in {p.file for s in index.values() for p in s.parts}
    }
    for name, stored in index.items():
        for part in stored.parts:
            if part.start + part.length > sizes[part.file]:
                raise ValueError(
                    f"{folder} must be a whole distributed checkpoint, got {part.file} of "
                    f"{sizes[part.file]} bytes, too short for {name}; use an earlier checkpoint"
                )
    return index


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def outline(folder: Path) -> dict[str, Any]:
    """Everything that a folder holds, with empty tensors on the meta device; see `assemble`."""
    return _whole_tree(
        folder, lambda _, stored: torch.empty(stored.size, dtype=stored.dtype, device="meta")
    )


def assemble(folder: Path) -> dict[str, Any]:
    """Read a folder as the dictionary that one process would have saved, on the CPU.

    Args:
        folder: of `FullyShard(save_distributed_checkpoint=True)`, of Lightning's
            ModelParallelStrategy and FSDPStrategy, or of `torch.distributed.checkpoint.save`.

    Returns:
        A Lightning checkpoint, with `optimizer_states` as of one process, if `meta.pt` is there.

    Raises:
        ValueError: the folder is incomplete or damaged, holds more than tensors and plain values,
            or was replaced again and again while it was read.
    """
    return _whole_tree(folder, lambda name, stored: _read_tensor(folder, name, stored))


def version_of(folder: Path) -> str | None:
    """What tells a folder from the one that replaces it under its name; None: it is incomplete.

    It is a hash of `.metadata`, to which torch gives another identifier each time.
    """
    try:
        return hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()
    except OSError:
        return None


def _whole_tree(folder: Path, make: Callable[[str, Stored], Tensor]) -> dict[str, Any]:
    """A folder's contents, of one version: a run may replace it with a later checkpoint."""
    for _ in range(_ATTEMPTS):
        before = version_of(folder)
        try:
            index = read_index(folder)
            tensors = {n: make(n, s) for n, s in index.items() if s.dtype is not None}
            found = _tree(folder, tensors, index)
        except (OSError, ValueError):
            if version_of(folder) == before:
                raise
        else:
            if version_of(folder) == before:
                return found
    raise ValueError(
        f"{folder} must stay as it is while it is read, but a run replaced it {_ATTEMPTS} times"
    )


def _tree(
    folder: Path, tensors: Mapping[str, Tensor], index: Mapping[str, Stored]
) -> dict[str, Any]:
    """Nest tensors and plain values as they were saved, and add the contents of `meta.pt`."""
    try:
        return _nested(folder, tensors, index)
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"{folder} must be a distributed checkpoint, got {error!r:.200}") from None


def _nested(
    folder: Path, tensors: Mapping[str, Tensor], index: Mapping[str, Stored]
) -> dict[str, Any]:
    found: dict[Any, Any] = {}
    for name, stored in index.items():
        value = tensors[name] if stored.dtype is not None else _read(folder, name, stored.parts[0])
        inner = found
        for key in stored.path[:-1]:
            inner = inner.setdefault(key, {})
        if not isinstance(inner, dict) or stored.path[-1] in inner:
            raise ValueError(f"{folder} must hold {name} once, got two values of that name")
        inner[stored.path[-1]] = value
    extra = folder / EXTRA
    of_run = found.pop(WITH_EXTRA, "optimizer_0" in found)  # torch's own folders need no such file
    if not extra.is_file():
        if of_run:
            raise ValueError(
                f"{folder} must be a whole distributed checkpoint, got one without {EXTRA}, which "
                "has the run's state besides tensors; use an earlier checkpoint"
            )
        return found
    whole = read_checkpoint(extra)
    whole["state_dict"] = found.pop("state_dict", found.pop("model", {}))
    optimizers = {name: state for name, state in found.items() if name.startswith("optimizer_")}
    if "optimizer_states" not in whole:
        in_order = [optimizers[f"optimizer_{i}"] for i in range(len(optimizers))]
        whole["optimizer_states"] = [_numbered(state) for state in in_order]
        return whole
    for i, plain in enumerate(whole["optimizer_states"]):
        state = optimizers.get(f"optimizer_{i}", {})  # without tensors there is none
        for number, values in state.get("state", {}).items():
            plain["state"].setdefault(int(number), {}).update(values)
    return whole


def _numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with numbers for the parameters, as of one process, not names."""
    groups = state.get("param_groups", {})
    listed = [dict(groups[i]) for i in sorted(groups)] if isinstance(groups, dict) else groups
    names = [name for group in listed for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    for group in listed:
        group["params"] = [number[name] for name in group["params"]]
    inner = {number[name]: values for name, values in state.get("state", {}).items()}
    return {"state": inner, "param_groups": listed}


def _read(folder: Path, name: str, part: Part) -> Any:
    with (folder / part.file).open("rb") as file:
        file.seek(part.start)
        raw = io.BytesIO(file.read(part.length))
    try:
        with zipfile.ZipFile(raw) as packed:
            entries = packed.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed")
        raw.seek(0)
        return torch.load(raw, "cpu", weights_only=True)
    except Exception as error:  # torch raises anything for forged arguments
        line = " ".join(str(error).split())
        raise ValueError(
            f"{name} in {folder / part.file} must be a tensor or a plain value: {line:.200}"
        ) from None


def _read_tensor(folder: Path, name: str, stored: Stored) -> Tensor:
    whole = torch.zeros(stored.size, dtype=stored.dtype)
    for part in stored.parts:
        value = _read(folder, name, part)
        if not isinstance(value, Tensor) or tuple(value.shape) != part.size:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} in {folder / part.file} must be {part.size}, got {got}")
        where = tuple(slice(o, o + n) for o, n in zip(part.offset, part.size, strict=True))
        whole[where] = value.to(stored.dtype)
    return whole


class _Record:
    """Stand-in for an object of torch.distributed.checkpoint."""

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state if isinstance(state, dict) else {"state": state})


_RECORDS = {
    f"{_PARTS}metadata.{name}": type(name, (_Record,), {})
    for name in (
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties"),
        *("ChunkStorageMetadata", "MetadataIndex", "StorageMeta"),
    )
} | {f"{_PARTS}filesystem._StorageInfo": type("_StorageInfo", (_Record,), {})}
_ignored = lambda *args: None  # noqa: E731
_CALLS: dict[str, Any] = {
    "torch.Size": tuple,
    "torch.serialization._get_layout": _ignored,
    "pathlib.PosixPath": _ignored,
    "pathlib.WindowsPath": _ignored,
    "pathlib._local.PosixPath": _ignored,
    "pathlib._local.WindowsPath": _ignored,
    f"{_PARTS}metadata._MEM_FORMAT_ENCODING": _ignored,
}


class _Unpickler(pickle._Unpickler):  # the pure-Python one, whose opcodes can be replaced
    """Unpickler whose file can name, call and change stand-ins only."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        if full not in _RECORDS and full not in _CALLS:
            raise pickle.UnpicklingError(f"it names {full}, which could run code")
        return _RECORDS.get(full) or _CALLS[full]

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it names the extension {code}, which could run code")

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, _Record):
            raise pickle.UnpicklingError(f"it changes {made!r:.100}")
        made.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def _indexed(metadata: Mapping[str, Any]) -> dict[str, Stored]:
    """The index of `.metadata`, with every number checked."""
    places: dict[str, dict[tuple[int, ...] | None, Part]] = {}
    for key, info in metadata["storage_data"].items():
        about, where = vars(info), vars(key)
        file, start, length = about["relative_path"], about["offset"], about["length"]
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise ValueError(f"a part must be in a file of the folder, got {file!r:.100}")
        if about.get("transform_descriptors"):
            raise ValueError(f"a part must be stored plainly, got {about['transform_descriptors']}")
        if min(_whole(start), _whole(length)) < 0:
            raise ValueError(f"a part must begin at 0 or later, got {start} and {length} bytes")
        offset = where.get("offset")
        place = None if offset is None else _sizes(offset)
        places.setdefault(where["fqn"], {})[place] = Part(file, start, length)
    index: dict[str, Stored] = {}
    paths = metadata.get("planner_data") or {}
    for name, stored in metadata["state_dict_metadata"].items():
        if not isinstance(name, str):
            raise ValueError(f"names must be text, got {name!r:.100}")
        path = tuple(paths.get(name, (name,)))
        if not path or not all(isinstance(key, str | int) for key in path):
            raise ValueError(f"{name} must have a path of names, got {path!r:.100}")
        if type(stored).__name__ == "BytesStorageMetadata":
            index[name] = Stored(path, None, (), [places[name][None]])
            continue
        size, dtype = _sizes(stored.size), stored.properties.state[0]
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name} must have a type, got {dtype!r:.100}")
        chunks = {_sizes(chunk.offsets): _sizes(chunk.sizes) for chunk in stored.chunks}
        parts = [
            places[name][at]._replace(offset=at, size=n) for at, n in chunks.items() if _count(n)
        ]
        inside = all(
            len(p.offset) == len(p.size) == len(size)
            and all(o + n <= most for o, n, most in zip(p.offset, p.size, size, strict=True))
            for p in parts
        )
        if not inside or sum(_count(part.size) for part in parts) != _count(size):
            raise ValueError(
                f"the parts of {name} must be those of {size}, got {list(chunks.items())[:3]}"
            )
        if any(part.length < _count(part.size) * dtype.itemsize for part in parts):
            raise ValueError(f"the parts of {name} must have the bytes of {size}, got fewer")
        index[name] = Stored(path, dtype, size, parts)
    return index


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"positions must be whole numbers, got {value!r:.100}")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(_whole(value) for value in values)
    if any(value < 0 for value in sizes):
        raise ValueError(f"sizes must be at least 0, got {sizes}")
    if len(sizes) > _MOST_SIDES or _count(tuple(max(1, n) for n in sizes)) >= 1 << 63:
        raise ValueError(f"sizes must be those of a tensor, got {len(sizes)}: {sizes!r:.100}")
    return sizes


def _count(size: tuple[int, ...]) -> int:
    count = 1
    for side in size:
        count *= side
    return count
