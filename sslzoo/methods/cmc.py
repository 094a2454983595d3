"""CMC: contrastive multiview coding.

Tian, Krishnan and Isola, ECCV 2020, https://arxiv.org/abs/1906.05849.
Reference code: HobbitLong/CMC, commit 7b227be.

Deviations:
    1. The banks are updated after the optimizer step; the code updates them in the forward pass,
       after the scores. Both write the features of this step's weights before the next read.
    2. Negatives are keyed draws of (seed, step, sample); the code draws them from an alias sampler.
       Both are uniform with replacement, and shared by all pairs of views.
    3. The code has two views. With more views, the sums over pairs are the paper's (reported), with
       one normalizing constant per direction of each pair, as the code has for its one pair.
    4. num_negatives=0, the softmax over a whole bank, is InstDisc's; the code only has a softmax
       over the K + 1 sampled scores, `softmax=True`.
    5. Every normalizing constant Z is a float. So are those of the code's banks, but that of its
       queue (MemoryMoCo, memory="queue" here) is truncated to an integer.
    6. The code has its queue in its MoCo alone (train_moco_ins.py), between two crops of an image,
       and shuffles keys between GPUs. Here the keys are those of another view of the same crop, as
       in PyContrast's CMCMoCo, with batch norm over the global batch.
    7. The code has no contrast of patches (the paper has, on NYU Depth). With `positions`, the
       loss is the softmax among the drawn positions of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones.towers import Towers
from sslzoo.batch import Batch, View, ViewSpec, index_of
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_at_least, check_choice
from sslzoo.heads.per_view import PerView
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import bank_softmax, batch_info_nce, info_nce, nce, nce_constant, sampled_softmax
from sslzoo.memory import MemoryBank, Queue
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    output_dim,
    step_keys,
)
from sslzoo.optim import Schedule, all_alike, as_schedule
from sslzoo.random import Keys, run_seed


class CMC(SSLMethod):
    """Contrast the views V_1 .. V_M of a sample, each with another view's memory bank.

    With L(V_i, V_j) the loss of anchors z_i against the bank of view j plus that of z_j against
    the bank of view i, the full graph is the sum of L(V_i, V_j) over i < j, and the core view
    that of L(V_1, V_j) over j > 1. A batch has M views, or one image with all their channels.
    `forward` returns the concatenated features of the towers, on which the paper trains its linear
    classifier.

    Args:
        backbone: one tower per view (`backbones.Towers`).
        projector: one head per view (`heads.PerView`), one Linear to 128 in the paper;
            L2-normalized here.
        bank_size: number of training samples; each view's bank has one row per sample.
            Left out with `positions`.
        num_negatives: K, shared by all pairs of views: 16384 in the code, 4096 for its released
            ResNets; 0 for the full softmax over a bank. The size of each queue, if there are.
            Does not apply with `positions`.
        softmax: whether the loss is the cross entropy of the K + 1 scores (the code's --softmax)
            instead of NCE.
        mode: "full_graph" contrasts every pair of views, "core_view" the first view with each
            other one; they are the same for two views.
        temperature: tau; 0.07 in the paper, 0.1 on STL-10.
        bank_momentum: m of v <- normalize(m v + (1 - m) z); 0.5 in the code.
        bank_dtype: type of the banks' rows; bfloat16 halves the 656 MB of an ImageNet bank.
        memory: "bank", or "queue": the negatives are the K newest keys of the other view, from a
            momentum encoder (the code's MemoryMoCo). Then `bank_momentum` and `bank_dtype` do not
            apply, and `bank_size` is only in NCE's noise and constant.
        momentum: momentum of the queue's encoder at each optimizer step; None: 0.999, the code's.
        positions: P > 0: contrast patches, P random positions of each sample's feature maps, the
            same in all views (`forward_map` of the towers). An anchor's negatives are the other
            N P - 1 positions of the global batch, and there are neither banks nor queues.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; steps at epochs 120, 160 and 200 in the code.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

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
        bank_size: int | None = None,
        num_negatives: int = 16384,
        softmax: bool = False,
        mode: Literal["full_graph", "core_view"] = "full_graph",
        temperature: float = 0.07,
        bank_momentum: float = 0.5,
        bank_dtype: Literal["float32", "bfloat16"] = "float32",
        memory: Literal["bank", "queue"] = "bank",
        momentum: Schedule | float | None = None,
        positions: int = 0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        dim, M = output_dim(backbone, projector), len(projector.widths)
        _check(backbone, projector, mode)
        self.projector, self.positions = projector, positions
        self.takes = ViewSpec(1, M)
        seeds = [M * run_seed() + j for j in range(M)]
        check_choice("memory", memory, ("bank", "queue"))
        if positions:
            _check_positions(backbone, positions, bank_size, memory, momentum)
        elif bank_size is None:
            raise ValueError("bank_size must be the number of training samples, got None")
        elif memory == "queue":
            _check_queue(bank_size, num_negatives, bank_momentum, bank_dtype)
            self.bank_size = bank_size
            self.queues: Any = nn.ModuleList(Queue(num_negatives, dim, seed) for seed in seeds)
            self.key_backbone, self.key_projector = frozen_copy(backbone), frozen_copy(projector)
            self.momentum = as_schedule(0.999 if momentum is None else momentum)
        elif momentum is not None:
            raise ValueError(
                f"momentum must be left out without memory='queue', got {momentum}; the weight of "
                "a bank's old rows is bank_momentum"
            )
        else:
            dtype = getattr(torch, bank_dtype)
            self.banks: Any = nn.ModuleList(
                MemoryBank(bank_size, dim, dtype, bank_momentum, seed) for seed in seeds
            )
        self.memory = memory
        self.num_negatives, self.temperature = num_negatives, temperature
        self.softmax = softmax
        # (i, j): anchors of view i against the bank of view j
        directions = [(i, j) for i in range(M) for j in range(M) if i != j]
        self.directions = [d for d in directions if mode == "full_graph" or 0 in d]
        self.register_buffer("z_constants", torch.full((M, M), -1.0))  # set by the first batch
        self._has_constants = False
        self.register_load_state_dict_post_hook(CMC._recall_constants)

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        if self.memory == "bank":
            return []
        return [(self.backbone, self.key_backbone), (self.projector, self.key_projector)]

    def configure_callbacks(self) -> list[Callback]:
        if self.positions:
            return []
        if self.memory == "bank":
            return [CommitMemory()]
        return [EMA(self.momentum, when="after_step"), CommitMemory()]

    def project(self, view: View) -> Tensor:
        """L2-normalized embeddings of all views, as in the banks. (B, ...) -> (B, M, D)."""
        return l2_normalize(self.projector(self.backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        view = batch.views[0] if len(batch.views) == 1 else tuple(batch.views)
        if self.positions:
            return self.contrast_patches(view, step_keys(self, batch))
        z = self.project(view).unbind(1)  # z_1 .. z_M, (B, D) each
        if self.memory == "queue":
            return self.contrast_keys(z, self.keys(view).unbind(1))
        index = index_of(batch, "CMC")
        sampled = index[:, None]
        if self.num_negatives:
            sampled = self.banks[0].sample(index, step_keys(self, batch), self.num_negatives)
        name = "nce" if self.num_negatives and not self.softmax else "softmax"
        terms = {f"{name}_{i}_{j}": self.contrast(z[i], i, j, sampled) for i, j in self.directions}
        self._has_constants |= name == "nce"
        for bank, z_i in zip(self.banks, z, strict=True):
            bank.stage(index, z_i)
        return terms

    def contrast(self, z_i: Tensor, i: int, j: int, sampled: Tensor) -> Tensor:
        """Loss of the anchors z_i of view i against sampled rows of view j's bank.

        Shapes: z_i (B, D), sampled (B, 1 + K), column 0 the positives.
        """
        bank, tau = self.banks[j].rows, self.temperature
        if self.num_negatives == 0:
            return bank_softmax(z_i, bank, sampled[:, 0], tau)
        if self.softmax:
            return sampled_softmax(z_i, bank, sampled, tau)
        return self._nce(z_i, i, j, bank, sampled)

    def _nce(self, z_i: Tensor, i: int, j: int, rows: Tensor, sampled: Tensor) -> Tensor:
        Z, tau = self.z_constants[i, j], self.temperature
        M = self.bank_size if self.memory == "queue" else len(rows)
        if not self._has_constants:
            Z.copy_(nce_constant(z_i.detach(), rows, sampled, tau, M))
        return nce(z_i, rows, sampled, Z, tau, num_data=M)

    @torch.no_grad()
    def keys(self, view: View) -> Tensor:
        """L2-normalized keys of all views, for the queues. (B, ...) -> (B, M, D)."""
        return l2_normalize(self.key_projector(self.key_backbone(view)))

    def contrast_keys(self, z: Sequence[Tensor], k: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses of the anchors z against the other views' keys k and queues; M x (B, D) each."""
        terms: dict[str, Tensor] = {}
        B, K = len(z[0]), self.num_negatives
        own = torch.arange(B, device=z[0].device)[:, None]
        queued = torch.arange(B, B + K, device=own.device).expand(B, -1)
        for i, j in self.directions:
            queue = self.queues[j].read()
            if self.softmax:
                terms[f"softmax_{i}_{j}"] = info_nce(z[i], k[j], queue, self.temperature)
            else:
                rows = torch.cat([k[j], queue])  # (B + K, D)
                sampled = torch.cat([own, queued], dim=1)
                terms[f"nce_{i}_{j}"] = self._nce(z[i], i, j, rows, sampled)
        self._has_constants |= not self.softmax
        for queue, k_j in zip(self.queues, k, strict=True):
            queue.stage(k_j)
        return terms

    def contrast_patches(self, view: View, keys: Keys) -> dict[str, Tensor]:
        """Losses of P drawn positions per sample against the other views' positions."""
        maps = cast(Any, self.backbone).forward_map(view).flatten(2)  # (B, sum of widths, h w)
        B, D, S = maps.shape
        drawn = keys.uniform("positions", S).topk(min(self.positions, S)).indices  # (B, P)
        rows = maps.gather(2, drawn[:, None].expand(B, D, -1)).transpose(1, 2).flatten(0, 1)
        z = l2_normalize(self.projector(rows)).unbind(1)  # M x (B P, D)
        return {
            f"patches_{i}_{j}": batch_info_nce(z[i], z[j], self.temperature)
            for i, j in self.directions
        }

    def _recall_constants(self, _: Any) -> None:
        self._has_constants = bool((self.z_constants > 0).any())


def _check_queue(bank_size: int, num_negatives: int, bank_momentum: float, bank_dtype: str) -> None:
    check_at_least("bank_size", bank_size, 1)
    if num_negatives < 1:
        raise ValueError(
            "num_negatives must be at least 1 with memory='queue', since it is the queue's size, "
            f"got {num_negatives}"
        )
    if (bank_momentum, bank_dtype) != (0.5, "float32"):
        raise ValueError(
            "bank_momentum and bank_dtype must be left out with memory='queue', got "
            f"{bank_momentum} and {bank_dtype!r}"
        )


def _check_positions(
    backbone: nn.Module, positions: int, bank_size: int | None, memory: str, momentum: object
) -> None:
    check_at_least("positions", positions, 1)
    if bank_size is not None or memory != "bank" or momentum is not None:
        raise ValueError(
            "bank_size, memory and momentum must be left out with positions, whose negatives are "
            f"those of the batch, got {bank_size}, {memory!r} and {momentum}"
        )
    widths = [getattr(backbone, name, None) for name in ("map_features", "num_features")]
    if not callable(getattr(backbone, "forward_map", None)) or widths[0] != widths[1]:
        raise ValueError(
            "with positions the towers must have forward_map with as many features as num_features "
            f"(UNet, SmallResNet, timm's ResNets), got {type(backbone).__name__}"
        )


def _check(backbone: nn.Module, projector: PerView, mode: str) -> None:
    if len(projector.widths) < 2:
        raise ValueError(f"projector must have at least 2 heads, got {len(projector.widths)}")
    if isinstance(backbone, Towers) and backbone.widths != projector.widths:
        raise ValueError(
            f"the heads of projector must take {backbone.widths} features, the towers' widths, "
            f"got {projector.widths}"
        )
    if mode not in ("full_graph", "core_view"):
        raise ValueError(f"mode must be 'full_graph' or 'core_view', got {mode!r}")
