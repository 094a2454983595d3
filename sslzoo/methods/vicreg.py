"""VICReg: variance-invariance-covariance regularization.

Bardes, Ponce and LeCun, ICLR 2022, https://arxiv.org/abs/2105.04906.
Reference code: facebookresearch/vicreg, commit 4e12602.

Deviations:
    1. The variance term is the mean of the two views' hinges, as in the code; the paper's formula
       is their sum.
    2. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
"""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.losses import vicreg
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class VICReg(SSLMethod):
    """Make views similar, each dimension varied, and dimensions uncorrelated.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: the paper's expander; num_features -> D: three Linears of width 8192 with batch
            norm and ReLU between, and no bias at the end.
        invariance_weight: lambda; 25 in the paper.
        variance_weight: mu; 25 in the paper.
        covariance_weight: nu; 1 in the paper.
        optimizer: see `SSLMethod`; LARS in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to a thousandth.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the code.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = VICReg(SmallResNet((8, 16)), MLP([16, 32, 8], bias=False, last_bias=False))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['invariance', 'variance', 'covariance']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.invariance_weight, self.variance_weight = invariance_weight, variance_weight
        self.covariance_weight = covariance_weight

    def embed(self, view: View) -> Tensor:
        """Embedding. (B, C, H, W) -> (B, D)."""
        return self.projector(self.backbone(view))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.embed(view) for view in batch.views)  # (B, D)
        terms = vicreg(z1, z2)
        return {
            "invariance": self.invariance_weight * terms.invariance,
            "variance": self.variance_weight * terms.variance,
            "covariance": self.covariance_weight * terms.covariance,
        }
