"""Barlow Twins: self-supervised learning via redundancy reduction.

Zbontar, Jing, Misra, LeCun and Deny, ICML 2021, https://arxiv.org/abs/2103.03230.
Reference code: facebookresearch/barlowtwins, commit 8e8d284.

Deviations:
    1. The gradient is that of the global batch's loss. The code's `all_reduce` has no backward
       pass, so that its gradient on W GPUs is 1 / W of ours: `gradient_scale` (1 / 32 in our
       ImageNet config). LARS is invariant to the factor, except for the weight of the decay and for
       biases and norms.
    2. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
"""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.layers import GlobalBatchNorm
from sslzoo.layers.precision import at_least_float32
from sslzoo.losses import barlow_twins
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class BarlowTwins(SSLMethod):
    """Make the cross-correlation matrix of two views' embeddings the identity.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D: three Linears of width 8192 without biases, with batch norm
            and ReLU between, in the paper.
        off_diagonal_weight: lambda; 0.0051 in the paper.
        gradient_scale: factor of the gradient, see Deviations; 1 / W reproduces the code on W GPUs.
        bn_groups: number of groups of the global batch in which the embeddings are normalized; 1
            in the code (SyncBatchNorm).
        optimizer: see `SSLMethod`; LARS in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to a thousandth.
        parameter_groups: see `SSLMethod`; in the code, biases and norms are not decayed and have a
            separate learning rate (`optim.BiasAndNormRate`).

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> projector = MLP([16, 32, 8], bias=False, last_bias=False)
        >>> method = BarlowTwins(SmallResNet((8, 16)), projector)
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['barlow_twins']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        off_diagonal_weight: float = 0.0051,
        gradient_scale: float = 1.0,
        bn_groups: int = 1,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim = output_dim(backbone, projector)
        self.projector = projector
        self.norm = GlobalBatchNorm(dim, affine=False, groups=bn_groups)
        self.off_diagonal_weight, self.gradient_scale = off_diagonal_weight, gradient_scale

    def embed(self, view: View) -> Tensor:
        """Embedding with dimensions of mean 0 and variance 1. (B, C, H, W) -> (B, D)."""
        return self.norm(at_least_float32(self.projector(self.backbone(view))))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (self.embed(view) for view in batch.views)  # (B, D)
        loss = barlow_twins(z1, z2, self.off_diagonal_weight, self.gradient_scale)
        return {"barlow_twins": loss}
