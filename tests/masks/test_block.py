"""Block masks equal the authors' loop on the same draws, and hide what was asked for."""

from __future__ import annotations

import math
import zlib
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sslzoo.masks import BlockMasks, StratifiedBlockMasks
from sslzoo.masks import block as block_masks
from sslzoo.random import sample_keys
from tests.no_sync import DEVICE, Operations, syncs


def reference(masks: BlockMasks, share: float, draws: Tensor, height: int, width: int) -> Tensor:
    """One sample, one rectangle after the other, until ten in a row fail."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    high, attempts = share * height * width, iter(draws.tolist())
    while mask.sum() < high:
        room, before = high - int(mask.sum()), int(mask.sum())
        for _ in range(10):
            area, aspect, y, x = next(attempts)
            low = (min(height, width) // 3) ** 2
            area = low + (room - low) * area
            ratio = math.exp(math.log(masks.aspect) * (1 - 2 * aspect))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w < width and h < height:
                top, left = math.floor(y * (height - h + 1)), math.floor(x * (width - w + 1))
                part = mask[top : top + h, left : left + w]
                if 0 < h * w - int(part.sum()) <= room:
                    part.fill_(True)
                    break
        if int(mask.sum()) == before:
            break
    return mask.flatten()


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (6, 11), (11, 6)])
def test_masks_equal_the_authors_loop(grid: tuple[int, int]) -> None:
    masks, keys = BlockMasks(), sample_keys(0, 0, torch.arange(64))
    got, shares = masks(keys, *grid), masks.fraction(keys).tolist()
    draws = keys.uniform("rectangles", 60, 4)
    wanted = [reference(masks, *pair, *grid) for pair in zip(shares, draws, strict=True)]
    assert torch.equal(got, torch.stack(wanted))


@pytest.mark.parametrize(
    ("seed", "grid", "ratios", "spreads", "aspect", "checksum"),
    [
        (0, (14, 14), (0.0, 0.3), (0.0, 0.2), 0.3, 0x5BF5172B),
        (1, (8, 8), (0.0, 0.3), (0.0, 0.2), 0.3, 0x044DBACA),
        (2, (6, 6), (0.0, 0.3), (0.0, 0.2), 0.3, 0xD1B9D707),
        (3, (9, 16), (0.4,), (0.1,), 0.3, 0x58AAA2EF),
        (4, (7, 5), (0.5,), (0.5,), 0.1, 0x9EF105DC),
        (5, (16, 10), (0.1, 0.7, 0.3), (0.05, 0.3, 0.0), 1.0, 0xFD126D1C),
        (6, (2, 3), (0.5,), (0.4,), 0.3, 0xCD9BDC20),
        (7, (14, 14), (1.0,), (0.0,), 0.01, 0xAD49C6B7),
    ],
)
def test_masks_stay_those_of_the_first_release(
    seed: int,
    grid: tuple[int, int],
    ratios: tuple[float, ...],
    spreads: tuple[float, ...],
    aspect: float,
    checksum: int,
) -> None:
    masks = BlockMasks(ratios, spreads, aspect)
    got = masks(sample_keys(seed, 0, torch.arange(256)), *grid)
    assert zlib.crc32(got.contiguous().numpy().tobytes()) == checksum


@pytest.mark.parametrize("at_once", [1, 7, 60, 90])
def test_masks_do_not_depend_on_the_size_of_the_tables(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = sample_keys(0, 0, torch.arange(50))
    wanted, size = BlockMasks()(keys, 9, 7), 50 * (BlockMasks().max_masked(63) + 2)
    monkeypatch.setattr(block_masks, "_CPU_ENTRIES", at_once * size)
    assert torch.equal(BlockMasks()(keys, 9, 7), wanted)


def test_no_samples_have_no_masks() -> None:
    assert BlockMasks()(sample_keys(0, 0, torch.arange(0)), 6, 5).shape == (0, 30)


def test_an_attempt_takes_few_operations() -> None:
    """A device waits for the launch of each; one after the other, an attempt took 56."""
    with Operations() as made:
        BlockMasks()(sample_keys(0, 0, torch.arange(4)), 14, 14)
    assert made.count < 11 * 60


def test_tables_on_a_device_are_of_bounded_size() -> None:
    with FakeTensorMode(), Operations() as made:
        BlockMasks()(sample_keys(0, 0, torch.arange(2048, device=DEVICE)), 14, 14)
    assert 20e6 < made.largest < 26e6  # the history; three tables, no larger, beside it


def test_shares_are_the_recipes_and_no_mask_hides_more() -> None:
    masks, keys = BlockMasks((0.0, 0.3), (0.0, 0.2)), sample_keys(1, 0, torch.arange(2000))
    share, hidden = masks.fraction(keys), masks(keys, 14, 14).float().mean(1)
    none = share == 0
    assert none.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert share[~none].min() >= 0.1
    assert share[~none].max() <= 0.5
    assert share[~none].mean().item() == pytest.approx(0.3, abs=0.01)
    assert not hidden[none].any()
    assert (hidden <= share).all()
    assert (share - hidden)[~none].mean() < 0.02  # what is left is too small for a rectangle
    assert masks.max_masked(196) == 98
    assert hidden.max() * 196 <= masks.max_masked(196)


def test_random_patches_are_as_many_as_the_share_and_equally_often_masked() -> None:
    """The code's pred_shape "rand": int(share * H * W) patches in any order."""
    masks, keys = (
        BlockMasks([0.0, 0.3], [0.0, 0.2], shape="random"),
        sample_keys(0, 0, torch.arange(4000)),
    )
    got, share = masks(keys, 4, 6), masks.fraction(keys)
    assert torch.equal(got.sum(1), torch.tensor([int(s * 24) for s in share]))
    often = got.float().mean(0)
    assert (often - often.mean()).abs().max() < 4 * (0.15 * 0.85 / 4000) ** 0.5
    part = masks(sample_keys(0, 0, torch.tensor([5, 2])), 4, 6)
    assert torch.equal(part, got[[5, 2]])


def test_a_samples_mask_does_not_depend_on_its_batch() -> None:
    masks = BlockMasks()
    whole = masks(sample_keys(0, 3, torch.arange(8)), 6, 6)
    part = masks(sample_keys(0, 3, torch.tensor([5, 2])), 6, 6)
    assert torch.equal(part, whole[[5, 2]])
    assert not torch.equal(whole, masks(sample_keys(0, 4, torch.arange(8)), 6, 6))


def _on_fake_cuda(shape: Literal["block", "random"]) -> None:
    BlockMasks(shape=shape)(sample_keys(0, 0, torch.arange(4, device=DEVICE)), 6, 6)


@pytest.mark.parametrize("shape", ["block", "random"])
def test_no_host_synchronization(shape: str) -> None:
    assert syncs(_on_fake_cuda, shape) == []


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \[0.3\] and \[0.4\]"):
        BlockMasks([0.3], [0.4])
    with pytest.raises(ValueError, match=r"got \[0.3, 0.2\] and \[0.1\]"):
        BlockMasks([0.3, 0.2], [0.1])
    with pytest.raises(ValueError, match="got 0"):
        BlockMasks(aspect=0)
    with pytest.raises(ValueError, match=r"shape must be one of .* got 'rand'"):
        BlockMasks(shape="rand")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": (0.5, 0.1)}, r"0 <= low <= high <= 1, got \(0\.5, 0\.1\)"),
        ({"fraction": 1.5}, "fraction must be in .* got 1.5"),
        ({"smallest": 0}, "smallest must be at least 1, got 0"),
        ({"aspect": 0.0}, "aspect must be in .* got 0.0"),
    ],
)
def test_wrong_strata_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StratifiedBlockMasks(**options)


def test_stratified_masks_fill_their_bounds_and_no_more() -> None:
    masks, strata = StratifiedBlockMasks(), torch.arange(64).flip(0)
    drawn = masks(sample_keys(3, 0, torch.arange(64)), strata, 64, 16, 12).sum(1)
    bounds = torch.tensor(masks.bounds(strata.tolist(), 64, 192))
    assert (drawn <= bounds).all()
    assert (drawn > 0).sum() == 32
    below = torch.tensor(masks.bounds((strata - 1).tolist(), 64, 192))
    assert (drawn >= below - 12)[strata > 0].float().mean() > 0.95
