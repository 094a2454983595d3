"""Precision of losses and prototypes: at least float32, also under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least_float32(x: Tensor) -> Tensor:
    """Copy float16 and bfloat16 to float32; return any other tensor as it is. Shapes: any."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def l2_normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Divide each row by its L2 norm (at least eps), in float32 at least. (..., D)."""
    return F.normalize(at_least_float32(x), dim=-1, eps=eps)


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Context in which products on x's device keep the precision of their operands."""
    kind = x.device.type  # the meta device has no autocast
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
