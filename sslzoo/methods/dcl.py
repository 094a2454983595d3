"""DCL: decoupled contrastive learning.

Yeh, Hong, Hsu, Liu, Chen and LeCun, ECCV 2022, https://arxiv.org/abs/2110.06848.
Reference code: raminnakhli/Decoupled-Contrastive-Learning, a reimplementation of the loss alone.

Deviations:
    1. The loss is the mean over the 2N anchors; the paper's is their sum, the code's the sum of the
       means of the two directions, which is twice ours. LARS is invariant to the factor, except for
       the weight of the decay and for the exempt parameters.
    2. DCLW's weights are 2 - N softmax(cosine / sigma) over the N pairs of the global batch, with
       gradient, as in the paper; later versions of the code lack the factor N.
    3. The anchor and its positive are excluded from the negatives; the code adds log(1e-45) = -103
       to their logits, which has the same effect unless the temperature is tiny.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.losses import dcl
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class DCL(SSLMethod):
    """SimCLR without the positive in the denominator, for small batches.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features).
        projector: g; num_features -> 128 in the paper (`heads.simclr_projector`).
        temperature: tau of the cosines; 0.1 in the paper (reported).
        sigma: None for DCL. A number for DCLW, whose positives have the weight 2 - exp(cosine /
            sigma) divided by its mean; 0.5 in the paper.
        optimizer: see `SSLMethod`.
        schedule: see `SSLMethod`.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in SimCLR.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import simclr_projector
        >>> method = DCL(SmallResNet((8, 16)), simclr_projector(16, out_dim=8), sigma=0.5)
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['dcl']
    """

    takes = ViewSpec(2, 2, alike=None)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        temperature: float = 0.1,
        sigma: float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.temperature, self.sigma = temperature, sigma

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (2B, C, H, W), sample by sample
        z1, z2 = self.projector(self.backbone(x)).unflatten(0, (-1, 2)).unbind(1)  # (B, D) each
        return {"dcl": dcl(z1, z2, self.temperature, self.sigma)}
