"""ClipPerParameter equals the authors' clipping, and works where a Trainer calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.callbacks import (
    ClipPerModule,
    ClipPerParameter,
    clip_per_module,
    clip_per_parameter,
)
from tests.golden import assert_close_to_golden, load
from tests.no_sync import DEVICE, syncs


def _parameters(grads: list[Any]) -> list[nn.Parameter]:
    parameters = []
    for grad in grads:
        parameter = nn.Parameter(torch.zeros(grad.shape))
        parameter.grad = torch.as_tensor(grad).clone()
        parameters.append(parameter)
    return parameters


def test_clipped_gradients_equal_the_authors() -> None:
    z = load("dino/clip_gradients.npz")
    parameters = _parameters([z[f"g{i}"] for i in range(3)])
    for parameter, norm in zip(parameters, z["norms"], strict=True):
        assert_close_to_golden(parameter.grad.norm(), norm)
    clip_per_parameter(parameters, z["meta"]["hyper"]["clip"])
    for i, parameter in enumerate(parameters):
        assert_close_to_golden(parameter.grad, z[f"g{i}_after"], 1e-6)


def test_each_parameter_has_its_own_norm() -> None:
    small, large, none = torch.tensor([0.3, 0.4]), torch.tensor([3.0, 4.0]), torch.zeros(2)
    parameters = [*_parameters([small, large, none]), nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace())
    ClipPerParameter(1.0).on_before_optimizer_step(trainer, None, optimizer)  # type: ignore[arg-type]
    assert torch.equal(parameters[0].grad, small)  # of norm 0.5: left alone
    torch.testing.assert_close(parameters[1].grad, large / 5, rtol=1e-5, atol=0)
    assert torch.equal(parameters[2].grad, none)
    assert parameters[3].grad is None


def _clip_on_fake_cuda() -> None:
    parameter = nn.Parameter(torch.zeros(3, device=DEVICE))
    parameter.grad = torch.ones(3, device=DEVICE)
    clip_per_parameter([parameter], 1.0)


def test_modules_are_clipped_separately() -> None:
    method = nn.ModuleDict({"backbone": nn.Linear(2, 1), "projector": nn.Linear(2, 1)})
    method["teacher"] = nn.Linear(2, 1)
    for name, size in (("backbone", 3.0), ("projector", 0.1)):
        for parameter in method[name].parameters():
            parameter.grad = torch.full_like(parameter, size)
    norms = clip_per_module(method, 1.0)
    torch.testing.assert_close(torch.stack(norms), torch.tensor([3.0, 0.1]) * 3**0.5)
    torch.testing.assert_close(method["backbone"].bias.grad, torch.full((1,), 3**-0.5))
    assert torch.equal(method["projector"].bias.grad, torch.full((1,), 0.1))
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        ClipPerModule(0)


def _clip_modules_on_fake_cuda() -> None:
    layer = nn.Linear(2, 1, device=DEVICE)
    layer.weight.grad = torch.ones(1, 2, device=DEVICE)
    clip_per_module(nn.Sequential(layer), 1.0)


@pytest.mark.parametrize("clip", [_clip_on_fake_cuda, _clip_modules_on_fake_cuda])
def test_no_host_synchronization(clip: Any) -> None:
    assert syncs(clip) == []


def test_nothing_to_clip_is_no_error() -> None:
    clip_per_parameter([nn.Parameter(torch.zeros(2))], 1.0)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="above 0, got 0"):
        ClipPerParameter(0)
    optimizer = torch.optim.AdamW(_parameters([torch.ones(2)]), fused=True)
    scaled: Any = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object()))
    with pytest.raises(ValueError, match="fused optimizer with precision 16-mixed"):
        ClipPerParameter(1.0).on_before_optimizer_step(scaled, None, optimizer)  # type: ignore[arg-type]
