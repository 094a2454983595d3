"""The hidden probe finds what a linear one cannot, the same each time."""

from __future__ import annotations

import pytest
import torch

from sslzoo.eval.linear import linear_probe
from sslzoo.eval.mlp_probe import mlp_probe


def test_an_exclusive_or_wants_a_hidden_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=generator)
    label = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    given = x[:400], label[:400], x[400:], label[400:], 2
    state = torch.get_rng_state()
    found = mlp_probe(*given, hidden=32, epochs=60, lr=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    assert found > 0.9 > 0.65 > linear_probe(*given)
    assert mlp_probe(*given, hidden=32, epochs=60, lr=1e-2) == found


def test_wrong_labels_are_named() -> None:
    x, label = torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    with pytest.raises(ValueError, match=r"MLP probe, training set: labels must be in 0\.\.1"):
        mlp_probe(x, label, x, label, 2)
