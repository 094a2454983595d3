"""AMDIM's encoder: its scales, its start, and its features."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from sslzoo.backbones import AMDIMEncoder, GlobalBatchNorm


@pytest.mark.parametrize("size", [32, 64, 128])
def test_three_scales_in_one_space(size: Literal[32, 64, 128]) -> None:
    net = AMDIMEncoder(size, width=2, num_features=20, depth=2).eval()
    x = torch.randn(2, 3, size, size)
    maps = net.forward_maps(x)
    assert [tuple(m.shape) for m in maps] == [(2, 20, 1, 1), (2, 20, 5, 5), (2, 20, 7, 7)]
    assert net.num_features == 20
    assert torch.equal(net(x), maps[0].flatten(1))


def receptive_field(net: AMDIMEncoder, size: int, place: int) -> tuple[int, int]:
    """First and last row of pixels that a place of the 7x7 map depends on."""
    x = torch.zeros(1, 3, size, size, requires_grad=True)
    net.to_7(x)[0, :, place, place].square().sum().backward()
    assert x.grad is not None
    rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten()
    return int(rows[0]), int(rows[-1])


def test_places_see_a_part_of_the_image_only() -> None:
    torch.manual_seed(0)
    net = AMDIMEncoder(32, width=4, num_features=20, depth=2).eval()
    # 2x2 of the 14 rows, each of 4 at stride 2, each of 3: 8 pixels, moving by 4; none is padding.
    assert receptive_field(net, 32, 0) == (0, 7)
    assert receptive_field(net, 32, 6) == (24, 31)


def test_blocks_start_as_their_shortcut() -> None:
    net = AMDIMEncoder(32, width=2, num_features=20, depth=1)
    block = net.to_5[0]
    x = torch.rand(2, 8, 7, 7)
    assert torch.equal(block(x), nn.functional.avg_pool2d(x, 3, 1))
    wider = net.to_1[1]
    out = wider(torch.rand(2, 8, 3, 3))
    assert (out[:, :8] > 0).all()
    assert (out[:, 8:] == 0).all(), "new channels are zero in the shortcut"


def test_norms_are_where_the_codes_are() -> None:
    def norms(batch_norm: bool) -> int:
        net = AMDIMEncoder(32, 2, 20, depth=2, batch_norm=batch_norm)
        return sum(isinstance(m, GlobalBatchNorm) for m in net.modules())

    assert norms(False) == 3, "one behind each scale"
    # stem, one block, four stages of two, the 7x7 map, the last block, two embeddings' inner ones
    assert norms(True) == 3 + 1 + 1 + 8 + 1 + 1 + 2


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"size must be one of \[32, 64, 128\], got 96"):
        AMDIMEncoder(96)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        AMDIMEncoder(32, 2, 20, depth=0)
    with pytest.raises(ValueError, match="at least 8 output channels, got 4"):
        AMDIMEncoder(32, 2, 4, 1)
