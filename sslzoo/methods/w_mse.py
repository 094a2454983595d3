"""W-MSE: whitening for self-supervised representation learning.

Ermolov, Siarohin, Sangineto and Sebe, ICML 2021, https://arxiv.org/abs/2007.06346.
Reference code: htdt/self-supervised at d9662c8.

Deviations:
    1. Sub-batches are drawn from the global batch by a permutation that depends on seed and step
       alone; the code runs in one process, with torch's global generator.
    2. Views are cropped before their colors change; in the code after.
    3. Where an embedding's covariance is singular, the loss is not a number; the code stops with an
       error of the Cholesky decomposition.
    4. Our recipes have bfloat16; whitening is computed in float32.
    5. The first convolution of a ResNet for small images starts as timm's others (Kaiming, fan
       out); the code leaves torch's initialization there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sslzoo.backbones import multi_crop
from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.checks import check_interval, check_whole
from sslzoo.distributed import row_layout
from sslzoo.losses import w_mse
from sslzoo.losses.w_mse import check_sub_batch
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import run_keys


class WMSE(SSLMethod):
    """Bring the views of an image together after whitening them in random sub-batches.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D: Linear-BN-ReLU-Linear of widths 1024 and 64 (CIFAR) or 128.
        sub_batch_size: samples that are whitened together, more than D; 128 (CIFAR) or 256, twice
            D, in the paper. It must divide the global batch.
        num_iterations: permutations of the batch per step; 1, or 4 with two views on STL-10 and
            Tiny ImageNet.
        eps: weight of the identity in the covariance; 0 in the paper.
        normalize: whether distances are those of L2-normalized rows, as in the paper's best runs;
            False: plain squared differences.
        optimizer: see `SSLMethod`; Adam with L2 1e-6 in the code.
        schedule: see `SSLMethod`; 500 steps of warm-up, a fifth 50 and 25 epochs before the end.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> projector = MLP([16, 32, 8], bias=False)
        >>> method = WMSE(SmallResNet((8, 16)), projector, sub_batch_size=2, eps=0.5)
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['w_mse']
    """

    takes = ViewSpec(2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        sub_batch_size: int = 128,
        num_iterations: int = 1,
        eps: float = 0.0,
        normalize: bool = True,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        check_whole("num_iterations", num_iterations, 1)
        check_interval("eps", eps, 0, 1, "[)")
        check_sub_batch(sub_batch_size, output_dim(backbone, projector), eps)
        self.projector = projector
        self.sub_batch_size, self.num_iterations = sub_batch_size, num_iterations
        self.eps, self.normalize = eps, normalize

    def embed(self, view: View) -> Tensor:
        """Embedding, before whitening. (B, C, H, W) -> (B, D)."""
        return self.projector(self.backbone(view))

    def batch_multiple(self) -> int:
        return math.lcm(super().batch_multiple(), self.sub_batch_size)

    def permutations(self, batch_size: int, device: torch.device) -> Tensor:
        """This step's permutations of the global batch. (num_iterations, N) int64."""
        keys = run_keys(self.seed, "w_mse", self.step, device=device)
        keys = keys.fold_each("iteration", self.num_iterations)
        return keys.permutation("rows", batch_size)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z = multi_crop(self.backbone, self.projector, batch.views)  # (B, V, D)
        order = self.permutations(row_layout(len(z)).total, z.device)
        return {"w_mse": w_mse(z, order, self.sub_batch_size, self.eps, self.normalize)}
