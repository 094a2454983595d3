"""SimSiam: exploring simple Siamese representation learning.

Chen and He, CVPR 2021, https://arxiv.org/abs/2011.10566.
Reference code: facebookresearch/simsiam, commit a7bc177.

Deviations:
    1. Our ImageNet and CIFAR-10 recipes train in bfloat16 mixed precision, the code in float32
       (`--trainer.precision=32-true`).

The code's `--fix-pred-lr`, a constant learning rate of the predictor, is `parameter_groups:
sslzoo.optim.ConstantRateFor`, as in our configs.
"""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.losses import negative_cosine
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, predictor_dim
from sslzoo.optim import Schedule, all_alike


class SimSiam(SSLMethod):
    """Predict one view's projection, as a constant, from the other view's.

    Args:
        backbone: (B, C, H, W) -> (B, num_features); with the projector it is the paper's f.
        projector: num_features -> D, 2048 in the paper (`heads.simsiam_projector`).
        predictor: h; D -> D, with a hidden width of 512 in the paper (`heads.simsiam_predictor`).
        optimizer: see `SSLMethod`; SGD with rate 0.05 * batch_size / 256 in the paper.
        schedule: see `SSLMethod`; a cosine by epoch without warm-up in the paper.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import simsiam_predictor, simsiam_projector
        >>> projector, predictor = simsiam_projector(16, out_dim=8), simsiam_predictor(8, 4)
        >>> method = SimSiam(SmallResNet((8, 16)), projector, predictor)
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['negative_cosine']
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        predictor_dim(backbone, projector, predictor)
        self.projector, self.predictor = projector, predictor

    def embed(self, view: View) -> Tensor:
        """The projection z. (B, C, H, W) -> (B, D)."""
        return self.projector(self.backbone(view))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        z1, z2 = self.embed(v1), self.embed(v2)  # (B, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        z1, z2 = self.stop_gradient(z1), self.stop_gradient(z2)
        return {"negative_cosine": (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2}

    def stop_gradient(self, z: Tensor) -> Tensor:
        """Detach the projection: without this, the features collapse (docs/collapse.md)."""
        return z.detach()
