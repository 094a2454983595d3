"""CLEAR: contrastive learning for sentence representation.

Wu, Wang, Gu, Khabsa, Sun and Ma, 2020, https://arxiv.org/abs/2012.15466.
Reference code: none is known. "Reported" settings come from a summary of the paper, not from its
text.

Deviations:
    1. The masked language model sees the original sentence, not an augmented one; what the paper's
       sees is unknown to us.
    2. Its masking is BERT's (15 %; 80 / 10 / 10), and its output layer is tied to the embedding;
       the paper's are unknown to us.
    3. The temperature is 0.1, and the projector is as wide as the backbone, then 128; the paper's
       values are unknown to us.
    4. The fraction of changed words in short sentences is rounded, see
       `sslzoo.transforms.text.augmentations`, and two augmentations of one view have a fixed order;
       the paper's rules are unknown to us.
    5. The encoder of the base recipe has pre-norm blocks; the paper's is BERT's, with post-norm
       blocks (reported).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sslzoo.batch import Batch, Tokens, ViewSpec
from sslzoo.heads import MLMHead
from sslzoo.losses import masked_language_model, nt_xent
from sslzoo.masks.token import mask_tokens
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim, step_keys
from sslzoo.optim import Schedule, exempt_bias_and_norm
from sslzoo.random import Keys
from sslzoo.transforms.text.special import Special


class CLEAR(SSLMethod):
    """Contrast two augmented views of a sentence, and predict masked words.

    Args:
        backbone: a text backbone, see `sslzoo.backbones.text`.
        projector: g, not part of `forward`; num_features -> D.
        mlm_head: features of a token -> the vocabulary; tied to the backbone's embedding.
        temperature: tau of NT-Xent; 0.1, ours.
        mlm_weight: weight of the masked language model's loss; 1 in the paper (reported). With 0
            the third view is not used.
        mask_fraction: fraction of the words that are masked; 0.15 in the paper (reported).
        mask_id: id of [MASK]; the default is that of our tokenizers.
        optimizer: see `SSLMethod`; Adam in the paper (reported).
        schedule: see `SSLMethod`; warm-up, then linear to 0 in the paper (reported).
        parameter_groups: see `SSLMethod`.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallTransformer
        >>> from sslzoo.heads import MLP
        >>> backbone = SmallTransformer(20, width=8, depth=1, heads=2, max_length=9)
        >>> method = CLEAR(backbone, MLP([8, 8, 4], norm=False), MLMHead(8, 20))
        >>> text = Tokens(torch.randint(20, (4, 9)), torch.tensor([9, 3, 7, 5]))
        >>> batch = Batch([text, text, text], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['nt_xent', 'mlm']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        mlm_head: MLMHead,
        temperature: float = 0.1,
        mlm_weight: float = 1.0,
        mask_fraction: float = 0.15,
        mask_id: int = Special().mask,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        self.projector = projector
        self.mlm_head = mlm_head
        mlm_head.tie(self._text_backbone.token_embedding)
        self.temperature, self.mlm_weight = temperature, mlm_weight
        self.mask_fraction, self.mask_id = mask_fraction, mask_id
        number = 3 if mlm_weight else 2  # two augmented views, and the text itself
        self.takes = ViewSpec(number, 3, kind="tokens")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        keys = step_keys(self, batch)
        z1, z2 = (
            self.projector(self.backbone(view, keys.fold("view", number)))  # (B, D)
            for number, view in enumerate(batch.views[:2])
        )
        terms = {"nt_xent": nt_xent(z1, z2, self.temperature)}
        if self.mlm_weight:
            terms["mlm"] = self.mlm_weight * self.language_loss(batch.views[2], keys)
        return terms

    def language_loss(self, text: Tokens, keys: Keys) -> Tensor:
        """Cross entropy of the words that are masked in this step. Shapes: keys (B,)."""
        num_ids = self.mlm_head.out_features
        masked = mask_tokens(text, keys, self.mask_id, num_ids, self.mask_fraction)
        x = self._text_backbone.forward_tokens(masked.tokens, keys.fold("masked"))  # (B, L, D)
        x = x.take_along_dim(masked.positions[:, :, None], dim=1)  # (B, K, D)
        logits = self.mlm_head(x.flatten(0, 1))
        return masked_language_model(logits, masked.targets.flatten(), masked.real.flatten())

    @property
    def _text_backbone(self) -> Any:
        required = ("forward_tokens", "token_embedding")
        if not all(hasattr(self.backbone, name) for name in required):
            raise ValueError(
                f"backbone must be a text backbone with {' and '.join(required)}, got "
                f"{type(self.backbone).__name__}"
            )
        return self.backbone
