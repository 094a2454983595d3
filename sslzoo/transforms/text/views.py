"""TextViews: augmented views of sentences between [CLS] and [SEP].

Shapes: B sentences, or B times S consecutive ones; L tokens of the raw sentences, L + 2 tokens of a
view, V views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.checks import check_interval
from sslzoo.random import Keys
from sslzoo.transforms.text.augmentations import Augmentation, Substitution, Tokenizer
from sslzoo.transforms.text.special import Special, with_special


class Drawn:
    """Apply a random subset of the augmentations, drawn per sentence, in list order.

    Args:
        augmentations: the augmentations to draw from.
        number: size of the subset; 2 in CLEAR.
    """

    def __init__(self, augmentations: list[Augmentation], number: int = 2) -> None:
        check_interval("number", number, 1, len(augmentations))
        self.augmentations = augmentations
        self.number = number

    def __call__(self, tokens: Tokens, keys: Keys, special: Special) -> Tokens:
        rank = keys.permutation("drawn", len(self.augmentations))
        for i, augmentation in enumerate(self.augmentations):
            changed = augmentation(tokens, keys.fold("of", i), special)
            chosen = rank[:, i] < self.number
            tokens = Tokens(
                torch.where(chosen[:, None], changed.ids, tokens.ids),
                torch.where(chosen, changed.lengths, tokens.lengths),
            )
        return tokens


class TextViews:  # not @final: jsonargparse would refuse the functions that return one
    """One view per list of augmentations; an empty list gives the unchanged text.

    Args:
        views: a list of augmentations per view, applied in order; `Drawn` is a random subset.
    """

    def __init__(self, views: Sequence[Sequence[Augmentation]]) -> None:
        self.views = [list(view) for view in views]

    def prepare(self, tokenizer: Tokenizer) -> None:
        """Prepare the augmentations for a vocabulary; called by the data module."""
        for view in self.views:
            for outer in view:
                for op in outer.augmentations if isinstance(outer, Drawn) else [outer]:
                    if isinstance(op, Substitution):
                        op.prepare(tokenizer)

    def __call__(
        self, tokens: Tokens, keys: Keys, special: Special, neighbor: Tokens | None = None
    ) -> list[Tokens]:
        """Make the views of a batch. Shapes: ids (B, L), B keys -> V times ids (B, L + 2).

        Consecutive sentences (B, S, L) become (B, S, L + 2), each with draws of its own.

        Args:
            tokens: B sentences.
            keys: B keys.
            special: ids of the special tokens.
            neighbor: B sentences of which the second view is made; None: `tokens`.
        """
        if tokens.ids.ndim == 3:
            count = tokens.ids.shape[1]
            each = Keys(keys.fold_each("sentence", count).key.view(count, -1).T.flatten())
            flat = Tokens(tokens.ids.flatten(0, 1), tokens.lengths.flatten())
            views = self(flat, each, special)
            return [Tokens(*(part.unflatten(0, (-1, count)) for part in view)) for view in views]
        _check(tokens, keys)
        out = []
        for number, view in enumerate(self.views):
            changed = neighbor if neighbor is not None and number == 1 else tokens
            for position, augmentation in enumerate(view):
                own = keys.fold("view", number, "augmentation", position)
                changed = augmentation(changed, own, special)
            out.append(with_special(changed, special))
        return out


def clear_views(
    first: list[Augmentation], second: list[Augmentation] | None = None, original: bool = True
) -> TextViews:
    """CLEAR's views: two augmented ones, and the unchanged text for the masked language model.

    Args:
        first: augmentations of the first view: a fixed pair, or `[Drawn([...])]`.
        second: augmentations of the second view; None: those of the first, with other draws.
        original: whether the unchanged text is the third view.
    """
    views = [first, first if second is None else second]
    return TextViews([*views, []] if original else views)


def plain_text(number: int = 1) -> TextViews:
    """SimCSE's view: the unchanged text.

    Args:
        number: number of views; 2 for pairs of sentences, such as neighboring lines.
    """
    return TextViews([[]] * number)


def _check(tokens: Tokens, keys: Keys) -> None:
    ids: Tensor = tokens.ids
    if ids.ndim != 2 or len(ids) != len(tokens.lengths) or len(ids) != len(keys.key):
        raise ValueError(
            f"ids must be (B, L) with lengths (B,) and B keys, got {tuple(ids.shape)}, "
            f"{tuple(tokens.lengths.shape)} and {len(keys.key)} keys"
        )
