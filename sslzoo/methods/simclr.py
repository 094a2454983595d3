"""SimCLR: a simple framework for contrastive learning of visual representations.

Chen, Kornblith, Norouzi and Hinton, ICML 2020, https://arxiv.org/abs/2002.05709.
Version 2: Chen, Kornblith, Swersky, Norouzi and Hinton, NeurIPS 2020,
https://arxiv.org/abs/2006.10029; its pre-training is a config of this class.
Reference code: google-research/simclr, commits be133b3 (v1) and 383d414 (v2).

Deviations:
    1. The loss is the paper's mean over 2N anchors; the code's is the sum of the means of the two
       directions, which is twice ours. LARS is invariant to the factor, except for the weight of
       the decay and for the exempt parameters, whose learning rate is halved.
    2. A run has `n // batch_size * epochs` steps; the code's has `n * epochs // batch_size + 1`.
    3. The warm-up has `round(warmup_epochs * (n // batch_size))` steps, 3,120 for 10 epochs of
       ImageNet with batch size 4096; the code's has `warmup_epochs * n // batch_size`, 3,127.
    4. timm's max-pool pads symmetrically, TensorFlow's by (0, 1) for even inputs; timm initializes
       weights with variance 2 / fan-out, the code with 1 / fan-in. `simclr_v2_resnet` follows the
       code.
    5. Running variances of batch norm are unbiased, as in torch; TensorFlow's are biased.
    6. The blur's sigma is drawn per sample and view; the code's once per batch and view.
    7. Crops are torchvision's, antialiased; TensorFlow's sampler refuses boxes below 0.1 of the
       image, and its resize is not antialiased.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.losses import nt_xent
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class SimCLR(SSLMethod):
    """Contrast two views of an image with all other views of the global batch.

    Args:
        backbone: f; (B, C, H, W) -> (B, num_features).
        projector: g; num_features -> 128 in the paper (`heads.simclr_projector`, and
            `heads.simclr_v2_projector` in version 2).
        temperature: tau of NT-Xent: 0.1 for ImageNet, 0.5 for CIFAR-10 (the repository's README).
        normalize: whether NT-Xent L2-normalizes the projections; False is the code's
            hidden_norm=False, whose similarities are dot products.
        optimizer: see `SSLMethod`; LARS in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up (5 % of all epochs in version 2), then a
            cosine in the paper.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import simclr_projector
        >>> method = SimCLR(SmallResNet((8, 16)), simclr_projector(16, out_dim=8))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['nt_xent']
    """

    takes = ViewSpec(2, 2, alike=None)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        temperature: float = 0.1,
        normalize: bool = True,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.temperature, self.normalize = temperature, normalize

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (2B, C, H, W), sample by sample
        z = self.projector(self.backbone(x))  # (2B, D)
        z1, z2 = z.unflatten(0, (-1, 2)).unbind(1)
        return {"nt_xent": nt_xent(z1, z2, self.temperature, self.normalize)}
