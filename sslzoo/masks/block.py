"""Block masks: rectangles of masked patches.

Bao, Dong, Piao and Wei, BEiT, ICLR 2022, https://arxiv.org/abs/2106.08254, algorithm 1; with
iBOT's mask ratios, https://arxiv.org/abs/2111.07832, or DINOv2's, https://arxiv.org/abs/2304.07193.
Reference code: bytedance/ibot at da316d8, loader.py; facebookresearch/dinov2 at b8931f7,
masking.py and collate.py.

Deviations:
    attempts: at most 60 rectangles are tried per mask, and at most 10 in a row without success; the
        code only has the second limit. One mask in thousands needs more.
    draws: keyed, so that a sample's mask does not depend on its batch; the code draws from the
        generators of the workers.

Shapes: B samples, a grid of H x W patches, L = H W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.random import Keys

_ATTEMPTS, _IN_A_ROW = 60, 10
# Entries of a table of rectangles, 24 bytes each; those of a CPU fit its cache.
_ENTRIES, _CPU_ENTRIES = 2_000_000, 100_000


class BlockMasks:
    """Add rectangles until a randomly drawn fraction of the patches is masked.

    Args:
        ratios: mask ratios, of which one is drawn per sample; (0, 0.3) in iBOT.
        spreads: the fraction is uniform in ratio +- spread; (0, 0.2) in iBOT.
        aspect: the aspect ratio of a rectangle is between this and 1 / this; 0.3 in iBOT.
        shape: "block": rectangles; "random": patches one by one, without `aspect` (the code's
            pred_shape "rand").

    Raises:
        ValueError: for fractions outside [0, 1], an aspect outside (0, 1], or an unknown shape.
    """

    def __init__(
        self,
        ratios: Sequence[float] = (0.0, 0.3),
        spreads: Sequence[float] = (0.0, 0.2),
        aspect: float = 0.3,
        shape: Literal["block", "random"] = "block",
    ):
        pairs = list(zip(ratios, spreads, strict=False))
        whole = len(pairs) == len(ratios) == len(spreads) > 0
        if not whole or any(not 0 <= s <= r <= r + s <= 1 for r, s in pairs):
            raise ValueError(
                "ratios and spreads must be equally many, with 0 <= ratio - spread and ratio + "
                f"spread <= 1, got {list(ratios)} and {list(spreads)}"
            )
        if not 0 < aspect <= 1:
            raise ValueError(f"aspect must be in (0, 1], got {aspect}")
        check_choice("shape", shape, ("block", "random"))
        self.ratios, self.spreads, self.aspect = list(ratios), list(spreads), aspect
        self.shape = shape

    def max_masked(self, num_patches: int) -> int:
        """Largest number of masked patches among `num_patches`."""
        shares = zip(self.ratios, self.spreads, strict=True)
        return math.floor(max(r + s for r, s in shares) * num_patches)

    def fraction(self, keys: Keys) -> Tensor:
        """Fraction of masked patches, drawn for each sample. (B,)."""
        unit = keys.uniform("share", low=-1.0)[:, None]
        choices = [r + s * unit for r, s in zip(self.ratios, self.spreads, strict=True)]
        pick = keys.integers("ratio", len(choices))[:, None]
        return torch.cat(choices, dim=1).gather(1, pick)[:, 0]

    @torch.no_grad()
    def __call__(self, keys: Keys, height: int, width: int) -> Tensor:
        """Draw which patches are masked. (B, L) bool."""
        budget = self.fraction(keys) * height * width  # (B,)
        if self.shape == "random":
            count = budget.floor().clamp_max(self.max_masked(height * width))
            return keys.permutation("patches", height * width) < count[:, None]
        blocks = _Blocks(self.max_masked(height * width), self.aspect)
        return blocks.draw(keys, budget, height, width)


class StratifiedBlockMasks:
    """DINOv2's masks: a fraction of all crops is masked, with ratios spread evenly over a range.

    Of the M masked crops of the global batch, the i-th has a ratio from the i-th of M equal parts
    of the range. Which crops are masked, and which of the ratios each has, is shuffled.

    Args:
        ratio: range of the mask ratio; (0.1, 0.5) in DINOv2.
        fraction: fraction of the crops that are masked; 0.5 in DINOv2.
        smallest: area of the smallest rectangle in patches; 4 in DINOv2.
        aspect: the aspect ratio of a rectangle is between this and 1 / this; 0.3 in DINOv2.

    Raises:
        ValueError: for a range or fraction outside [0, 1], a smallest area below 1, or an aspect
            outside (0, 1].
    """

    def __init__(
        self,
        ratio: tuple[float, float] = (0.1, 0.5),
        fraction: float = 0.5,
        smallest: int = 4,
        aspect: float = 0.3,
    ):
        pair = isinstance(ratio, tuple | list) and len(ratio) == 2
        if not pair or not 0 <= ratio[0] <= ratio[1] <= 1:
            raise ValueError(f"ratio must be (low, high) with 0 <= low <= high <= 1, got {ratio}")
        check_interval("fraction", fraction, 0, 1)
        check_at_least("smallest", smallest, 1)
        check_interval("aspect", aspect, 0, 1, "(]")
        self.ratio, self.fraction = ratio, fraction
        self.smallest, self.aspect = smallest, aspect

    def bounds(self, strata: Sequence[int], total: int, num_patches: int) -> list[int]:
        """Largest number of masked patches of each crop, on the host.

        Args:
            strata: position of each crop in the shuffled order of all crops.
            total: number of crops of the global batch.
            num_patches: L.
        """
        masked = int(total * self.fraction)
        low, high = self.ratio
        length = num_patches * (1 + 1e-6)  # a device computes in float32
        return [
            int(length * (low + (high - low) * (i + 1) / masked)) if i < masked else 0
            for i in strata
        ]

    @torch.no_grad()
    def __call__(self, keys: Keys, strata: Tensor, total: int, height: int, width: int) -> Tensor:
        """Draw which patches are masked. (B, L) bool.

        Args:
            keys: B keys, one per crop.
            strata: (B,) int64 position of each crop in the shuffled order of all crops.
            total: number of crops of the global batch.
            height: H.
            width: W.
        """
        masked, length = int(total * self.fraction), height * width
        low, high = self.ratio
        share = low + (high - low) * (strata + keys.uniform("share")) / max(1, masked)
        budget = (length * share).floor() * (strata < masked)
        blocks = _Blocks(int(length * high), self.aspect, self.smallest)
        return blocks.draw(keys, budget, height, width)


@dataclass(frozen=True)
class _Blocks:
    """Rectangles that are added to each sample's mask while they fit its budget.

    Args:
        most: largest number of masked patches.
        aspect: see `BlockMasks`.
        smallest: area of the smallest rectangle; None: iBOT's, a third of the shorter side squared.
    """

    most: int
    aspect: float
    smallest: int | None = None

    def draw(self, keys: Keys, budget: Tensor, height: int, width: int) -> Tensor:
        """Masks of at most `budget` (B,) patches. (B, L) bool."""
        size = max(height, width)
        spans = _spans(height, width, budget.device)
        # rectangles over each patch, and number of masked patches, after 0, 1, ... attempts
        covers = budget.new_zeros(_ATTEMPTS + 1, height, width, len(budget), dtype=torch.uint8)
        counts = budget.new_zeros(_ATTEMPTS + 1, len(budget), dtype=torch.int64)
        for i, rectangle in enumerate(self._rectangles(keys, budget, height, width)):
            span = rectangle.gather(2, counts[i].expand(2, -1)[..., None]).flatten()
            rows, columns = spans.index_select(1, span).unflatten(1, (2, -1)).unbind(1)
            block = rows[:height, None] & columns[size : size + width]  # (H, W, B)
            count = torch.logical_or(covers[i], block).sum(dim=(0, 1), dtype=torch.int32)
            fits = count <= budget
            torch.where(fits, count, counts[i], out=counts[i + 1])
            # on bytes, a CPU's torch.where takes ten times as long
            torch.addcmul(covers[i], block, fits, out=covers[i + 1])
        return _before_failures(covers, counts)

    def _rectangles(self, keys: Keys, budget: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """Row and column spans (see `_spans`) of each attempt, if 0..K-1 patches are masked so far.

        A rectangle depends on the earlier ones only through that number. Its table therefore needs
        none of them, and takes few large operations instead of many small ones.

        Shapes: budget (B,); yields (2, B, K) int32, valid until the next.
        """
        # one more than can be masked: fractions are rounded
        counts = torch.arange(self.most + 2, device=budget.device)
        smallest = self.smallest or (min(height, width) // 3) ** 2
        spare = (budget[:, None] - counts).clamp_min(0.0) - smallest  # (B, K)
        draws = keys.uniform("rectangles", _ATTEMPTS, 4).transpose(0, 1)[..., None]
        area, aspect, corner = draws[:, :, 0], draws[:, :, 1], draws[:, :, 2:].movedim(2, 0)
        aspect = (math.log(self.aspect) * (1 - 2 * aspect)).exp()
        whole = _sides(height, width, budget.device)
        past = whole + 1
        entries = _CPU_ENTRIES if budget.device.type == "cpu" else _ENTRIES
        at_once = min(max(1, entries // max(1, spare.numel())), _ATTEMPTS)
        buffer = budget.new_empty(2, at_once, *spare.shape)
        others = torch.empty_like(buffer), torch.empty_like(buffer, dtype=torch.int32)
        for start in range(0, _ATTEMPTS, at_once):
            part = slice(start, start + at_once)
            side, first, span = (x[:, : _ATTEMPTS - start] for x in (buffer, *others))
            areas = torch.mul(spare, area[part], out=first[0]).add_(smallest)
            torch.mul(areas, aspect[part], out=side[0])
            torch.div(areas, aspect[part], out=side[1])
            side.sqrt_().round_().clamp_max_(whole)
            torch.sub(past, side, out=first).mul_(corner[:, part]).floor_()
            span.copy_(side.add_(first, alpha=max(height, width) + 1))
            yield from span.unbind(1)


def _sides(height: int, width: int, device: torch.device) -> Tensor:
    """Height and width as (2, 1, 1, 1) float32, without synchronizing with the device."""
    return torch.linspace(height, width, 2, device=device)[:, None, None, None]


def _spans(height: int, width: int, device: torch.device) -> Tensor:
    """Which positions along a side are in first..first + length - 1. (2 S, .) uint8.

    Column first * (S + 1) + length, S = max(H, W); the first S rows are for the grid's rows, the
    others for its columns. A length of the entire side covers no position, as in the code.
    """
    n = torch.arange(max(height, width) + 1, device=device)
    position, first, length = n[:-1, None, None], n[:, None], n
    inside = (position >= first) & (position < first + length)
    inside = inside & (length < _sides(height, width, device))
    return inside.flatten(2).flatten(0, 1).view(torch.uint8)


def _before_failures(covers: Tensor, counts: Tensor) -> Tensor:
    """Masks before the first 10 failures in a row, or the last ones. (B, L) bool.

    Shapes: with A attempts, covers (A + 1, H, W, B) and counts of masked patches (A + 1, B).
    """
    stuck = (counts[_IN_A_ROW:] == counts[:-_IN_A_ROW]).view(torch.uint8)
    stuck[-1] = 1
    after = stuck.argmax(dim=0)  # the first
    covers = covers[_IN_A_ROW:].flatten(1, 2)
    return covers.gather(0, after.expand(1, covers.shape[1], -1))[0].t() > 0
