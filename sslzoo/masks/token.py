"""Masking of tokens, for a masked language model.

Devlin, Chang, Lee and Toutanova, BERT, NAACL 2019, https://arxiv.org/abs/1810.04805, section 3.1.
Reference code: google-research/bert, create_pretraining_data.py: of a sentence's words
max(1, round(15 %)) are chosen; 80 % of these become [MASK], 10 % any token, 10 % stay.

Shapes: B sentences, L places, K places chosen in the longest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.random import Keys


class Masked(NamedTuple):
    """Sentences with some tokens hidden, and what stood there.

    Args:
        tokens: the changed sentences.
        places: (B, K) int64, the chosen places; the same shape whatever was drawn, so that
            nothing waits for the device.
        targets: (B, K) int64, the tokens that stood there.
        real: (B, K) bool; False where a shorter sentence has fewer.
    """

    tokens: Tokens
    places: Tensor
    targets: Tensor
    real: Tensor


def mask_tokens(
    tokens: Tokens, keys: Keys, mask_id: int, num_ids: int, fraction: float = 0.15
) -> Masked:
    """Hide a share of the tokens between [CLS] and [SEP].

    Args:
        tokens: with [CLS] first and [SEP] last, which are never chosen.
        keys: (B,).
        mask_id: of [MASK].
        num_ids: random tokens are below it (special ones among them, as in the code).
        fraction: of the tokens between the two; at least one, where there is one.
    """
    ids, lengths = tokens
    size = ids.shape[1]
    places = torch.arange(size, device=ids.device)
    allowed = (places > 0) & (places < lengths[:, None] - 1)
    words = (lengths - 2).clamp_min(0)
    count = (words.double() * fraction + 0.5).long().clamp_min(1).minimum(words)
    most = max(1, int((size - 2) * fraction + 0.5))  # the longest sentence's
    score = keys.uniform("mask: where", size).masked_fill(~allowed, 2.0)
    place = score.argsort(dim=1, stable=True)[:, :most]
    real = places[:most] < count[:, None]
    old = ids.gather(1, place)
    how = keys.uniform("mask: how", most)
    drawn = keys.integers("mask: which", num_ids, most)
    new = torch.where(how < 0.8, mask_id, torch.where(how < 0.9, drawn, old))
    hidden = ids.scatter(1, place, torch.where(real, new, old))
    return Masked(Tokens(hidden, lengths), place, old, real)
