"""Special tokens ([PAD], [CLS], [SEP] and others), and their insertion into sentences."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sslzoo.batch import Tokens, length_mask


class Special(NamedTuple):
    """Ids of the special tokens; the defaults are those of `WordPiece`.

    Without a token of the start, as in SigLIP's and T5's tokenizers, `cls` is -1.
    """

    pad: int = 0
    unknown: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4
    deleted: int = 5  # [DEL], which replaces deleted words in CLEAR


def with_special(tokens: Tokens, special: Special) -> Tokens:
    """Insert [CLS] before each sentence and [SEP] after it.

    Shapes: ids (B, L) -> (B, L + 2), or (B, L + 1) without a token of the start.
    """
    ids, lengths = tokens
    if special.cls < 0:
        framed = torch.cat([ids, ids.new_full((len(ids), 1), special.pad)], dim=1)
        framed = framed.scatter(1, lengths[:, None], special.sep)
        framed = framed.masked_fill(~length_mask(lengths + 1, framed.shape[1]), special.pad)
        return Tokens(framed, lengths + 1)
    edge = ids.new_full((len(ids), 1), special.cls)
    framed = torch.cat([edge, ids, torch.full_like(edge, special.pad)], dim=1)
    framed = framed.scatter(1, lengths[:, None] + 1, special.sep)
    framed = framed.masked_fill(~length_mask(lengths + 2, framed.shape[1]), special.pad)
    return Tokens(framed, lengths + 2)
