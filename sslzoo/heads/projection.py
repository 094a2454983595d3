"""CLIP's projection from a tower to the embedding."""

from __future__ import annotations

from torch import nn


def clip_projection(in_dim: int, out_dim: int, bias: bool = False) -> nn.Linear:
    """A Linear of initial weights N(0, 1 / in_dim), and bias 0. (B, in_dim) -> (B, out_dim).

    Reference code: mlfoundations/open_clip at 89fb801, src/open_clip/transformer.py.

    Args:
        in_dim: width of the tower.
        out_dim: width of the embedding.
        bias: whether there is one, as in SigLIP's text tower.
    """
    layer = nn.Linear(in_dim, out_dim, bias)
    nn.init.normal_(layer.weight, std=in_dim**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
