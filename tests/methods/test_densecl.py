"""DenseCL equals the authors' steps on one rank and on two, and does not depend on the ranks."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import (
    GlobalBatchNorm,
    SmallConvNet,
    SmallResNet,
    cifar_resnet,
    small_vit,
    timm_backbone,
)
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.heads import MLP
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import dense_matches
from sslzoo.memory import commit_memories
from sslzoo.methods import DenseCL
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks, assert_same_step

THEIRS = {
    "encoder_q.0.": "backbone.",
    "encoder_q.1.mlp.": "projector.layers.",
    "encoder_q.1.mlp2.": "dense_projector.layers.",
    "encoder_k.0.": "key_backbone.",
    "encoder_k.1.mlp.": "key_projector.layers.",
    "encoder_k.1.mlp2.": "key_dense_projector.layers.",
    "queue_ptr": "queue.pointer",
    "queue2_ptr": "dense_queue.pointer",
    "queue2": "dense_queue.rows",
    "queue": "queue.rows",
}

# their queues after a step -> in a state dict
STATE = {"queue": "queue", "queue2": "queue2", "ptr": "queue_ptr", "ptr2": "queue2_ptr"}


class ToyEncoder(nn.Module):
    """The authors' test input: a 4x4 convolution of stride 4, batch norm, ReLU."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.num_features = self.map_features = channels
        self.conv = nn.Conv2d(3, channels, 4, 4)
        self.bn = GlobalBatchNorm(channels, groups=groups)

    def forward_map(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_map(x).mean((2, 3))


def named(name: str, array: Any) -> tuple[str, Tensor]:
    """Our name and layout of one of theirs."""
    value = torch.from_numpy(array)
    theirs = next(prefix for prefix in THEIRS if name.startswith(prefix))
    ours = THEIRS[theirs] + name.removeprefix(theirs)
    if ours.endswith("pointer"):
        return ours, value[0]
    if ours.endswith("rows"):
        return ours, value.T
    return ours, value.flatten(1) if "dense_projector" in ours and value.dim() == 4 else value


def group(z: dict[str, Any], prefix: str, before: str = "") -> dict[str, Tensor]:
    """The arrays of a group under our names; of gradients and keys, the mean over ranks."""
    found = {}
    for full, array in z.items():
        if full.startswith(f"{prefix}:") and ":backbone." not in full:
            name = before + full.removeprefix(f"{prefix}:")
            ours, value = named(name, array.mean(0) if before else array)
            found[ours] = value
    return found


def golden_method(z: dict[str, Any]) -> DenseCL:
    hyper = z["meta"]["hyper"]
    sizes = [hyper["C"], hyper["hid"], hyper["feat_dim"]]
    method = DenseCL(
        ToyEncoder(hyper["C"], hyper["world"]),
        MLP(sizes, norm=False),
        MLP(sizes, norm=False),
        hyper["queue_len"],
        hyper["temperature"],
        hyper["momentum"],
        hyper["loss_lambda"],
    )
    method.load_state_dict(group(z, "init"))
    return method


def golden_steps(rank: int, z: dict[str, Any], world: int) -> dict[str, Any]:
    """Both steps on this rank's share of the authors' global batches; no optimizer, as theirs."""
    method = golden_method(z)
    ema = EMA(method.momentum, "before_forward")
    found: dict[str, Any] = {"terms": [], "matches": [], "grads": [], "queues": []}
    for step, images in enumerate(torch.from_numpy(z["img"]).float()):
        order = torch.from_numpy(z[f"shuffle_step{step}"][0])
        shuffle = patch(
            "sslzoo.methods.densecl.step_permutation", lambda *_, order=order: lambda n: order
        )
        own = images.flatten(0, 1).chunk(world)[rank]
        ema.update(method, step)
        method.zero_grad()
        with shuffle, torch.no_grad():  # with statistics of its own: the step's are counted once
            running = {name: value.clone() for name, value in method.state_dict().items()}
            q, k = method.queries(own[:, 0]), method.keys(own[:, 1])
            method.load_state_dict(running)
        found["matches"].append(dense_matches(q.features, k.features))
        with shuffle:
            terms = method.losses(Batch([own[:, 0], own[:, 1]], torch.arange(len(own))))
        torch.stack(list(terms.values())).sum().backward()
        commit_memories(method)
        named_grads = ((name, p.grad) for name, p in method.named_parameters())
        found["terms"].append(torch.stack(list(terms.values())).detach())
        found["grads"].append({n: grad.clone() for n, grad in named_grads if grad is not None})
        queues = ((name, value) for name, value in method.state_dict().items() if "queue" in name)
        found["queues"].append({name: value.clone() for name, value in queues})
    return {**found, "state": dict(method.state_dict())}


@pytest.mark.parametrize(("file", "world"), [(1, 1), (2, 1), (2, 2)])
def test_steps_equal_the_authors(file: int, world: int, ranks: Ranks) -> None:
    """The file of `file` ranks, on `world` ranks with as many groups as the file has ranks."""
    z = load(f"densecl/forward_{file}rank.npz")
    results = ranks(world, golden_steps, z, world) if world > 1 else [golden_steps(0, z, 1)]
    for step in range(2):
        parts = ("terms", "matches", "grads", "queues")
        of_ranks = [{name: result[name][step] for name in parts} for result in results]
        terms = torch.stack([found["terms"] for found in of_ranks]).mean(0)
        wanted = [z[f"loss_{name}_step{step}"].mean() for name in ("single", "dense")]
        assert_close_to_golden(terms, wanted, 1e-6)
        matches = torch.cat([found["matches"] for found in of_ranks])
        assert matches.tolist() == z[f"match_step{step}"].reshape(matches.shape).tolist()
        grads = group(z, f"grad_step{step}", "encoder_q.")
        scale = max(value.abs().max() for value in grads.values())
        assert grads.keys() == of_ranks[0]["grads"].keys()
        for name, want in grads.items():
            got = torch.stack([found["grads"][name] for found in of_ranks]).mean(0)
            if name == "backbone.conv.bias":  # before a batch norm: only rounding noise in both
                assert max(got.abs().max(), want.abs().max()) < 1e-6 * scale
            else:
                assert_close_to_golden(got, want, 1e-5)
        for found in of_ranks:
            for theirs, full in STATE.items():
                for array in z[f"{theirs}_after_step{step}"]:
                    name, want = named(full, array)
                    assert_close_to_golden(found["queues"][name], want, 1e-6)
    for result in results:
        for name, want in group(z, "key_after", "encoder_k.").items():
            assert_close_to_golden(result["state"][name], want, 1e-6)


@pytest.mark.parametrize("file", [1, 2])
def test_the_evaluated_grid_equals_the_authors(file: int) -> None:
    """Deviation 2: each of their ranks has statistics of its own; here each is its own process."""
    z = load(f"densecl/forward_{file}rank.npz")
    for r, want in enumerate(z["test_grid"]):
        method = golden_method({**z, "meta": {"hyper": {**z["meta"]["hyper"], "world": 1}}})
        queries = torch.from_numpy(z["img"]).float()[:, r, :, 0]
        with torch.no_grad():
            for images in queries:
                method.queries(images)
            grid = l2_normalize(method.eval().queries(queries[0]).features)
        assert_close_to_golden(grid.transpose(1, 2), want, 1e-6)


def densecl(groups: int = 2, **options: Any) -> DenseCL:
    torch.manual_seed(0)
    heads = MLP([8, 8, 6], norm=False), MLP([8, 8, 5], norm=False)
    return DenseCL(SmallResNet((4, 8), bn_groups=groups), *heads, queue_size=13, **options).double()


def global_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch(views, torch.arange(8))


def _two_steps(rank: int, counts: tuple[int, ...]) -> dict[str, Any]:
    method, whole = densecl(), global_batch()
    views = [view.split(counts)[rank] for view in whole.views]
    total = torch.zeros((), dtype=torch.float64)
    for step in range(2):
        method.step = step
        terms = method.losses(Batch(views, whole.index.split(counts)[rank]))
        loss = torch.stack(list(terms.values())).sum()
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


def test_keys_come_back_in_the_order_of_their_queries() -> None:
    method, (_, view) = densecl().eval(), global_batch().views  # no row sees another
    for key, query in zip(method.keys(view), method.queries(view), strict=True):
        torch.testing.assert_close(key, query, rtol=1e-12, atol=1e-12)  # equal at the start
    plain = densecl(shuffle=False)
    assert not torch.allclose(densecl().keys(view).vector, plain.keys(view).vector)


def test_the_weight_divides_the_loss_between_its_terms() -> None:
    batch = global_batch()
    half = densecl().losses(batch)
    tilted = densecl(dense_weight=0.25).losses(batch)
    torch.testing.assert_close(tilted["global"], half["global"] * 1.5)
    torch.testing.assert_close(tilted["dense"], half["dense"] * 0.5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have forward_map, .* got SmallConvNet without it"):
        DenseCL(SmallConvNet(), nn.Linear(512, 8), nn.Linear(512, 8))
    with pytest.raises(ValueError, match=r"map_features of the backbone must be .* got 4 and 8"):
        DenseCL(SmallResNet((2, 4, 8), map_block=1), nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"Linear must have in_features 8, .* got 4"):
        DenseCL(SmallResNet((4, 8)), nn.Linear(8, 8), nn.Linear(4, 8))
    with pytest.raises(ValueError, match=r"dense_weight must be in \[0, 1\], got 1.5"):
        densecl(dense_weight=1.5)
    with pytest.raises(ValueError, match=r"in its pooling, .* \['head.norm.weight', .* ConvNeXt"):
        DenseCL(timm_backbone("convnext_atto"), nn.Linear(320, 8), nn.Linear(320, 8))
    with pytest.raises(ValueError, match=r"map_block .* must be its last block, .* got 1 of 2"):
        DenseCL(SmallResNet((4, 8, 8), map_block=1), nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"pool its map, .* 'token' of ViT; set pool: mean"):
        DenseCL(small_vit(8, 4, 16, 1, 2), nn.Linear(16, 8), nn.Linear(16, 8))
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        densecl(temperature=0)
    with pytest.raises(ValueError, match="size of the queue must be at least 1, got 0"):
        DenseCL(SmallResNet((4, 8)), nn.Linear(8, 8), nn.Linear(8, 8), queue_size=0)
    small = [view[..., :2, :2] for view in global_batch().views]
    with pytest.raises(
        ValueError, match="more than one position to match, got 1 x 1 of views of 2"
    ):
        densecl().losses(Batch(small, torch.arange(8)))
    with pytest.raises(ValueError, match="DenseCL must have 2 views per sample, got 1"):
        densecl()._checked_losses(Batch(small[:1], torch.arange(8)))


@pytest.mark.parametrize(
    "backbone", [cifar_resnet(), small_vit(8, 4, 16, 1, pool="mean")], ids=["r", "v"]
)
def test_the_zoos_backbones_train(backbone: nn.Module) -> None:
    width: Any = backbone.num_features
    method = DenseCL(backbone, nn.Linear(width, 4), nn.Linear(width, 4), queue_size=4)
    size = 16 if width == 512 else 8
    views = [torch.rand(2, 3, size, size) for _ in range(2)]
    terms = method.losses(Batch(views, torch.arange(2)))
    assert torch.stack(list(terms.values())).isfinite().all()
