"""DINO's head equals the authors', forward and gradient; its logits are computed in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.heads import DINOHead, Prototypes
from tests.golden import assert_close_to_golden, load


@pytest.mark.parametrize("norm", [False, True])
def test_equals_the_authors(norm: bool) -> None:
    z = load(f"dino/head_bn{int(norm)}.npz")
    hyper = z["meta"]["hyper"]
    head = DINOHead(
        hyper["in_dim"],
        hyper["out_dim"],
        hyper["hidden"],
        hyper["bottleneck"],
        hyper["nlayers"],
        norm=hyper["use_bn"],
        norm_last_layer=hyper["norm_last_layer"],
    )
    state = {name[6:]: torch.tensor(z[name]) for name in z if name.startswith("param:")}
    head.load_state_dict(state)  # the authors' names
    assert [n for n, p in head.named_parameters() if p.requires_grad] == hyper["trainable"]
    x = torch.tensor(z["x"]).requires_grad_()
    out = head(x)
    assert_close_to_golden(out, z["out"], 1e-5)
    out.backward(torch.tensor(z["upstream"]))
    assert_close_to_golden(x.grad, z["grad_x"])
    scale = max(abs(z[f"grad:{name}"]).max() for name in hyper["trainable"])
    for name in hyper["trainable"]:
        grad, wanted = head.get_parameter(name).grad, z[f"grad:{name}"]
        if norm and name in ("mlp.0.bias", "mlp.3.bias"):  # before a batch norm: rounding noise
            assert max(grad.abs().max(), abs(wanted).max()) < 1e-5 * scale
        else:
            assert_close_to_golden(grad, wanted, 2e-4)
    for name in z:
        if name.startswith("after:"):
            assert_close_to_golden(head.state_dict()[name[6:]], z[name], 1e-5)


def test_a_logit_is_a_cosine_times_a_length() -> None:
    prototypes = Prototypes(2, 2, fixed_length=False)
    prototypes.weight_v.data = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    prototypes.weight_g.data = torch.tensor([[1.0], [5.0]])
    torch.testing.assert_close(prototypes(torch.tensor([1.0, 0.0])), torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(prototypes(torch.tensor([0.0, 1.0])), torch.tensor([0.8, 5.0]))


def test_equals_torchs_weight_norm() -> None:
    ours, theirs = Prototypes(4, 6, fixed_length=False), nn.Linear(4, 6, bias=False)
    theirs: Any = nn.utils.parametrizations.weight_norm(theirs)
    theirs.parametrizations.weight.original0.data.uniform_(1, 2)
    ours.weight_g.data = theirs.parametrizations.weight.original0.data
    ours.weight_v.data = theirs.parametrizations.weight.original1.data
    x = torch.randn(3, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_fixed_lengths_are_one_and_not_trained() -> None:
    head = DINOHead(6, 9, 8, 5)
    assert torch.equal(head.last_layer.weight_g, torch.ones(9, 1))
    assert not head.last_layer.weight_g.requires_grad
    assert DINOHead(6, 9, 8, 5, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_under_autocast_the_logits_are_those_of_the_bottleneck_in_float32() -> None:
    head, x = DINOHead(6, 9, 8, 5), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logits = head.bottleneck(x), head(x)
    assert z.dtype == logits.dtype == torch.float32
    assert torch.equal(logits, head.last_layer(z))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(("layers", "linears"), [(1, 1), (2, 2), (4, 4)])
def test_number_of_layers(layers: int, linears: int) -> None:
    head = DINOHead(6, 9, 8, 5, num_layers=layers)
    assert sum(isinstance(part, nn.Linear) for part in head.mlp) == linears
    assert isinstance(head.mlp[-1], nn.Linear)
    assert head(torch.randn(2, 3, 6)).shape == (2, 3, 9)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        DINOHead(6, 9, 8, 5, num_layers=0)
    with pytest.raises(ValueError, match=r"got \[6, 8, 8, 0\]"):
        DINOHead(6, 9, 8, 0)


@pytest.mark.parametrize("norm", [False, True, "layer"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_hidden_layers_are_those_written_by_hand(norm: Any, activation: Any) -> None:
    torch.manual_seed(0)
    head = DINOHead(4, 5, 6, 3, norm=norm, activation=activation).double()
    x, state = torch.randn(7, 4, dtype=torch.float64), head.mlp.state_dict()
    step, h = (3 if norm else 2), x
    for layer in range(2):
        h = h @ state[f"{step * layer}.weight"].T + state[f"{step * layer}.bias"]
        if norm:
            axis = 1 if norm == "layer" else 0
            spread = h.var(axis, keepdim=True, unbiased=False) + 1e-5
            h = (h - h.mean(axis, keepdim=True)) / spread.sqrt()
        h = h.clamp(min=0) if activation == "relu" else h * (1 + torch.erf(h / 2**0.5)) / 2
    h = h @ state[f"{2 * step}.weight"].T + state[f"{2 * step}.bias"]
    torch.testing.assert_close(head.bottleneck(x), h / h.norm(dim=1, keepdim=True).clamp_min(1e-12))


def test_other_hidden_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"norm must be one of .*, got 'batch'"):
        DINOHead(4, 5, norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'silu'"):
        DINOHead(4, 5, activation="silu")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_of_half_precision_has_logits_of_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, x = DINOHead(6, 9, 8, 5), torch.randn(4, 6)
    wanted = head(x)
    got = head.to(dtype)(x.to(dtype))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=0.02, rtol=0.05)
