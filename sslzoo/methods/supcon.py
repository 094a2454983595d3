"""SupCon: supervised contrastive learning.

Khosla, Teterwak, Wang, Sarna et al., NeurIPS 2020, https://arxiv.org/abs/2004.11362.
Reference code: HobbitLong/SupContrast, commit 66a8fe5.

Deviations:
    1. Batch norm is over the global batch, both views together. The code's DataParallel normalizes
       each GPU's block of [first views; second views] separately unless --syncBN is given; a
       backbone with bn_groups=G normalizes G blocks of images with both views of each. The loss is
       that of the global batch in both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.checks import check_classes
from sslzoo.losses import sup_con
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike


class SupCon(SSLMethod):
    """Contrast the views of one class with the views of all other classes.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> 128 in the paper: Linear, ReLU, Linear, no batch norm.
        temperature: tau of the cosines; 0.1 in the code's CIFAR recipe.
        base_temperature: the loss is multiplied by temperature / base_temperature; 0.07 in the
            code.
        optimizer: see `SSLMethod`; SGD in the code.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine in the code.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = SupCon(SmallResNet((8, 16)), MLP([16, 16, 8], norm=False))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4), label=torch.tensor([0, 1, 0, 2]))
        >>> list(method.losses(batch))
        ['sup_con']
    """

    uses_labels = True

    takes = ViewSpec(2, alike=None)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        temperature: float = 0.1,
        base_temperature: float = 0.07,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.temperature, self.base_temperature = temperature, base_temperature

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        y = check_classes("SupCon", batch.label)  # (B,)
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (VB, C, H, W), sample by sample
        z = self.projector(self.backbone(x)).unflatten(0, (-1, len(batch.views)))  # (B, V, D)
        return {"sup_con": sup_con(z, y, self.temperature, self.base_temperature)}
