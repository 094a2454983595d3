"""Staged backbones: the map lies on the way to the features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.backbones import SmallResNet, cifar_resnet, dim_convnet, staged_cifar_resnet


@pytest.mark.parametrize(
    ("make", "map_shape", "num_features"),
    [
        (lambda: dim_convnet(), (128, 8, 8), 1024),
        (lambda: staged_cifar_resnet("resnet18"), (256, 8, 8), 512),
        (lambda: staged_cifar_resnet("resnet18", map_stage=1), (64, 32, 32), 512),
        (lambda: SmallResNet((8, 16, 24)), (24, 8, 8), 24),
        (lambda: SmallResNet((8, 16, 24), map_block=1), (16, 16, 16), 24),
    ],
)
def test_map_then_features(make: Any, map_shape: tuple[int, ...], num_features: int) -> None:
    net = make().eval()
    x = torch.randn(2, 3, 32, 32)
    m = net.forward_map(x)
    assert m.shape == (2, *map_shape)
    assert net.map_features == map_shape[0]
    features = net.forward_from_map(m)
    assert features.shape == (2, num_features)
    assert net.num_features == num_features
    assert torch.equal(features, net(x))


def test_staged_resnet_is_the_resnet() -> None:
    torch.manual_seed(0)
    whole = cifar_resnet("resnet18", zero_init_last=False).eval()
    torch.manual_seed(0)
    staged = staged_cifar_resnet("resnet18", zero_init_last=False).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(staged(x), whole(x))


def test_convnet_is_the_papers() -> None:
    shapes = [tuple(p.shape) for p in dim_convnet().parameters() if p.ndim > 1]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (1024, 4096)]
    layers = [m for m in dim_convnet().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(layer.bias is None for layer in layers), "a bias before a norm has no effect"


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of 8, got 28"):
        dim_convnet(28)
    with pytest.raises(ValueError, match="got 4"):
        staged_cifar_resnet(map_stage=4)
    with pytest.raises(ValueError, match=r"map_block must be in \[1, 2\], got 3"):
        SmallResNet((8, 16, 24), map_block=3)
