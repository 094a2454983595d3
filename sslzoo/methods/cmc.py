"""CMC: contrastive multiview coding.

Tian, Krishnan and Isola, ECCV 2020, https://arxiv.org/abs/1906.05849.
Reference code: HobbitLong/CMC, commit 7b227be.

Deviations:
    1. The banks are written after the optimizer step; the code writes them in the forward pass,
       after the scores. Both write the features of this step's weights, before any later read.
    2. Negatives are a keyed function of (seed, step, sample), the code's come from an alias
       sampler: uniform with replacement in both, and the same for all pairs of views.
    3. The code has two views; for more, the sums over pairs are the paper's (reported), with a
       normalizing constant for each direction of each pair, as the code has for its one pair.
    4. num_negatives 0, the softmax over a whole bank, is InstDisc's, not in the code.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones.towers import Towers
from sslzoo.batch import Batch, View, index_of
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.heads.per_view import PerView
from sslzoo.losses import bank_softmax, nce, nce_constant, sampled_softmax
from sslzoo.losses.precision import at_least_float32
from sslzoo.memory import MemoryBank
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    output_dim,
)
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys, run_seed


class CMC(SSLMethod):
    """Views of one sample attract each other: each is scored against the memory of another.

    A batch holds M views, or one image of all their channels. `forward` gives the towers'
    features side by side, on which the paper's linear classifier is trained.

    Args:
        backbone: a tower a view (`backbones.Towers`).
        projector: a head a view (`heads.PerView`), one Linear to 128 in the paper; normalized
            here.
        bank_size: number of training samples; one row each in every view's bank.
        num_negatives: K, shared by all pairs of views: 16384 in the code, 4096 for its released
            ResNets; 0 is the full softmax over a bank.
        softmax: cross entropy of the K + 1 scores (the code's --softmax) in place of NCE.
        mode: "full_graph" contrasts every pair of views, "core_view" the first with each other;
            for two views they are the same.
        temperature: 0.07; 0.1 on STL-10.
        bank_momentum: m of v <- normalize(m v + (1 - m) f); 0.5.
        bank_dtype: of the banks' rows; bfloat16 halves the 656 MB of an ImageNet bank.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; steps at epochs 120, 160 and 200.
        parameter_groups: see `SSLMethod`; everything is decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> towers = [SmallResNet((8, 16), in_chans=1), SmallResNet((8, 16), in_chans=2)]
        >>> method = CMC(
        ...     Towers(towers, channels=(1, 2)),
        ...     PerView([nn.Linear(16, 8), nn.Linear(16, 8)]),
        ...     bank_size=48,
        ...     num_negatives=6,
        ... )
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['nce_0_1', 'nce_1_0']
    """

    z_constants: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        projector: PerView,
        bank_size: int,
        num_negatives: int = 16384,
        softmax: bool = False,
        mode: Literal["full_graph", "core_view"] = "full_graph",
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
        bank_dtype: Literal["float32", "bfloat16"] = "float32",
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim, M = output_dim(backbone, projector), len(projector.widths)
        _check(backbone, projector, mode)
        self.projector = projector
        self.banks = nn.ModuleList(
            MemoryBank(
                bank_size, dim, getattr(torch, bank_dtype), bank_momentum, M * run_seed() + j
            )
            for j in range(M)
        )
        self.num_negatives, self.temperature = num_negatives, temperature
        self.softmax = softmax
        # (i, j): the features of view i against the bank of view j
        directions = [(i, j) for i in range(M) for j in range(M) if i != j]
        self.directions = [d for d in directions if mode == "full_graph" or 0 in d]
        self.register_buffer("z_constants", torch.full((M, M), -1.0))  # -1: the first batch sets it
        self._has_constants = False
        self.register_load_state_dict_post_hook(CMC._recall_constants)

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory()]

    def bank(self, view: int) -> MemoryBank:
        """The memory of a view."""
        return cast(MemoryBank, self.banks[view])

    def project(self, view: View) -> Tensor:
        """Normalized embedding of each view, what the banks hold. (B, ...) -> (B, M, D)."""
        return F.normalize(at_least_float32(self.projector(self.backbone(view))), dim=2)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        index = index_of(batch, "CMC")
        view = batch.views[0] if len(batch.views) == 1 else tuple(batch.views)
        f = self.project(view).unbind(1)  # M of (B, D)
        which = index[:, None]
        if self.num_negatives:
            which = torch.cat([which, self.negatives(index)], dim=1)  # (B, 1 + K)
        name = "nce" if self.num_negatives and not self.softmax else "softmax"
        terms = {f"{name}_{i}_{j}": self.contrast(f[i], i, j, which) for i, j in self.directions}
        if not self._has_constants and name == "nce":
            self._has_constants = True
        for j, rows in enumerate(f):
            self.bank(j).stage(index, rows)
        return terms

    def contrast(self, f: Tensor, i: int, j: int, which: Tensor) -> Tensor:
        """The loss of view i's features (B, D) against bank j at the rows `which` (B, 1 + K)."""
        bank, T = self.bank(j).rows, self.temperature
        if self.num_negatives == 0:
            return bank_softmax(f, bank, which[:, 0], T)
        if self.softmax:
            return sampled_softmax(f, bank, which, T)
        z = self.z_constants[i, j]
        if not self._has_constants:
            z.copy_(nce_constant(f.detach(), bank, which, T))
        return nce(f, bank, which, z, T)

    def negatives(self, index: Tensor) -> Tensor:
        """Uniform rows of a bank for each sample, with replacement. (B,) -> (B, K)."""
        keys = Keys(index).fold(self.seed, self.step)
        return keys.integers("negatives", len(self.bank(0).rows), self.num_negatives)

    def _recall_constants(self, _: Any) -> None:
        self._has_constants = bool((self.z_constants > 0).any())


def _check(backbone: nn.Module, projector: PerView, mode: str) -> None:
    if len(projector.widths) < 2:
        raise ValueError(f"CMC wants at least 2 views, got {len(projector.widths)} head")
    if isinstance(backbone, Towers) and backbone.widths != projector.widths:
        raise ValueError(
            f"the heads take {projector.widths} features and the towers give {backbone.widths}"
        )
    if mode not in ("full_graph", "core_view"):
        raise ValueError(f"mode is 'full_graph' or 'core_view', got {mode!r}")
