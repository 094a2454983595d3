"""LeJEPA: views predict their center, and embeddings are pulled to an isotropic Gaussian.

Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the
Heuristics, 2025, https://arxiv.org/abs/2511.08544.
Reference code: rbalestr-lab/lejepa at eddffdd, whose MINIMAL.md is a complete script for one GPU
(the training script of the paper is not published); stable-pretraining at d15ec96 by the same
group. Written from the formulas.

Deviations:
    1. The random directions depend on seed and step alone; the package seeds the generator of the
       device with the number of calls, MINIMAL.md draws from the global generator, so that a CPU
       and a GPU, or a run and its resumption, have other directions.
    2. The micro-batches of a gradient accumulation share their directions; in the package each call
       has its own.
    3. The center is by default the mean of all views, as in MINIMAL.md; in the paper, and with
       num_global here, it is that of the global views.
    4. The loss is (1 - lambda) invariance + lambda SIGReg, whose N counts the rows of one view, as
       in MINIMAL.md and the paper; in stable-pretraining it is invariance + lambda SIGReg of all
       views as one sample, which is about V times as large, and W times each rank's own on W ranks.
    5. SIGReg is computed in float32; in MINIMAL.md under bfloat16 autocast.
    6. 1,024 directions by default, as in the package's quick start; 256 in MINIMAL.md.
    7. `forward` gives the backbone's features; MINIMAL.md probes the embedding of width 512 that
       the head begins with, the README the class tokens of the last two layers.
    8. That layer (`lejepa_projector`) starts as torch's Linear; in MINIMAL.md it is timm's
       classifier, normal 0.02 with zero biases.
"""

from __future__ import annotations

from torch import Tensor, nn

from sslzoo.backbones import multi_crop
from sslzoo.batch import Batch, ViewSpec
from sslzoo.checks import check_interval, check_whole
from sslzoo.losses import random_directions, sigreg, view_invariance
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, all_alike


class LeJEPA(SSLMethod):
    """Predict the center of an image's views, with embeddings of an isotropic Gaussian.

    There is no teacher, no predictor, no stop-gradient and no schedule but the learning rate's.

    Args:
        backbone: (B, C, H, W) -> (B, num_features), for every size of the views.
        projector: num_features -> D: `lejepa_projector` with D = 16 in MINIMAL.md.
        sigreg_weight: lambda; 0.02 in MINIMAL.md, 0.05 in the paper's ablations.
        num_directions: S, random directions per step.
        num_global: number of first views whose mean is the center; None: all views.
        optimizer: see `SSLMethod`; AdamW in the paper.
        schedule: see `SSLMethod`; linear warm-up, then a cosine to a thousandth.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> method = LeJEPA(SmallResNet((8, 16)), MLP([16, 32, 8], bias=False), num_directions=16)
        >>> views = [torch.rand(4, 3, size, size) for size in (8, 8, 4)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['invariance', 'sigreg']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        sigreg_weight: float = 0.02,
        num_directions: int = 1024,
        num_global: int | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        check_interval("sigreg_weight", sigreg_weight, 0, 1)
        check_whole("num_directions", num_directions, 1)
        if num_global is not None:
            check_whole("num_global", num_global, 1)
        several = max(2, num_global or 0)
        self.takes = ViewSpec(several, alike=num_global or 0, large_first=num_global is not None)
        self.projector, self.sigreg_weight = projector, sigreg_weight
        self.num_directions, self.num_global = num_directions, num_global

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        w, z = self.sigreg_weight, multi_crop(self.backbone, self.projector, batch.views)
        A = random_directions(z.shape[2], self.num_directions, self.seed, self.step, z.device)
        invariance = view_invariance(z, self.num_global)
        return {"invariance": (1 - w) * invariance, "sigreg": w * sigreg(z, A)}
