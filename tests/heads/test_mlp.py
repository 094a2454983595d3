"""The heads equal the authors', forward and running statistics, and refuse bad sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.backbones import GlobalBatchNorm
from sslzoo.heads import (
    MLP,
    byol_mlp,
    simclr_projector,
    simclr_v2_projector,
    simsiam_projector,
)
from tests.golden import assert_close_to_golden, load


@pytest.mark.parametrize("layers", [2, 3])
def test_equals_simclr_projection_head(layers: int) -> None:
    z = load(f"simclr/proj_head_{layers}layers.npz")
    head: Any = simclr_v2_projector(z["x"].shape[1], layers, z["out_train"].shape[1])
    linears = [m for m in head.layers if isinstance(m, nn.Linear)]
    norms = [m for m in head.layers if isinstance(m, GlobalBatchNorm)]
    arrays = {name.split(":", 1)[1]: z[name] for name in z if name.startswith("w")}
    after = {name.split(":", 1)[1]: z[name] for name in z if name.startswith("after")}
    prefix = "nl_{}|batch_norm_relu|batch_normalization|"
    for i, (linear, norm) in enumerate(zip(linears, norms, strict=True)):
        linear.weight.data = torch.tensor(arrays[f"nl_{i}|dense|kernel"]).T.contiguous()
        norm.weight.data = torch.tensor(arrays[prefix.format(i) + "gamma"])
        if norm.bias is not None:
            norm.bias.data = torch.tensor(arrays[prefix.format(i) + "beta"])
    assert norms[-1].bias is None, "the last norm has a scale and no offset"

    x = torch.tensor(z["x"])
    assert_close_to_golden(head(x), z["out_train"], 1e-5)
    n = len(x)
    for i, norm in enumerate(norms):
        assert_close_to_golden(norm.running_mean, after[prefix.format(i) + "moving_mean"], 1e-5)
        # TensorFlow keeps the biased variance, torch the unbiased one.
        theirs = torch.tensor(after[prefix.format(i) + "moving_variance"])
        assert_close_to_golden(norm.running_var, 0.9 + (theirs - 0.9) * n / (n - 1), 1e-5)
        norm.running_var.copy_(theirs)
    assert_close_to_golden(head.eval()(x), z["out_eval"], 1e-5)
    for k in range(layers + 1):  # what fine-tuning takes: the code's ft_proj_selector
        assert_close_to_golden(head.first(k)(x), z[f"ft_sel{k}_eval"], 1e-5)
    head.train()
    for k in range(layers + 1):
        assert_close_to_golden(head.first(k)(x), z[f"ft_sel{k}_train"], 1e-5)


@pytest.mark.parametrize("system", ["barlow", "vicreg"])
def test_equals_barlow_twins_and_vicreg(system: str) -> None:
    z = load(f"{system}/projector.npz")
    sizes = [int(size) for size in z["meta"]["hyper"]["mlp"].split("-")]
    head = MLP(sizes, bias=system == "vicreg", last_bias=False)
    theirs = {k.removeprefix("param:"): torch.as_tensor(z[k]) for k in z if k.startswith("param")}
    head.layers.load_state_dict(theirs)  # every name of theirs, and no other
    assert_close_to_golden(head(torch.tensor(z["x"])), z["out"], 1e-5)


def test_first_layers_are_the_heads_own() -> None:
    head: Any = simclr_v2_projector(6)
    assert list(head.first(0)) == []
    assert list(head.first(1)) == list(head.layers[:3])
    assert list(head.first(3)) == list(head.layers)
    plain = MLP([4, 5, 6], norm=False)
    assert list(plain.first(1)) == list(plain.layers[:2])


def test_two_layers_are_version_1() -> None:
    torch.manual_seed(0)
    v1 = simclr_projector(6, out_dim=5).state_dict()
    torch.manual_seed(0)
    v2 = simclr_v2_projector(6, 2, 5).state_dict()
    assert list(v1) == list(v2)
    assert all(torch.equal(v1[name], v2[name]) for name in v1)


def test_layers_of_the_papers_heads() -> None:
    simclr = simclr_projector(2048)
    assert [p.shape for p in simclr.parameters()] == [
        (2048, 2048),
        (2048,),
        (2048,),
        (128, 2048),
        (128,),
    ]
    v2 = simclr_v2_projector(2048)
    hidden = [(2048, 2048), (2048,), (2048,)]
    assert [p.shape for p in v2.parameters()] == [*hidden, *hidden, (128, 2048), (128,)]
    byol = byol_mlp(2048)
    assert byol.layers[0].bias is not None
    assert byol.layers[-1].bias is None
    assert byol.layers[-1].weight.shape == (256, 4096)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(True, GlobalBatchNorm), ("group", nn.GroupNorm), ("layer", nn.LayerNorm), (False, nn.ReLU)],
)
def test_the_hidden_norm_is_the_one_asked_for(norm: Any, kind: type[nn.Module]) -> None:
    assert isinstance(MLP([4, 32, 3], norm=norm).layers[1], kind)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="'group' or 'layer', got 'batch'"):
        MLP([4, 16, 3], norm="batch")  # type: ignore[arg-type]
    for width in (16, 40):
        with pytest.raises(ValueError, match=f"'group', got {width}"):
            MLP([4, width, 3], norm="group")


@pytest.mark.parametrize("sizes", [[4], [], [4, 0]])
def test_bad_sizes_are_named(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two positive numbers"):
        MLP(sizes)


def test_wrong_numbers_of_layers_are_named() -> None:
    for head in (simclr_v2_projector, simsiam_projector):
        with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
            head(4, num_layers=0)
    head: Any = simclr_v2_projector(4)
    for number in (-1, 4):
        with pytest.raises(ValueError, match=f"num_layers must be in 0..3, got {number}"):
            head.first(number)
