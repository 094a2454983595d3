"""TextViews: the views of sentences, each changed by augmentations and framed by [CLS] and [SEP].

Shapes: B sentences, L places of the raw sentences; a view has L + 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.random import Keys
from sslzoo.transforms.text.augmentations import Augmentation, Substitution, Tokenizer
from sslzoo.transforms.text.special import Special, with_special


class Drawn:
    """Some of the augmentations, drawn anew for each sentence, applied in the order of the list.

    Args:
        augmentations: to draw from.
        number: how many a sentence gets; 2 in CLEAR's pairs.
    """

    def __init__(self, augmentations: list[Augmentation], number: int = 2) -> None:
        if not 1 <= number <= len(augmentations):
            raise ValueError(f"number must be in 1..{len(augmentations)}, got {number}")
        self.augmentations = augmentations
        self.number = number

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        order = keys.permutation("drawn", len(self.augmentations))  # number of them have rank < it
        for i, augmentation in enumerate(self.augmentations):
            changed = augmentation(tokens, keys.fold("of", i), special)
            mine = order[:, i] < self.number
            tokens = Tokens(
                torch.where(mine[:, None], changed.ids, tokens.ids),
                torch.where(mine, changed.lengths, tokens.lengths),
            )
        return tokens


class TextViews:  # not @final: jsonargparse would refuse the functions that return one
    """One view for each list of augmentations, in order; an empty list gives the text itself.

    Args:
        views: each a list of augmentations, applied one after the other (a fixed pair has two);
            `Drawn` in it is a choice by sentence.
    """

    def __init__(self, views: Sequence[Sequence[Augmentation]]) -> None:
        self.views = [list(view) for view in views]

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Read what augmentations need to know of the vocabulary; called by the data module."""
        for view in self.views:
            for outer in view:
                for op in outer.augmentations if isinstance(outer, Drawn) else [outer]:
                    if isinstance(op, Substitution):
                        op.prepare(tokenizer)

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> list[Tokens]:
        """The views of a batch. Shapes: ids (B, L), keys (B,) -> V x ids (B, L + 2)."""
        _check(tokens, keys)
        out = []
        for number, view in enumerate(self.views):
            changed = tokens
            for place, augmentation in enumerate(view):
                own = keys.fold("view", number, "augmentation", place)
                changed = augmentation(changed, own, special)
            out.append(with_special(changed, special))
        return out


def clear_views(
    first: list[Augmentation], second: list[Augmentation] | None = None, original: bool = True
) -> TextViews:
    """CLEAR's views: two augmented ones, and the text itself for the masked language model.

    Args:
        first: the first view's augmentations: a fixed pair, or `[Drawn([...])]`.
        second: the second view's; None: the same ones (drawn anew).
        original: whether the text itself is the third view.
    """
    views = [first, first if second is None else second]
    return TextViews([*views, []] if original else views)


def plain_text() -> TextViews:
    """SimCSE's one view: the text itself."""
    return TextViews([[]])


def _check(tokens: Tokens, keys: Keys) -> None:
    ids: Tensor = tokens.ids
    if ids.ndim != 2 or len(ids) != len(tokens.lengths) or len(ids) != len(keys.key):
        raise ValueError(
            f"wanted ids (B, L), lengths (B,) and B keys, got {tuple(ids.shape)}, "
            f"{tuple(tokens.lengths.shape)} and {len(keys.key)} keys"
        )
