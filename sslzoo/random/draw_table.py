"""DrawTable: all keyed draws of a batch in one table, for accelerators.

A draw takes some 30 small operations, and an accelerator waits for the host to launch each of them.
The values are those of `sslzoo.random.keys`. Shapes: B keys.
"""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from sslzoo.random.keys import GOLDEN, Keys, mix, signed, step_of, unit_of

Path = tuple[int | str, ...]  # the parts folded into a key, with the draw's purpose last


class DrawTable:
    """Make all draws of a batch in one table, once an earlier batch recorded them.

    Draws differ from batch to batch in their keys alone, so this class records their parts and
    sizes. It never forgets a draw, so the parts must be the same in every batch, without a step.

    Example:
        >>> table = DrawTable()
        >>> for epoch in range(3):  # one table from the second epoch on
        ...     keys = table.keys(sample_keys(0, epoch, torch.arange(4)))
        ...     crop, flip = keys.uniform("crop", 4), keys.fold("op", 1).bernoulli("flip", 0.5)
    """

    def __init__(self) -> None:
        self._first_columns: dict[tuple[Path, int], int] = {}
        self._width = 0
        self._constants: dict[torch.device, _Constants] = {}

    def __reduce__(self) -> tuple[type[DrawTable], tuple[()]]:
        return DrawTable, ()  # it is quickly rebuilt and holds tensors of a device

    def keys(self, keys: Keys) -> Keys:
        """The same keys for one batch, whose known draws come from the table."""
        return _TableKeys(_BatchTable(self, keys), ())

    def first_column(self, path: Path, count: int) -> int | None:
        """The first column of a known draw; a new one is recorded for the next batch."""
        column = self._first_columns.get((path, count))
        if column is None:
            self._first_columns[path, count] = self._width
            self._width += count
            self._constants.clear()
        return column

    def constants(self, device: torch.device) -> _Constants | None:
        """The constants of the table of all known draws; None if there are none."""
        if not self._first_columns:
            return None
        if device not in self._constants:
            self._constants[device] = _Constants(list(self._first_columns), device)
        return self._constants[device]


class _Constants:
    """The constants that turn keys into a table of draws.

    Args:
        draws: path and number of columns per draw.
        device: device of the keys.
    """

    def __init__(self, draws: list[tuple[Path, int]], device: torch.device):
        paths = sorted(dict.fromkeys(path for path, _ in draws), key=len)
        self.steps = [  # (depth, paths of that depth) each
            torch.tensor([[step_of(part) for part in path] for path in same], device=device).T
            for same in (list(group) for _, group in groupby(paths, len))
        ]
        number = {path: i for i, path in enumerate(paths)}
        columns = [(number[path], signed(k * GOLDEN)) for path, n in draws for k in range(1, n + 1)]
        self.path, self.count = torch.tensor(columns, device=device).T.contiguous()

    def bits(self, key: Tensor) -> Tensor:
        """All columns of all draws, (B, columns) int64."""
        folded = []
        for steps in self.steps:
            x = key[:, None]
            for step in steps:
                x = mix(x + step)
            folded.append(x)
        return mix(torch.cat(folded, dim=1).index_select(1, self.path) + self.count)


class _BatchTable:
    """The draws of one batch."""

    def __init__(self, draws: DrawTable, keys: Keys) -> None:
        self.root = keys
        self._draws = draws
        self._bits: Tensor | None = None
        self._unit: Tensor | None = None
        if (constants := draws.constants(keys.key.device)) is not None:
            self._bits = constants.bits(keys.key)

    def bits(self, path: Path, count: int) -> Tensor | None:
        """(B, count) int64; None for a new draw."""
        return self._columns(self._bits, path, count)

    def unit(self, path: Path, count: int) -> Tensor | None:
        """(B, count) float32 in [0, 1); None for a new draw."""
        if self._unit is None and self._bits is not None:
            self._unit = unit_of(self._bits)
        return self._columns(self._unit, path, count)

    def _columns(self, table: Tensor | None, path: Path, count: int) -> Tensor | None:
        first = self._draws.first_column(path, count)
        if first is None or table is None or first + count > table.shape[1]:
            return None
        return table[:, first : first + count]


class _TableKeys(Keys):
    """Keys whose known draws come from a table.

    Args:
        table: the table of the batch.
        path: the parts folded into the table's keys.
        which: the table's rows of these keys.
    """

    _table: _BatchTable
    _path: Path
    _which: slice

    def __init__(self, table: _BatchTable, path: Path, which: slice = slice(None)):
        for name, value in (("_table", table), ("_path", path), ("_which", which)):
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def key(self) -> Tensor:  # type: ignore[override]
        return self._plain().key

    def _plain(self) -> Keys:
        return Keys(self._table.root.key[self._which]).fold(*self._path)

    def fold(self, *parts: int | str | Tensor) -> Keys:
        names = [part for part in parts if not isinstance(part, Tensor)]
        if len(names) < len(parts):
            return self._plain().fold(*parts)
        return _TableKeys(self._table, (*self._path, *names), self._which)

    def rows(self, which: slice) -> Keys:
        mine = range(len(self._table.root.key))[self._which][which]
        return _TableKeys(self._table, self._path, slice(mine.start, mine.stop, mine.step))

    def bits(self, purpose: str, *shape: int) -> Tensor:
        found = self._table.bits((*self._path, purpose), math.prod(shape))
        if found is None:
            return self._plain().bits(purpose, *shape)
        return found[self._which].reshape(-1, *shape)

    def unit(self, purpose: str, *shape: int) -> Tensor:
        found = self._table.unit((*self._path, purpose), math.prod(shape))
        if found is None:
            return self._plain().unit(purpose, *shape)
        return found[self._which].reshape(-1, *shape)
