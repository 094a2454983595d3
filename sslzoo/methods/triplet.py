"""Triplet: FaceNet, a unified embedding for face recognition and clustering.

Schroff, Kalenichenko and Philbin, CVPR 2015, https://arxiv.org/abs/1503.03832. Hermans, Beyer and
Leibe, 2017, https://arxiv.org/abs/1703.07737 (batch-all, batch-hard, soft margin).
Reference code: adambielski/siamese-triplet, commit 0c719f9.

Deviations:
    1. Identities are images: two views of one image are anchor and positive, views of the other
       images of the global batch are negatives. The papers' identities are labels, which is
       uses_labels=True.
    2. Batches are random also with labels; the papers' batches have P identities of K samples each.
    3. The loss is the mean over the mined triplets; FaceNet's is their sum.
    4. Semi-hard mining selects the nearest semi-hard negative, as in FaceNet; the code draws one of
       the semi-hard negatives.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.checks import check_classes
from sslzoo.losses import triplet
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike


class Triplet(SSLMethod):
    """Bring views of one image closer than those of other images, by a margin.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> 128 in FaceNet; L2-normalized by the loss.
        margin: 0.2 in FaceNet, of squared distances; None: the soft margin of Hermans et al.,
            for mining "hard".
        mining: "all", "hard" or "semi_hard", see `losses.triplet`; semi-hard in FaceNet.
        squared: whether distances are squared (FaceNet) or not (Hermans et al.).
        mean_over: "all" mined triplets, or those with a "nonzero" loss.
        uses_labels: whether all samples with the same label are positives, not only the views of
            one image.
        optimizer: see `SSLMethod`.
        schedule: see `SSLMethod`.
        parameter_groups: see `SSLMethod`.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> method = Triplet(SmallResNet((8, 16)), nn.Linear(16, 8), mining="hard")
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['triplet']
    """

    takes = ViewSpec(2, alike=None)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        margin: float | None = 0.2,
        mining: Literal["all", "hard", "semi_hard"] = "semi_hard",
        squared: bool = True,
        mean_over: Literal["all", "nonzero"] = "all",
        uses_labels: bool = False,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.margin, self.squared, self.uses_labels = margin, squared, uses_labels
        self.mining: Literal["all", "hard", "semi_hard"] = mining
        self.mean_over: Literal["all", "nonzero"] = mean_over

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        y = check_classes("Triplet", batch.label) if self.uses_labels else None  # (B,)
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (VB, C, H, W), sample by sample
        z = self.projector(self.backbone(x)).unflatten(0, (-1, len(batch.views)))  # (B, V, D)
        loss = triplet(z, y, self.margin, self.mining, self.squared, self.mean_over)
        return {"triplet": loss}
