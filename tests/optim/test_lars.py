"""LARS equals the code of SimCLR and of BYOL, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslzoo.optim import LARS, exempt_bias_and_norm
from tests.golden import assert_close_to_golden, load


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("classic", [False, True])
def test_equals_simclr(classic: bool, nesterov: bool) -> None:
    z = load(f"simclr/lars_classic{int(classic)}_nesterov{int(nesterov)}.npz")
    hyper = z["meta"]["hyper"]
    p = [nn.Parameter(torch.tensor(z[f"p{i}"])) for i in range(5)]
    exempt = {"params": p[1:4], "weight_decay": 0.0, "adapt": False}
    optimizer = LARS(
        [{"params": [p[0], p[4]]}, exempt],
        lr=hyper["lr"],
        momentum=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        eta=hyper["eeta"],
        nesterov=nesterov,
        momentum_style="simclr" if classic else "simclr_popular",
    )
    for step in range(3):
        for i in range(5):
            p[i].grad = torch.tensor(z[f"g{i}_step{step}"])
        optimizer.step()
        for i in range(5):
            assert_close_to_golden(p[i], z[f"p{i}_after{step}"], 1e-6)
            buffer = optimizer.state[p[i]]["momentum_buffer"]
            assert_close_to_golden(buffer, z[f"v{i}_after{step}"], 1e-6)


def test_equals_byol() -> None:
    z = load("byol/lars.npz")
    hyper = z["meta"]["hyper"]
    names = ["lin.w", "zero.w", "lin.b", "batchnorm.scale", "batchnorm.offset"]
    p = {name: nn.Parameter(torch.tensor(z[f"init:{name}"])) for name in names}
    groups = [
        {"params": [p[n] for n in names[:2]]},
        {"params": [p[n] for n in names[2:]], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(
        groups,
        lr=hyper["lr"],
        momentum=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        eta=hyper["eta"],
    )
    for step in range(3):
        for name in names:
            p[name].grad = torch.tensor(z[f"grad{step}:{name}"])
        optimizer.step()
        for name in names:
            assert_close_to_golden(p[name], z[f"after{step}:{name}"], 1e-6)
            buffer = optimizer.state[p[name]]["momentum_buffer"]
            assert_close_to_golden(buffer, z[f"mu{step}:{name}"], 1e-6)


@pytest.mark.parametrize("system", ["barlow", "vicreg"])
def test_equals_barlow_twins_and_vicreg(system: str) -> None:
    z = load(f"{system}/lars.npz")
    hyper = z["meta"]["hyper"]
    net = nn.ParameterList([nn.Parameter(torch.tensor(z[f"p{i}"])) for i in range(3)])
    optimizer = LARS(exempt_bias_and_norm(net), **hyper)
    for step in range(2):
        for i, parameter in enumerate(net):
            parameter.grad = torch.tensor(z[f"g{i}_step{step}"])
        optimizer.step()
        for i, parameter in enumerate(net):
            assert_close_to_golden(parameter, z[f"p{i}_after{step}"], 1e-6)


def test_equals_dino() -> None:
    z = load("dino/lars.npz")
    hyper = z["meta"]["hyper"]
    net = nn.ParameterDict({f"p{i}": nn.Parameter(torch.tensor(z[f"p{i}"])) for i in range(3)})
    options = {name: hyper[name] for name in ("lr", "momentum", "weight_decay", "eta")}
    optimizer = LARS(exempt_bias_and_norm(net), **options)
    for step in range(2):
        for i in range(3):
            net[f"p{i}"].grad = torch.tensor(z[f"g{i}_step{step}"])
        optimizer.step()
        for i in range(3):
            assert_close_to_golden(net[f"p{i}"], z[f"p{i}_after{step}"], 1e-6)


def test_biases_and_norms_are_exempt() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    decayed, exempt = exempt_bias_and_norm(net)
    assert [p.ndim for p in decayed["params"]] == [2, 2]
    assert [p.ndim for p in exempt["params"]] == [1, 1, 1]
    assert exempt["weight_decay"] == 0
    assert exempt["adapt"] is False


def test_frozen_parameters_are_in_no_group() -> None:
    net = nn.Linear(3, 4).requires_grad_(False)
    assert exempt_bias_and_norm(net) == []


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}])
def test_values_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        LARS([nn.Parameter(torch.zeros(2))], **wrong)
