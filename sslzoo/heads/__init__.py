"""Heads: small modules between the backbone and the loss."""

from sslzoo.heads.mlp import MLP, byol_mlp, simclr_projector

__all__ = ["MLP", "byol_mlp", "simclr_projector"]
