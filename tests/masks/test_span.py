"""Span masks equal the authors' for the authors' draws, and are like them for ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslzoo.masks import SpanMasks
from sslzoo.random import Keys
from tests.golden import load
from tests.ranks import Ranks

GOLDEN = load("speech_masks/span_masks.npz")
CASES: list[dict[str, Any]] = GOLDEN["meta"]["hyper"]["cases"]


def masks_of(case: dict[str, Any]) -> SpanMasks:
    given = (case[name] for name in ("mask_prob", "mask_length", "min_masks", "require_same_masks"))
    return SpanMasks(*given, case.get("mask_dropout", 0.0))


def lengths_of(case: dict[str, Any]) -> Tensor:
    return torch.tensor([case["T"] - padded for padded in case.get("padding", [0] * 4)])


def numpy_draws(case: dict[str, Any]) -> list[Tensor]:
    """numpy's draws in the order of the authors' code, as scores that choose the same frames.

    The generator of the last row also draws the frames that `same_count` and `dropout` choose.
    """
    size, span = case["T"], case["mask_length"]
    lengths = lengths_of(case).tolist()
    extra = np.zeros(len(lengths))
    start, keep, drop = (np.ones((len(lengths), size)) for _ in range(3))
    rows = []
    for row, index in enumerate(GOLDEN["meta"]["hyper"]["indices"]):
        seed = hash((GOLDEN["meta"]["hyper"]["seed"], GOLDEN["meta"]["hyper"]["epoch"], index))
        generator = np.random.default_rng(int(seed % 1e6))
        extra[row] = generator.random()
        count = max(case["min_masks"], int(case["mask_prob"] * lengths[row] / span + extra[row]))
        room = max(lengths[row] - span, count + 1)
        chosen = generator.choice(room, count, replace=False)
        start[row, chosen] = 0
        frames = np.unique(chosen[:, None] + np.arange(span))
        rows.append(frames[frames < lengths[row]])
    fewest = min(map(len, rows)) if case["require_same_masks"] else size
    for row, frames in enumerate(rows):
        if len(frames) > fewest:
            frames = generator.choice(frames, fewest, replace=False)
        keep[row, frames] = 0
        if case.get("mask_dropout"):
            holes = int(np.rint(len(frames) * case["mask_dropout"]))
            drop[row, generator.choice(np.sort(frames), holes, replace=False)] = 0
    return [torch.from_numpy(draws) for draws in (extra, start, keep, drop)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_equals_the_authors_masks_for_their_draws(case: int) -> None:
    given = CASES[case]
    mask = masks_of(given).frames(lengths_of(given), *numpy_draws(given))
    assert torch.equal(mask, torch.from_numpy(GOLDEN[f"mask{case}"]))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_statistics_are_the_authors(case: int) -> None:
    """Fraction and runs over batches of four rows, and how often each frame is masked."""
    given = CASES[case]
    masks, lengths, batches = masks_of(given), lengths_of(given), 300
    keys = Keys(torch.arange(4 * batches)).fold(0)
    drawn = torch.cat(
        [masks(keys.rows(slice(4 * i, 4 * i + 4)), lengths, given["T"]) for i in range(batches)]
    )
    fraction = drawn.double().mean(1)
    runs = (drawn & ~torch.nn.functional.pad(drawn, (1, 0))[:, :-1]).double().sum(1)
    mean, spread, num_runs, runs_spread = GOLDEN[f"stats{case}"][:4]
    assert fraction.mean().item() == pytest.approx(mean, abs=0.012)
    assert runs.mean().item() == pytest.approx(num_runs, abs=4 * runs_spread / 1200**0.5)
    assert fraction.std().item() == pytest.approx(spread, rel=0.3)
    by_frame = torch.from_numpy(GOLDEN[f"position_freq{case}"])
    assert (drawn.double().mean(0) - by_frame).abs().max() < 0.08
    assert int(drawn.sum(1).max()) <= masks.most(given["T"])
    assert not drawn[torch.arange(4 * batches), lengths.repeat(batches) - 1].any()


def test_short_rows_are_not_masked_and_do_not_cut_the_others() -> None:
    masks = SpanMasks()
    lengths = torch.tensor([0, 10, 11, 60])
    mask = masks(Keys(torch.arange(4)), lengths, 60)
    assert mask.sum(1).tolist()[:2] == [0, 0]
    assert mask.sum(1)[2] == mask.sum(1)[3] > 0
    with pytest.raises(ValueError, match=r"more than 10 frames .* got 10"):
        masks.check_size(10)


def test_a_row_does_not_depend_on_its_batch_without_same_count() -> None:
    masks, keys = SpanMasks(same_count=False), Keys(torch.arange(6))
    lengths = torch.full((6,), 80)
    one = masks(keys, lengths, 80)
    assert torch.equal(masks(keys.rows(slice(2, 4)), lengths[2:4], 80), one[2:4])


def _on_rank(rank: int, counts: tuple[int, ...]) -> Tensor:
    rows = torch.arange(6).split(counts)[rank]
    return SpanMasks()(Keys(rows), torch.full((len(rows),), 80), 80)


@pytest.mark.parametrize("counts", [(3, 3), (1, 5)])
def test_ranks_draw_what_one_process_draws(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert torch.equal(torch.cat(ranks(2, _on_rank, counts)), _on_rank(0, (6,)))


def test_wrong_arguments_are_refused() -> None:
    for wrong in ({"fraction": 1.5}, {"length": 0}, {"fraction": 0.0, "min_spans": 0}):
        with pytest.raises(ValueError, match="must be"):
            SpanMasks(**wrong)
