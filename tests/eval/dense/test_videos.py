"""Label propagation against a direct reading of DINO's code, J & F by hand, and ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.eval.dense import (
    PropagationOptions,
    RawPixels,
    contour_accuracy,
    davis_metrics,
    propagate,
    region_similarity,
    score_video,
    segment_video,
)
from sslzoo.eval.dense.davis import ObjectScores, contour
from tests.ranks import Ranks


def direct(target: Tensor, sources: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Position by position: the k best of the sources' near positions."""
    options, (_, height, width) = OPTIONS, target.shape
    out = torch.zeros(labels[0].shape[0], height, width)
    for i in range(height):
        for j in range(width):
            weights, values = [], []
            for source, label in zip(sources, labels, strict=True):
                for p in range(max(0, i - options.radius), min(height, i + options.radius + 1)):
                    for q in range(max(0, j - options.radius), min(width, j + options.radius + 1)):
                        cosine = F.cosine_similarity(target[:, i, j], source[:, p, q], dim=0)
                        weights.append((cosine / options.temperature).exp())
                        values.append(label[:, p, q])
            best = torch.stack(weights).topk(options.k)
            chosen = torch.stack(values)[best.indices]
            out[:, i, j] = (best.values / best.values.sum()) @ chosen
    return out


OPTIONS = PropagationOptions(radius=1, k=3)


def test_propagation_is_what_the_paper_says() -> None:
    draws = torch.Generator().manual_seed(0)
    target, *sources = torch.randn(3, 6, 4, 5, generator=draws)
    labels = list(torch.rand(2, 2, 4, 5, generator=draws))
    found = propagate(target, sources, labels, OPTIONS)
    torch.testing.assert_close(found, direct(target, sources, labels))


def moving(count: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    """A red square that moves right by 4 pixels per frame, and its masks."""
    frames, masks = [], []
    for step in range(count):
        image, mask = torch.rand(1, 3, 32, 48) * 0.1, torch.zeros(32, 48, dtype=torch.int64)
        left = 4 + 4 * step
        image[0, 0, 8:20, left : left + 12] = 1
        mask[8:20, left : left + 12] = 1
        frames.append(image)
        masks.append(mask)
    return frames, masks


def test_a_moving_object_is_followed() -> None:
    torch.manual_seed(0)
    frames, masks = moving()
    net = RawPixels(4)
    options = PropagationOptions(last_frames=2)
    found = segment_video([lambda x=x: x for x in frames], masks[0], net.forward_map, options)
    assert torch.equal(found[0], masks[0])
    scores = score_video(masks, found)
    assert len(scores) == 1
    assert scores[0].j.mean() > 0.8
    still = score_video(masks, [masks[0]] * len(masks))
    assert still[0].j.mean() < 0.5


def test_j_and_f_by_hand() -> None:
    one, two = torch.zeros(2, 6, 6, dtype=torch.bool)
    one[1:4, 1:4] = True
    two[1:4, 2:5] = True
    assert region_similarity(one, two) == 0.5
    assert region_similarity(one & False, one & False) == 1.0
    border = contour(one)
    wanted = torch.zeros(6, 6, dtype=torch.bool)
    wanted[0:4, 0:4] = True
    wanted[1:3, 1:3] = False
    assert torch.equal(border, wanted)
    assert contour_accuracy(one, two) == 1.0  # one pixel of tolerance
    far = torch.zeros(6, 6, dtype=torch.bool)
    far[5, 5] = True
    assert contour_accuracy(one, one) == 1.0
    assert contour_accuracy(one, one & False) == 0.0
    # Without tolerance: 9 of both boundaries' 12 pixels are in the other.
    assert contour_accuracy(one, two, tolerance=0.0) == pytest.approx(
        2 * int((contour(one) & contour(two)).sum()) / (12 + int(contour(two).sum()))
    )


def test_the_border_of_the_image_is_no_contour() -> None:
    full = torch.ones(4, 4, dtype=torch.bool)
    assert not contour(full).any()


def test_videos_must_fit() -> None:
    mask = torch.ones(4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"at least 3 frames, .* got 2 and 2"):
        score_video([mask] * 2, [mask] * 2)
    with pytest.raises(ValueError, match="must have one size"):
        score_video([mask] * 3, [mask[:2]] * 3)
    with pytest.raises(ValueError, match="must have objects"):
        davis_metrics([])


def shared(rank: int, world: int) -> dict[str, float]:
    every = [ObjectScores(torch.tensor([0.2 * i, 0.4]), torch.tensor([0.6, 0.1])) for i in range(5)]
    return davis_metrics(every[rank::world])


def test_means_are_the_same_on_any_number_of_ranks(ranks: Ranks) -> None:
    one = shared(0, 1)
    assert one["davis_j"] == pytest.approx(0.4)
    assert one["davis_f"] == pytest.approx(0.35)
    assert one["davis_jf"] == pytest.approx(0.375)
    assert one["davis_j_recall"] == pytest.approx(0.2)
    for world in (2, 3):
        assert ranks(world, shared, world) == [one] * world
