"""SimCSE (unsupervised): simple contrastive learning of sentence embeddings.

Gao, Yao and Chen, EMNLP 2021, https://arxiv.org/abs/2104.08821.
Reference code: princeton-nlp/SimCSE, simcse/models.py; described from memory, not compared.

Deviations:
    1. Dropout masks of `SmallTransformer` are keyed by sentence, step and view; the code's are
       torch's.
    2. Negatives of all ranks have gradients; the code gathers them without gradient, and only
       those of its own rank have one.
"""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.batch import Batch, Tokens, ViewSpec
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import batch_info_nce
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim, step_keys
from sslzoo.optim import Schedule, exempt_bias_and_norm
from sslzoo.random import Keys


class SimCSE(SSLMethod):
    """Contrast two encodings of a sentence, which differ by their dropout masks.

    With two views per sample, such as neighboring lines, the second is the positive of the first,
    as in the supervised SimCSE of section 4 without hard negatives.

    Args:
        backbone: a text backbone, see `sslzoo.backbones.text`; with dropout for one view per
            sentence.
        projector: not part of `forward`; `heads.TanhHead` in the code.
        temperature: tau; 0.05 in the paper.
        optimizer: see `SSLMethod`; AdamW in the code.
        schedule: see `SSLMethod`; linear to 0 in the code.
        parameter_groups: see `SSLMethod`.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallTransformer
        >>> from sslzoo.heads import TanhHead
        >>> backbone = SmallTransformer(20, width=8, depth=1, heads=2, max_length=9)
        >>> method = SimCSE(backbone, TanhHead(8))
        >>> text = Tokens(torch.randint(20, (4, 9)), torch.tensor([9, 3, 7, 5]))
        >>> batch = Batch([text], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['info_nce']
    """

    takes = ViewSpec(1, 2, kind="tokens")

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        temperature: float = 0.05,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.temperature = temperature

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        keys = step_keys(self, batch)
        pair = (batch.views[0], batch.views[-1])
        z1, z2 = (self.embed(text, keys.fold("view", number)) for number, text in enumerate(pair))
        return {"info_nce": batch_info_nce(z1, z2, self.temperature)}

    def _checked_losses(self, batch: Batch) -> dict[str, Tensor]:
        is_first = not self._has_trained
        terms = super()._checked_losses(batch)
        if is_first and len(batch.views) == 1:
            keys = step_keys(self, batch)
            with torch.no_grad(), isolate_rng():
                z1, z2 = (self.embed(batch.views[0], keys.fold("view", v)) for v in range(2))
            if torch.equal(z1, z2):
                raise ValueError(
                    "the backbone of SimCSE must have dropout, by which the two encodings of a "
                    "sentence differ, got equal ones; set its dropout, or give two views, as "
                    "TextLines(neighbors=True) does"
                )
        return terms

    def embed(self, text: Tokens, keys: Keys) -> Tensor:
        """L2-normalized projections under the dropout masks of the keys. (B, D)."""
        return l2_normalize(self.projector(self.backbone(text, keys)))
