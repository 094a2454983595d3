"""HuBERT: units meet their frames, and a step is the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslzoo.batch import Batch, UnitSequence
from sslzoo.heads import UnitHead
from sslzoo.masks import SpanMasks
from sslzoo.methods import HuBERT
from sslzoo.methods.base import step_keys
from tests.ranks import Ranks
from tests.toys import build, rows


def toy(**changes: Any) -> tuple[Any, Batch]:
    method, _ = build(HuBERT, **changes)
    generator = torch.Generator().manual_seed(0)
    sets = len(method.head.num_units)
    units = torch.randint(0, 5, (6, sets, 20), generator=generator)
    units[4:, :, 12:] = -1
    values = torch.randn(6, 90, generator=generator).double()
    view = UnitSequence(values, torch.tensor([90, 90, 80, 64, 50, 40]), units)
    return method.double(), Batch([view], torch.arange(6))


def test_units_of_frames() -> None:
    """100 units per second for frames of 4 samples at 400 Hz: one each; at 200, every second."""
    method, batch = toy()
    view = batch.views[0]
    assert torch.equal(method.units(view, 20), view.units)
    assert (method.units(view, 22)[..., 20:] == -1).all()
    method.unit_rate = 200
    wanted = torch.cat([view.units[..., ::2], torch.full((6, 1, 2), -1)], dim=2)
    assert torch.equal(method.units(view, 12), wanted)


@pytest.mark.parametrize("untied", [False, True])
def test_a_step_is_the_formula(untied: bool) -> None:
    masks = SpanMasks(0.6, 3)
    method, batch = toy(
        head=UnitHead(8, [5, 6], 4, untied), masks=masks, unmasked_weight=0.5, penalty_weight=0.0
    )
    view = batch.views[0]
    (loss,) = method.losses(batch).values()
    frames = method.backbone.embed(view)
    size = frames.conv.shape[1]
    mask = masks(step_keys(method, batch), frames.num_frames, size)
    logits = method.head(method.backbone.forward_masked(frames, mask))
    total, count = 0.0, 0
    for b in range(6):
        for t in range(int(frames.num_frames[b])):
            for s in range(2):
                if t < 20 and view.units[b, s, t] >= 0:
                    weight = 1.0 if mask[b, t] else 0.5
                    total -= weight * logits[s][b, t].log_softmax(0)[view.units[b, s, t]].item()
                    count += s == 0
    assert loss.item() == pytest.approx(total / count)


def _on_rank(rank: int, counts: tuple[int, ...]) -> dict[str, Any]:
    method, batch = toy(masks=SpanMasks(0.6, 3, same_count=False))
    starts = [sum(counts[:r]) for r in range(len(counts) + 1)]
    loss = torch.stack(
        list(method.losses(rows(batch, slice(starts[rank], starts[rank + 1]))).values())
    ).sum()
    loss.backward()
    grads = {name: p.grad for name, p in method.named_parameters()}
    return {"loss": loss.detach(), "grads": grads, "watched": method.watched}


def test_uneven_ranks_equal_one(ranks: Ranks) -> None:
    one, results = _on_rank(0, (6,)), ranks(2, _on_rank, (4, 2))
    mean = torch.stack([result["loss"] for result in results]).mean()
    torch.testing.assert_close(mean, one["loss"], rtol=1e-9, atol=0)
    for name, wanted in one["grads"].items():
        got = torch.stack([result["grads"][name] for result in results]).mean(0)
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-11)
    for result in results:
        torch.testing.assert_close(result["watched"], one["watched"])


def test_wrong_views_are_refused() -> None:
    method, batch = toy()
    with pytest.raises(ValueError, match=r"must be UnitSequence.* run sslzoo units"):
        method.losses(batch._replace(views=[batch.views[0].values]))
    two = batch.views[0]._replace(units=batch.views[0].units.expand(-1, 2, -1))
    with pytest.raises(ValueError, match=r"1 sets of units, .* got units \(6, 2, 20\)"):
        method.losses(batch._replace(views=[two]))
    with pytest.raises(ValueError, match=r"head must have in_features 8.* got 9"):
        build(HuBERT, head=UnitHead(9, [5]))
