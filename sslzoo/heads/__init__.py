"""Heads: small modules between the backbone and the loss."""

from sslzoo.heads.mlp import MLP, byol_mlp, simclr_projector
from sslzoo.heads.per_view import PerView

__all__ = ["MLP", "PerView", "byol_mlp", "simclr_projector"]
