"""wav2vec 2.0: negatives are what they should be, terms are global, collapse is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.batch import Batch, Padded
from sslzoo.callbacks.online_spectrum import CollapseWarning
from sslzoo.callbacks.watch import Watch
from sslzoo.heads import GumbelQuantizer
from sslzoo.masks import SpanMasks
from sslzoo.methods import Data2Vec, HuBERT, Wav2Vec2
from sslzoo.methods.base import step_keys
from sslzoo.random import Keys
from tests.ranks import Ranks
from tests.toys import build, rows


def toy(**changes: Any) -> tuple[Any, Batch]:
    method, _ = build(Wav2Vec2, **changes)
    generator = torch.Generator().manual_seed(0)
    view = Padded(
        torch.randn(6, 90, generator=generator).double(), torch.tensor([90, 90, 80, 64, 50, 40])
    )
    return method.double(), Batch([view], torch.arange(6))


def test_negatives_are_the_other_masked_frames_of_the_utterance() -> None:
    method, _ = toy(num_negatives=400)
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])
    codes = torch.arange(21).view(3, 7, 1).expand(-1, -1, 2)
    drawn, left_out = method._negatives(Keys(torch.arange(3)), real, codes)
    for row, count in ((0, 7), (1, 4)):
        for m in range(count):
            assert set(drawn[row, m].tolist()) == set(range(count)) - {m}
            share = (drawn[row, m] == (m + 1) % count).double().mean().item()
            assert share == pytest.approx(1 / (count - 1), abs=0.12)
    assert not left_out[:2][real[:2]].any()
    assert left_out[2].all()
    _, left_out = method._negatives(Keys(torch.arange(3)), real, torch.zeros_like(codes))
    assert left_out.all()


def test_negatives_of_the_batch_are_masked_frames_but_never_the_own() -> None:
    method, _ = toy(cross_negatives=300, codebook_negatives=50)
    real = torch.arange(4) < torch.tensor([[4], [2]])
    y = torch.arange(8.0).view(2, 4, 1).double().expand(-1, -1, 4)
    codes = torch.arange(8).view(2, 4, 1).expand(-1, -1, 2)
    method.project_q = torch.nn.Identity()
    others, left_out = method._others(Keys(torch.arange(2)), real, y, codes)
    for row, m in real.nonzero().tolist():
        own = 4 * row + m
        found = set(others[row, m, :300, 0].int().tolist())
        assert found == {0, 1, 2, 3, 4, 5} - {own}
    assert not left_out[..., :300][real].any()
    entries = method.quantizer.entries
    first = others[0, 0, 300:, :2]  # of the first group
    assert all(any(torch.equal(x, entry) for entry in entries[0]) for x in first)


def _on_rank(rank: int, counts: tuple[int, ...], changes: dict[str, Any]) -> dict[str, Any]:
    method, batch = toy(**changes)
    starts = [sum(counts[:r]) for r in range(len(counts) + 1)]
    own = rows(batch, slice(starts[rank], starts[rank + 1]))
    terms = method.losses(own)
    torch.stack(list(terms.values())).sum().backward()
    grads = {name: p.grad for name, p in method.named_parameters()}
    watched = method.watched["code_perplexity"]
    return {"terms": {k: v.detach() for k, v in terms.items()}, "grads": grads, "watched": watched}


@pytest.mark.parametrize("changes", [{}, {"cross_negatives": 3, "codebook_negatives": 2}])
@pytest.mark.parametrize("counts", [(4, 2)])
def test_uneven_ranks_equal_one(
    ranks: Ranks, counts: tuple[int, ...], changes: dict[str, Any]
) -> None:
    """With lengths, so that masked frames differ between the ranks."""
    changes = {"masks": SpanMasks(0.6, 3, same_count=False), **changes}
    one = _on_rank(0, (6,), changes)
    results = ranks(2, _on_rank, counts, changes)
    for name, wanted in one["terms"].items():
        mean = torch.stack([result["terms"][name] for result in results]).mean()
        torch.testing.assert_close(mean, wanted, rtol=1e-9, atol=1e-12)
    for name, wanted in one["grads"].items():
        got = torch.stack([result["grads"][name] for result in results]).mean(0)
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-11)
    assert all(torch.equal(result["watched"], results[0]["watched"]) for result in results)


def test_noise_is_keyed_and_positive() -> None:
    method, batch = toy()
    noise = method._noise(step_keys(method, batch), 50)
    assert (noise > 0).all()
    assert noise.mean().item() == pytest.approx(1, abs=0.05)  # exponential draws
    part = rows(batch, slice(2, 4))
    assert torch.equal(method._noise(step_keys(method, part), 50), noise[2:4])
    assert method.eval()._noise(step_keys(method, batch), 50) is None


def test_silence_stays_finite() -> None:
    method, batch = toy()
    view = batch.views[0]._replace(values=torch.zeros(6, 90).double())
    terms: dict[str, Tensor] = method.losses(batch._replace(views=[view]))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("groups", [[0, 5], [5]])
def test_a_collapsed_codebook_and_another_rate_are_said(groups: list[int]) -> None:
    method, batch = toy()
    method.quantizer.logits.weight.data.mul_(100)  # all entries are in use
    watch = next(c for c in method.configure_callbacks() if isinstance(c, Watch))
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(rate=16000))
    watch.on_fit_start(trainer, method)
    method.losses(batch)
    watch.on_train_epoch_end(trainer, method)
    method.quantizer.logits.bias.data[groups] = 1e4
    method.losses(batch)
    whole, least = method.watched["code_perplexity"].item(), method.watched["group_perplexity"]
    assert least.item() == pytest.approx(1, abs=1e-3)
    assert whole == pytest.approx(2, abs=1e-3) if len(groups) == 2 else whole > 2.1
    name = "code" if len(groups) == 2 else "group"
    with pytest.warns(CollapseWarning, match=rf"{name}_perplexity must be at least .* collapsed"):
        watch.on_train_epoch_end(trainer, method)
    watch.on_train_epoch_end(trainer, method)  # once per run
    trainer.datamodule.rate = 8000
    with pytest.raises(ValueError, match=r"net's 16000 Hz, got 8000 Hz; set data\.rate"):
        watch.on_fit_start(trainer, method)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quantizer must have in_features 6.* got 5"):
        build(Wav2Vec2, quantizer=GumbelQuantizer(5))
    with pytest.raises(ValueError, match=r"num_negatives must be at least 1 .* got 0"):
        build(Wav2Vec2, num_negatives=0)
    with pytest.raises(ValueError, match="codebook_negatives must be 0"):
        build(Wav2Vec2, quantizer=GumbelQuantizer(6, 2000, 4), codebook_negatives=1)
    method, batch = toy()
    with pytest.raises(ValueError, match=r"more than 3 frames .* got 3; give longer windows"):
        method.losses(batch._replace(views=[torch.randn(6, 17).double()]))
    with pytest.raises(ValueError, match=r"one frame\), got \(6, 5\)"):
        method.losses(batch._replace(views=[torch.randn(6, 5).double()]))


@pytest.mark.parametrize("cls", [Wav2Vec2, HuBERT, Data2Vec])
def test_the_shortest_recording_that_is_masked(cls: Any) -> None:
    """One sample less, and all of its frames are left alone."""
    method: Any = build(cls)[0]
    least, frames = method.least_samples, method.backbone.frames
    lengths = frames.num_frames(torch.tensor([least - 1, least]))
    assert lengths.tolist() == [method.masks.length, method.masks.length + 1]
    keys = step_keys(method, Batch([], torch.arange(2)))
    assert method.masks(keys, lengths, int(lengths[1])).any(1).tolist() == [False, True]
