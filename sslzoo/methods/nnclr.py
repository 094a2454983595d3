"""NNCLR: nearest-neighbor contrastive learning of visual representations.

Dwibedi, Aytar, Tompson, Sermanet and Zisserman, "With a Little Help from My Friends", ICCV 2021,
https://arxiv.org/abs/2104.14548. Reference code: none was released.

Deviations:
    1. The support set is written after the optimizer step, with the rows of all micro-batches of
       an accumulation; the paper's algorithm writes it at the end of a step (reported).
    2. The norm at the projector's end has a scale and no offset in our configs: the predictor's
       norm takes an offset out again, so that its gradient is rounding noise.
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.batch import Batch
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.losses import batch_info_nce
from sslzoo.losses.precision import at_least_float32, no_autocast
from sslzoo.memory import Queue
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    output_dim,
)
from sslzoo.optim import Schedule, exempt_bias_and_norm

_COSINES_BLOCK = 1 << 24  # cosines with the support set that exist at a time


class NNCLR(SSLMethod):
    """The positive of a view is the other view's nearest neighbor among earlier projections.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D: three layers, 2048, 2048 and 256 wide, each with batch
            norm, in the paper (reported).
        predictor: D -> D: 4096 and 256 wide, batch norm and ReLU between (reported).
        queue_size: rows of the support set; 98304 in the paper (reported).
        temperature: 0.1 in the paper (reported).
        optimizer: see `SSLMethod`; LARS in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine.
        parameter_groups: see `SSLMethod`; biases and norms are exempt.

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
        dim = output_dim(backbone, projector)
        if output_dim(backbone, projector, predictor) != dim:
            raise ValueError(
                f"the predictor gives {predictor.out_features} features and its targets, the "
                f"projections, have {dim}"
            )
        self.projector, self.predictor = projector, predictor
        self.queue = Queue(queue_size, dim)
        self.temperature = temperature

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory()]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        z1, z2 = self.projector(self.backbone(v1)), self.projector(self.backbone(v2))  # (B, D)
        p1, p2 = _unit(self.predictor(z1)), _unit(self.predictor(z2))
        nn1, nn2 = self.neighbor(z1), self.neighbor(z2)
        T = self.temperature
        self.queue.stage(_unit(z1))
        return {"info_nce": (batch_info_nce(nn1, p2, T) + batch_info_nce(nn2, p1, T)) / 2}

    @torch.no_grad()
    def neighbor(self, z: Tensor) -> Tensor:
        """The support set's row of the largest cosine with each z. (B, D) -> (B, D)."""
        rows, z = self.queue.read(), _unit(z)
        step = max(1, _COSINES_BLOCK // len(rows))
        with no_autocast(z):
            nearest = torch.cat([(part @ rows.T).argmax(dim=1) for part in z.split(step)])
        return rows[nearest]


def _unit(x: Tensor) -> Tensor:
    return F.normalize(at_least_float32(x), dim=1)
