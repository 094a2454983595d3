"""Layers that backbones and heads share: global batch norm and parts of transformers."""

from sslzoo.layers.batch_norm import GlobalBatchNorm
from sslzoo.layers.convert import convert_batch_norm, convert_to_group_norm
from sslzoo.layers.shuffle import encode_shuffled
from sslzoo.layers.transformer import Init, initialize_blocks, sincos_positions

__all__ = [
    "GlobalBatchNorm",
    "Init",
    "convert_batch_norm",
    "convert_to_group_norm",
    "encode_shuffled",
    "initialize_blocks",
    "sincos_positions",
]
