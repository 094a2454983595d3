"""Masks: random choices of the patches or tokens that are masked."""

from sslzoo.masks.block import BlockMasks, StratifiedBlockMasks
from sslzoo.masks.multi_block import MultiBlock
from sslzoo.masks.span import SpanMasks, masked_first
from sslzoo.masks.token import TokenMasks
from sslzoo.masks.units import UnitMasks

__all__ = [
    "BlockMasks",
    "MultiBlock",
    "SpanMasks",
    "StratifiedBlockMasks",
    "TokenMasks",
    "UnitMasks",
    "masked_first",
]
