"""Networks without random initial values: everything that a file does not hold is as ever."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslzoo.trust import fill, undrawn
from sslzoo.zoo import entries
from sslzoo.zoo.build import build_backbone

OWN = sorted(name for name, card in entries().items() if card.layout is None)


@pytest.mark.parametrize("name", OWN)
def test_a_filled_network_is_the_same(name: str) -> None:
    """Also in what no state dict holds: buffers, flags and shapes."""
    backbone = entries()[name].backbone
    drawn = build_backbone(backbone)
    with undrawn():
        made = build_backbone(backbone)
    fill(made, drawn.state_dict(), name)
    assert repr(made) == repr(drawn)
    for (key, ours), (_, wanted) in zip(made.named_buffers(), drawn.named_buffers(), strict=True):
        assert torch.equal(ours, wanted), key
    for (key, ours), (_, wanted) in zip(
        made.named_parameters(), drawn.named_parameters(), strict=True
    ):
        assert torch.equal(ours, wanted), key
        assert ours.requires_grad == wanted.requires_grad, key


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    with undrawn():
        nn.Conv2d(3, 8, 3)
        weight = nn.Linear(8, 8).weight
        weight.data.fill_(7)  # whatever was in memory: truncated draws are repeated
        nn.init.trunc_normal_(weight)
        inside = torch.get_rng_state()
        nn.init.trunc_normal_(weight, std=4)  # draws also what is no parameter
    assert torch.equal(inside, before)
    assert torch.equal(torch.get_rng_state(), before)
    nn.Linear(2, 2)
    assert not torch.equal(torch.get_rng_state(), before)


def test_tensors_that_are_no_parameters_are_computed() -> None:
    with undrawn():
        table = torch.zeros(3).add_(1).mul_(2)
        noise = torch.full((4,), 7.0).normal_()
    assert table.tolist() == [2, 2, 2]
    assert (noise != 7).all()


def test_shapes_are_those_of_the_meta_device() -> None:
    with undrawn(), torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    assert net[0].weight.shape == (8, 3, 3, 3)
