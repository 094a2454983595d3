"""Multi-block masks: the authors' sizes, blocks in the grid, context without targets, keyed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslzoo.masks.multi_block import MultiBlock, block_size
from sslzoo.random import Keys, sample_keys


def keys(n: int) -> Keys:
    return sample_keys(0, 0, torch.arange(n))


def as_set(indices: Tensor) -> set[int]:
    return set(indices.flatten().tolist())


@pytest.mark.parametrize(
    ("scale", "aspect", "u", "size"),
    [
        # 16 x 16: int(256 * 0.15) = 38; sqrt(38 * 0.75) = 5.34, sqrt(38 / 0.75) = 7.12
        ((0.15, 0.2), (0.75, 1.5), 0.0, (5, 7)),
        # int(256 * 0.175) = 44, aspect 1.125: sqrt(49.5) = 7.04, sqrt(39.1) = 6.25
        ((0.15, 0.2), (0.75, 1.5), 0.5, (7, 6)),
        ((0.85, 1.0), (1.0, 1.0), 0.0, (15, 15)),  # int(217.6) = 217; sqrt = 14.7
        ((0.85, 1.0), (1.0, 1.0), 0.999, (15, 15)),  # 16 is not smaller than the grid
    ],
)
def test_sizes_worked_by_hand(
    scale: tuple[float, float], aspect: tuple[float, float], u: float, size: tuple[int, int]
) -> None:
    assert block_size(16, scale, aspect, u) == size


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_targets_are_blocks_and_context_is_what_is_left_of_one(grid: int) -> None:
    masks = MultiBlock(min_keep=2 if grid == 4 else 10)
    sizes = set()
    for step in range(20):
        context, targets = masks.draw(keys(50), grid, 0, step)
        assert targets.shape[:2] == (50, 4)
        sizes.add(targets.shape[2])
        for image in range(50):
            for block in targets[image]:
                rows, columns = block // grid, block % grid
                height, width = (int(x.max() - x.min()) + 1 for x in (rows, columns))
                assert height * width == len(block) == len(as_set(block))
                assert max(rows.max(), columns.max()) < grid - 1, "the code's range ends early"
            kept = as_set(context[image])
            assert len(kept) == context.shape[1] > masks.min_keep
            if grid == 16 and context.shape[1] > masks.min_keep + 1:
                assert not kept & as_set(targets[image])
    assert len(sizes) > 1, "sizes change with the step"


def test_a_patch_comes_back_from_the_last_target_first() -> None:
    masks = MultiBlock(num_targets=3, target_scale=(0.3, 0.4), min_keep=40)
    context, targets = masks.draw(keys(200), 8, 0, 0)
    given_up = 0
    for image in range(200):
        kept, (first, second, last) = as_set(context[image]), map(as_set, targets[image])
        back = kept & (first | second | last)
        given_up += bool(back)
        if kept & first:  # only once nothing else of the second and the last is to be had
            assert not back <= first or not (second | last) - first - kept
    assert given_up > 100


def test_the_first_are_kept_row_by_row() -> None:
    masks = MultiBlock(num_targets=1, target_scale=(0.1, 0.1), min_keep=2)
    context, _ = masks.draw(keys(20), 8, 0, 0)
    assert (context.diff(dim=1) > 0).all()


def test_masks_are_the_samples_own_for_any_split() -> None:
    masks = MultiBlock()
    whole = masks.draw(keys(10), 16, 0, 5)
    for part in (slice(0, 4), slice(4, 10)):
        own = masks.draw(Keys(keys(10).key[part]), 16, 0, 5)
        for mine, all_rows in zip(own, whole, strict=True):
            assert torch.equal(mine, all_rows[part])


def test_places_are_uniform() -> None:
    n = 6000
    _, targets = MultiBlock(num_targets=1).draw(keys(n), 8, 0, 0)
    height = int((targets[0, 0] // 8).max() - (targets[0, 0] // 8).min()) + 1
    tops = (targets[:, 0, 0] // 8).bincount(minlength=8) / n
    choices = 8 - height
    share = 1 / choices
    assert (tops[:choices] - share).abs().max() < 4 * math.sqrt(share * (1 - share) / n)
    assert tops[choices:].sum() == 0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="got 0 and 10"):
        MultiBlock(num_targets=0)


@pytest.mark.parametrize("grid", [(4, 12), (12, 4)])
def test_blocks_of_a_grid_that_is_not_square(grid: tuple[int, int]) -> None:
    rows, columns = grid
    masks = MultiBlock(num_targets=2, min_keep=4, num_contexts=2)
    lowest, rightmost = 0, 0
    for step in range(10):
        contexts, targets = masks.draw(keys(60), grid, 0, step)
        assert contexts.max() < rows * columns
        assert contexts.shape[:2] == (60, 2)
        for block in targets.flatten(0, 1):
            row, column = block // columns, block % columns
            sides = [int(x.max() - x.min()) + 1 for x in (row, column)]
            assert math.prod(sides) == len(block) == len(as_set(block)), "a rectangle"
            lowest, rightmost = max(lowest, int(row.max())), max(rightmost, int(column.max()))
    assert (lowest, rightmost) == (rows - 2, columns - 2), "the code's range ends early"


def test_size_of_a_grid_that_is_not_square_by_hand() -> None:
    # 4 x 12: int(48 * 0.25) = 12; sqrt(12 * 0.75) = 3, sqrt(12 / 0.75) = 4
    assert block_size((4, 12), (0.25, 0.25), (0.75, 0.75), 0.0) == (3, 4)
    assert block_size((4, 12), (1.0, 1.0), (1.0, 1.0), 0.0) == (3, 7)  # rows below 4


def test_each_context_is_a_block_of_its_own_without_the_targets() -> None:
    few = MultiBlock(num_targets=1, target_scale=(0.1, 0.1), context_scale=(0.3, 0.3), min_keep=2)
    several = MultiBlock(1, (0.1, 0.1), (0.75, 1.5), (0.3, 0.3), 2, num_contexts=3)
    overlap = MultiBlock(1, (0.1, 0.1), (0.75, 1.5), (0.3, 0.3), 2, 3, allow_overlap=True)
    one, targets = few.draw(keys(40), 8, 0, 0)
    contexts, _ = several.draw(keys(40), 8, 0, 0)
    whole, same = overlap.draw(keys(40), 8, 0, 0)
    assert contexts.shape == (40, 3, one.shape[1])
    assert torch.equal(same, targets)
    assert whole.shape[2] == 16  # 4 x 4 of int(64 * 0.3) = 19 patches
    met = 0
    for image in range(40):
        assert len({tuple(block) for block in contexts[image].tolist()}) > 1
        for context, block in zip(contexts[image], whole[image], strict=True):
            row, column = block // 8, block % 8
            assert [int(x.max() - x.min()) for x in (row, column)] == [3, 3]
            left = as_set(block) - as_set(targets[image])
            assert as_set(context) <= left
            met += len(left) < len(block)
    assert met > 10, "targets and contexts overlap where it is allowed"


@pytest.mark.parametrize("options", [{"num_contexts": 0}, {"num_contexts": -1}])
def test_wrong_contexts_are_named(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_contexts must be at least 1, got"):
        MultiBlock(**options)
