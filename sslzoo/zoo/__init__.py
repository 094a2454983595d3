"""Zoo: trained encoders by name, path or address, each with a card; converters and export."""

from sslzoo.zoo.card import Card, card_of, read_card
from sslzoo.zoo.convert import LAYOUTS, Layout, convert
from sslzoo.zoo.entries import card_named, entries, list_models
from sslzoo.zoo.loading import load, locate
from sslzoo.zoo.verify import verify

__all__ = [
    "LAYOUTS",
    "Card",
    "Layout",
    "card_named",
    "card_of",
    "convert",
    "entries",
    "list_models",
    "load",
    "locate",
    "read_card",
    "verify",
]
