"""Block masks equal the authors' loop on the same draws, and hide what was asked for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslzoo.random import sample_keys
from sslzoo.transforms import BlockMasks
from tests.no_sync import DEVICE, syncs


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


@pytest.mark.parametrize("side", [7, 14])
def test_masks_equal_the_authors_loop(side: int) -> None:
    masks, keys = BlockMasks(), sample_keys(0, 0, torch.arange(64))
    got, shares = masks(keys, side, side), masks.share(keys).tolist()
    draws = keys.uniform("rectangles", 60, 4)
    wanted = [reference(masks, *pair, side, side) for pair in zip(shares, draws, strict=True)]
    assert torch.equal(got, torch.stack(wanted))


def test_shares_are_the_recipes_and_no_mask_hides_more() -> None:
    masks, keys = BlockMasks((0.0, 0.3), (0.0, 0.2)), sample_keys(1, 0, torch.arange(2000))
    share, hidden = masks.share(keys), masks(keys, 14, 14).float().mean(1)
    none = share == 0
    assert none.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert share[~none].min() >= 0.1
    assert share[~none].max() <= 0.5
    assert share[~none].mean().item() == pytest.approx(0.3, abs=0.01)
    assert not hidden[none].any()
    assert (hidden <= share).all()
    assert (share - hidden)[~none].mean() < 0.02  # what is left is too small for a rectangle
    assert masks.most(196) == 98
    assert hidden.max() * 196 <= masks.most(196)


def test_a_samples_mask_does_not_depend_on_its_batch() -> None:
    masks = BlockMasks()
    whole = masks(sample_keys(0, 3, torch.arange(8)), 6, 6)
    part = masks(sample_keys(0, 3, torch.tensor([5, 2])), 6, 6)
    assert torch.equal(part, whole[[5, 2]])
    assert not torch.equal(whole, masks(sample_keys(0, 4, torch.arange(8)), 6, 6))


def _on_fake_cuda() -> None:
    BlockMasks()(sample_keys(0, 0, torch.arange(4, device=DEVICE)), 6, 6)


def test_no_host_synchronisation() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \[0.3\] and \[0.4\]"):
        BlockMasks([0.3], [0.4])
    with pytest.raises(ValueError, match=r"got \[0.3, 0.2\] and \[0.1\]"):
        BlockMasks([0.3, 0.2], [0.1])
    with pytest.raises(ValueError, match="got 0"):
        BlockMasks(aspect=0)
