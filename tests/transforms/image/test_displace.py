"""Displace: torchvision's rotation and shift, determined by the sample's index alone."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from sslzoo.batch import Batch
from sslzoo.random import sample_keys
from sslzoo.transforms import Displace


@pytest.mark.parametrize("size", [(28, 28), (20, 32)])
def test_it_is_torchvisions_affine_map(size: tuple[int, int]) -> None:
    images, index = torch.rand(6, 2, *size), torch.tensor([3, 9, 0, 41, 5, 6])
    got = Displace(25.0, 4.0, seed=7)(Batch([images], index)).views[0]
    unit = sample_keys(7, 0, index).uniform("displace", 3, low=-1.0)
    for image, (turn, x, y), moved in zip(images, unit.tolist(), got, strict=True):
        want = tv.affine(
            image, 25.0 * turn, [4.0 * x, 4.0 * y], 1.0, [0.0], tv.InterpolationMode.BILINEAR
        )
        torch.testing.assert_close(moved, want, rtol=0, atol=1e-4)
        assert abs(math.degrees(turn)) < 60


def test_bytes_stay_bytes_and_batches_do_not_matter() -> None:
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    batch = Batch([images], torch.arange(5), torch.arange(5))
    whole = Displace()(batch)
    assert whole.views[0].dtype == torch.uint8
    assert whole.label is batch.label
    part = Displace()(Batch([images[3:]], torch.arange(3, 5)))
    assert torch.equal(part.views[0], whole.views[0][3:])
    assert torch.equal(Displace(0, 0)(batch).views[0], images)


def test_others_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have images \(B, C, H, W\), got \(2, 9\)"):
        Displace()(Batch([torch.rand(2, 9)], torch.arange(2)))
