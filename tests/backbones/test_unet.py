"""UNet: sizes of its map, what a position sees, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sslzoo.backbones import UNet


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 41), (37, 16)])
def test_the_map_has_its_stride_for_any_size(height: int, width: int) -> None:
    net = UNet((4, 6, 8), 4, in_chans=2)
    maps = net.forward_map(torch.rand(2, 2, height, width))
    assert maps.shape == (2, 6, -(-height // 4), -(-width // 4))
    assert net(torch.rand(2, 2, height, width)).shape == (2, net.num_features)


def test_a_position_sees_its_surroundings_through_the_lowest_level() -> None:
    net = UNet((4, 6, 8, 8), 2, in_chans=1).eval()
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    net.forward_map(image)[0, :, 8, 8].sum().backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero()
    assert rows.min() <= 2
    assert rows.max() >= 30


def test_a_stride_outside_the_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"map_stride must be one of \[2, 4\] for 3 widths, got 8"):
        UNet((4, 6, 8), 8)
    with pytest.raises(ValueError, match=r"one of \[\] for 1 widths"):
        UNet((4,), 2)
