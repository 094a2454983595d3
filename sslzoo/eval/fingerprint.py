"""Fingerprints: hashes of everything that extracted features depend on, for the cache key.

Data sets and transforms have a method `fingerprint()` built from these functions, which
describes everything about them that changes the features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FunctionType

import numpy as np
import torch
from torch import Tensor, nn


def tensor_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of tensors' names, types, shapes and bytes, independent of their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """sha256 of a module's classes, plain attributes, parameters and buffers."""
    digest = hashlib.sha256(f"{module}\n".encode())
    for name, part in module.named_modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        plain = {key: value for key, value in vars(part).items() if _is_plain(value)}
        plain.pop("training", None)
        digest.update(f"{name} {kind} {sorted(plain.items())}\n".encode())
    tensors = {**module.state_dict(), **dict(module.named_buffers())}  # these may be unsaved
    digest.update(tensor_digest(tensors).encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)


def described(thing: object) -> str:
    """Describe an object by its class and attributes, recursively.

    Objects whose state cannot be read (slots, closures, bound methods) are described by their
    memory address, which differs from everything in another process.

    Args:
        thing: numbers, text, arrays, modules, functions, or objects composed of these.
    """
    if isinstance(thing, Tensor):
        return tensor_digest({"tensor": thing})
    if isinstance(thing, np.ndarray):
        return array_digest(np.atleast_1d(thing))
    if isinstance(thing, nn.Module):
        return module_digest(thing)
    if isinstance(thing, Mapping):
        return f"{{{', '.join(f'{key!r}: {described(thing[key])}' for key in thing)}}}"
    if isinstance(thing, list | tuple):
        return f"[{', '.join(map(described, thing))}]"
    if isinstance(thing, FunctionType) and "<" in thing.__qualname__:  # lambda or nested function
        return repr(thing)
    if isinstance(thing, type | FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    own = getattr(thing, "__dict__", None)
    if own or (own is not None and type(thing).__repr__ is object.__repr__):
        return f"{described(type(thing))}{described(own)}"
    return repr(thing)


def text_digest(parts: Iterable[str]) -> str:
    """sha256 of a sequence of texts, with unambiguous boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(f"{len(raw)} ".encode() + raw)
    return digest.hexdigest()


def files_digest(paths: Iterable[str | Path]) -> str:
    """sha256 of files' paths, sizes and modification times.

    Hashing the bytes of ImageNet would take longer than many evaluations.
    """
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def array_digest(values: np.ndarray, block: int = 1024) -> str:
    """sha256 of an array's type, shape and bytes; the array may be memory-mapped."""
    digest = hashlib.sha256(f"{values.dtype} {values.shape}\n".encode())
    for start in range(0, len(values), block):
        digest.update(np.ascontiguousarray(values[start : start + block]).tobytes())
    return digest.hexdigest()


def labels_digest(labels: Tensor | None) -> str:
    """sha256 of labels, or a fixed hash if there are none."""
    return tensor_digest({} if labels is None else {"labels": labels})
