"""InvaSpread: unsupervised embedding learning via invariant and spreading instance feature.

Ye, Zhang, Yuen and Chang, CVPR 2019, https://arxiv.org/abs/1904.03436.
Reference code: mangye16/Unsupervised_Embedding_Learning, commit 29de398.

Deviations:
    1. Batch norm is over the global batch, both views together. The code's DataParallel splits
       [first views; second views] into one block per GPU and normalizes each block separately; a
       backbone with bn_groups=G normalizes G blocks of images with both views of each. The loss is
       that of the global batch in both.
    2. log(1 - P) is exact where P rounds to 1; the code takes log(0) there.
    3. `forward` returns the backbone's features; the paper's kNN results use the normalized 128-d
       embedding: `embed`, OnlineKNN(features="embed").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import invaspread
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike


class InvaSpread(SSLMethod):
    """Classify the two views of an image as one instance, apart from all other views.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D, one Linear to 128 in the paper; L2-normalized here.
        temperature: tau; 0.1 in the paper.
        negative_weight: weight m >= 1 of the spreading term; 1 in the paper (negM of the code).
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; steps at epochs 120 and 160 in the code.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> method = InvaSpread(SmallResNet((8, 16)), nn.Linear(16, 8))
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['invaspread']
    """

    takes = ViewSpec(2, 2, alike=None)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        temperature: float = 0.1,
        negative_weight: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.temperature, self.negative_weight = temperature, negative_weight

    def embed(self, view: View) -> Tensor:
        """L2-normalized embedding. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.projector(self.backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = torch.stack(batch.views, dim=1).flatten(0, 1)  # (2B, C, H, W), sample by sample
        f1, f2 = self.embed(x).unflatten(0, (-1, 2)).unbind(1)  # (B, D) each
        return {"invaspread": invaspread(f1, f2, self.temperature, self.negative_weight)}
