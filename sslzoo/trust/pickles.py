"""Pickles: refuse pickles nested so deeply that reading them crashes the process.

Python hashes nested tuples by unbounded recursion: as the key of a dictionary, a tuple of a
hundred thousand levels causes a segmentation fault. Lists and dictionaries of that depth can be
read, but not shown in an error.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

from sslzoo.file_kind import other_kind

_DEEPEST = 100  # maximum nesting; checkpoints have ten levels
_ZIP = b"PK\x03\x04"  # first bytes of the newer of torch's two formats
_OLD_PICKLES = 5  # pickles before the numbers in a torch file from before 1.6


def refuse_deep_pickles(path: Path, single: bool = False) -> None:
    """Refuse a file whose pickles contain values nested too deeply to hash or show.

    Args:
        path: a torch file of either format.
        single: whether it is a single pickle rather than a torch file.

    Raises:
        ValueError: the file has such values, or lacks an expected pickle.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if single or file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(1 if single else _OLD_PICKLES):
                _refuse_deep(file, path, "pickle" if single else "torch file")
            return
    try:
        with zipfile.ZipFile(path) as whole:
            parts = [p for p in whole.infolist() if p.filename.lower().endswith("data.pkl")]
            for part in parts:
                with whole.open(part) as inner:
                    _refuse_deep(inner, path, "torch file")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return  # torch raises the error


def _refuse_deep(file: IO[bytes], path: Path, kind: str) -> None:
    """Simulate an unpickler on a pickle, with each value replaced by its depth."""
    stack: list[int | None] = []  # None: a mark
    memo: dict[Any, int | None] = {}
    deepest = 0
    try:
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[arg] = stack[-1]
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[arg])
            elif opcode.name == "MARK":
                stack.append(None)
            else:
                taken = _take(stack, [part.name for part in opcode.stack_before])
                depth = max(taken, default=0)
                if opcode.name.startswith("TUPLE"):
                    depth += 1
                elif opcode.name.startswith(("APPEND", "SETITEM")):  # into the last value
                    depth = max(taken[-1], 1 + max(taken[:-1], default=-1))
                deepest = max(deepest, depth)
                stack += [depth] * len(opcode.stack_after)
    except Exception as error:
        line = other_kind(path) or " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a valid {kind}: {line}") from None
    if deepest > _DEEPEST:
        raise ValueError(
            f"{path} must have values nested at most {_DEEPEST} levels deep, got {deepest}"
        )


def _take(stack: list[int | None], kinds: list[str]) -> list[int]:
    """Pop the values that an opcode takes from the stack: all after a mark, and those before it."""
    taken = []
    before = kinds.index("mark") if "mark" in kinds else len(kinds)
    if "mark" in kinds:
        while (value := stack.pop()) is not None:
            taken.append(value)
    return taken + [stack.pop() or 0 for _ in range(before)]
