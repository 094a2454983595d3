"""NNCLR: nearest-neighbor contrastive learning of visual representations.

Dwibedi, Aytar, Tompson, Sermanet and Zisserman, "With a Little Help from My Friends", ICCV 2021,
https://arxiv.org/abs/2104.14548. Reference code: none was released.

Deviations:
    1. The support set is updated after the optimizer step, with all micro-batches of a gradient
       accumulation; the paper's algorithm updates it at the end of a step (reported).
    2. The last norm of the projector has a scale but no offset in our configs; the paper's has both
       (reported). The predictor's norm cancels an offset, whose gradient would be rounding noise.
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.layers.precision import l2_normalize, no_autocast
from sslzoo.losses import batch_info_nce
from sslzoo.memory import Queue
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, predictor_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm

_COSINES_BLOCK = 1 << 24  # cosines with the support set per block


class NNCLR(SSLMethod):
    """Contrast with the other view's nearest neighbor in a support set of projections.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D: three layers of widths 2048, 2048 and 256, each with batch
            norm, in the paper (reported).
        predictor: D -> D: two layers of widths 4096 and 256, with batch norm and ReLU between, in
            the paper (reported).
        queue_size: rows of the support set Q; 98304 in the paper (reported).
        temperature: tau; 0.1 in the paper (reported).
        optimizer: see `SSLMethod`; LARS in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine in the paper.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> projector = MLP([16, 32, 8], bias=False, last_bias=False, last_norm="scale")
        >>> predictor = MLP([8, 32, 8], bias=False)
        >>> method = NNCLR(SmallResNet((8, 16)), projector, predictor, queue_size=20)
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['info_nce']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        queue_size: int = 98304,
        temperature: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim = predictor_dim(backbone, projector, predictor)
        self.projector, self.predictor = projector, predictor
        self.queue = Queue(queue_size, dim)
        self.temperature = temperature

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory()]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        z1, z2 = self.projector(self.backbone(v1)), self.projector(self.backbone(v2))  # (B, D)
        p1, p2 = l2_normalize(self.predictor(z1)), l2_normalize(self.predictor(z2))
        nn1, nn2 = self.neighbor(z1), self.neighbor(z2)
        tau = self.temperature
        self.queue.stage(l2_normalize(z1))
        return {"info_nce": (batch_info_nce(nn1, p2, tau) + batch_info_nce(nn2, p1, tau)) / 2}

    @torch.no_grad()
    def neighbor(self, z: Tensor) -> Tensor:
        """The nearest neighbor of each z in the support set, by cosine. (B, D) -> (B, D)."""
        rows, z = self.queue.read(), l2_normalize(z)
        step = max(1, _COSINES_BLOCK // len(rows))
        with no_autocast(z):
            nearest = torch.cat([(part @ rows.T).argmax(dim=1) for part in z.split(step)])
        return rows[nearest]
