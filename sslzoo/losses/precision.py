"""Precision: a loss computes in float32 at least, under autocast too; float64 stays."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x, or its float32 copy where it is float16 or bfloat16. Shapes: any."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which products on x's device keep the precision of their operands."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
