"""TiCo: transformation invariance and covariance contrast.

Zhu, Moraes, Karakulak, Sobol, Canziani and LeCun, TiCo: Transformation Invariance and Covariance
Contrast for Self-Supervised Visual Representation Learning, 2022, https://arxiv.org/abs/2206.10698.
Reference code: none by the authors; two by others, sayannag/TiCo-pytorch at 2259b83 and
lightly-ai/lightly at e8d317f.

Deviations:
    1. The gradient flows through the batch's share (1 - beta) B of C_t, as in sayannag's code;
       lightly's takes all of C_t as a constant.
    2. rho is 8, which sayannag's code names as the paper's value; the default of both codes is 20.
    3. The momentum is a cosine from 0.99 to 1 over optimizer steps, as in lightly's code; in
       sayannag's it is a sine over epochs (halfway 0.995 here, 0.997 there), which is
       `SineSchedule(0.99, 1.0, every="epoch")`.
    4. C is updated after the optimizer step, with all micro-batches of a gradient accumulation, and
       a micro-batch's C_t contains its own B; both codes update it in the forward pass and have no
       accumulation.
    5. C is saved in checkpoints; in both codes it is not.
    6. B is that of the global batch, on any number of ranks; sayannag's code has one process.
    7. The loss has no constant, as in sayannag's code; lightly's adds 1.
    8. The encoder that is evaluated is the online one; lightly's ImageNet benchmark evaluates the
       momentum encoder.
    9. Half precision is bfloat16 in our recipes; sayannag's code has none.
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_interval
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import tico
from sslzoo.memory import Center
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, frozen_copy, output_dim
from sslzoo.optim import CosineSchedule, Schedule, as_schedule, exempt_bias_and_norm


class TiCo(SSLMethod):
    """Agree with a momentum network on the other view, and avoid directions of high covariance.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features).
        projector: num_features -> D: Linear-BN-ReLU-Linear of widths 4096 and 256 in both codes,
            the first Linear without bias.
        covariance_weight: rho; 8 in the paper according to sayannag's code.
        beta: weight of the old covariance matrix at each optimizer step; 0.9 in the paper.
        momentum: of the momentum network at each optimizer step; None: CosineSchedule(0.99, 1.0).
        optimizer: see `SSLMethod`; LARS in lightly's code, SGD in sayannag's.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine, in lightly's code.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in
            lightly's code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = TiCo(SmallResNet((8, 16)), MLP([16, 32, 8], bias=False))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['invariance', 'contrast']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        covariance_weight: float = 8.0,
        beta: float = 0.9,
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        self.dim = output_dim(backbone, projector)
        self.projector = projector
        self.teacher_backbone = frozen_copy(backbone)
        self.teacher_projector = frozen_copy(projector)
        self.covariance = Center(self.dim**2, beta)  # a moving average from zero, here of B
        check_interval("covariance_weight", covariance_weight, 0, float("inf"), "[)")
        self.covariance_weight, self.beta = covariance_weight, beta
        self.momentum = CosineSchedule(0.99, 1.0) if momentum is None else as_schedule(momentum)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.backbone, self.teacher_backbone), (self.projector, self.teacher_projector)]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="before_forward"), CommitMemory()]

    def embed(self, view: View) -> Tensor:
        """The online network's L2-normalized projection. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.projector(self.backbone(view)))

    @torch.no_grad()
    def target(self, view: View) -> Tensor:
        """The momentum network's L2-normalized projection. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.teacher_projector(self.teacher_backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        z1, z2 = self.embed(v1), self.target(v2)  # (B, D)
        C = self.covariance.read().view(self.dim, self.dim)  # C_{t-1}
        terms = tico(z1, z2, C, self.beta)
        self.covariance.stage(terms.second_moment.flatten(), len(z1))
        return {
            "invariance": terms.invariance,
            "contrast": self.covariance_weight * terms.contrast,
        }
