"""Per-patch augmentation: operations on each patch of an image, laid out as a mosaic.

Henaff et al., Data-Efficient Image Recognition with Contrastive Predictive Coding, ICML 2020,
https://arxiv.org/abs/1905.09272, augment every patch of an image independently, so that patches do
not share color statistics. Augmented patches that overlapped no longer fit in one image, so the
result holds them side by side. Shapes: B samples, C channels, g x g patches of P x P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sslzoo.checks import check_interval
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import Op


@final
class PerPatch:
    """Cut patches, augment each, and lay them out without overlap.

    Args:
        ops: operations on planes, drawn per patch.
        patch: P.
        stride: pixels from one patch to the next.
    """

    def __init__(self, ops: Sequence[Op], patch: int, stride: int) -> None:
        check_interval("stride", stride, 1, patch)
        self.ops = list(ops)
        self.patch, self.stride = patch, stride

    def side(self, size: int) -> int:
        """Side of the mosaic in pixels, for images of side `size`."""
        return self._grid(size) * self.patch

    def _grid(self, size: int) -> int:
        if size < self.patch or (size - self.patch) % self.stride:
            raise ValueError(
                f"the side must be patch + n stride = {self.patch} + n {self.stride} pixels, got "
                f"{size}"
            )
        return (size - self.patch) // self.stride + 1

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The sample's key, since the number of patches is known only with the planes."""
        return (keys.key,)

    def apply(self, planes: Tensor, key: Tensor) -> Tensor:
        """Shapes: planes (C, B, S, S), key (B,) -> (C, B, g P, g P)."""
        channels, batch, size, _ = planes.shape
        grid, patch = self._grid(size), self.patch
        cut = planes.unfold(2, patch, self.stride).unfold(3, patch, self.stride)
        patches = cut.reshape(channels, batch * grid * grid, patch, patch)  # a copy, in order
        number = torch.arange(grid * grid, device=key.device).repeat(batch)
        keys = Keys(key.repeat_interleave(grid * grid)).fold("patch", number)
        for position, op in enumerate(self.ops):
            patches = op.apply(patches, *op.draw(keys.fold("op", position)))
        mosaic = patches.view(channels, batch, grid, grid, patch, patch).transpose(3, 4)
        return mosaic.reshape(channels, batch, grid * patch, grid * patch)
