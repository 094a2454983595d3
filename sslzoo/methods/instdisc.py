"""InstDisc: unsupervised feature learning via non-parametric instance discrimination.

Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978.
Reference code: zhirongw/lemniscate.pytorch, commit f7cfe29.

Deviations:
    1. The bank is written after the optimizer step; the code writes it in the backward pass. Both
       write the features of this step's weights, before any later read.
    2. Negatives are a keyed function of (seed, step, sample), the code's come from an alias
       sampler: uniform with replacement in both.
    3. The proximal term of the paper's equation 9 is in no release of the code; it is
       `proximal_weight` here, 0 by default (the code's choice, with bank momentum 0.5).
    4. `forward` gives the backbone's features, which linear evaluation uses; the kNN figures of
       the paper use the normalized 128-d embedding: `embed`, OnlineKNN(features="embed").
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.batch import Batch, View, index_of
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.losses import bank_softmax, nce, nce_constant, proximal
from sslzoo.losses.precision import at_least_float32
from sslzoo.memory import MemoryBank
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    output_dim,
)
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys


class InstDisc(SSLMethod):
    """Every image is a class of its own; its prototype is its row of a memory bank.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D, one Linear to 128 in the paper; normalized here.
        bank_size: number of training samples; one row each.
        num_negatives: K of NCE (4096 in the code); 0 is the full softmax over the bank.
        temperature: 0.07; 0.1 in the recommended CIFAR-10 setting.
        bank_momentum: m of v <- normalize(m v + (1 - m) f); 0.5 in the code.
        bank_dtype: of its rows; bfloat16 halves the 656 MB that ImageNet's bank takes.
        proximal_weight: lambda of the proximal term; 30 with bank_momentum 0 in the paper's plot
            (reported).
        refresh_every_n_epochs: recompute the whole bank every n epochs; 0: never.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; steps at epochs 120 and 160.
        parameter_groups: see `SSLMethod`; everything is decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> method = InstDisc(
        ...     SmallResNet((8, 16)), nn.Linear(16, 8), bank_size=48, num_negatives=6
        ... )
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['nce']
    """

    z_constant: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        bank_size: int,
        num_negatives: int = 4096,
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
        bank_dtype: Literal["float32", "bfloat16"] = "float32",
        proximal_weight: float = 0.0,
        refresh_every_n_epochs: int = 0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        self.projector = projector
        dim = output_dim(backbone, projector)
        self.bank = MemoryBank(bank_size, dim, getattr(torch, bank_dtype), bank_momentum)
        self.num_negatives, self.temperature = num_negatives, temperature
        self.proximal_weight = proximal_weight
        self.refresh_every_n_epochs = refresh_every_n_epochs
        self.register_buffer("z_constant", torch.tensor(-1.0))  # -1: the first batch sets it
        self._has_constant = False
        self.register_load_state_dict_post_hook(InstDisc._recall_constant)

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory(self.refresh_every_n_epochs)]

    def embed(self, view: View) -> Tensor:
        """Normalized embedding, what the bank holds. (B, C, H, W) -> (B, D)."""
        return F.normalize(at_least_float32(self.projector(self.backbone(view))), dim=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        index = index_of(batch, "InstDisc")
        f = self.embed(batch.views[0])  # (B, D)
        rows, T = self.bank.rows, self.temperature
        if self.num_negatives == 0:
            terms = {"softmax": bank_softmax(f, rows, index, T)}
        else:
            which = torch.cat([index[:, None], self.negatives(index)], dim=1)  # (B, 1 + K)
            if not self._has_constant:
                self.z_constant.copy_(nce_constant(f.detach(), rows, which, T))
                self._has_constant = True
            terms = {"nce": nce(f, rows, which, self.z_constant, T)}
        if self.proximal_weight:
            terms["proximal"] = self.proximal_weight * proximal(f, self.bank.read(index))
        self.bank.stage(index, f)
        return terms

    def negatives(self, index: Tensor) -> Tensor:
        """Uniform rows of the bank for each sample, with replacement. (B,) -> (B, K)."""
        keys = Keys(index).fold(self.seed, self.step)
        return keys.integers("negatives", len(self.bank.rows), self.num_negatives)

    def _recall_constant(self, _: Any) -> None:
        self._has_constant = bool(self.z_constant > 0)
