"""CMC's half of an AlexNet: its sizes, and two of them as towers under CMC."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sslzoo.backbones import Towers, half_alexnet
from sslzoo.batch import Batch
from sslzoo.heads import PerView
from sslzoo.methods import CMC


def test_the_map_is_layer_5_and_the_features_are_fc7() -> None:
    net: Any = half_alexnet(2).eval()
    x = torch.rand(2, 2, 224, 224)
    with torch.no_grad():
        m = net.forward_map(x)
        assert m.shape == (2, 128, 6, 6)
        assert torch.equal(net.forward_from_map(m), net(x))
    assert (net.map_features, net.num_features) == (128, 2048)
    own = sum(p.numel() for p in net.parameters())
    convs = 48 * 2 * 121 + 128 * 48 * 25 + 192 * 128 * 9 + 192 * 192 * 9 + 128 * 192 * 9
    norms = 2 * (48 + 128 + 192 + 192 + 128 + 2048 + 2048)
    assert own == convs + norms + (4608 + 1) * 2048 + (2048 + 1) * 2048


def test_it_trains_under_cmc() -> None:
    torch.manual_seed(0)
    towers = Towers([half_alexnet(1), half_alexnet(2)], [1, 2])
    heads = PerView([nn.Linear(2048, 8), nn.Linear(2048, 8)])
    method = CMC(towers, heads, bank_size=6, num_negatives=4)
    views = [torch.rand(3, channels, 224, 224) for channels in (1, 2)]
    losses = method.losses(Batch(views, index=torch.arange(3)))
    torch.stack(list(losses.values())).sum().backward()
    for tower in towers.towers:
        first = next(tower.parameters()).grad
        assert first is not None
        assert first.abs().max() > 0
