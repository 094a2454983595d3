"""All keyed draws of a batch in one table, for accelerators, which wait for the host's launches.

The values are those of `sslzoo.random.keys`. Shapes: B keys.
"""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from sslzoo.random.keys import GOLDEN, Keys, mix, signed, step_of, unit_of

Path = tuple[int | str, ...]  # what is folded into a key, the purpose of the draw last


class DrawTable:
    """Makes all draws of a batch at once: what was asked for before is made in one table.

    A draw takes some 30 small operations, and an accelerator waits for the host to start each of
    them. What is drawn for a batch differs from step to step in its keys alone, so that this
    class remembers the names and numbers; the values are those of `Keys`. It never forgets one:
    names and numbers are to be the same in every batch, not a step's.

    Example:
        >>> plan = DrawTable()
        >>> for epoch in range(3):  # from the second time on in one go
        ...     keys = plan.keys(sample_keys(0, epoch, torch.arange(4)))
        ...     crop, flip = keys.uniform("crop", 4), keys.fold("op", 1).bernoulli("flip", 0.5)
    """

    def __init__(self) -> None:
        self._places: dict[tuple[Path, int], int] = {}  # of a draw's first column
        self._width = 0
        self._constants: dict[torch.device, _Constants] = {}

    def __reduce__(self) -> tuple[type[DrawTable], tuple[()]]:
        return DrawTable, ()  # it is cheap to learn and holds tensors of a device

    def keys(self, keys: Keys) -> Keys:
        """The same keys, for one batch: their draws are looked up where the plan has them."""
        return _PlannedKeys(_Table(self, keys), ())

    def place(self, path: Path, count: int) -> int | None:
        """The first column of a draw in the tables that were made before this was asked for."""
        place = self._places.get((path, count))
        if place is None:
            self._places[path, count] = self._width
            self._width += count
            self._constants.clear()
        return place

    def constants(self, device: torch.device) -> _Constants | None:
        """What makes the table of all that was asked for so far; None: nothing was."""
        if not self._places:
            return None
        if device not in self._constants:
            self._constants[device] = _Constants(list(self._places), device)
        return self._constants[device]


class _Constants:
    """What a table of draws is made with.

    Args:
        draws: names and numbers that are folded into a key, and the number of columns.
        device: of the keys.
    """

    def __init__(self, draws: list[tuple[Path, int]], device: torch.device):
        chains = sorted(dict.fromkeys(path for path, _ in draws), key=len)
        self.steps = [  # (depth, chains of that depth) each
            torch.tensor([[step_of(part) for part in path] for path in same], device=device).T
            for same in (list(group) for _, group in groupby(chains, len))
        ]
        where = {path: column for column, path in enumerate(chains)}
        columns = [(where[path], signed(k * GOLDEN)) for path, n in draws for k in range(1, n + 1)]
        self.chain, self.count = torch.tensor(columns, device=device).T.contiguous()

    def bits(self, key: Tensor) -> Tensor:
        """All columns of all draws, (B, columns) int64."""
        folded = []
        for steps in self.steps:
            x = key[:, None]
            for step in steps:
                x = mix(x + step)
            folded.append(x)
        return mix(torch.cat(folded, dim=1).index_select(1, self.chain) + self.count)


class _Table:
    """The draws of one batch."""

    def __init__(self, plan: DrawTable, keys: Keys) -> None:
        self.root = keys
        self._plan = plan
        self._bits: Tensor | None = None
        self._unit: Tensor | None = None
        if (constants := plan.constants(keys.key.device)) is not None:
            self._bits = constants.bits(keys.key)

    def bits(self, path: Path, count: int) -> Tensor | None:
        """(B, count), or None: it is new."""
        return self._columns(self._bits, path, count)

    def unit(self, path: Path, count: int) -> Tensor | None:
        """Likewise, float32 in [0, 1)."""
        if self._unit is None and self._bits is not None:
            self._unit = unit_of(self._bits)
        return self._columns(self._unit, path, count)

    def _columns(self, table: Tensor | None, path: Path, count: int) -> Tensor | None:
        place = self._plan.place(path, count)
        if place is None or table is None or place + count > table.shape[1]:
            return None
        return table[:, place : place + count]


class _PlannedKeys(Keys):
    """Keys that look their draws up.

    Args:
        table: of the batch.
        path: what was folded into the table's keys.
        which: the table's rows that these are.
    """

    _table: _Table
    _path: Path
    _which: slice

    def __init__(self, table: _Table, path: Path, which: slice = slice(None)):
        for name, value in (("_table", table), ("_path", path), ("_which", which)):
            object.__setattr__(self, name, value)  # frozen

    @property
    def key(self) -> Tensor:  # type: ignore[override]
        return self._plain().key

    def _plain(self) -> Keys:
        return Keys(self._table.root.key[self._which]).fold(*self._path)

    def fold(self, *parts: int | str | Tensor) -> Keys:
        names = [part for part in parts if not isinstance(part, Tensor)]
        if len(names) < len(parts):
            return self._plain().fold(*parts)
        return _PlannedKeys(self._table, (*self._path, *names), self._which)

    def rows(self, which: slice) -> Keys:
        mine = range(len(self._table.root.key))[self._which][which]
        return _PlannedKeys(self._table, self._path, slice(mine.start, mine.stop, mine.step))

    def bits(self, purpose: str, *shape: int) -> Tensor:
        found = self._table.bits((*self._path, purpose), math.prod(shape))
        if found is None:
            return self._plain().bits(purpose, *shape)
        return found[self._which].reshape(-1, *shape)

    def uniform(self, purpose: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        found = self._table.unit((*self._path, purpose), math.prod(shape))
        if found is None:
            return self._plain().uniform(purpose, *shape, low=low, high=high)
        unit = found[self._which].reshape(-1, *shape)
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit
