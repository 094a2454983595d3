"""NNCLR against the paper's algorithm, written out slowly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.heads import MLP
from sslzoo.memory import commit_memories
from sslzoo.methods import NNCLR, nnclr


def method(queue_size: int = 20) -> NNCLR:
    torch.manual_seed(0)
    projector = MLP([8, 16, 6], bias=False, last_bias=False, last_norm="scale")
    predictor = MLP([6, 16, 6], bias=False)
    net = NNCLR(SmallResNet((4, 8)), projector, predictor, queue_size).double()
    net.queue.rows.copy_(F.normalize(net.queue.rows, dim=1))  # in float64, as the references
    return net


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch(views, torch.arange(8))


def nearest(z: Tensor, rows: Tensor) -> Tensor:
    """For each z the row at the smallest angle, one comparison at a time."""
    found = []
    for one in z:
        cosines = [float(F.cosine_similarity(one, row, dim=0)) for row in rows]
        found.append(rows[cosines.index(max(cosines))])
    return torch.stack(found)


def direction(neighbors: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Equation 3, pair by pair."""
    terms = []
    for i, one in enumerate(neighbors):
        logits = torch.stack([F.cosine_similarity(one, other, dim=0) for other in p]) / temperature
        terms.append(logits.logsumexp(0) - logits[i])
    return torch.stack(terms).mean()


def test_value_and_gradients_are_the_papers() -> None:
    ours, theirs, data = method(), method(), batch()
    loss = ours.losses(data)["info_nce"]
    loss.backward()
    z1, z2 = (theirs.projector(theirs.backbone(view)) for view in data.views)
    p1, p2 = theirs.predictor(z1), theirs.predictor(z2)
    rows, T = theirs.queue.rows, theirs.temperature
    n1, n2 = nearest(z1.detach(), rows), nearest(z2.detach(), rows)
    wanted = direction(n1, p2, T) / 2 + direction(n2, p1, T) / 2
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("block", [1, 50, 1 << 24])
def test_neighbors_are_the_nearest_in_any_blocks(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(nnclr, "_COSINES_BLOCK", block)
    net, z = method(), torch.randn(9, 6, dtype=torch.float64)
    assert torch.equal(net.neighbor(z), nearest(z, net.queue.rows))


def test_a_sample_is_not_its_own_neighbor_until_the_next_step() -> None:
    net, data = method().eval(), batch()
    z1 = net.projector(net.backbone(data.views[0])).detach()
    own = F.normalize(z1, dim=1)
    net.losses(data)
    assert ((net.neighbor(z1) - own).norm(dim=1) > 1e-3).all()
    commit_memories(net)
    torch.testing.assert_close(net.neighbor(z1), own)


def test_the_first_views_projections_are_enqueued() -> None:
    net, data = method().eval(), batch()
    before = net.queue.rows.clone()
    net.losses(data)
    commit_memories(net)
    wanted = F.normalize(net.projector(net.backbone(data.views[0])), dim=1)
    torch.testing.assert_close(net.queue.rows[:8], wanted.detach())
    assert torch.equal(net.queue.rows[8:], before[8:])


def test_neighbors_are_found_in_float32_under_autocast() -> None:
    net, z = method(4000).float(), torch.randn(64, 6)
    wanted = net.neighbor(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.neighbor(z), wanted)


def test_a_predictor_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"out_features 6, .* got 5"):
        NNCLR(SmallResNet((4, 8)), MLP([8, 6]), MLP([6, 5]), 20)
