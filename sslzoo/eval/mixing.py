"""Mixing: mixup and CutMix, for fine-tuning with labels.

Zhang, Cisse, Dauphin and Lopez-Paz, ICLR 2018, https://arxiv.org/abs/1710.09412; Yun et al., ICCV
2019, https://arxiv.org/abs/1905.04899. Reference code: timm 1.0's `Mixup`, mode "batch", which is
what MAE fine-tunes with.

Deviations:
    1. Images 2i and 2i + 1 are mixed, theirs i and n - 1 - i: batches are shuffled, so the
       distribution is the same, and it does not depend on how many ranks share a batch.
    2. The share and the box are functions of (seed, step), the same on every rank; theirs are
       drawn on each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
from torch import Tensor


class Mixed(NamedTuple):
    """Mixed images with their partners' labels and the mixing coefficient.

    Args:
        images: (B, C, H, W).
        share: weight of an image's own label; its partner's label has 1 - share.
        partner: (B,) labels of the partners.
    """

    images: Tensor
    share: float
    partner: Tensor

    def loss(self, loss: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
        """Loss of the mixed labels, given a `loss` that is linear in one-hot targets."""
        if self.share == 1:
            return loss(labels)
        return self.share * loss(labels) + (1 - self.share) * loss(self.partner)


@final
class Mixing:
    """Mixup or CutMix of the whole batch, with one mixing coefficient per step.

    Args:
        mixup: alpha of the Beta distribution that mixup draws its share from; 0 turns mixup off;
            0.8 in MAE.
        cutmix: alpha for CutMix, which pastes a box of the partner; 0 turns it off; 1.0 in MAE.
        switch: probability of CutMix rather than mixup where both are on.
        probability: probability that a step mixes at all.
    """

    def __init__(
        self,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        switch: float = 0.5,
        probability: float = 1.0,
    ) -> None:
        if min(mixup, cutmix) < 0 or max(mixup, cutmix) == 0:
            raise ValueError(
                f"mixup and cutmix must be at least 0 and not both 0, got {mixup} and {cutmix}"
            )
        if not 0 <= switch <= 1 or not 0 <= probability <= 1:
            raise ValueError(
                f"switch and probability must be in [0, 1], got {switch} and {probability}"
            )
        self.mixup, self.cutmix = mixup, cutmix
        self.switch, self.probability = switch, probability

    def __call__(self, images: Tensor, labels: Tensor, seed: int, step: int) -> Mixed:
        """Mix a batch.

        Args:
            images: (B, C, H, W), B even on every rank.
            labels: (B,).
            seed: the run's seed.
            step: training step, which the draw depends on.

        Raises:
            ValueError: B is odd, or the images are not (B, C, H, W).
        """
        if images.dim() != 4 or len(images) % 2:
            raise ValueError(
                "images to mix must be (B, C, H, W) with an even B on every rank, got "
                f"{tuple(images.shape)}; set drop_last=True to skip a short last batch"
            )
        draw = np.random.default_rng((seed, step))
        if draw.random() >= self.probability:
            return Mixed(images, 1.0, labels)
        pasted = self.mixup == 0 or (self.cutmix > 0 and draw.random() < self.switch)
        alpha = self.cutmix if pasted else self.mixup
        share = float(draw.beta(alpha, alpha))
        others = _partners(images)
        if pasted:
            top, bottom, left, right = _box(share, images.shape[2], images.shape[3], draw)
            share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
            mixed = images.clone()
            mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        else:
            mixed = share * images + (1 - share) * others
        return Mixed(mixed, share, _partners(labels))


def _partners(x: Tensor) -> Tensor:
    """Swap rows 2i and 2i + 1."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _box(share: float, height: int, width: int, draw: np.random.Generator) -> tuple[int, ...]:
    """Top, bottom, left and right of a box with area fraction 1 - share, clipped to the image."""
    side = (1 - share) ** 0.5
    edges = []
    sizes = [(length, int(length * side)) for length in (height, width)]
    for length, cut in sizes:
        center = int(draw.integers(length))
        edges += [max(0, center - cut // 2), min(length, center + (cut + 1) // 2)]
    return tuple(edges)
