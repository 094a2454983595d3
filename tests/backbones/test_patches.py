"""Patches: each is seen by itself, images and mosaics agree, and what is asked of sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.backbones import CPCResNet, PatchGrid
from sslzoo.backbones.patches import cut_patches
from tests.toys import Pooled


def image(size: int = 16) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_patches_are_those_of_two_loops() -> None:
    x = image(13)
    patches = cut_patches(x, 5, 4)
    assert patches.shape == (2, 3, 3, 3, 5, 5)
    for row in range(3):
        for column in range(3):
            wanted = x[:, :, 4 * row : 4 * row + 5, 4 * column : 4 * column + 5]
            assert torch.equal(patches[:, row, column], wanted)


def test_a_place_of_the_map_is_its_own_patch_alone() -> None:
    encoder = CPCResNet((1, 1), (2, 3)).eval()
    grid = PatchGrid(encoder, size=16, patch=4, stride=3)
    assert (grid.grid, grid.num_features) == (5, 12)
    x = image()
    whole = grid.forward_map(x)
    assert whole.shape == (2, 12, 5, 5)
    torch.testing.assert_close(whole[:, :, 1, 3], encoder(x[:, :, 3:7, 9:13]))
    torch.testing.assert_close(grid(x), whole.mean((2, 3)))
    changed = x.clone()
    changed[:, :, :3, :3] = 0  # seen by the first place only
    same = torch.ones(5, 5, dtype=torch.bool)
    same[0, 0] = False
    torch.testing.assert_close(grid.forward_map(changed)[:, :, same], whole[:, :, same])
    assert not torch.allclose(grid.forward_map(changed)[:, :, 0, 0], whole[:, :, 0, 0])


def test_a_mosaic_of_the_same_patches_gives_the_same_map() -> None:
    grid = PatchGrid(Pooled(6), size=16, patch=4, stride=3)
    x = image()
    patches = cut_patches(x, 4, 3)  # (B, g, g, C, P, P)
    mosaic = patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 20, 20)
    torch.testing.assert_close(grid.forward_map(mosaic), grid.forward_map(x))


def test_samples_do_not_see_each_other_without_batch_norm() -> None:
    x = image()
    for norm in ("none", "layer"):
        net = CPCResNet((1, 1), (2, 3), norm)
        torch.testing.assert_close(net(x)[:1], net(x[:1]))
    leaky = CPCResNet((1, 1), (2, 3), "batch")
    assert not torch.allclose(leaky(x)[:1], leaky(x[:1]))


def test_the_reference_encoder_has_three_stages_of_a_resnet50() -> None:
    with torch.device("meta"):
        net = CPCResNet()
    assert net.num_features == 1024
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules()) == 13


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16, "patch": 5, "stride": 3}, "size 16, patch 5, stride 3"),
        ({"size": 16, "patch": 4, "stride": 6}, "stride 6"),
        ({"size": 3, "patch": 4, "stride": 4}, "size 3"),
    ],
)
def test_sizes_that_leave_a_rest_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchGrid(Pooled(6), **options)


def test_wrong_parts_are_named() -> None:
    with pytest.raises(ValueError, match=r"num_features .* got None of Linear"):
        PatchGrid(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"16 pixels, or 20 for mosaics.*18 x 18"):
        PatchGrid(Pooled(6), 16, 4, 3)(image(18))
    with pytest.raises(ValueError, match=r"got \(1,\)"):
        CPCResNet((1,), (2, 3))
    with pytest.raises(ValueError, match="got 'instance'"):
        CPCResNet((1,), (2,), norm="instance")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'large'"):
        CPCResNet((1,), (2,), stem="large")  # type: ignore[arg-type]
