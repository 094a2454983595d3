"""Pictures: images, views and neighbors as data embedded in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MAX_SIDE = 112  # maximum side of a picture in the page, in pixels


def data_uri(png: bytes) -> str:
    """Encode an image as a data URI for an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture(pixels: Tensor) -> str:
    """Encode pixels as a data URI, with sides of at most `MAX_SIDE`.

    Args:
        pixels: (C, H, W) uint8, or float in [0, 1], with 1 or 3 channels; otherwise their mean is
            shown.
    """
    x = pixels.detach().cpu()
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if x.shape[0] not in (1, 3):
        x = x.mean(0, keepdim=True)
    largest = max(x.shape[1:])
    if largest > MAX_SIDE:
        x = F.interpolate(x[None], scale_factor=MAX_SIDE / largest, mode="area")[0]
    array = (x.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(file, "png", optimize=True)
    return data_uri(file.getvalue())


def shown(view: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """Convert views to pixels: undo the normalization, or rescale if it is unknown.

    Args:
        view: (B, C, H, W) float, as a method gets it.
        mean: mean that was subtracted from each channel, C numbers; None: none was.
        std: standard deviation that each channel was divided by.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    x = view.detach().float().cpu()
    if mean is not None and std is not None and len(mean) == x.shape[1]:
        x = x * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    if x.numel() and (x.min() < -0.02 or x.max() > 1.02):  # bicubic crops exceed the range slightly
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        x = (x - low) / (high - low).clamp_min(1e-12)
    return x.clamp(0, 1)


def neighbors(features: Tensor, queries: Tensor, count: int) -> Tensor:
    """Find the nearest other rows by cosine, nearest first. Shapes: (n, D), (q,) -> (q, count)."""
    x = F.normalize(features.float(), dim=1)
    similarity = x[queries] @ x.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    return similarity.topk(min(count, len(x) - 1), dim=1).indices
