"""ReSSL equals the authors' training on one rank and on two, and does not depend on the ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, SmallResNet, timm_backbone
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.distributed import sum_over_ranks
from sslzoo.memory import commit_memories
from sslzoo.methods import ReSSL
from sslzoo.methods.base import SSLMethod
from sslzoo.optim import ExemptNamed, RunLength, WarmupCosine
from sslzoo.transforms import moco_v2_views, ressl_views
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks, assert_same_step

THEIRS = {"encoder_q.fc": "projector", "encoder_k.fc": "teacher_projector"}
THEIRS |= {"encoder_q": "backbone", "encoder_k": "teacher_backbone"}
THEIRS |= {"queue_ptr": "queue.pointer", "queue": "queue.rows"}
FILES = [(n, *of) for n in ("train", "train_multi") for of in ((1, 1), (2, 1), (2, 2))]


class ToyEncoder(nn.Module):
    """The authors' test input: Linear, batch norm, ReLU."""

    def __init__(self, hyper: dict[str, Any], groups: int) -> None:
        super().__init__()
        self.num_features = hyper["h"]
        self.lin = nn.Linear(hyper["din"], hyper["h"])
        self.bn1 = GlobalBatchNorm(hyper["h"], groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.lin(x)).relu()


def group(z: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """The arrays of a group under our names, in our layouts."""
    found = {}
    for full, array in z.items():
        if full.startswith(f"{prefix}:"):
            name, value = full.removeprefix(f"{prefix}:"), torch.from_numpy(array)
            theirs = next(start for start in THEIRS if name.startswith(start))
            ours = THEIRS[theirs] + name.removeprefix(theirs)
            value = value.T if ours == "queue.rows" else value
            found[ours] = value[0] if ours == "queue.pointer" else value
    return found


class RankStatistics:
    """Running statistics as the authors' ranks keep them: rank 0's, and each one's own last.

    Deviation 2: ours average over the groups.
    """

    def __init__(self, norm: GlobalBatchNorm, groups: int) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.groups = groups
        self.kept = [[norm.running_mean.clone(), norm.running_var.clone()] for _ in range(groups)]
        norm.register_forward_pre_hook(self.update)

    def begin(self) -> None:
        """Rank 0's overwrite the others' before a step."""
        self.kept = [[value.clone() for value in self.kept[0]] for _ in self.kept]

    def update(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for own, rows in zip(self.kept, args[0].detach().chunk(self.groups), strict=True):
            own[0].lerp_(rows.mean(0), 0.1)
            own[1].lerp_(rows.var(0), 0.1)


def golden_steps(rank: int, z: dict[str, Any], world: int) -> dict[str, Any]:
    """All steps on this rank's share of the authors' global batches."""
    hyper = z["meta"]["hyper"]
    files = hyper["world"]
    encoder, head = ToyEncoder(hyper, files), nn.Linear(hyper["h"], hyper["D"])
    temperatures = hyper["student_temp"], hyper["teacher_temp"]
    method = ReSSL(encoder, head, hyper["K"], *temperatures, hyper["m"])
    method.load_state_dict(group(z, "init"))
    kept = {
        f"{name}.bn1": RankStatistics(net.bn1, files)
        for name, net in (("backbone", encoder), ("teacher_backbone", method.teacher_backbone))
        if world == 1
    }
    optimizer = torch.optim.SGD(
        ExemptNamed()(method), lr=hyper["lr"], momentum=0.9, weight_decay=hyper["wd"]
    )
    ema = EMA(method.momentum, "before_forward")
    views = ["im_k", *sorted(name for name in z if name.startswith("im_q"))]
    found: dict[str, Any] = {"loss": []}
    for step in range(hyper["steps"]):
        order = torch.from_numpy(z["shuffle"][step])
        own = [torch.from_numpy(z[name][step]).chunk(world)[rank] for name in views]
        for statistics in kept.values():
            statistics.begin()
        ema.update(method, step)
        with patch(
            "sslzoo.methods.ressl.step_permutation", lambda *_, order=order: lambda n: order
        ):
            if step == 0:
                found["logits"] = first_logits(method, own)
            loss = method.losses(Batch(own, torch.arange(len(own[0]))))["relational"]
        optimizer.zero_grad()
        loss.backward()
        for parameter in method.parameters():
            if parameter.grad is not None:  # as DistributedDataParallel averages them
                parameter.grad = sum_over_ranks(parameter.grad) / world
        found["loss"].append(loss.detach())
        if step == 0:
            named = ((name, p.grad) for name, p in method.named_parameters())
            found["grads"] = {name: grad.clone() for name, grad in named if grad is not None}
        optimizer.step()
        commit_memories(method)
        state = {name: value.clone() for name, value in method.state_dict().items()}
        ranks = []
        for r in range(files if kept else 0):
            values = ((name, statistics.kept[r]) for name, statistics in kept.items())
            ranks.append(
                {
                    f"{name}.running_{what}": pair[i].clone()
                    for name, pair in values
                    for i, what in enumerate(("mean", "var"))
                }
            )
        found |= {f"after{step}": state, f"ranks{step}": ranks}
    return found


def first_logits(method: ReSSL, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Similarities of queries (V, n, K) and keys (n, K) to the queue, without a trace."""
    norms = [part for part in method.modules() if isinstance(part, GlobalBatchNorm)]
    before = [{name: value.clone() for name, value in norm.state_dict().items()} for norm in norms]
    hooks = [dict(norm._forward_pre_hooks) for norm in norms]
    for norm in norms:
        norm._forward_pre_hooks.clear()
    with torch.no_grad():
        queries = torch.stack([method.embed(view) for view in views[1:]])
        logits = queries @ method.queue.rows.T, method.keys(views[0]) @ method.queue.rows.T
    for norm, state, own in zip(norms, before, hooks, strict=True):
        norm.load_state_dict(state)
        norm._forward_pre_hooks.update(own)
    return logits


def assert_first_step(z: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Logits and gradients of the first step; theirs are (rank, n or V n, K), crop by crop."""
    queries, keys = (torch.cat([r["logits"][i] for r in results], dim=1 - i) for i in (0, 1))
    world = len(z["logitsq0"])
    want_q = torch.from_numpy(z["logitsq0"]).unflatten(1, (len(queries), -1))  # (W, V, n, K)
    want_k = torch.from_numpy(z["logitsk0"]).unflatten(1, (len(queries), -1))
    assert_close_to_golden(queries, want_q.transpose(0, 1).flatten(1, 2), 1e-5)
    repeated = keys.unflatten(0, (world, -1))[:, None].expand_as(want_k)
    assert_close_to_golden(repeated, want_k, 1e-5)
    grads = group(z, "grad0")
    assert grads.keys() == results[0]["grads"].keys()
    scale = max(value.abs().max() for value in grads.values())
    for name, want in grads.items():
        got = torch.stack([result["grads"][name] for result in results]).mean(0)
        if name == "backbone.lin.bias":  # before a batch norm: only rounding noise in both
            assert max(got.abs().max(), want.abs().max()) < 1e-6 * scale
        else:
            assert_close_to_golden(got, want, 1e-5)


@pytest.mark.parametrize(("name", "files", "world"), FILES)
def test_training_equals_the_authors(name: str, files: int, world: int, ranks: Ranks) -> None:
    """The file of `files` ranks, on `world` ranks with as many groups as the file has ranks."""
    z = load(f"ressl/{name}_{files}rank.npz")
    results = ranks(world, golden_steps, z, world) if world > 1 else [golden_steps(0, z, 1)]
    loss = torch.stack([torch.stack(result["loss"]) for result in results]).mean(0)
    assert_close_to_golden(loss, z["loss"].mean(0), 1e-5)
    assert_first_step(z, results)
    last = z["meta"]["hyper"]["steps"] - 1
    for step, prefix in ((0, "after0"), (last, "after_last")):
        for ours, want in group(z, prefix).items():
            if "lin.bias" in ours:  # moved by the optimizer along rounding noise
                assert (results[0][f"after{step}"][ours] - want).abs().max() < 1e-6
            elif "running" not in ours:
                for result in results:
                    assert_close_to_golden(result[f"after{step}"][ours], want, 1e-5)
            elif world == 1:
                assert_close_to_golden(results[0][f"ranks{step}"][0][ours], want, 1e-5)
    for ours, want in group(z, "after_last_rank1").items():
        if world == 1:
            assert_close_to_golden(results[0][f"ranks{last}"][1][ours], want, 1e-5)
    if files == world == 1:  # one group: our own running statistics are theirs
        for ours, want in group(z, "after_last").items():
            assert_close_to_golden(results[0][f"after{last}"][ours], want, 1e-5)


def test_rates_equal_the_authors() -> None:
    z = load("ressl/schedule.npz")
    hyper = z["meta"]["hyper"]
    per_epoch = hyper["iters_per_epoch"]
    schedule = WarmupCosine(warmup_epochs=hyper["warm_up"])
    run_length = RunLength(hyper["epochs"] * per_epoch, per_epoch)
    rates = [hyper["base_lr"] * schedule(int(step), run_length) for step in z["step"]]
    assert_close_to_golden(torch.tensor(rates, dtype=torch.float64), z["lr"], 1e-12)


def test_shortcut_norms_are_decayed_as_in_the_code() -> None:
    backbone = timm_backbone("resnet50")
    decayed, exempt = ExemptNamed()(backbone)
    names = {id(p): name for name, p in backbone.named_parameters()}
    vectors = [names[id(p)] for p in decayed["params"] if p.ndim == 1]
    assert vectors == [f"layer{i}.0.downsample.1.weight" for i in range(1, 5)]
    assert len(exempt["params"]) == 2 * 49 + 4
    assert exempt["weight_decay"] == 0
    with pytest.raises(ValueError, match=r"names must occur in .*ResNet, got \['gn'\]"):
        ExemptNamed(["gn"])(backbone)


def ressl(**options: Any) -> ReSSL:
    torch.manual_seed(0)
    backbone = SmallResNet((4, 8), bn_groups=2)
    return ReSSL(backbone, nn.Linear(8, 6), queue_size=13, **options).double()


def global_batch() -> Batch:
    draw = torch.Generator().manual_seed(3)
    views = [torch.randn(8, 3, s, s, generator=draw, dtype=torch.float64) for s in (8, 8, 6)]
    return Batch(views, torch.arange(8))


def _two_steps(rank: int, counts: tuple[int, ...]) -> dict[str, Any]:
    method, whole = ressl(), global_batch()
    views = [view.split(counts)[rank] for view in whole.views]
    total = torch.zeros((), dtype=torch.float64)
    for step in range(2):
        method.step = step
        loss = method.losses(Batch(views, whole.index.split(counts)[rank]))["relational"]
        loss.backward()
        commit_memories(method)
        total += loss.detach()
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": total, "grads": grads, "state": dict(method.state_dict())}


@pytest.mark.parametrize("counts", [(5, 3), (1, 4, 3)])
def test_ranks_equal_one_with_the_same_groups(ranks: Ranks, counts: tuple[int, ...]) -> None:
    one = _two_steps(0, (8,))
    results = ranks(len(counts), _two_steps, counts)
    assert_same_step(results, one)


def test_the_loss_is_the_mean_over_the_crops() -> None:
    weak, first, second = global_batch().views
    both = ressl().losses(Batch([weak, first, second], torch.arange(8)))["relational"]
    one, other = (
        ressl().losses(Batch([weak, crop], torch.arange(8)))["relational"]
        for crop in (first, second)
    )
    torch.testing.assert_close(both, (one + other) / 2)


def test_views_that_are_made_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SSLMethod, "on_fit_start", lambda self: None)
    method = ressl()
    for views, refused in ((ressl_views(8, sizes=[8]), False), (moco_v2_views(8), True)):
        trainer = SimpleNamespace(datamodule=SimpleNamespace(transform=views))
        method._trainer = trainer  # type: ignore[assignment]
        if refused:
            with pytest.raises(ValueError, match="first view of ReSSL must be weaker"):
                method.on_fit_start()
        else:
            method.on_fit_start()
    method._trainer = Trainer(logger=False, enable_checkpointing=False)
    method.on_fit_start()  # a user's own loader


def test_the_weak_view_has_a_crop_and_a_flip_alone() -> None:
    views = ressl_views(8, sizes=[8, 6], scales=[(0.2, 1.0), (0.1, 0.5)], mean=None, std=None)
    assert views.sizes == [8, 8, 6]
    assert views.views[0].ops == []
    with pytest.raises(ValueError, match="one entry per kind of view"):
        ressl_views(8, sizes=[8, 6])


def test_bad_input_is_refused() -> None:
    for name in ("student_temperature", "teacher_temperature"):
        with pytest.raises(ValueError, match=f"{name} must be above 0, got 0"):
            ressl(**{name: 0})
    with pytest.raises(ValueError, match=r"teacher_temperature must be at most 0.04, .*, got 0.1"):
        ressl(student_temperature=0.04, teacher_temperature=0.1)
    with pytest.raises(ValueError, match=r"Linear must have in_features 8, .* got 4"):
        ReSSL(SmallResNet((4, 8)), nn.Linear(4, 8))
    with pytest.raises(ValueError, match="ReSSL must have at least 2 views per sample, got 1"):
        ressl()._checked_losses(Batch(global_batch().views[:1], torch.arange(8)))
    assert F.cosine_similarity(*(ressl().keys(v) for v in global_batch().views[:2])).max() < 1
