"""Lab and YCbCr equal scikit-image's, by the official arrays; CMC's views share a crop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslzoo.random import Keys, sample_keys
from sslzoo.transforms import EvalView, RandomResizedCrop, View, Views, cmc_views
from sslzoo.transforms.image.color_space import (
    LAB_MEAN,
    LAB_STD,
    YCBCR_MEAN,
    YCBCR_STD,
    ColorSpace,
    to_space_,
)
from sslzoo.transforms.image.normalize import normalize_
from tests.golden import assert_close_to_golden, load


def photos(batch: int, side: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, 3, side, side + 2), generator=generator).to(torch.uint8)


def changed(colors: list[list[float]], space: str) -> Tensor:
    """(N, 3) colors in [0, 1] in another space, (N, 3)."""
    planes = torch.tensor(colors).T[:, :, None, None].contiguous()
    to_space_(planes, space)
    return planes[:, :, 0, 0].T


@pytest.mark.parametrize(
    ("space", "mean", "std"),
    [("lab", LAB_MEAN, LAB_STD), ("ycbcr", YCBCR_MEAN, YCBCR_STD)],
)
def test_golden_spaces(space: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    golden = load("cmc/lab.npz")
    hyper = golden["meta"]["hyper"]
    assert mean == pytest.approx(hyper[f"{space}_mean"])
    assert std == pytest.approx(hyper[f"{space}_std"])
    planes = torch.from_numpy(golden["image"]).permute(2, 0, 1)[:, None].float() / 255
    ColorSpace(space).apply(planes)
    assert_close_to_golden(planes[:, 0].permute(1, 2, 0), golden[space], 1e-5)
    normalize_(planes, mean, std)
    assert_close_to_golden(planes[:, 0], golden[f"{space}_normalized"], 1e-5)
    view = EvalView(9, mean=mean, std=std, space=space)
    image = torch.from_numpy(golden["image"]).permute(2, 0, 1)[None]
    wanted = golden[f"{space}_normalized"][:, :, 1:10]
    assert_close_to_golden(view(image)[0], wanted, 1e-5)


def test_hand_worked_colors() -> None:
    black, white, red = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]
    lab = changed([black, white, red], "lab")
    torch.testing.assert_close(lab[0], torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(lab[1], torch.tensor([100.0, 0.0, 0.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(lab[2], torch.tensor([53.24, 80.09, 67.20]), atol=2e-2, rtol=0)
    ycbcr = changed([black, white, red], "ycbcr")
    wanted = torch.tensor([[16.0, 128.0, 128.0], [235.0, 128.0, 128.0], [81.481, 90.203, 240.0]])
    torch.testing.assert_close(ycbcr, wanted, atol=1e-2, rtol=0)


def test_only_the_first_three_planes_change() -> None:
    planes = torch.rand(5, 2, 4, 4)
    rest = planes[3:].clone()
    lab = planes[:3].clone()
    to_space_(lab, "lab")
    ColorSpace("lab").apply(planes)
    assert torch.equal(planes[3:], rest)
    assert torch.equal(planes[:3], lab)


@pytest.mark.parametrize("space", ["lab", "ycbcr"])
def test_the_two_views_are_channels_of_one_crop(space: str) -> None:
    views, images = cmc_views(16, space), photos(6)
    keys = sample_keys(0, 0, torch.arange(6))
    light, color = views(images, keys)
    assert (light.shape, color.shape) == ((6, 1, 16, 16), (6, 2, 16, 16))
    assert views.sizes == [16, 16]
    planes = RandomResizedCrop(16, (0.2, 1.0))(images, keys.fold("view", 0)).transpose(0, 1)
    planes = planes.contiguous()
    to_space_(planes, space)
    lab = space == "lab"
    normalize_(planes, LAB_MEAN if lab else YCBCR_MEAN, LAB_STD if lab else YCBCR_STD)
    torch.testing.assert_close(torch.cat([light, color], 1), planes.transpose(0, 1))
    assert torch.cat([light, color], 1).abs().max() <= 1.001  # middle and half the range


def test_views_do_not_depend_on_the_split_and_finish_the_workers_crops() -> None:
    views, images, index = cmc_views(16), photos(7), torch.arange(7)
    keys = sample_keys(1, 2, index)
    whole = views(images, keys)
    parts = [views(images[r], sample_keys(1, 2, index[r])) for r in (slice(0, 3), slice(3, 7))]
    rows = [views.crop_one(images[i], Keys(keys.key[i : i + 1])) for i in range(7)]
    finished = views.finish([torch.stack(column) for column in zip(*rows, strict=True)], keys)
    for number, view in enumerate(whole):
        torch.testing.assert_close(torch.cat([part[number] for part in parts]), view)
        assert (finished[number] - view).abs().mean() < 0.02  # bytes between


def test_evaluation_is_in_the_space_of_training_and_not_split() -> None:
    images = photos(3)
    for space, mean, std in (("lab", LAB_MEAN, LAB_STD), ("ycbcr", YCBCR_MEAN, YCBCR_STD)):
        view = cmc_views(16, space).eval_view(20)
        assert view.space == space
        wanted = (images[..., 1:21] / 255.0).transpose(0, 1).contiguous()
        to_space_(wanted, space)
        normalize_(wanted, mean, std)
        torch.testing.assert_close(view(images), wanted.transpose(0, 1))


def test_wrong_calls_are_named() -> None:
    with pytest.raises(ValueError, match="got 'xyz'"):
        cmc_views(16, "xyz")
    with pytest.raises(ValueError, match="got 'xyz'"):
        EvalView(16, space="xyz")
    with pytest.raises(ValueError, match="mean and std must be given together"):
        cmc_views(16, mean=(0.5,) * 3)
    with pytest.raises(ValueError, match="got 1"):
        cmc_views(16)(photos(2)[:, :1], sample_keys(0, 0, torch.arange(2)))
    odd = Views([View(RandomResizedCrop(8), [])], split=(1, 1))
    with pytest.raises(ValueError, match=r"split into \[1, 1\], got 3"):
        odd(photos(2), sample_keys(0, 0, torch.arange(2)))
