"""Verify an entry's file, class and features against its card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.zoo.card import Card
from sslzoo.zoo.load import load

KEPT = 4  # number of features on a card
_TOLERANCE = 1e-3  # relative to the largest; convolutions round differently on other processors


def fixed_input(size: int, channels: int = 3) -> Tensor:
    """Striped test image with distinct rows, columns and channels: (1, C, S, S) uint8."""
    row, column = torch.arange(size)[:, None], torch.arange(size)
    planes = [row * (7 + c) + column * (13 - 5 * c) + 29 * c for c in range(channels)]
    return (torch.stack(planes)[None] % 256).to(torch.uint8)


def fixed_sound(rate: int) -> Tensor:
    """One second of a chirp: (1, rate) int16."""
    t = torch.arange(rate)
    return ((t * (t // 64 + 11)) % 8192 - 4096).to(torch.int16)[None]


FIXED_SENTENCE = "A man plays the guitar while two dogs run over the grass."


def fixed_sample(card: Card) -> Any:
    """Test sample for encoders of the card's kind, before `encoder.preprocess`."""
    about = card.preprocessing or {}
    match card.kind:
        case "waveform":
            return fixed_sound(about["rate"])
        case "text":
            return [FIXED_SENTENCE]
        case "frames":
            return torch.arange(32 * len(about["mean"])).reshape(1, 32, -1) % 7 / 7
    return fixed_input(card.preprocess().size, card.channels)


@torch.no_grad()
def fixed_features(encoder: nn.Module, card: Card) -> list[float]:
    """First features of the fixed sample in eval mode; none for an unknown kind.

    Args:
        encoder: a loaded encoder with `preprocess`.
        card: its card.

    Raises:
        ValueError: the encoder does not take the sample, or its output is not (1,
            num_features), or not finite.
    """
    if card.preprocessing is None:
        return []
    loaded: Any = encoder.eval()
    try:
        features = loaded(loaded.preprocess(fixed_sample(card)))
    except Exception as error:  # errors of torch, timm and any user code
        raise ValueError(
            f"{card.name!r} cannot encode a sample preprocessed by {card.preprocessing}: {error}"
        ) from error
    if not isinstance(features, Tensor):
        raise ValueError(
            f"the features of {card.name!r} must be a tensor, got a {type(features).__name__}"
        )
    if features.shape != (1, card.num_features) or not features.isfinite().all():
        raise ValueError(
            f"the features of {card.name!r} must be finite and (1, {card.num_features}), got "
            f"{tuple(features.shape)}"
        )
    return [round(value, 6) for value in features[0, :KEPT].tolist()]


def verify(name: str, sha256: str | None = None, trust: bool = False) -> Card:
    """Load an entry and check it against its card.

    Args:
        name: see `load`.
        sha256: see `load`.
        trust: see `load`.

    Returns:
        The card.

    Raises:
        ValueError: hash, class, shapes or features differ.
        OSError: the file cannot be found or fetched.
    """
    encoder: Any = load(name, sha256=sha256, trust=trust)
    card = getattr(encoder, "card", None)
    if not isinstance(card, Card):
        raise ValueError(f"{name!r} must have a card to be verified, got none")
    got = torch.tensor(fixed_features(encoder, card))
    if len(got) and card.features:
        wanted = torch.tensor(card.features)
        if (got - wanted).abs().max() > _TOLERANCE * wanted.abs().max():
            raise ValueError(
                f"{card.name!r} must give the features {card.features} of its card for the fixed "
                f"input, got {got.tolist()}"
            )
    return card
