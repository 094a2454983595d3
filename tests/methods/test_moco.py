"""MoCo equals the authors' step on one rank and on two, and does not depend on the ranks."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, SmallResNet
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.losses import info_nce
from sslzoo.memory import commit_memories
from sslzoo.methods import MoCo
from sslzoo.methods.base import step_permutation
from sslzoo.optim import ConstantSchedule, RunLength, ScheduleLR, StepSchedule, WarmupCosine
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks, assert_same_step

THEIRS = {"encoder_q.fc": "projector", "encoder_k.fc": "key_projector"}
THEIRS |= {"encoder_q": "backbone", "encoder_k": "key_backbone"}
THEIRS |= {"queue_ptr": "queue.pointer", "queue": "queue.rows"}


class ToyEncoder(nn.Module):
    """The authors' test input: Linear, batch norm, ReLU."""

    def __init__(self, hyper: dict[str, Any], groups: int) -> None:
        super().__init__()
        self.num_features = hyper["hid"]
        self.lin = nn.Linear(hyper["din"], hyper["hid"])
        self.bn = GlobalBatchNorm(hyper["hid"], groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.lin(x)).relu()


def state(z: dict[str, Any], group: str) -> dict[str, Tensor]:
    """Golden state of one group under our names, in our layouts."""
    out = {}
    for full, array in z.items():
        if not full.startswith(f"{group}:"):
            continue
        name, value = full.removeprefix(f"{group}:"), torch.from_numpy(array)
        theirs = next(prefix for prefix in THEIRS if name.startswith(prefix))
        ours = THEIRS[theirs] + name.removeprefix(theirs)
        if ours == "queue.rows":
            value = value.T
        out[ours] = value[0] if ours == "queue.pointer" else value
    return out


def golden_method(z: dict[str, Any]) -> MoCo:
    hyper = z["meta"]["hyper"]
    method = MoCo(
        ToyEncoder(hyper, groups=hyper["world"]),
        nn.Linear(hyper["hid"], hyper["dim"]),
        queue_size=hyper["K"],
        temperature=hyper["T"],
        momentum=ConstantSchedule(hyper["m"]),
    )
    method.load_state_dict(state(z, "init"))
    return method


def golden_step(rank: int, z: dict[str, Any], world: int) -> dict[str, Any]:
    """One step on this rank's share of the authors' global batch."""
    method = golden_method(z)
    x, y = (torch.from_numpy(z[name]).chunk(world)[rank].clone() for name in ("im_q", "im_k"))
    x.requires_grad_()
    seen: dict[str, Tensor] = {}
    method.key_backbone.register_forward_pre_hook(lambda _, args: seen.update(shuffled=args[0]))
    method.projector.register_forward_hook(lambda _, args, out: seen.update(q=out.detach()))
    queue = method.queue.rows.clone()
    EMA(method.momentum, "before_forward").update(method, 0)
    order = torch.from_numpy(z["idx_shuffle"])
    with patch("sslzoo.methods.moco.step_permutation", lambda *_: lambda n: order):
        loss = method.losses(Batch([x, y], torch.arange(len(x))))["info_nce"]
    loss.backward()
    (keys,) = method.queue._staged[0]
    q = F.normalize(seen["q"], dim=1)
    logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ queue.T], dim=1) / method.temperature
    commit_memories(method)
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {
        "loss": loss.detach(),
        "logits": logits,
        "shuffled": seen["shuffled"],
        "gx": x.grad,
        "grads": grads,
        "state": {name: value.clone() for name, value in method.state_dict().items()},
    }


@pytest.mark.parametrize(("file", "world"), [(1, 1), (2, 1), (2, 2)])
def test_a_step_equals_the_authors(file: int, world: int, ranks: Ranks) -> None:
    """The file of `file` ranks, on `world` ranks with as many groups as the file has ranks."""
    z = load(f"moco/forward_{file}rank.npz")
    many = world > 1
    results = ranks(world, golden_step, z, world) if many else [golden_step(0, z, 1)]
    assert z["idx_unshuffle"].tolist() == torch.from_numpy(z["idx_shuffle"]).argsort().tolist()
    mean = torch.stack([result["loss"] for result in results]).mean()
    assert_close_to_golden(mean, z["loss"].mean())
    for name in ("logits", "shuffled"):
        got = torch.cat([result[name] for result in results])
        assert_close_to_golden(got, z[name].reshape(got.shape))
    back = torch.cat([r["shuffled"] for r in results])[torch.from_numpy(z["idx_unshuffle"])]
    assert_close_to_golden(back, z["back"].reshape(back.shape))
    gx = torch.cat([result["gx"] for result in results]) / world
    assert_close_to_golden(gx, z["gx"].reshape(gx.shape) / file)
    of_ranks = [state(z, f"grad_rank{r}") for r in range(file)]
    assert of_ranks[0].keys() == results[0]["grads"].keys()
    scale = max(value.abs().max() for value in of_ranks[0].values())
    for name in of_ranks[0]:
        got = torch.stack([result["grads"][name] for result in results]).mean(0)
        wanted = torch.stack([grads[name] for grads in of_ranks]).mean(0)
        if name == "backbone.lin.bias":  # before a batch norm: only rounding noise in both
            assert max(got.abs().max(), wanted.abs().max()) < 1e-6 * scale
        else:
            assert_close_to_golden(got, wanted)
    after = [state(z, f"after_rank{r}") for r in range(file)]
    for name in after[0]:
        # Deviation 2: running statistics are the mean over the groups' of each rank.
        values = [of_rank[name] for of_rank in after]
        wanted = torch.stack(values).double().mean(0) if "running" in name else values[0]
        for result in results:
            assert_close_to_golden(result["state"][name], wanted)


def test_the_key_encoders_updates_equal_the_authors() -> None:
    z = load("moco/momentum_update.npz")
    z["meta"]["hyper"] |= {"din": 5, "hid": 7, "dim": 6}
    hyper = z["meta"]["hyper"]
    method = MoCo(ToyEncoder(hyper, 1), nn.Linear(7, 6), queue_size=16)
    method.load_state_dict(state(z, "before"), strict=False)
    ema = EMA(ConstantSchedule(hyper["m"]), "before_forward")
    for step in range(hyper["steps"]):
        ema.update(method, step)
    wanted = state(z, "after")
    assert "key_backbone.bn.running_mean" in wanted
    for name, value in wanted.items():
        assert_close_to_golden(method.state_dict()[name], value)


@pytest.mark.parametrize("kind", ["step", "cos"])
def test_rates_equal_the_authors(kind: str) -> None:
    """The file's accuracies (acc1, acc5) belong to evaluation and are not MoCo's."""
    z = load("moco/schedule.npz")
    hyper = z["meta"]["hyper"]
    per_epoch = 5
    run_length = RunLength(hyper["epochs"] * per_epoch, per_epoch)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=hyper["lr"])
    if kind == "step":
        schedule: Any = ScheduleLR(
            optimizer, StepSchedule(milestones=hyper["schedule"], gamma=0.1), run_length
        )
    else:
        schedule = ScheduleLR(optimizer, WarmupCosine(every="epoch"), run_length)
    rates = torch.tensor(
        [
            [
                hyper["lr"] * schedule.schedule(e * per_epoch + s, schedule.run_length)
                for s in range(per_epoch)
            ]
            for e in range(hyper["epochs"])
        ],
        dtype=torch.float64,
    )
    for s in range(per_epoch):
        assert_close_to_golden(rates[:, s], z[f"lr_{kind}"], 1e-9)


def moco(groups: int = 2, **options: Any) -> MoCo:
    torch.manual_seed(0)
    backbone = SmallResNet((4, 8), bn_groups=groups)
    return MoCo(backbone, nn.Linear(8, 6), queue_size=13, **options).double()


def global_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch(views, torch.arange(8))


def _two_steps(rank: int, counts: tuple[int, ...], symmetric: bool) -> dict[str, Any]:
    method, whole = moco(symmetric=symmetric), global_batch()
    views = [view.split(counts)[rank] for view in whole.views]
    total = torch.zeros((), dtype=torch.float64)
    for step in range(2):
        method.step = step
        loss = method.losses(Batch(views, whole.index.split(counts)[rank]))["info_nce"]
        loss.backward()
        commit_memories(method)
        total += loss.detach()
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": total, "grads": grads, "state": dict(method.state_dict())}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("counts", [(4, 4), (5, 3), (1, 4, 3)])
def test_ranks_equal_one_with_the_same_groups(
    ranks: Ranks, counts: tuple[int, ...], symmetric: bool
) -> None:
    one = _two_steps(0, (8,), symmetric)
    results = ranks(len(counts), _two_steps, counts, symmetric)
    assert_same_step(results, one)


def test_symmetric_is_the_sum_of_both_directions_and_enqueues_both_keys() -> None:
    method, batch = moco(symmetric=True).eval(), global_batch()
    v1, v2 = batch.views
    q1, q2 = method.embed(v1), method.embed(v2)
    k1, k2 = method.keys(v1, "first view"), method.keys(v2, "second view")
    rows = method.queue.rows.clone()
    wanted = info_nce(q1, k2, rows, 0.07) + info_nce(q2, k1, rows, 0.07)
    torch.testing.assert_close(method.losses(batch)["info_nce"], wanted)
    commit_memories(method)
    torch.testing.assert_close(method.queue.rows[:3], k2[5:])  # 16 keys in a ring of 13
    torch.testing.assert_close(method.queue.rows[3:8], k1[3:])
    torch.testing.assert_close(method.queue.rows[8:], k2[:5])


def test_keys_come_back_in_the_order_of_their_queries() -> None:
    method, batch = moco().eval(), global_batch()  # running statistics: no row sees another
    plain = moco(shuffle=False).eval()
    keys = method.keys(batch.views[1], "second view")
    torch.testing.assert_close(keys, plain.keys(batch.views[1], ""), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(keys, method.embed(batch.views[1]))  # equal at the start


def test_shuffling_regroups_the_batch_norm_and_nothing_else() -> None:
    view = global_batch().views[1]
    assert not torch.allclose(moco().keys(view, "a"), moco(shuffle=False).keys(view, "a"))
    one_group = moco(1).keys(view, "a"), moco(1, shuffle=False).keys(view, "a")
    torch.testing.assert_close(*one_group, rtol=1e-9, atol=1e-12)


def test_every_step_and_view_has_an_order_of_its_own() -> None:
    method, device = moco(), torch.device("cpu")
    orders = []
    for step in (0, 1):
        method.step = step
        views = "first view", "second view"
        orders += [step_permutation(method, view, device)(64) for view in views]
    assert all(torch.equal(order.sort().values, torch.arange(64)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    method.step = 0
    assert torch.equal(step_permutation(method, "first view", device)(64), orders[0])


def test_key_encoder_has_statistics_of_its_own() -> None:
    method = moco()
    with torch.no_grad():
        method.backbone.stem.weight.mul_(2)
    before = copy.deepcopy(method.key_backbone.bn.state_dict())
    EMA(ConstantSchedule(0.5), "before_forward").update(method, 0)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(method.key_backbone.bn.state_dict()[name], before[name])
    method.losses(global_batch())
    query, key = method.backbone.bn, method.key_backbone.bn
    assert int(query.num_batches_tracked) == int(key.num_batches_tracked) == 1
    assert not torch.allclose(query.running_var, key.running_var)


def test_no_gradient_reaches_the_key_encoder() -> None:
    method = moco()
    method.losses(global_batch())["info_nce"].backward()
    assert all(p.grad is None for p in method.key_backbone.parameters())
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_ddp_is_told_to_leave_the_queue_alone() -> None:
    method = moco()
    method._trainer = SimpleNamespace(strategy=DDPStrategy())  # type: ignore[assignment]
    method.setup("fit")
    assert method._ddp_params_and_buffers_to_ignore == ["queue.rows", "queue.pointer"]


def test_a_batch_that_the_groups_do_not_divide_is_named() -> None:
    whole = global_batch()
    with pytest.raises(ValueError, match="groups must divide the global batch of 7, got 2"):
        moco().losses(Batch([view[:7] for view in whole.views], whole.index[:7]))
