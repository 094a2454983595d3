"""Token masks: BERT's masking for masked language models.

Devlin, Chang, Lee and Toutanova, BERT, NAACL 2019, https://arxiv.org/abs/1810.04805, section 3.1.
Reference code: google-research/bert, create_pretraining_data.py: of a sentence's words
max(1, round(15 %)) are chosen; 80 % of these become [MASK], 10 % a random token, 10 % are kept.

Deviations:
    1. Draws are keyed by sample, step and position; the code's come from one generator.
    2. `mask_spans` never masks [CLS], [SEP] or the last token; fairseq's code, masked_lm with
       mask_multiple_length, can.

Shapes: B sentences, L positions, K masked positions of the longest sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.batch import Tokens, length_mask
from sslzoo.checks import check_interval
from sslzoo.masks.span import SpanMasks
from sslzoo.random import Keys


@dataclass(frozen=True)
class TokenMasks:
    """BERT's masks: of the chosen tokens 80 % become [MASK], 10 % random ones, 10 % stay.

    Args:
        fraction: chosen fraction of a sentence's tokens, at least one; 0.15 in the paper.

    Raises:
        ValueError: the fraction is outside (0, 1).
    """

    fraction: float = 0.15

    def __post_init__(self) -> None:
        check_interval("fraction", self.fraction, 0, 1, "()")


class Masked(NamedTuple):
    """Sentences with masked tokens, and the original tokens.

    Args:
        tokens: the masked sentences.
        positions: (B, K) int64, the chosen positions; K does not depend on the draws, so that
            nothing synchronizes with the device.
        targets: (B, K) int64, the original tokens.
        real: (B, K) bool; False for the padding of shorter sentences.
    """

    tokens: Tokens
    positions: Tensor
    targets: Tensor
    real: Tensor


def mask_tokens(
    tokens: Tokens, keys: Keys, mask_id: int, num_ids: int, fraction: float = 0.15
) -> Masked:
    """Mask a fraction of the tokens between [CLS] and [SEP].

    Args:
        tokens: with [CLS] first and [SEP] last, which are never masked.
        keys: (B,), of this step.
        mask_id: id of [MASK].
        num_ids: size of the vocabulary from which random tokens are drawn, special tokens
            included, as in the code.
        fraction: fraction of masked tokens, at least one per sentence; 0.15 in the paper.
    """
    ids, lengths = tokens
    size = ids.shape[1]
    allowed = length_mask(lengths - 1, size)
    allowed[:, :1] = False
    words = (lengths - 2).clamp_min(0)
    count = (words.double() * fraction + 0.5).long().clamp_min(1).minimum(words)
    most = max(1, int((size - 2) * fraction + 0.5))  # the longest sentence's
    score = keys.uniform("mask: where", size).masked_fill(~allowed, 2.0)
    chosen = score.argsort(dim=1, stable=True)[:, :most]
    real = length_mask(count, most)
    old = ids.gather(1, chosen)
    how = keys.uniform("mask: how", most)
    drawn = keys.integers("mask: which", num_ids, most)
    new = torch.where(how < 0.8, mask_id, torch.where(how < 0.9, drawn, old))
    masked = ids.scatter(1, chosen, torch.where(real, new, old))
    return Masked(Tokens(masked, lengths), chosen, old, real)


def mask_spans(tokens: Tokens, keys: Keys, mask_id: int, masks: SpanMasks) -> Tokens:
    """Replace spans of the tokens between [CLS] and [SEP] by [MASK].

    Args:
        tokens: with [CLS] first and [SEP] last, which are never masked.
        keys: (B,), of this step.
        mask_id: id of [MASK].
        masks: draws the spans.
    """
    words = (tokens.lengths - 2).clamp_min(0)
    mask = masks(keys, words, tokens.ids.shape[1] - 2)
    return tokens._replace(ids=tokens.ids.masked_fill(F.pad(mask, (1, 1)), mask_id))
