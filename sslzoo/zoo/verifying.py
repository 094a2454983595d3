"""Verify: whether an entry's file, class and numbers are those that its card states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.zoo.card import Card
from sslzoo.zoo.loading import load

KEPT = 4  # features on a card
_TOLERANCE = 1e-3  # of the largest; convolutions of other processors round otherwise


def fixed_input(size: int) -> Tensor:
    """One picture of stripes that tell rows, columns and channels apart: (1, 3, S, S) uint8."""
    row, column = torch.arange(size)[:, None], torch.arange(size)
    planes = [row * (7 + c) + column * (13 - 5 * c) + 29 * c for c in range(3)]
    return (torch.stack(planes)[None] % 256).to(torch.uint8)


@torch.no_grad()
def fixed_features(encoder: nn.Module, card: Card) -> list[float]:
    """The first features of the fixed input, in eval mode and float32.

    Raises:
        ValueError: the encoder gives another shape than (1, num_features), or no finite numbers.
    """
    view = card.preprocess()
    features = encoder.eval()(view(fixed_input(view.size)))
    if features.shape != (1, card.num_features) or not features.isfinite().all():
        raise ValueError(
            f"{card.name!r} gives features of shape {tuple(features.shape)}, finite ones of "
            f"(1, {card.num_features}) wanted"
        )
    return [round(value, 6) for value in features[0, :KEPT].tolist()]


def verify(name: str, sha256: str | None = None) -> Card:
    """Load an entry and hold it to its card.

    Args:
        name: see `load`.
        sha256: see `load`.

    Returns:
        The card.

    Raises:
        ValueError: hash, class, shapes or features are others.
        OSError: the file cannot be had.
    """
    encoder: Any = load(name, sha256=sha256)
    card = getattr(encoder, "card", None)
    if not isinstance(card, Card):
        raise ValueError(f"{name!r} has no card to be held to")
    if card.preprocessing is not None:
        got = torch.tensor(fixed_features(encoder, card))
        wanted = torch.tensor(card.features) if card.features else got
        error = (got - wanted).abs().max()
        if error > _TOLERANCE * wanted.abs().max():
            raise ValueError(
                f"{card.name!r} gives features {got.tolist()} for the fixed input, its card says "
                f"{card.features}"
            )
    return card
