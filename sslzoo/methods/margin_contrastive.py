"""Margin contrastive: dimensionality reduction by learning an invariant mapping.

Hadsell, Chopra and LeCun, CVPR 2006 (DrLIM).
Reference code: adambielski/siamese-triplet, commit 0c719f9.

Deviations:
    1. Positive pairs are two views of one image, negative pairs views of two images of the global
       batch. The paper's positive pairs are neighbors in pixel space or known transformations.
    2. The loss averages over all positive and all negative pairs of the batch, with weight 1/2
       each; the paper sums over all pairs, the code draws as many positive as negative pairs.
    3. Points are L2-normalized, so that distances are at most 2; the paper's are not, which is
       normalize=False.
    4. The distance that the gradient of a negative pair divides by is at least sqrt(1e-9); the code
       adds 1e-9 under the square root.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.checks import check_classes
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import margin_contrastive
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class MarginContrastive(SSLMethod):
    """Attract the views of one image, and repel views of different images up to a margin.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D.
        margin: m, a distance; 1 is an angle of 60 degrees between normalized points, 1.41 a right
            angle.
        normalize: whether the points are L2-normalized.
        uses_labels: whether all samples with the same label are positives, not only the views of
            one image.
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

    takes = ViewSpec(2, alike=None)

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
        y = check_classes("MarginContrastive", batch.label) if self.uses_labels else None  # (B,)
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (VB, C, H, W), sample by sample
        z = self.projector(self.backbone(x)).unflatten(0, (-1, len(batch.views)))  # (B, V, D)
        if self.normalize:
            z = l2_normalize(z, eps=1e-6)
        return {"margin_contrastive": margin_contrastive(z, y, self.margin)}
