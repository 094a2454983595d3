"""AMDIM: its six predictions, the drawn source, and what it asks of its backbone."""

from __future__ import annotations

import pytest
import torch

from sslzoo.backbones import AMDIMEncoder
from sslzoo.batch import Batch
from sslzoo.losses import amdim_nce
from sslzoo.methods import AMDIM
from sslzoo.methods.amdim import one_location
from sslzoo.random import Keys
from tests.toys import Pooled


def method() -> AMDIM:
    torch.manual_seed(0)
    return AMDIM(AMDIMEncoder(32, width=2, num_features=12, depth=1))


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = [torch.rand(4, 3, 32, 32, generator=generator) for _ in range(2)]
    return Batch(views, index=torch.arange(4))


def test_global_terms_are_both_directions_means() -> None:
    amdim, given = method(), batch()
    a, b = (amdim.backbone.forward_maps(view) for view in given.views)
    terms = amdim.losses(given)
    for name, scale in (("1_to_5", 1), ("1_to_7", 2)):
        there = amdim_nce(a[0].flatten(1), b[scale].flatten(2))[0]
        back = amdim_nce(b[0].flatten(1), a[scale].flatten(2))[0]
        torch.testing.assert_close(terms[name], (there + back) / 2)


def test_swapping_the_views_changes_the_drawn_source_alone() -> None:
    amdim, given = method(), batch()
    one, other = amdim.losses(given), amdim.losses(Batch(given.views[::-1], given.index))
    for name in ("1_to_5", "1_to_7"):
        torch.testing.assert_close(one[name], other[name])
    assert one["5_to_5"] != other["5_to_5"]


def test_source_is_one_uniform_place_of_its_image_and_follows_the_step() -> None:
    places = torch.arange(25.0).expand(4000, 3, 25)
    keys = Keys(torch.arange(4000))
    drawn = one_location(places, keys)
    assert (drawn == drawn[:, :1]).all()
    counts = drawn[:, 0].long().bincount(minlength=25)
    assert ((counts - 160) ** 2 / 160).sum() < 51.2  # chi-squared of 24: one in a thousand
    assert (one_location(places, keys.fold(1)) != drawn).any()
    amdim, given = method(), batch()
    before = amdim.losses(given)
    amdim.step = 1
    after = amdim.losses(given)
    assert torch.equal(after["1_to_7"], before["1_to_7"])
    assert after["5_to_5"] != before["5_to_5"]


def test_scores_term_is_the_weighted_mean_square() -> None:
    one, other = method(), method()
    other.score_weight = 0.1
    value = one.losses(batch())["scores"]
    torch.testing.assert_close(other.losses(batch())["scores"], 2 * value)
    a, b = (one.backbone.forward_maps(view) for view in batch().views)
    global_ = sum(
        amdim_nce(x[0].flatten(1), y[scale].flatten(2))[1]
        for x, y in ((a, b), (b, a))
        for scale in (1, 2)
    )
    assert value > 0.025 * global_ > 0, "the 5 to 5 scores come on top"


def test_backbone_without_maps_is_named() -> None:
    with pytest.raises(ValueError, match=r"forward_maps.*got Pooled"):
        AMDIM(Pooled(8))
