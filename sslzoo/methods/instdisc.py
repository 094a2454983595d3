"""InstDisc: unsupervised feature learning via non-parametric instance discrimination.

Wu, Xiong, Yu and Lin, CVPR 2018, https://arxiv.org/abs/1805.01978.
Reference code: zhirongw/lemniscate.pytorch, commit f7cfe29.

Deviations:
    1. The bank is updated after the optimizer step; the code updates it in the backward pass. Both
       write the features of this step's weights before the next read.
    2. Negatives are keyed draws of (seed, step, sample); the code draws them from an alias sampler.
       Both are uniform with replacement.
    3. The proximal term of the paper's equation 9 is not in the released code; it is
       `proximal_weight` here, 0 by default as in the code, with bank momentum 0.5.
    4. `forward` returns the backbone's features, used by linear evaluation; the paper's kNN results
       use the normalized 128-d embedding: `embed`, OnlineKNN(features="embed"). The code compares
       them with the bank's rows or with recomputed embeddings, ours with recomputed ones.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec, index_of
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import bank_softmax, nce, nce_constant, proximal, sampled_softmax
from sslzoo.memory import MemoryBank
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim, step_keys
from sslzoo.optim import Schedule, all_alike


class InstDisc(SSLMethod):
    """Classify every image as its own class, with a memory bank as prototypes.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D, one Linear to 128 in the paper; L2-normalized here.
        bank_size: number of training samples; the bank has one row per sample.
        num_negatives: K, 4096 in the code; 0 for the full softmax over the bank.
        temperature: tau; 0.07 in the paper, 0.1 in the code's recommended CIFAR-10 setting.
        bank_momentum: m of v <- normalize(m v + (1 - m) f); 0.5 in the code.
        bank_dtype: type of the bank's rows; bfloat16 halves the 656 MB of ImageNet's bank.
        proximal_weight: lambda of the proximal term; 30 with bank_momentum 0 in the paper's figure
            (reported).
        refresh_every_n_epochs: recompute the whole bank every n epochs; 0: never.
        softmax: whether the loss is the cross entropy of the K + 1 sampled scores instead of NCE,
            as in the authors' updated ImageNet model (K 65536) and HobbitLong/CMC's --softmax.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; steps at epochs 120 and 160 in the paper.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

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

    takes = ViewSpec(1, 1)

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
        softmax: bool = False,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        self.projector = projector
        dim = output_dim(backbone, projector)
        self.bank = MemoryBank(bank_size, dim, getattr(torch, bank_dtype), bank_momentum)
        self.num_negatives, self.temperature = num_negatives, temperature
        self.softmax = softmax
        self.proximal_weight = proximal_weight
        self.refresh_every_n_epochs = refresh_every_n_epochs
        self.register_buffer("z_constant", torch.tensor(-1.0))  # Z; set by the first batch
        self._has_constant = False
        self.register_load_state_dict_post_hook(InstDisc._recall_constant)

    def configure_callbacks(self) -> list[Callback]:
        return [CommitMemory(self.refresh_every_n_epochs)]

    def embed(self, view: View) -> Tensor:
        """L2-normalized embedding, as in the bank. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.projector(self.backbone(view)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        index = index_of(batch, "InstDisc")
        f = self.embed(batch.views[0])  # (B, D)
        if self.num_negatives == 0:
            terms = {"softmax": bank_softmax(f, self.bank.rows, index, self.temperature)}
        else:
            sampled = self.bank.sample(index, step_keys(self, batch), self.num_negatives)
            terms = self.contrast(f, sampled)
        if self.proximal_weight:
            terms["proximal"] = self.proximal_weight * proximal(f, self.bank.read(index))
        self.bank.stage(index, f)
        return terms

    def contrast(self, f: Tensor, sampled: Tensor) -> dict[str, Tensor]:
        """Loss of the features f (B, D) against sampled rows (B, 1 + K), the positives first."""
        V, tau = self.bank.rows, self.temperature  # V: (M, D)
        if self.softmax:
            return {"softmax": sampled_softmax(f, V, sampled, tau)}
        if not self._has_constant:
            self.z_constant.copy_(nce_constant(f.detach(), V, sampled, tau))
            self._has_constant = True
        return {"nce": nce(f, V, sampled, self.z_constant, tau)}

    def _recall_constant(self, _: Any) -> None:
        self._has_constant = bool(self.z_constant > 0)
