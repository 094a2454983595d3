"""Block masks: rectangles of patches that are hidden from a vision transformer.

Bao, Dong, Piao and Wei, BEiT, ICLR 2022, https://arxiv.org/abs/2106.08254, algorithm 1; with
iBOT's choice of ratios, https://arxiv.org/abs/2111.07832.
Reference code: bytedance/ibot at da316d8, loader.py.

Deviations:
    attempts: at most 60 rectangles are tried for a mask, 10 in a row without success; the code
        knows the second bound alone. One mask in thousands needs more.
    draws: keyed, so that a sample's mask does not depend on its batch.

Shapes: B samples, a grid of H x W patches, L = H W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.random import Keys

_ATTEMPTS, _IN_A_ROW = 60, 10


class BlockMasks:
    """Rectangles until a share of the patches is hidden that is drawn for each sample.

    Args:
        ratios: one of them is picked for each sample; 0 hides nothing. (0, 0.3) in iBOT.
        spreads: the share is uniform in ratio +- its spread; (0, 0.2) in iBOT.
        aspect: a rectangle's sides are in a ratio between this and 1 / this; 0.3 in iBOT.

    Raises:
        ValueError: for shares outside [0, 1], or an aspect outside (0, 1].
    """

    def __init__(
        self,
        ratios: Sequence[float] = (0.0, 0.3),
        spreads: Sequence[float] = (0.0, 0.2),
        aspect: float = 0.3,
    ):
        pairs = list(zip(ratios, spreads, strict=False))
        whole = len(pairs) == len(ratios) == len(spreads) > 0
        if not whole or any(not 0 <= s <= r <= r + s <= 1 for r, s in pairs):
            raise ValueError(
                f"ratios and as many spreads, 0 <= ratio - spread and ratio + spread <= 1, wanted, "
                f"got {list(ratios)} and {list(spreads)}"
            )
        if not 0 < aspect <= 1:
            raise ValueError(f"an aspect in (0, 1] wanted, got {aspect}")
        self.ratios, self.spreads, self.aspect = list(ratios), list(spreads), aspect

    def most(self, num_patches: int) -> int:
        """How many of that many patches a mask can hide, at most."""
        shares = zip(self.ratios, self.spreads, strict=True)
        return math.floor(max(r + s for r, s in shares) * num_patches)

    def share(self, keys: Keys) -> Tensor:
        """Of each sample's patches. (B,)."""
        unit = keys.uniform("share", low=-1.0)[:, None]
        choices = [r + s * unit for r, s in zip(self.ratios, self.spreads, strict=True)]
        pick = keys.integers("ratio", len(choices))[:, None]
        return torch.cat(choices, dim=1).gather(1, pick)[:, 0]

    @torch.no_grad()
    def __call__(self, keys: Keys, height: int, width: int) -> Tensor:
        """Which patches are hidden. (B, L) bool."""
        wanted = self.share(keys) * height * width  # (B,)
        draws = keys.uniform("rectangles", _ATTEMPTS, 4).unbind(1)
        row = torch.arange(height, device=wanted.device)[:, None]
        column = torch.arange(width, device=wanted.device)
        smallest = (min(height, width) // 3) ** 2
        mask = torch.zeros(len(wanted), height, width, dtype=torch.bool, device=wanted.device)
        hidden, failed = torch.zeros_like(wanted), torch.zeros_like(wanted)
        for draw in draws:
            area, aspect, top, left = draw.unbind(1)
            room = wanted - hidden
            area = (smallest + (room - smallest) * area).clamp_min(0.0)
            aspect = (math.log(self.aspect) * (1 - 2 * aspect)).exp()
            h, w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
            top, left = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
            y, x = row - top[:, None, None], column - left[:, None, None]
            block = (y >= 0) & (y < h[:, None, None]) & (x >= 0) & (x < w[:, None, None])
            new = (block & ~mask).sum(dim=(1, 2))
            taken = (room > 0) & (failed < _IN_A_ROW) & (h < height) & (w < width)
            taken = taken & (new > 0) & (new <= room)
            mask = mask | (block & taken[:, None, None])
            hidden = hidden + new * taken
            failed = torch.where(taken, 0.0, failed + 1)
        return mask.flatten(1)
