"""Per patch: operations on each patch of an image by itself, laid out as a mosaic.

Henaff et al., Data-Efficient Image Recognition with Contrastive Predictive Coding, ICML 2020,
https://arxiv.org/abs/1905.09272, change every patch of an image in its own way, so that patches do
not tell each other by their colors. Overlapping patches do not fit into one image any more: the
result holds them side by side. Shapes: B samples, C channels, g x g patches of P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor

from sslzoo.random import Keys


class _Op(Protocol):
    def draw(self, keys: Keys) -> tuple[Tensor, ...]: ...

    @property
    def apply(self) -> Callable[..., Tensor]: ...


@final
class PerPatch:
    """Cut patches, change each, and lay them out without overlap.

    Args:
        ops: operations on planes; each patch has draws of its own.
        patch: P.
        stride: pixels from one patch to the next.
    """

    def __init__(self, ops: Sequence[Any], patch: int, stride: int) -> None:
        if not 0 < stride <= patch:
            raise ValueError(f"0 < stride <= patch wanted, got stride {stride} and patch {patch}")
        self.ops: list[_Op] = list(ops)
        self.patch, self.stride = patch, stride

    def side(self, size: int) -> int:
        """Pixels of the mosaic's side, of images of `size`."""
        return self._grid(size) * self.patch

    def _grid(self, size: int) -> int:
        if size < self.patch or (size - self.patch) % self.stride:
            raise ValueError(
                f"patches of {self.patch} pixels at every {self.stride} do not fill {size} pixels"
            )
        return (size - self.patch) // self.stride + 1

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The sample's key: what patches there are is known with the planes."""
        return (keys.key,)

    def apply(self, planes: Tensor, key: Tensor) -> Tensor:
        """Shapes: planes (C, B, S, S), key (B,) -> (C, B, g P, g P)."""
        channels, batch, size, _ = planes.shape
        grid, patch = self._grid(size), self.patch
        cut = planes.unfold(2, patch, self.stride).unfold(3, patch, self.stride)
        patches = cut.reshape(channels, batch * grid * grid, patch, patch)  # a copy, in order
        place = torch.arange(grid * grid, device=key.device).repeat(batch)
        keys = Keys(key.repeat_interleave(grid * grid)).fold("patch", place)
        for number, op in enumerate(self.ops):
            patches = op.apply(patches, *op.draw(keys.fold("op", number)))
        mosaic = patches.view(channels, batch, grid, grid, patch, patch).transpose(3, 4)
        return mosaic.reshape(channels, batch, grid * patch, grid * patch)
