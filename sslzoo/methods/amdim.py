"""AMDIM: learning representations by maximizing mutual information across views.

Bachman, Hjelm and Buchwalter, NeurIPS 2019, https://arxiv.org/abs/1906.00910.
Reference code: Philip-Bachman/amdim-public, commit 8754ae1.

Deviations:
    1. The source among the 5x5 places is a keyed function of (seed, step, sample, view); the
       code draws it from the process's generator: one uniform place an image in both.
    2. The classifiers that the code trains beside, on detached features, are `OnlineProbe` here,
       with an optimizer of its own.
    3. Batch norm is over the global batch of a view; the code's is per GPU (`bn_groups` of the
       encoder reproduces that).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.losses import amdim_nce
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    step_keys,
)
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys


class AMDIM(SSLMethod):
    """One view's features, global and local, pick the other view's places at two scales.

    Args:
        backbone: with `forward_maps`: (B, C, H, W) -> maps of 1x1, 5x5 and 7x7 places, D channels
            each (`backbones.AMDIMEncoder`).
        clip: c of the scores' soft bound c tanh(s / c); 20 in the code.
        score_weight: of the scores' mean square before the clip; 0.05 in the code.
        optimizer: see `SSLMethod`; Adam in the paper.
        schedule: see `SSLMethod`; 500 steps of warm-up, then steps.
        parameter_groups: see `SSLMethod`; everything is decayed in the code.

    Example:
        >>> from sslzoo.backbones import AMDIMEncoder
        >>> method = AMDIM(AMDIMEncoder(32, width=2, num_features=12, depth=1))
        >>> views = [torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['1_to_5', '1_to_7', '5_to_5', 'scores']
    """

    def __init__(
        self,
        backbone: nn.Module,
        clip: float = 20.0,
        score_weight: float = 0.05,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        if not callable(getattr(backbone, "forward_maps", None)):
            raise ValueError(
                "AMDIM wants a backbone with forward_maps, which gives maps of 1x1, 5x5 and 7x7 "
                f"places (AMDIMEncoder), {type(backbone).__name__} has none"
            )
        self.clip, self.score_weight = clip, score_weight

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        maps = [backbone.forward_maps(view) for view in batch.views]
        (a1, a5, a7), (b1, b5, b7) = ([m.flatten(2) for m in view] for view in maps)  # (B, D, S)
        keys = step_keys(self, batch)
        pairs = {
            "1_to_5": [(a1[:, :, 0], b5), (b1[:, :, 0], a5)],
            "1_to_7": [(a1[:, :, 0], b7), (b1[:, :, 0], a7)],
            "5_to_5": [(one_place(a5, keys.fold(0)), b5), (one_place(b5, keys.fold(1)), a5)],
        }
        terms, sizes = {}, []
        for name, directions in pairs.items():
            results = [amdim_nce(source, target, self.clip) for source, target in directions]
            terms[name] = (results[0][0] + results[1][0]) / 2
            sizes += [size for _, size in results]
        terms["scores"] = self.score_weight / 2 * torch.stack(sizes).sum()
        return terms


def one_place(places: Tensor, keys: Keys) -> Tensor:
    """One place of each image, uniformly. (B, D, S) -> (B, D)."""
    which = keys.integers("place", places.shape[2])
    return places.gather(2, which[:, None, None].expand(-1, places.shape[1], 1))[:, :, 0]
