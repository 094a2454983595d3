"""PCA pictures against torch's own PCA."""

from __future__ import annotations

import pytest
import torch

from sslzoo.eval.dense import pca_colors, pca_picture


def test_colors_are_the_first_three_components() -> None:
    maps = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0))
    colors = pca_colors(maps)
    assert colors.shape == (2, 3, 5, 6)
    x = maps.permute(0, 2, 3, 1).flatten(0, 2)
    u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    flat = colors.permute(0, 2, 3, 1).flatten(0, 2)
    for number in range(3):
        inside = (flat[:, number] > 0) & (flat[:, number] < 1)
        pair = torch.stack([(u * s)[inside, number], flat[inside, number]])
        assert torch.corrcoef(pair)[0, 1].abs() > 0.9999
    assert torch.equal(colors, pca_colors(maps.clone()))  # signs are fixed


def test_the_background_is_black() -> None:
    maps = 0.1 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 2:5, 2:6] += 5
    black = (pca_colors(maps, foreground=True) == 0).all(1)[0]
    assert not black[2:5, 2:6].all()
    assert black.sum() >= 64 - 12
    black[2:5, 2:6] = True
    assert black.all()


def test_the_picture_has_a_row_per_image() -> None:
    picture = pca_picture(torch.rand(3, 1, 16, 20), torch.rand(3, 4, 4, 5))
    assert picture.size == (2 * 22, 3 * 18)
    with pytest.raises(ValueError, match="with one map each"):
        pca_picture(torch.rand(3, 3, 8, 8), torch.rand(2, 4, 4, 4))
    with pytest.raises(ValueError, match="channels of the map must be at least 3, got 2"):
        pca_colors(torch.rand(1, 2, 4, 4))
