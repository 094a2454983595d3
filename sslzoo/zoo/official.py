"""Official: checkpoints that the methods' authors released."""

from __future__ import annotations

from sslzoo.zoo.card import Card

OFFICIAL: tuple[Card, ...] = ()
