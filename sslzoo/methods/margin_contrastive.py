"""Margin contrastive: dimensionality reduction by learning an invariant mapping.

Hadsell, Chopra and LeCun, CVPR 2006 (DrLIM).
Reference code: adambielski/siamese-triplet, commit 0c719f9.

Deviations:
    1. Pairs are views: two of an image are similar, those of two images of the global batch are
       not. The paper's similar pairs are neighbors in pixels or known transforms.
    2. All pairs of the batch, either kind with weight 1/2; the code draws half of its pairs of
       either kind.
    3. Points are L2-normalized, so that no distance is above 2; the paper's are not:
       normalize=False.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.batch import Batch, label_of
from sslzoo.losses import margin_contrastive
from sslzoo.losses.precision import at_least_float32
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    output_dim,
)
from sslzoo.optim import Schedule, exempt_bias_and_norm


class MarginContrastive(SSLMethod):
    """Views of an image are drawn together; those of two images are kept a margin apart.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D.
        margin: m, a distance; 1 is 60 degrees between normalized points, at right angles they
            are 1.41 apart.
        normalize: whether the points are L2-normalized.
        uses_labels: similar is what has the same label, not the views of one image alone.
        optimizer: see `SSLMethod`.
        schedule: see `SSLMethod`.
        parameter_groups: see `SSLMethod`.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import simclr_projector
        >>> method = MarginContrastive(SmallResNet((8, 16)), simclr_projector(16, out_dim=8))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['margin_contrastive']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        margin: float = 1.0,
        normalize: bool = True,
        uses_labels: bool = False,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.margin, self.normalize, self.uses_labels = margin, normalize, uses_labels

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        y = label_of(batch, "MarginContrastive") if self.uses_labels else None  # (B,)
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (VB, C, H, W), sample by sample
        z = self.projector(self.backbone(x)).unflatten(0, (-1, len(batch.views)))  # (B, V, D)
        if self.normalize:
            z = F.normalize(at_least_float32(z), dim=-1, eps=1e-6)
        return {"margin_contrastive": margin_contrastive(z, y, self.margin)}
