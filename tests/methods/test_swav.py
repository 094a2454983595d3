"""SwAV equals the authors' loss, queue and training step, and does not depend on the ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sslzoo.backbones import SmallResNet, convert_batch_norm
from sslzoo.batch import Batch
from sslzoo.callbacks.freeze import FreezeHead
from sslzoo.heads import MLP
from sslzoo.losses import sinkhorn
from sslzoo.memory import commit_memories
from sslzoo.methods import SwAV
from sslzoo.optim import LARC, RunLength
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks, assert_same_step
from tests.test_every_method import BATCH, batches, fit, trainer
from tests.toys import Pooled, data_like

# -- the authors' loss and queue


def ring(queue: Tensor) -> Tensor:
    """Their (A, L, D), newest batch of 4 in front, as our rows (L, A D), oldest batch first."""
    rows = queue.transpose(0, 1).flatten(1)
    return rows.unflatten(0, (-1, 4)).flip(0).flatten(0, 1)


def golden_loss(rank: int, z: dict[str, Any], world: int) -> dict[str, Tensor]:
    """One iteration on this rank's share of the authors' embeddings."""
    hyper = z["meta"]["hyper"]
    embedding = torch.from_numpy(z["embedding"])
    num_crops = sum(hyper["nmb_crops"])
    e = embedding.unflatten(0, (num_crops, hyper["bs"])).transpose(0, 1)  # (B, V, D)
    e = e.chunk(world)[rank].clone().requires_grad_()
    dim = embedding.shape[1]
    method = SwAV(
        Pooled(dim),
        nn.Linear(dim, dim),
        num_prototypes=len(z["prototypes"]),
        crops_for_assign=hyper["crops_for_assign"],
        temperature=hyper["T"],
        epsilon=hyper["epsilon"],
        sinkhorn_iterations=hyper["iters"],
        queue_size=hyper["queue"] or 0,
        queue_from_epoch=0,
    )
    method.prototypes.weight.data = torch.from_numpy(z["prototypes_in"])
    if method.queue is not None:
        # Rows that are not written yet are zeros at their queue's end and at our ring's.
        old = ring(torch.from_numpy(z["queue_before"]))
        written = old[old.any(dim=1)]
        method.queue.rows[: len(written)] = written
        method.queue.pointer.fill_(len(written) % len(old))
    method.embed_crops = lambda views: e  # type: ignore[method-assign]
    loss = method.losses(Batch([], torch.arange(len(e))))["swapped_prediction"]
    loss.backward()
    commit_memories(method)
    assert e.grad is not None
    result = {"loss": loss.detach(), "grad": e.grad, "prototypes": method.prototypes.weight.data}
    result["grad_prototypes"] = method.prototypes.weight.grad
    if method.queue is not None:
        rows = method.queue.rows.roll(-int(method.queue.pointer), 0)
        result["queue"] = torch.cat([rows[~rows.any(dim=1)], rows[rows.any(dim=1)]])
    return result


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("file", ["noqueue", "queue", "queue_not_full"])
def test_loss_and_queue_equal_the_authors(file: str, world: int, ranks: Ranks) -> None:
    z = load(f"swav/loss_{file}.npz")
    results = ranks(world, golden_loss, z, world)

    def mean(name: str) -> Tensor:
        return torch.stack([result[name] for result in results]).mean(0)

    assert_close_to_golden(mean("loss"), z["loss"])
    grad = torch.cat([result["grad"] for result in results]) / world  # (B, V, D)
    assert_close_to_golden(grad.transpose(0, 1).flatten(0, 1), z["grad_embedding"])
    assert_close_to_golden(mean("grad_prototypes"), z["grad_prototypes"])
    for result in results:
        assert_close_to_golden(result["prototypes"], z["prototypes"], 1e-6)
        if "queue_after" in z:
            assert_close_to_golden(result["queue"], ring(torch.from_numpy(z["queue_after"])), 1e-7)


# -- the authors' training step


class Narrow(nn.Module):
    """Their ResNet with one block a stage, 8 wide, from torchvision's block."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 256
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        wide = 8
        for stage in range(4):
            planes, stride = 8 * 2**stage, 1 if stage == 0 else 2
            shortcut = nn.Sequential(
                nn.Conv2d(wide, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )
            block = Bottleneck(wide, planes, stride, shortcut, base_width=8)
            self.add_module(f"layer{stage + 1}", nn.Sequential(block))
            wide = 4 * planes
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean((2, 3))


def ours(name: str) -> str:
    """Our name of an official parameter or buffer."""
    if name.startswith("prototypes"):
        return name
    if name.startswith("projection_head"):
        return name.replace("projection_head", "projector.layers")
    return f"backbone.{name}"


def golden_state(z: dict[str, Any], group: str) -> dict[str, Tensor]:
    prefix = f"{group}:"
    return {
        ours(name.removeprefix(prefix)): torch.from_numpy(array).float()
        for name, array in z.items()
        if name.startswith(prefix)
    }


def test_a_training_step_equals_the_authors() -> None:
    z = load("swav/train_iter.npz")
    hyper = z["meta"]["hyper"]
    method = SwAV(
        convert_batch_norm(Narrow()),
        MLP([256, hyper["hidden_mlp"], hyper["dim"]]),
        num_prototypes=hyper["K"],
        temperature=hyper["T"],
        epsilon=hyper["epsilon"],
        sinkhorn_iterations=hyper["iters"],
    )
    method.load_state_dict(golden_state(z, "init"))
    views = [torch.from_numpy(z[f"batch0_crop{i}"]).float() for i in range(4)]
    seen: dict[str, Tensor] = {}
    embed = method.embed_crops

    def keep(views: Any) -> Tensor:
        seen["z"] = embed(views)
        return seen["z"]

    method.embed_crops = keep  # type: ignore[method-assign]
    loss = method.losses(Batch(views, torch.arange(4)))["swapped_prediction"]
    loss.backward()
    embedding = seen["z"].transpose(0, 1).flatten(0, 1)
    assert_close_to_golden(embedding, z["embedding"])
    assert_close_to_golden(embedding @ method.prototypes.weight.T, z["scores"])
    assert_close_to_golden(loss, z["loss"])
    grads = golden_state(z, "grad_it0")
    scale = max(float(grad.abs().max()) for grad in grads.values())
    noise = "projector.layers.0.bias"  # before a batch norm: only rounding in both
    parameters = dict(method.named_parameters())
    assert parameters[noise].grad.abs().max() < 1e-5 * scale
    for name in grads.keys() - {noise}:
        assert_close_to_golden(parameters[name].grad, grads[name])
    LARC(method.parameters(), lr=hyper["lr"], momentum=0.9, weight_decay=hyper["wd"]).step()
    after, state = golden_state(z, "after"), method.state_dict()
    assert len(after) > 70
    for name in after.keys() - {noise}:
        assert_close_to_golden(state[name], after[name])


# -- the method itself


def swav(**options: Any) -> SwAV:
    torch.manual_seed(0)
    sizes = {"num_prototypes": 7, "queue_size": 13, "queue_from_epoch": 0}
    return SwAV(SmallResNet((4, 8)), MLP([8, 12, 6], bias=False), **{**sizes, **options}).double()


def global_batch(seed: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.randn(8, 3, size, size, generator=generator, dtype=torch.float64)
        for size in (8, 8, 6)
    ]
    return Batch(views, torch.arange(8))


def _three_steps(rank: int, counts: tuple[int, ...]) -> dict[str, Any]:
    """The queue of 13 is full in the third step."""
    method = swav()
    total = torch.zeros((), dtype=torch.float64)
    full = []
    for step in range(3):
        method.step = step
        whole = global_batch(step)
        views = [view.split(counts)[rank] for view in whole.views]
        full.append(bool(method.queue.full))
        loss = method.losses(Batch(views, whole.index.split(counts)[rank]))["swapped_prediction"]
        loss.backward()
        commit_memories(method)
        total += loss.detach()
    assert full == [False, False, True]
    grads = {name: p.grad for name, p in method.named_parameters()}
    return {"loss": total, "grads": grads, "state": dict(method.state_dict())}


@pytest.mark.parametrize("counts", [(4, 4), (5, 3), (1, 4, 3)])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    one = _three_steps(0, (8,))
    results = ranks(len(counts), _three_steps, counts)
    assert_same_step(results, one)


def test_a_full_queue_stands_beside_the_batch_in_sinkhorn() -> None:
    method, batch = swav(), global_batch()
    z = method.embed_crops(batch.views).detach()[:, :2].transpose(0, 1)  # (A, B, D)
    alone = method.assign(z)
    torch.testing.assert_close(alone, sinkhorn(z @ method.prototypes.weight.T))
    rows = F.normalize(torch.randn(13, 2, 6, dtype=torch.float64), dim=-1)
    method.queue.rows.copy_(rows.flatten(1))
    for crop in range(2):
        both = torch.cat([rows[:, crop], z[crop]])
        wanted = sinkhorn(both @ method.prototypes.weight.T)[-8:]
        torch.testing.assert_close(method.assign(z)[crop], wanted)
    assert not torch.allclose(method.assign(z), alone)


def test_the_queue_waits_for_its_epoch() -> None:
    method = swav(queue_from_epoch=2)
    method.run_length = RunLength(50, 5)
    for step, staged in ((0, 0), (9, 0), (10, 8), (11, 16)):
        method.step = step
        method.losses(global_batch())
        assert sum(len(rows) for (rows,) in method.queue._staged) == staged


def test_without_a_queue_there_is_none() -> None:
    method = swav(queue_size=0)
    assert method.queue is None
    assert method.losses(global_batch())["swapped_prediction"].isfinite()


def test_prototypes_are_normalized_before_the_forward() -> None:
    method, batch = swav(), global_batch()
    method.eval()
    longer = swav().eval()
    with torch.no_grad():
        longer.prototypes.weight.mul_(3)
    losses = [m.losses(batch)["swapped_prediction"] for m in (method, longer)]
    torch.testing.assert_close(losses[0], losses[1])
    ones = torch.ones(7, dtype=torch.float64)
    torch.testing.assert_close(longer.prototypes.weight.norm(dim=1), ones)


def test_prototypes_stand_still_for_as_many_steps_as_asked() -> None:
    method = swav(freeze_prototypes_steps=4, queue_size=0)
    method._optimizer = partial(LARC, lr=0.5, weight_decay=0.01)
    start = F.normalize(method.prototypes.weight.detach(), dim=1)
    seen: list[Tensor] = []
    forward = method.normalize_prototypes

    def keep() -> None:
        forward()
        seen.append(method.prototypes.weight.detach().clone())

    method.normalize_prototypes = keep  # type: ignore[method-assign]
    fit(trainer(2, devices=1), method, batches(data_like(global_batch(), 36), BATCH, 0, 1))
    assert len(seen) == 6
    for step in range(5):
        torch.testing.assert_close(seen[step], start)
    assert not torch.allclose(seen[5], start)


def test_what_freezes_is_a_callback_of_the_method() -> None:
    freeze = [c for c in swav().configure_callbacks() if isinstance(c, FreezeHead)]
    assert [(c.module, c.steps) for c in freeze] == [("prototypes", 313)]


def test_under_autocast_assignments_and_loss_are_of_float32() -> None:
    method, batch = swav().float(), global_batch()
    batch = batch._replace(views=[view.float() for view in batch.views])
    z = F.normalize(torch.randn(2, 8, 6), dim=-1)
    wanted = method.assign(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.assign(z), wanted)
        assert method.losses(batch)["swapped_prediction"].dtype == torch.float32


def test_a_projector_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="got 9"):
        SwAV(SmallResNet((4, 8)), MLP([9, 6]))
