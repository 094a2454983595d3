"""Deep InfoMax's heads: the authors' 1x1 net, the map encoder, the discriminator's slope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.heads import MapEncoder, MI1x1ConvNet, PriorDiscriminator
from tests.golden import assert_close_to_golden, load

LAYERS = {
    "block_nonlinear.0": "conv1",
    "block_nonlinear.1": "norm",
    "block_nonlinear.3": "conv2",
    "block_ln.1": "layer_norm",
    "linear_shortcut": "shortcut",
}


def head_with(z: dict[str, Any], group: str) -> MI1x1ConvNet:
    """The head with the golden weights of a group; a running statistic is a part of them."""
    head = MI1x1ConvNet(6, 8)
    state: dict[str, Tensor] = {}
    for name, array in z.items():
        if name.startswith(f"{group}:"):
            layer, attribute = name.removeprefix(f"{group}:").rsplit(".", 1)
            value = torch.tensor(array)
            state[f"{LAYERS[layer]}.{attribute}"] = value[..., 0] if value.ndim == 4 else value
    head.load_state_dict(state)
    return head


def test_equals_the_authors() -> None:
    z = load("dim/mi1x1convnet.npz")
    x = torch.tensor(z["x"])
    for group, out in (("init", "out_init"), ("param", "out")):
        head = head_with(z, group)
        assert_close_to_golden(head(x).unflatten(2, (3, 3)), z[out], 1e-5)
    after = head_with(z, "init")
    after(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        wanted = z[f"param:block_nonlinear.1.{name}"]
        assert_close_to_golden(getattr(after.norm, name), wanted, 1e-5)


def test_starts_as_a_noisy_copy_as_the_authors_does() -> None:
    z = load("dim/mi1x1convnet.npz")
    for weight in (
        torch.tensor(z["init:linear_shortcut.weight"]),
        MI1x1ConvNet(6, 8).shortcut.weight,
    ):
        matrix = weight.detach().flatten(1)
        eye = torch.eye(8, 6)
        assert torch.equal(matrix[eye > 0], torch.ones(6))
        noise = matrix[eye == 0].abs()
        assert 0.005 < noise.max() <= 0.01
    assert MI1x1ConvNet(6, 4).shortcut.weight.abs().max() < 0.5, "too narrow for a copy"


def test_a_vector_is_a_map_of_one_location() -> None:
    head = MI1x1ConvNet(6, 8).eval()
    x = torch.randn(4, 6, 2, 3)
    assert head(x).shape == (4, 8, 6)
    torch.testing.assert_close(head(x)[:, :, 4], head(x[:, :, 1, 1])[:, :, 0])


def test_map_encoder_takes_a_map_or_its_numbers() -> None:
    head = MapEncoder(3, 4, 10).eval()
    x = torch.randn(5, 3, 4, 4)
    assert head(x).shape == (5, 10)
    assert torch.equal(head(x), head(x.flatten(1)))
    with pytest.raises(ValueError, match="even and at least 2, got 5"):
        MapEncoder(3, 5, 10)


def test_slope_is_autograds_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    d = PriorDiscriminator(5, (7, 4, 3)).double()
    y = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(d(y).sum(), y, create_graph=True)
    slope = d.input_gradient(y.detach())
    torch.testing.assert_close(slope, wanted)
    weights = [p for name, p in d.named_parameters() if name.endswith("weight")]
    ours = torch.autograd.grad(slope.square().sum(), weights)
    theirs = torch.autograd.grad(wanted.square().sum(), weights)
    torch.testing.assert_close(ours, theirs)


def test_frozen_scores_move_the_features_and_not_the_discriminator() -> None:
    d = PriorDiscriminator(5, (7, 4))
    y = torch.randn(6, 5, requires_grad=True)
    assert torch.equal(d.frozen(y), d(y))
    d.frozen(y).sum().backward()
    assert all(p.grad is None for p in d.parameters())
    (wanted,) = torch.autograd.grad(d(y).sum(), y)
    torch.testing.assert_close(y.grad, wanted)
