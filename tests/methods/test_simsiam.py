"""SimSiam equals the authors' step: forward, loss, gradients, SGD, running statistics, rates."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, SmallResNet
from sslzoo.batch import Batch
from sslzoo.heads import MLP, simsiam_predictor, simsiam_projector
from sslzoo.methods import SimSiam
from sslzoo.optim import ConstantRateFor, RunLength, ScheduleLR, WarmupCosine
from tests.golden import assert_close_to_golden, load


class ToyEncoder(nn.Module):
    """The authors' test input: Linear, batch norm, ReLU."""

    def __init__(self, din: int, hid: int) -> None:
        super().__init__()
        self.num_features = hid
        self.lin = nn.Linear(din, hid)
        self.bn = GlobalBatchNorm(hid)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.lin(x)).relu()


def our_name(name: str) -> str:
    for theirs, ours in (
        ("encoder.fc.", "projector.layers."),
        ("encoder.", "backbone."),
        ("predictor.", "predictor.layers."),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise AssertionError(name)


def group(z: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """Golden arrays of one group under our names."""
    found = {k.removeprefix(f"{prefix}:"): v for k, v in z.items() if k.startswith(f"{prefix}:")}
    return {our_name(name): torch.as_tensor(value) for name, value in found.items()}


def test_a_step_equals_the_authors() -> None:
    z = load("simsiam/forward.npz")
    hyper = z["meta"]["hyper"]
    method = SimSiam(
        ToyEncoder(hyper["din"], hyper["hid"]),
        simsiam_projector(hyper["hid"], out_dim=hyper["dim"]),
        simsiam_predictor(hyper["dim"], hyper["pred"]),
        optimizer=partial(
            torch.optim.SGD, lr=hyper["lr"], momentum=hyper["mom"], weight_decay=hyper["wd"]
        ),
        parameter_groups=ConstantRateFor(["predictor"]),
    )
    method.load_state_dict(group(z, "init"))  # every name of theirs, and no other
    frozen = [name for name, p in method.named_parameters() if not p.requires_grad]
    assert frozen == [our_name(name) for name in hyper["frozen"]]
    optimizer = method.configure_optimizers()
    schedule = ScheduleLR(optimizer, WarmupCosine(every="epoch"), RunLength(100, 1))
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": 30})
    assert_close_to_golden([g["lr"] for g in optimizer.param_groups], z["lrs"], 1e-6)

    seen: dict[str, list[Tensor]] = {"projector": [], "predictor": []}
    for name, outputs in seen.items():
        method.get_submodule(name).register_forward_hook(
            lambda _, args, out, outputs=outputs: outputs.append(out)
        )
    views = [torch.tensor(z[name], requires_grad=True) for name in ("x1", "x2")]
    loss = method.losses(Batch(views, torch.arange(hyper["N"])))["negative_cosine"]
    loss.backward()
    assert_close_to_golden(loss, z["loss"], 1e-5)
    for i in (0, 1):
        assert_close_to_golden(seen["projector"][i], z[f"z{i + 1}"], 1e-5)
        assert_close_to_golden(seen["predictor"][i], z[f"p{i + 1}"], 1e-5)
        assert_close_to_golden(views[i].grad, z[f"grad_x{i + 1}"])
    for name, wanted in group(z, "grad").items():
        grad = method.get_parameter(name).grad
        if name == "backbone.lin.bias":  # before a batch norm: rounding noise in both
            assert max(grad.abs().max(), wanted.abs().max()) < 1e-6
        else:
            assert_close_to_golden(grad, wanted)
    optimizer.step()
    for name, wanted in group(z, "after").items():
        if name == "predictor.layers.1.running_mean":  # of projections whose mean is 0: noise
            assert max(method.state_dict()[name].abs().max(), wanted.abs().max()) < 1e-6
        else:
            assert_close_to_golden(method.state_dict()[name], wanted, 1e-5)


def test_rates_equal_the_authors() -> None:
    z = load("simsiam/schedule.npz")
    hyper = z["meta"]["hyper"]
    method = SimSiam(SmallResNet((4, 8)), simsiam_projector(8, out_dim=6), simsiam_predictor(6, 4))
    groups = ConstantRateFor()(method)
    optimizer = torch.optim.SGD(groups, lr=hyper["init_lr"])
    schedule = ScheduleLR(optimizer, WarmupCosine(every="epoch"), RunLength(hyper["epochs"] * 3, 3))
    seen = []
    for _ in range(hyper["epochs"]):
        seen.append(schedule.get_last_lr())
        for _ in range(3):
            optimizer.step()
            schedule.step()
    assert_close_to_golden(torch.tensor(seen, dtype=torch.float64), z["lr"], 1e-9)


def test_no_gradient_flows_through_the_projection_that_is_met() -> None:
    method = SimSiam(SmallResNet((4, 8)), simsiam_projector(8, out_dim=6), simsiam_predictor(6, 4))
    views = [torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8)]
    with torch.no_grad():
        for parameter in method.predictor.parameters():
            parameter.zero_()
        method.predictor.layers[-1].bias.fill_(1.0)  # predictions do not depend on the images
    method.losses(Batch(views, torch.arange(6)))["negative_cosine"].backward()
    assert all(not p.grad.any() for p in method.backbone.parameters())
    assert method.predictor.layers[-1].bias.grad.any()


def test_a_predictor_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"out_features 6, .* got 5"):
        SimSiam(SmallResNet((4, 8)), simsiam_projector(8, out_dim=6), MLP([6, 5]))
