"""MoCo v3 equals the authors' code: loss, gradients, momentum encoder, LARS, schedules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, small_vit
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.heads import MLP
from sslzoo.losses import batch_info_nce
from sslzoo.methods import MoCoV3
from sslzoo.optim import (
    LARS,
    ConstantSchedule,
    CosineSchedule,
    RunLength,
    ScheduleLR,
    WarmupCosine,
    exempt_bias_and_norm,
)
from sslzoo.transforms import moco_v3_views
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.ranks import Ranks

# golden name -> ours
LAYERS = {
    "base_encoder.lin": "backbone.lin",
    "base_encoder.bn": "backbone.bn",
    "base_encoder.fc": "projector.layers",
    "momentum_encoder.lin": "key_backbone.lin",
    "momentum_encoder.bn": "key_backbone.bn",
    "momentum_encoder.fc": "key_projector.layers",
    "predictor": "predictor.layers",
}


class ToyEncoder(nn.Module):
    """The authors' test input: Linear, batch norm, ReLU."""

    def __init__(self, bn_groups: int) -> None:
        super().__init__()
        self.num_features = 7
        self.lin, self.bn = nn.Linear(6, 7), GlobalBatchNorm(7, groups=bn_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.lin(x)).relu()


def ours(name: str) -> str:
    theirs = next(layer for layer in LAYERS if name.startswith(layer))
    return name.replace(theirs, LAYERS[theirs])


def group(z: dict[str, Any], *names: str) -> dict[str, Tensor]:
    """Mean over the groups (of several ranks) of every array, under our names."""
    first = f"{names[0]}:"
    return {
        ours(key.removeprefix(first)): torch.stack(
            [torch.tensor(z[f"{name}:{key.removeprefix(first)}"]) for name in names]
        )
        .double()
        .mean(0)
        for key in z
        if key.startswith(first)
    }


@pytest.mark.parametrize("world", [1, 2])
def test_forward_backward_and_momentum_encoder(world: int) -> None:
    """Two of their ranks, whose batch norm is not synchronized, are two groups of ours."""
    z = load(f"mocov3/forward_{world}rank.npz")
    hyper = z["meta"]["hyper"]
    plain = partial(MLP, bias=False, last_bias=False, bn_groups=world)
    method = MoCoV3(
        ToyEncoder(world),
        plain([7, hyper["mlp"], hyper["dim"]], last_norm="plain"),
        plain([hyper["dim"], hyper["mlp"], hyper["dim"]]),
        temperature=hyper["T"],
        momentum=ConstantSchedule(hyper["m"]),
    ).double()
    method.load_state_dict(group(z, "init"))
    EMA(method.momentum, "before_forward").update(method, 0)
    views = [torch.tensor(z[name]).double().requires_grad_() for name in ("x1", "x2")]
    loss = method.losses(Batch(views, torch.arange(len(views[0]))))["info_nce"]
    loss.backward()
    assert_close_to_golden(loss, z["loss"].mean(), 1e-5)
    for view, name in zip(views, ("grad_x1", "grad_x2"), strict=True):
        assert_close_to_golden(view.grad, z[name].reshape(-1, 6) / world, 2e-5)
    ranks = range(world)
    for name, wanted in group(z, *(f"grad_rank{r}" for r in ranks)).items():
        close(method.get_parameter(name).grad, wanted)
    state = method.state_dict()
    for name, wanted in group(z, *(f"after_rank{r}" for r in ranks)).items():
        close(state[name], wanted)


def close(actual: Tensor, wanted: Tensor) -> None:
    """Equal; both nothing where theory says zero: what a batch norm takes out again."""
    if wanted.abs().max() < 1e-6:
        assert actual.abs().max() < 1e-6
    else:
        assert_close_to_golden(actual, wanted, 2e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_contrastive_loss(world: int) -> None:
    z = load(f"mocov3/contrastive_loss_{world}rank.npz")
    T = z["meta"]["hyper"]["T"]
    q, k = (torch.tensor(z[name]) for name in ("q", "k"))
    q.requires_grad_()
    loss = 2 * T * batch_info_nce(F.normalize(q, dim=1), F.normalize(k, dim=1), T)
    loss.backward()
    assert_close_to_golden(loss, z["loss"].mean(), 1e-5)
    assert_close_to_golden(q.grad, z["grad_q"].reshape(q.shape) / world, 1e-5)


def test_lars() -> None:
    z = load("mocov3/lars.npz")
    hyper = z["meta"]["hyper"]
    p = nn.ParameterList([torch.tensor(z[f"p{i}"]) for i in range(3)])
    optimizer = LARS(
        exempt_bias_and_norm(p),
        lr=hyper["lr"],
        momentum=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        eta=hyper["trust_coefficient"],
    )
    for step in range(3):
        for i in range(3):
            p[i].grad = torch.tensor(z[f"g{i}_step{step}"])
        optimizer.step()
        for i in range(3):
            assert_close_to_golden(p[i], z[f"p{i}_after{step}"], 1e-6)
            buffer = optimizer.state[p[i]]["momentum_buffer"]
            assert_close_to_golden(buffer, z[f"mu{i}_after{step}"], 1e-6)


def test_rate_and_momentum_by_iteration() -> None:
    z = load("mocov3/schedule.npz")
    hyper = z["meta"]["hyper"]
    per_epoch = 12  # so that the file's fractional epochs are whole steps
    steps = z["epoch"] * per_epoch
    assert abs(steps - steps.round()).max() < 1e-9
    run_length = RunLength(hyper["epochs"] * per_epoch, per_epoch)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=hyper["lr"])
    schedule = ScheduleLR(optimizer, WarmupCosine(warmup_epochs=hyper["warmup_epochs"]), run_length)
    momentum = CosineSchedule(hyper["moco_m"], 1.0)
    for step, lr, m in zip(steps.round().astype(int), z["lr"], z["momentum"], strict=True):
        assert hyper["lr"] * schedule.schedule(int(step), schedule.run_length) == pytest.approx(
            lr, rel=1e-9, abs=1e-12
        )
        assert momentum(int(step), run_length) == pytest.approx(m, rel=1e-9)


def slow(q: Tensor, k: Tensor) -> Tensor:
    """2T times the mean cross entropy, pair by pair, with T = 0.2."""
    terms = []
    for i, one in enumerate(q):
        logits = torch.stack([F.cosine_similarity(one, other, dim=0) for other in k]) / 0.2
        terms.append(logits.logsumexp(0) - logits[i])
    return 2 * 0.2 * torch.stack(terms).mean()


def toy(temperature: float = 0.2) -> MoCoV3:
    torch.manual_seed(0)
    plain = partial(MLP, bias=False, last_bias=False, last_norm="plain")
    vit = small_vit(8, 4, width=16, depth=1, num_heads=2, positions="moco_v3", init="moco_v3")
    return MoCoV3(vit, plain([16, 32, 32, 8]), plain([8, 32, 8]), temperature)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch(views, torch.arange(6))


def test_loss_is_both_directions_and_keys_have_no_gradient() -> None:
    method = toy().double()
    v1, v2 = batch().views
    loss = method.losses(batch())["info_nce"]
    wanted = slow(method.query(v1), method.key(v2)) + slow(method.query(v2), method.key(v1))
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert all(p.grad is None for p in method.key_backbone.parameters())


def test_value_worked_by_hand() -> None:
    q = torch.eye(2)
    loss = 2 * 1.0 * batch_info_nce(q, q, 1.0)
    assert loss.item() == pytest.approx(2 * (torch.tensor(1 + torch.e).log() - 1).item(), abs=1e-6)


def test_constant_keys_get_the_queries_gradient_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(5, 4, generator=generator).double(), dim=1) for _ in "qk")
    loss = partial(batch_info_nce, temperature=0.2)
    one, both = (value_and_gradients(loss, (q, k), n) for n in (1, 2))
    torch.testing.assert_close(one[0], both[0])
    torch.testing.assert_close(one[1][0], both[1][0])


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one_with_constant_keys(ranks: Ranks, counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [F.normalize(torch.randn(6, 4, generator=generator).double(), dim=1) for _ in range(2)]
    assert_ranks_equal_one(ranks, partial(batch_info_nce, temperature=0.2), pair, 1, counts)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    method = toy(temperature).double()
    loss = method.losses(batch())["info_nce"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_half_precision_is_close() -> None:
    method = toy()
    data = Batch([view.float() for view in batch().views], torch.arange(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.losses(data)["info_nce"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, method.losses(data)["info_nce"], rtol=0.05, atol=0.02)


def test_frozen_patches_and_positions_stay() -> None:
    method = toy()
    assert not method.backbone.pos_embed.requires_grad
    vit = small_vit(8, 4, width=16, depth=1, num_heads=2, freeze_patches=True)
    frozen = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match=r"predictor must have out_features .* got 6"):
        MoCoV3(ToyEncoder(1), MLP([7, 8]), MLP([8, 6]))


def test_views_are_the_authors() -> None:
    first, second = moco_v3_views(40).views
    names = [[type(op).__name__ for op in view.ops] for view in (first, second)]
    assert names[0] == ["ColorJitter", "Grayscale", "PILBlur", "Normalize"]
    assert names[1] == ["ColorJitter", "Grayscale", "PILBlur", "Solarize", "Normalize"]
    assert [view.ops[2].p for view in (first, second)] == [1.0, 0.1]
    assert second.ops[3].p == 0.2
    assert moco_v3_views(40, scale=(0.2, 1.0)).views[0].crop.scale == (0.2, 1.0)
