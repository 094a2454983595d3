"""Masks: which patches or tokens of a sample are masked."""

from sslzoo.masks.block import BlockMasks
from sslzoo.masks.multi_block import MultiBlock

__all__ = ["BlockMasks", "MultiBlock"]
