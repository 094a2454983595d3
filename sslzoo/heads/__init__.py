"""Heads: small modules between the backbone and the loss."""

from sslzoo.heads.context import PixelContext
from sslzoo.heads.mlp import MLP, byol_mlp, simclr_projector, simclr_v2_projector
from sslzoo.heads.mutual_information import MapEncoder, MI1x1ConvNet, PriorDiscriminator
from sslzoo.heads.per_view import PerView
from sslzoo.heads.text import MLMHead, TanhHead

__all__ = [
    "MLP",
    "MI1x1ConvNet",
    "MLMHead",
    "MapEncoder",
    "PerView",
    "PixelContext",
    "PriorDiscriminator",
    "TanhHead",
    "byol_mlp",
    "simclr_projector",
    "simclr_v2_projector",
]
