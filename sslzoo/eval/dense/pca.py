"""PCA pictures: the first three principal components of patch tokens as colors.

Oquab et al., DINOv2, TMLR 2024, https://arxiv.org/abs/2304.07193, figure 1. All images of a picture
share one PCA, so that equal colors are equal features.
Shapes: B images of H x W pixels, a map of h x w positions, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.checks import check_at_least


@torch.no_grad()
def pca_colors(maps: Tensor, foreground: bool = False) -> Tensor:
    """Project the positions of maps on their first three principal components.

    Components are scaled to [0, 1] between their 1st and 99th percentile. A component's sign is
    such that its largest weight is positive.

    Args:
        maps: (B, D, h, w).
        foreground: whether to split positions at the middle of the first component, as in the
            paper: the larger part of them is the background, which becomes black, and a second PCA
            colors the others.

    Returns:
        (B, 3, h, w) in [0, 1].

    Raises:
        ValueError: there are fewer than three positions or channels.
    """
    check_at_least("the number of channels of the map", maps.shape[1], 3)
    x = maps.permute(0, 2, 3, 1).flatten(0, 2).double().cpu()  # (B h w, D)
    check_at_least("the number of positions of the maps", len(x), 4)
    shown = torch.ones(len(x), dtype=torch.bool)
    if foreground:
        first = _scaled(_components(x, 1))[:, 0]
        shown = first > 0.5
        if shown.sum() > len(x) / 2:
            shown = ~shown
        if shown.sum() < 4:
            shown = torch.ones_like(shown)
    colors = x.new_zeros(len(x), 3)
    colors[shown] = _scaled(_components(x[shown], 3))
    batch, _, height, width = maps.shape
    return colors.float().view(batch, height, width, 3).permute(0, 3, 1, 2)


def _components(x: Tensor, count: int) -> Tensor:
    """Projections on the first components. Shapes: (n, D) -> (n, count) float64."""
    x = x - x.mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x)  # ascending
    vectors = vectors[:, -count:].flip(1)
    sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return x @ (vectors * sign)


def _scaled(x: Tensor) -> Tensor:
    low, high = x.quantile(0.01, dim=0), x.quantile(0.99, dim=0)
    return ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


@torch.no_grad()
def pca_picture(images: Tensor, maps: Tensor, foreground: bool = False) -> Image.Image:
    """Picture with one row per image: the image, and the colors of its map.

    Args:
        images: (B, C, H, W) of 1 or 3 channels; rescaled to the range of a picture.
        maps: (B, D, h, w).
        foreground: see `pca_colors`.

    Raises:
        ValueError: there are not as many maps as images, or see `pca_colors`.
    """
    if len(images) != len(maps) or images.shape[1] not in (1, 3):
        raise ValueError(
            "images must be (B, C, H, W) of 1 or 3 channels with one map each, got "
            f"{tuple(images.shape)} and {len(maps)} maps"
        )
    x = images.detach().float().cpu()
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    x = ((x - low) / (high - low).clamp_min(1e-12)).expand(-1, 3, -1, -1)
    colors = F.interpolate(pca_colors(maps, foreground), x.shape[2:], mode="nearest")
    tiles = F.pad(torch.stack([x, colors], dim=1), (1, 1, 1, 1), value=1.0)  # (B, 2, 3, H, W)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())
