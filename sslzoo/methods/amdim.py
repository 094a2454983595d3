"""AMDIM: learning representations by maximizing mutual information across views.

Bachman, Hjelm and Buchwalter, NeurIPS 2019, https://arxiv.org/abs/1906.00910.
Reference code: Philip-Bachman/amdim-public, commit 8754ae1.

Deviations:
    1. The source among the 5x5 locations is a keyed draw of (seed, step, sample, view); the code
       draws it from the process's generator. Both draw one uniform location per image.
    2. The classifiers that the code trains on detached features are `OnlineProbe` here, with its
       own optimizer.
    3. Batch norm is over the global batch of a view; the code's is per GPU, which `bn_groups` of
       the encoder reproduces.
    4. The shortcut of an embedding has no bias; the code's has one, which the following batch norm
       cancels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.losses import amdim_nce
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys


class AMDIM(SSLMethod):
    """Maximize the information of one view's features on the other view's local features.

    Args:
        backbone: with `forward_maps`: (B, C, H, W) -> feature maps of 1x1, 5x5 and 7x7 locations
            with D channels each (`backbones.AMDIMEncoder`).
        clip: c of the scores' soft bound c tanh(s / c); 20 in the code.
        score_weight: weight of the scores' mean square before clipping; 0.05 in the code.
        optimizer: see `SSLMethod`; Adam in the paper.
        schedule: see `SSLMethod`; 500 steps of warm-up, then a step schedule in the code.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> from sslzoo.backbones import AMDIMEncoder
        >>> method = AMDIM(AMDIMEncoder(32, width=2, num_features=12, depth=1))
        >>> views = [torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['1_to_5', '1_to_7', '5_to_5', 'scores']
    """

    takes = ViewSpec(2, 2, alike=None, kind="images")

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
                "backbone must have forward_maps, which returns feature maps of 1x1, 5x5 and 7x7 "
                f"locations (AMDIMEncoder), got {type(backbone).__name__} without it"
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
            "5_to_5": [
                (one_location(a5, keys.fold(0)), b5),
                (one_location(b5, keys.fold(1)), a5),
            ],
        }
        terms, sizes = {}, []
        for name, directions in pairs.items():
            results = [amdim_nce(source, target, self.clip) for source, target in directions]
            terms[name] = (results[0][0] + results[1][0]) / 2
            sizes += [size for _, size in results]
        terms["scores"] = self.score_weight / 2 * torch.stack(sizes).sum()
        return terms


def one_location(x: Tensor, keys: Keys) -> Tensor:
    """Features at one uniformly drawn location per image. (B, D, S) -> (B, D)."""
    drawn = keys.integers("place", x.shape[2])
    return x.gather(2, drawn[:, None, None].expand(-1, x.shape[1], 1))[:, :, 0]
