"""Keyed draws: random numbers that depend on their purpose, not on the order of drawing.

A draw depends on (seed, epoch or step, sample index, view, purpose) alone, through a
counter-based hash on int64 tensors. So views, masks, negatives and permutations are the same for
any split of a batch into ranks, workers or micro-batches, on any device, and after a resume.

The hash is the finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), which passes
BigCrush as a generator. int64 products wrap, so its bits are the same on every device.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2**64 / golden ratio, splitmix64's increment
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def run_seed() -> int:
    """The seed of `seed_everything` (which the CLI calls on every rank), or 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift; torch's is arithmetic


def mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer, elementwise on an int64 tensor."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _number(part: int | str | Tensor) -> int | Tensor:
    """The FNV-1a hash of a name, in Python that torch.compile can trace; otherwise `part`."""
    if not isinstance(part, str):
        return part
    hashed = 0x811C9DC5
    for character in part:
        hashed = ((hashed ^ ord(character)) * 0x01000193) & 0xFFFFFFFF
    return hashed


def step_of(part: int | str) -> int:
    """The increment of a key that folds in `part`, computed on the host."""
    return signed(GOLDEN + _mix_host(cast(int, _number(part))))


def unit_of(bits: Tensor) -> Tensor:
    """float32 in [0, 1) from the upper 24 bits of int64."""
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


@dataclass(frozen=True)
class Keys:
    """One key per row; `keys.uniform("crop", 4)` is (B, 4), the same for the same keys.

    The methods take a `purpose`: draws for different purposes are independent.

    Args:
        key: (B,) int64, from `sample_keys` and `fold`.
    """

    key: Tensor

    def fold(self, *parts: int | str | Tensor) -> Keys:
        """New keys that depend on these and on `parts`: numbers, names or (B,) int64 tensors."""
        key = self.key
        for part in parts:
            if isinstance(part, Tensor) or torch.compiler.is_compiling():  # SymInts do not wrap
                key = mix(key + GOLDEN + mix(torch.zeros_like(key) + _number(part)))
            else:
                key = mix(key + step_of(part))
        return Keys(key)

    def fold_each(self, name: str, count: int) -> Keys:
        """The keys `fold(name, i)` for i = 0 .. count - 1, concatenated: (count B,) keys."""
        number = mix(torch.arange(count, device=self.key.device))
        return Keys(mix(self.fold(name).key + GOLDEN + number[:, None]).flatten())

    def rows(self, which: slice) -> Keys:
        """The keys of a slice of the rows."""
        return Keys(self.key[which])

    def bits(self, purpose: str, *shape: int) -> Tensor:
        """Uniform int64 over all 64 bits, (B, *shape)."""
        steps = torch.arange(1, math.prod(shape) + 1, device=self.key.device) * GOLDEN
        return mix(self.fold(purpose).key[:, None] + steps).reshape(-1, *shape)

    def unit(self, purpose: str, *shape: int) -> Tensor:
        """float32 in [0, 1), (B, *shape), with 24 random bits each."""
        return unit_of(self.bits(purpose, *shape))

    def uniform(self, purpose: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 in [low, high), (B, *shape), with 24 random bits each."""
        unit = self.unit(purpose, *shape)
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def bernoulli(self, purpose: str, p: float, *shape: int) -> Tensor:
        """bool, True with probability p, (B, *shape)."""
        return self.unit(purpose, *shape) < p

    def integers(self, purpose: str, high: int, *shape: int) -> Tensor:
        """int64 in [0, high), (B, *shape); high is at most 2**31, the bias below high / 2**32."""
        if not 0 < high <= 1 << 31:
            raise ValueError(f"high must be in 1..2**31, got {high}")
        return _shift(_shift(self.bits(purpose, *shape), 32) * high, 32)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal float32, (B, *shape), by the Box-Muller transform."""
        unit = self.unit(purpose, *shape, 2)
        radius = (-2 * (1 - unit[..., 0]).log()).sqrt()
        return radius * (2 * torch.pi * unit[..., 1]).cos()

    def permutation(self, purpose: str, n: int) -> Tensor:
        """An independent permutation of 0..n-1 per row, (B, n) int64."""
        return self.bits(purpose, n).argsort(dim=1, stable=True)


def sample_keys(seed: int, epoch: int, index: Tensor) -> Keys:
    """One key per sample of a batch. Shapes: index (B,) int64."""
    return Keys(index.to(torch.int64)).fold(seed, epoch)


def run_keys(seed: int, *parts: int | str, device: torch.device | str = "cpu") -> Keys:
    """A single key (B = 1) for draws such as an epoch's permutation."""
    return Keys(torch.zeros(1, dtype=torch.int64, device=device)).fold(seed, *parts)


def run_uniform(purpose: str, seed: int, *parts: int | str) -> float:
    """`run_keys(seed, *parts).uniform(purpose)` as a Python float, computed on the host.

    Use it for draws that set shapes: it needs no host sync, and torch.compile can trace it.
    """
    key = 0
    for part in (seed, *parts, purpose):
        key = _mix_host(key + GOLDEN + _mix_host(cast(int, _number(part))))
    return (_mix_host(key + GOLDEN) >> 40) * 2.0**-24


def run_permutation(purpose: str, n: int, seed: int, *parts: int | str) -> list[int]:
    """`run_keys(seed, *parts).permutation(purpose, n)` as a list, computed on the host."""
    key = 0
    for part in (seed, *parts, purpose):
        key = _mix_host(key + GOLDEN + _mix_host(cast(int, _number(part))))
    return sorted(range(n), key=lambda i: signed(_mix_host(key + GOLDEN * (i + 1))))


def signed(x: int) -> int:
    """The int64 with the same lowest 64 bits."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix_host(x: int) -> int:
    whole = (1 << 64) - 1  # Python integers do not wrap
    x &= whole
    x = ((x ^ (x >> 30)) * _MIX1) & whole
    x = ((x ^ (x >> 27)) * _MIX2) & whole
    return x ^ (x >> 31)
