"""CMC equals two steps of the authors' own code; pairs of views, towers, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, Towers, UNet
from sslzoo.batch import Batch
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.heads import PerView
from sslzoo.memory import commit_memories
from sslzoo.methods import CMC
from sslzoo.methods.base import step_keys
from tests.golden import assert_close_to_golden, load


class Given(nn.Module):
    """A tower whose features are its view, a channel each."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


class Eye(nn.Identity):
    """A head that changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = self.out_features = width


def given(views: int, dim: int, **options: Any) -> CMC:
    towers = Towers([Given(dim) for _ in range(views)], [dim] * views)
    return CMC(towers, PerView([Eye(dim) for _ in range(views)]), **options)


@pytest.mark.parametrize("softmax", [False, True])
def test_golden_two_steps(softmax: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load("cmc/nce_softmax.npz" if softmax else "cmc/nce.npz")
    hyper = golden["meta"]["hyper"]
    assert hyper["use_softmax"] == softmax
    method = given(
        2,
        hyper["D"],
        bank_size=hyper["n_data"],
        num_negatives=hyper["K"],
        temperature=hyper["T"],
        bank_momentum=hyper["momentum"],
        softmax=softmax,
    )
    every = torch.arange(hyper["n_data"])
    for bank, name in zip(method.banks, ("l", "ab"), strict=True):
        bank.overwrite(every, torch.from_numpy(golden[f"memory_{name}_before"]))
    term = "softmax" if softmax else "nce"
    for step in range(2):
        index = torch.from_numpy(golden[f"idx{step}"])
        monkeypatch.setattr(method.banks[0], "sample", lambda *_, drawn=index: drawn)
        views = [torch.from_numpy(golden[f"{n}{step}"]).requires_grad_() for n in ("l", "ab")]
        own = torch.from_numpy(golden[f"y{step}"])
        scores = [  # of view i against the other view's bank, which the step then changes
            torch.einsum("bkd,bd->bk", method.banks[1 - i].rows[index], views[i].detach())
            for i in range(2)
        ]
        terms = method.losses(Batch([v[:, :, None, None] for v in views], own))
        sum(terms.values()).backward()
        for direction, name in (("0_1", "l"), ("1_0", "ab")):
            loss = terms[f"{term}_{direction}"]
            assert_close_to_golden(loss.flatten(), golden[f"loss_{name}{step}"].reshape(1))
            i = int(direction[0])
            out = scores[i] / hyper["T"]
            if not softmax:
                out = out.exp() / method.z_constants[i, 1 - i]
            assert_close_to_golden(out[..., None], golden[f"out_{name}{step}"])
        if not softmax:
            _, _, z_l, z_ab, _ = golden[f"params{step}"].tolist()
            assert float(method.z_constants[0, 1]) == pytest.approx(z_l, rel=1e-4)
            assert float(method.z_constants[1, 0]) == pytest.approx(z_ab, rel=1e-4)
        for i, name in enumerate(("l", "ab")):
            # Theirs is by the normalized features: the part along them is ours after normalizing.
            wanted = torch.from_numpy(golden[f"grad_{name}{step}"])
            f = views[i].detach()
            tangent = wanted - (wanted * f).sum(1, keepdim=True) * f
            assert_close_to_golden(views[i].grad, tangent)
        commit_memories(method)
        for bank, name in zip(method.banks, ("l", "ab"), strict=True):
            assert_close_to_golden(bank.rows, golden[f"memory_{name}_after{step}"])


def three(mode: str, **options: Any) -> tuple[CMC, Batch]:
    method = given(3, 4, bank_size=20, num_negatives=5, mode=mode, **options)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 4, 1, 1, generator=generator) for _ in range(3)]
    return method, Batch(views, torch.arange(6))


def reference(f: Tensor, bank: Tensor, which: Tensor, temperature: float) -> Tensor:
    logits = (bank[which] * f[:, None]).sum(2) / temperature
    return F.cross_entropy(logits, torch.zeros(len(f), dtype=torch.int64))


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("full_graph", {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}),
        ("core_view", {(0, 1), (1, 0), (0, 2), (2, 0)}),
    ],
)
def test_modes_contrast_their_pairs_across_banks(mode: str, wanted: set[tuple[int, int]]) -> None:
    method, batch = three(mode, softmax=True)
    terms = method.losses(batch)
    assert set(terms) == {f"softmax_{i}_{j}" for i, j in wanted}
    which = method.banks[0].sample(batch.index, step_keys(method, batch), 5)
    assert which.shape == (6, 6)
    for i, j in wanted:
        f = F.normalize(batch.views[i][:, :, 0, 0])
        loss = reference(f, method.banks[j].rows, which, method.temperature)
        torch.testing.assert_close(terms[f"softmax_{i}_{j}"], loss)


def test_banks_differ_and_each_keeps_its_own_view() -> None:
    method, batch = three("full_graph")
    before = [bank.rows.clone() for bank in method.banks]
    assert not torch.equal(before[0], before[1])
    assert not torch.equal(before[1], before[2])
    method.losses(batch)
    commit_memories(method)
    for bank, old, view in zip(method.banks, before, batch.views, strict=True):
        f = F.normalize(view[:, :, 0, 0])
        torch.testing.assert_close(bank.rows[:6], F.normalize(0.5 * old[:6] + 0.5 * f))
        assert torch.equal(bank.rows[6:], old[6:])


def test_constants_are_set_once_and_survive_saving() -> None:
    method, batch = three("core_view")
    method.losses(batch)
    constants = method.z_constants.clone()
    pairs = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    assert torch.equal(constants > 0, pairs)
    commit_memories(method)
    other, _ = three("core_view")
    other.load_state_dict(method.state_dict())
    again = batch._replace(views=[-view for view in batch.views])
    torch.testing.assert_close(other.losses(again), method.losses(again))
    assert torch.equal(method.z_constants, constants)
    assert torch.equal(other.z_constants, constants)


def test_no_negatives_is_the_softmax_over_a_whole_bank() -> None:
    method, batch = three("full_graph")
    method.num_negatives = 0
    terms = method.losses(batch)
    f = F.normalize(batch.views[2][:, :, 0, 0])
    logits = f @ method.banks[1].rows.T / method.temperature
    torch.testing.assert_close(terms["softmax_2_1"], F.cross_entropy(logits, batch.index))


class Seen(NamedTuple):
    light: Tensor
    color: Tensor


def test_an_image_and_its_views_give_the_same() -> None:
    torch.manual_seed(0)
    towers = Towers(
        [SmallResNet((4, 8), in_chans=1), SmallResNet((4, 6), in_chans=2)], channels=(1, 2)
    )
    heads = PerView([nn.Linear(8, 5), nn.Linear(6, 5)])
    method = CMC(towers, heads, bank_size=9, num_negatives=0)
    image, index = torch.rand(4, 3, 8, 8), torch.arange(4)
    cut = [image[:, :1], image[:, 1:]]
    torch.testing.assert_close(
        method.losses(Batch([image], index)), method.losses(Batch(cut, index))
    )
    method.eval()
    features = method(image)
    assert features.shape == (4, 14)
    for view in (tuple(cut), Seen(*cut)):
        assert torch.equal(method(view), features)
    light, color = towers.towers[0](cut[0]), towers.towers[1](cut[1])
    assert torch.equal(features, torch.cat([light, color], 1))
    norms = method.project(image).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones(4, 2))


def test_wrong_parts_are_named() -> None:
    towers = Towers([Given(3), Given(4)], [3, 4])
    with pytest.raises(ValueError, match=r"must take \[3, 4\] features, .* got \[4, 3\]"):
        CMC(towers, PerView([nn.Linear(4, 2), nn.Linear(3, 2)]), bank_size=5)
    with pytest.raises(ValueError, match=r"PerView must have in_features 7, .* got 6"):
        CMC(towers, PerView([Eye(3), Eye(3)]), bank_size=5)
    with pytest.raises(ValueError, match="at least 2 heads, got 1"):
        CMC(Given(3), PerView([Eye(3)]), bank_size=5)
    with pytest.raises(ValueError, match="got 'star'"):
        given(2, 3, bank_size=5, mode="star")
    with pytest.raises(ValueError, match=r"the same out_features, got \[2, 3\]"):
        PerView([nn.Linear(3, 2), nn.Linear(3, 3)])
    with pytest.raises(ValueError, match=r"got \[None\]"):
        PerView([nn.ReLU()])
    with pytest.raises(ValueError, match=r"got \[3\] for 2 towers"):
        Towers([Given(3), Given(4)], [3])
    with pytest.raises(ValueError, match="num_features of the towers must be an int"):
        Towers([nn.ReLU()], [3])
    with pytest.raises(ValueError, match=r"7 channels, or views of \[3, 4\], got \[3\]"):
        towers(torch.rand(2, 3, 1, 1))


@pytest.mark.parametrize("softmax", [False, True])
def test_golden_queue(softmax: bool) -> None:
    """Their queries are our first view's anchors, their keys those of the second."""
    golden = load(f"cmc/moco_queue_{'softmax' if softmax else 'nce'}.npz")
    hyper = golden["meta"]["hyper"]
    sizes = {"bank_size": hyper["n_data"], "num_negatives": hyper["K"]}
    method = given(
        2, 6, memory="queue", softmax=softmax, temperature=hyper["T"], mode="core_view", **sizes
    )
    method.queues[1].rows.copy_(torch.from_numpy(golden["queue_before"]))
    name = "softmax" if softmax else "nce"
    for step in range(4):
        q, k = (torch.from_numpy(golden[f"{x}{step}"]) for x in "qk")
        views = [x.clone().requires_grad_() for x in (q, k)]
        z, keys = method.project([v[:, :, None, None] for v in views]).unbind(1), (q, k)
        terms = method.contrast_keys(z, keys)
        if not softmax:
            if step == 0:  # deviation 5: theirs is truncated
                assert int(method.z_constants[0, 1]) == golden["Z0"].item()
                method.z_constants[0, 1] = golden["Z0"].item()
                method.queues[1]._staged.clear()
                terms = method.contrast_keys(z, keys)
            assert golden[f"Z{step}"].item() == method.z_constants[0, 1]
        loss = terms[f"{name}_0_1"]
        loss.backward()
        assert_close_to_golden(loss.flatten(), golden[f"loss{step}"].reshape(1))
        wanted = torch.from_numpy(golden[f"grad_q{step}"])
        tangent = wanted - (wanted * q).sum(1, keepdim=True) * q
        assert_close_to_golden(views[0].grad, tangent)
        commit_memories(method)
        assert_close_to_golden(method.queues[1].rows, golden[f"queue_after{step}"])


@pytest.mark.parametrize("softmax", [False, True])
def test_queues_hold_the_other_views_keys_of_the_momentum_encoder(softmax: bool) -> None:
    towers = Towers([SmallResNet((4, 8), in_chans=1), SmallResNet((4, 6), in_chans=2)], (1, 2))
    heads = PerView([nn.Linear(8, 5), nn.Linear(6, 5)])
    sizes = {"bank_size": 9, "num_negatives": 7, "temperature": 0.5}
    method = CMC(towers, heads, memory="queue", softmax=softmax, **sizes)
    assert [pair[0] for pair in method.teacher_pairs()] == [method.backbone, method.projector]
    with torch.no_grad():
        method.projector.heads[0].weight.mul_(-1)  # student and teacher differ
    image = torch.rand(4, 3, 8, 8)
    queues = [queue.rows.clone() for queue in method.queues]
    z = method.project(image).unbind(1)
    k = F.normalize(method.key_projector(method.key_backbone(image)), dim=2).unbind(1)
    terms = method.losses(Batch([image], torch.arange(0)))  # no index is needed
    for i, j in ((0, 1), (1, 0)):
        logits = torch.cat([(z[i] * k[j]).sum(1, keepdim=True), z[i] @ queues[j].T], 1) / 0.5
        wanted = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
        if not softmax:
            p, c = logits.exp() / (logits.exp().mean() * 9), 7 / 9
            own = torch.log(p[:, 0] / (p[:, 0] + c + 1e-7))
            wanted = -(own.sum() + torch.log(c / (p[:, 1:] + c + 1e-7)).sum()) / 4
        torch.testing.assert_close(terms[f"{'softmax' if softmax else 'nce'}_{i}_{j}"], wanted)
    assert all(not p.requires_grad for p in method.key_backbone.parameters())
    commit_memories(method)
    for queue, keys in zip(method.queues, k, strict=True):
        torch.testing.assert_close(queue.rows[:4], keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "moco"}, "memory must be one of .*, got 'moco'"),
        ({"memory": "queue", "num_negatives": 0}, "num_negatives must be at least 1 .*, got 0"),
        ({"memory": "queue", "bank_size": 0}, "bank_size must be at least 1, got 0"),
        ({"memory": "queue", "bank_momentum": 0.9}, "must be left out .*, got 0.9 and 'float32'"),
        ({"momentum": 0.9}, "momentum must be left out .*, got 0.9"),
    ],
)
def test_arguments_of_the_other_memory_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given(2, 3, **({"bank_size": 5, "num_negatives": 4} | options))


def test_the_data_must_have_bank_size_samples_with_queues_too() -> None:
    method = given(2, 3, memory="queue", bank_size=5, num_negatives=4)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(num_samples=7))
    with pytest.raises(ValueError, match=r"bank_size must be 7, .*, got 5"):
        CommitMemory().on_train_start(trainer, method)
    trainer.datamodule.num_samples = 5
    CommitMemory().on_train_start(trainer, method)


def patch_towers(mode: str = "full_graph", **options: Any) -> CMC:
    nets = [UNet((4, 8), 2, in_chans=channels) for channels in (1, 2, 1)]
    heads = PerView([nn.Linear(4, 6) for _ in nets])
    return CMC(Towers(nets, (1, 2, 1)), heads, **{"mode": mode, "positions": 5, **options})


def test_patches_are_contrasted_at_the_same_positions_of_all_views() -> None:
    torch.manual_seed(0)
    method = patch_towers("core_view", temperature=0.2).eval()
    image, index = torch.rand(3, 4, 8, 8), torch.tensor([4, 0, 2])
    terms = method.losses(Batch([image], index))
    assert list(terms) == ["patches_0_1", "patches_0_2", "patches_1_0", "patches_2_0"]
    maps = [
        net.forward_map(part)
        for net, part in zip(method.backbone.towers, image.split([1, 2, 1], 1), strict=True)
    ]
    keys = step_keys(method, Batch([image], index))
    drawn = keys.uniform("positions", 16).topk(5).indices
    z = [
        F.normalize(head(torch.cat([m[b].flatten(1).T[rows] for b, rows in enumerate(drawn)])))
        for head, m in zip(method.projector.heads, maps, strict=True)
    ]
    wanted = F.cross_entropy(z[0] @ z[2].T / 0.2, torch.arange(15))
    torch.testing.assert_close(terms["patches_0_2"].squeeze(), wanted)
    assert method.configure_callbacks() == []
    assert len(patch_towers().losses(Batch([image], index))) == 6


def test_what_does_not_apply_to_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="bank_size, memory and momentum must be left out"):
        patch_towers(bank_size=4)
    with pytest.raises(ValueError, match="positions must be at least 1, got -1"):
        patch_towers(positions=-1)
    with pytest.raises(ValueError, match="bank_size must be the number of training samples"):
        patch_towers(positions=0)
    with pytest.raises(ValueError, match="towers must have forward_map"):
        given(2, 4, positions=2)
