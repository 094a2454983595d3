"""Special tokens: [PAD], [CLS], [SEP] and the like, and how they frame a sentence."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sslzoo.batch import Tokens


class Special(NamedTuple):
    """The ids that mean more than a word; the defaults are those of our own tokenizers."""

    pad: int = 0
    unknown: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4
    deleted: int = 5  # [DEL], CLEAR's: what stands for words that were taken out


def with_special(tokens: Tokens, special: Special) -> Tokens:
    """[CLS] before each sentence and [SEP] after it. Shapes: ids (B, L) -> (B, L + 2)."""
    ids, lengths = tokens
    edge = ids.new_full((len(ids), 1), special.cls)
    framed = torch.cat([edge, ids, torch.full_like(edge, special.pad)], dim=1)
    framed = framed.scatter(1, lengths[:, None] + 1, special.sep)
    places = torch.arange(framed.shape[1], device=ids.device)
    framed = framed.masked_fill(places >= lengths[:, None] + 2, special.pad)
    return Tokens(framed, lengths + 2)
