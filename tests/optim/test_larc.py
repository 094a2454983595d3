"""LARC equals apex's around torch's SGD, step by step, and waits for the device nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sslzoo.optim import LARC
from tests.golden import assert_close_to_golden, load
from tests.no_sync import DEVICE, syncs


@pytest.mark.parametrize("clip", [False, True])
def test_equals_apex(clip: bool) -> None:
    z = load("swav/larc.npz")
    hyper = z["meta"]["hyper"]
    p = [nn.Parameter(torch.tensor(z[f"p{i}"])) for i in range(3)]
    optimizer = LARC(
        p,
        lr=hyper["lr"],
        momentum=hyper["momentum"],
        weight_decay=hyper["wd"],
        trust_coefficient=hyper["trust"],
        clip=clip,
        eps=hyper["eps"],
    )
    for step in range(3):
        for i in range(3):
            p[i].grad = torch.tensor(z[f"g{i}_step{step}"])
        optimizer.step()
        for i in range(3):
            assert_close_to_golden(p[i], z[f"p{i}_after{step}_clip{int(clip)}"], 1e-6)


def test_hand_worked_step() -> None:
    # |w| = 5, |g| = 10, decay 0.2: ratio 0.1 * 5 / (10 + 1) and g + 0.2 w = (0.6, 10.8).
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    w.grad = torch.tensor([0.0, 10.0], dtype=torch.float64)
    LARC([w], lr=2.0, weight_decay=0.2, trust_coefficient=0.1, eps=0.0).step()
    wanted = [3 - 2 * 0.5 / 11 * 0.6, 4 - 2 * 0.5 / 11 * 10.8]
    torch.testing.assert_close(w.data, torch.tensor(wanted, dtype=torch.float64))


def test_a_group_may_be_plain_sgd() -> None:
    start, grad = torch.randn(4), torch.randn(4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    larc = LARC([{"params": [ours], "adapt": False}], lr=0.3, momentum=0.9, weight_decay=0.1)
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        larc.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_what_has_no_gradient_stays_and_a_zero_gradient_decays_nothing() -> None:
    without, zero = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    zero.grad = torch.zeros(3)
    LARC([without, zero], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(without, torch.ones(3))
    assert torch.equal(zero, torch.ones(3))


def test_the_gradients_are_left_as_they_were() -> None:
    w, grad = nn.Parameter(torch.ones(3)), torch.randn(3)
    w.grad = grad.clone()
    LARC([w], lr=1.0, weight_decay=0.5).step()
    assert torch.equal(w.grad, grad)


def _step() -> Tensor:
    p = [nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in ((4, 3), (4,))]
    for one in p:
        one.grad = torch.randn_like(one)
    LARC(p, lr=0.1, weight_decay=0.1, clip=True).step()
    return (p[0].sum() + p[1].sum()).requires_grad_()


def test_no_host_synchronization() -> None:
    assert syncs(_step) == []


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}])
def test_values_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        LARC([nn.Parameter(torch.zeros(2))], **wrong)
