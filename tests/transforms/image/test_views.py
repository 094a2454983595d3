"""Views: keyed draws, any split of a batch, the workers' path, recipes and their distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sslzoo.data.image.image_set import EvalCrops
from sslzoo.data.image.segmentation import _viewed
from sslzoo.random import Keys, sample_keys
from sslzoo.transforms import (
    EvalView,
    RandomResizedCrop,
    View,
    Views,
    amdim_views,
    byol_views,
    clip_views,
    cpc_views,
    digit_views,
    dim_views,
    ijepa_views,
    instdisc_views,
    invaspread_views,
    lejepa_views,
    mae_fine_tune_views,
    mae_views,
    moco_v1_views,
    moco_v2_views,
    moco_v3_views,
    msn_views,
    multi_crop_views,
    ressl_views,
    simclr_views,
    vicregl_views,
    w_mse_views,
)
from sslzoo.transforms.image.affine import RandomAffine
from sslzoo.transforms.image.blur import GaussianBlur, PILBlur
from sslzoo.transforms.image.color import ColorJitter, Grayscale
from sslzoo.transforms.image.elastic import RandomElastic
from sslzoo.transforms.image.layout import chunk_rows
from sslzoo.transforms.image.normalize import Normalize
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.solarize import Solarize
from sslzoo.transforms.image.translate import RandomTranslate
from sslzoo.zoo.card import complaints_of_preprocessing, image_view
from tests.golden import load
from tests.no_sync import Operations

RECIPES: dict[str, Callable[[], Views]] = {
    "simclr": lambda: simclr_views(32, 0.5),
    "simclr_v2": lambda: simclr_views(40, brightness="multiplicative"),
    "simclr_gray": lambda: simclr_views(28, color=False, flip=False),
    "digits": lambda: digit_views(28, elastic=0.03),
    "byol": lambda: byol_views(96),
    "instdisc": lambda: instdisc_views(40),
    "instdisc_cifar": lambda: instdisc_views(32, "cifar"),
    "invaspread": lambda: invaspread_views(32),
    "ijepa": lambda: ijepa_views(40),
    "lejepa": lambda: lejepa_views((48, 24), (2, 3)),
    "mae": lambda: mae_views(40),
    "clip": lambda: clip_views(40),
    "mae_fine_tune": lambda: mae_fine_tune_views(40),
    "moco_v1": lambda: moco_v1_views(40),
    "moco_v2": lambda: moco_v2_views(80),
    "moco_v3": lambda: moco_v3_views(40),
    "ressl": lambda: ressl_views(48, sizes=(48, 32), scales=((0.2, 1.0), (0.17, 0.86))),
    "dim": lambda: dim_views(32, flip=True),
    "amdim": lambda: amdim_views(40),
    "amdim_cifar": lambda: amdim_views(32, "cifar"),
    "cpc": lambda: cpc_views(32),
    "cpc_v2": lambda: cpc_views(32, (0.3, 1.0), gray=False, patch=8, stride=4, per_patch=True),
    "w_mse": lambda: w_mse_views(32, count=4),
    "swav": lambda: multi_crop_views(sizes=(48, 24), counts=(2, 3)),
    "dino": lambda: multi_crop_views("dino", (48, 24), (2, 3), ((0.4, 1.0), (0.05, 0.4))),
    "dinov2": lambda: multi_crop_views(
        "dinov2", (48, 24), (2, 3), ((0.32, 1.0), (0.05, 0.32)), gram_size=64
    ),
    "vicregl": lambda: vicregl_views((48, 24), (2, 3)),
    "msn": lambda: msn_views((48, 24), (2, 3)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def photos(batch: int, height: int = 70, width: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images += 0.05 * torch.randn(images.shape, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def test_gray_views_are_evaluated_in_gray() -> None:
    views, images = cpc_views(32), photos(3, 32, 32)
    (trained,) = views(images, sample_keys(0, 0, torch.arange(3)))
    for made in (trained, views.eval_view(32)(images)):
        assert torch.equal(made[:, 0], made[:, 1])
        assert torch.equal(made[:, 0], made[:, 2])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("side", [32, 70])
def test_views_do_not_depend_on_the_split_or_the_order(recipe: str, side: int) -> None:
    views, images, index = RECIPES[recipe](), photos(13, side, side), torch.arange(100, 113)
    whole = views(images, sample_keys(1, 2, index))
    shuffle = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    for rows in (
        [slice(0, 13)],
        [slice(0, 6), slice(6, 13)],
        [slice(0, 1), slice(1, 9), slice(9, 13)],
    ):
        parts = [views(images[r], sample_keys(1, 2, index[r])) for r in rows]
        for number, view in enumerate(whole):
            joined = torch.cat([part[number] for part in parts])
            torch.testing.assert_close(joined, view, rtol=0, atol=1e-6)
    shuffled = views(images[shuffle], sample_keys(1, 2, index[shuffle]))
    for other, view in zip(shuffled, whole, strict=True):
        torch.testing.assert_close(other, view[shuffle], rtol=0, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("step", [1, 5, 13, 26, 39, 1000])
def test_views_do_not_depend_on_how_many_are_made_at_a_time(
    recipe: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, images, index = RECIPES[recipe](), photos(13), torch.arange(13)
    wanted = views(images, sample_keys(1, 2, index))
    module = import_module("sslzoo.transforms.image.views")
    monkeypatch.setattr(module, "chunk_rows", lambda *args: step)
    for other, view in zip(views(images, sample_keys(1, 2, index)), wanted, strict=True):
        torch.testing.assert_close(other, view, rtol=0, atol=1e-6)


def test_an_accelerator_takes_whole_views_that_fit_into_memory() -> None:
    cuda, photo = torch.device("cuda"), 3 * 256 * 256
    assert chunk_rows(3 * 96 * 96, photo, 64, 8, cuda) == 5 * 64
    assert chunk_rows(3 * 16 * 16, 3 * 32 * 32, 256, 4, cuda) == 4 * 256
    assert chunk_rows(3 * 224 * 224, photo, 4096, 2, cuda) == 4096


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_rank_without_images_has_views_of_none(recipe: str) -> None:
    views = RECIPES[recipe]()
    out = views(photos(2)[:0], sample_keys(0, 0, torch.arange(0)))
    assert [tuple(view.shape[2:]) for view in out] == [(size, size) for size in views.sizes]
    assert [len(view) for view in out] == [0] * len(out)


@pytest.mark.parametrize("recipe", RECIPES)
def test_views_are_finite_random_and_of_the_announced_size(recipe: str) -> None:
    views, images = RECIPES[recipe](), photos(8)
    index = torch.arange(8)
    first = views(images, sample_keys(0, 0, index))
    assert [view.shape[2] for view in first] == views.sizes
    for view in first:
        assert view.shape[:2] == (8, 3)
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert view.isfinite().all()
    again = views(images, sample_keys(0, 0, index))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other_epoch = views(images, sample_keys(0, 1, index))
    assert (first[0] - other_epoch[0]).abs().mean() > 0.01
    if len(first) > 1:
        assert (first[0] - first[1]).abs().mean() > 0.01


@pytest.mark.parametrize("recipe", ["simclr", "byol", "instdisc", "amdim", "mae_fine_tune"])
def test_crops_of_workers_finish_to_the_devices_views(recipe: str) -> None:
    views, images = RECIPES[recipe](), photos(6)
    keys = sample_keys(4, 1, torch.arange(6))
    rows = [views.crop_one(images[i], Keys(keys.key[i : i + 1])) for i in range(6)]
    finished = views.finish([torch.stack(column) for column in zip(*rows, strict=True)], keys)
    # The CPU crops these in bytes as the workers do: the same views, not near ones.
    for here, there in zip(views(images, keys), finished, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5)


def test_bytes_and_floats_give_the_same_views() -> None:
    views, images = simclr_views(32, 0.5), photos(6, 32, 32)
    keys = sample_keys(0, 0, torch.arange(6))
    for a, b in zip(views(images, keys), views(images / 255, keys), strict=True):
        assert (a - b).abs().mean() < 2e-3  # bicubic passes of bytes are clipped, of floats not


def test_autocast_does_not_reach_the_views() -> None:
    views, images = simclr_views(32), photos(4)
    keys = sample_keys(0, 0, torch.arange(4))
    plain = views(images, keys)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(views(images, keys), plain, strict=True))


def test_gray_images_want_a_recipe_without_color() -> None:
    images = photos(3, 28, 28)[:, :1]
    keys = sample_keys(0, 0, torch.arange(3))
    assert simclr_views(28, color=False, flip=False)(images, keys)[0].shape == (3, 1, 28, 28)
    assert EvalView(28)(images).shape == (3, 1, 28, 28)
    with pytest.raises(ValueError, match="3 channels"):
        simclr_views(28)(images, keys)
    grayscale_only = Views([View(RandomResizedCrop(8), [Grayscale(1.0)])])
    with pytest.raises(ValueError, match="3 channels"):
        grayscale_only(images, keys)


def test_wrong_calls_are_named() -> None:
    views, images = simclr_views(32), photos(3)
    with pytest.raises(ValueError, match="2 keys"):
        views(images, sample_keys(0, 0, torch.arange(2)))
    with pytest.raises(ValueError, match="int64"):
        views(images.long(), sample_keys(0, 0, torch.arange(3)))
    with pytest.raises(ValueError, match="crops must be 2"):
        views.finish([images], sample_keys(0, 0, torch.arange(3)))
    with pytest.raises(ValueError, match="mean and std"):
        simclr_views(32, mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="begin with 2 for DINO"):
        multi_crop_views("dino", (48, 24), (3, 3))
    with pytest.raises(ValueError, match="large_blur must be None for SwAV and without blur"):
        multi_crop_views("dinov2", blur=False, large_blur=(1.0, 0.1))
    with pytest.raises(ValueError, match="gram_size must be None except for dinov2, got 64"):
        multi_crop_views("dino", gram_size=64)


def _near(share: Tensor, p: float) -> bool:
    """Within 4 standard deviations of a proportion."""
    count = share.numel()
    return abs(float(share.double().mean()) - p) <= 4 * math.sqrt(p * (1 - p) / count)


def test_jitter_draws_follow_the_recipe() -> None:
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8, "tensorflow", additive=True)
    keys = sample_keys(0, 0, torch.arange(50_000))
    (weights,) = jitter.draw(keys)
    scale, _, _, shift, turns, saturation = weights.unbind(2)
    applied = (turns != 0).any(1)
    assert _near(applied, 0.8)
    places = torch.stack(
        [
            x[applied].to(torch.uint8).argmax(1)
            for x in (shift != 0, scale != 1, saturation != 1, turns != 0)
        ],
        1,
    )
    assert (places.sort(1).values == torch.arange(4)).all()
    code = (places * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    expected = len(code) / 24
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 49.7  # chi-squared of 23: one in a thousand
    for values, neutral, low, high in (
        (shift, 0, -0.4, 0.4),
        (scale, 1, 0.6, 1.4),
        (saturation, 1, 0.8, 1.2),
        (turns, 0, -0.1, 0.1),
    ):
        drawn = (values[values != neutral].double().sort().values - low) / (high - low)
        grid = (torch.arange(len(drawn)) + 0.5) / len(drawn)
        assert (drawn - grid).abs().max() < 1.95 / math.sqrt(len(drawn))


def test_strength_beyond_one_cuts_factors_at_zero() -> None:
    assert ColorJitter(1.2, 1.2, 0.3, 0.2).low == (0.0, 0.0, 0.7, -0.2)


def test_affine_draws_fill_their_range() -> None:
    turn, shear = RandomAffine(20, 10).draw(sample_keys(0, 0, torch.arange(20_000)))
    for drawn, degrees in ((turn, 20), (shear, 10)):
        unit = (drawn.rad2deg().double().sort().values / degrees + 1) / 2
        assert (unit - torch.linspace(0, 1, 20_000)).abs().max() < 1.95 / math.sqrt(20_000)
    assert abs(torch.corrcoef(torch.stack([turn, shear]))[0, 1]) < 0.03
    with pytest.raises(ValueError, match=r"shear must be in \[0, 90\), got 95"):
        RandomAffine(20, 95)


def test_elastic_distortion_reads_each_pixel_at_its_displaced_position() -> None:
    image = torch.rand(1, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    moved = torch.zeros(2, 2, 4, 4)
    moved[0, 0], moved[0, 1] = 2 * 3 / 12, -2 * 2 / 9  # 3 pixels to the right, 2 up
    shifted = RandomElastic().apply(image.clone(), moved)[0]
    assert torch.allclose(shifted[0, 2:, :-3], image[0, 0, :-2, 3:], atol=1e-5)
    assert shifted[0, :2].abs().max() < 1e-5
    assert torch.allclose(shifted[1], image[0, 1], atol=1e-5)
    (field,) = RandomElastic(0.05, 3).draw(sample_keys(0, 0, torch.arange(5000)))
    assert field.shape == (5000, 2, 3, 3)
    assert field.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.corrcoef(field.flatten(1).T).fill_diagonal_(0).abs().max() < 0.07
    with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
        RandomElastic(-1)
    with pytest.raises(ValueError, match="grid must be at least 2, got 1"):
        RandomElastic(0.1, 1)


def test_translations_are_uniform_and_independent() -> None:
    (shift,) = RandomTranslate(2, 0.5).draw(sample_keys(0, 0, torch.arange(20_000)))
    still = (shift == 0).all(1)
    assert _near(still, 0.5 + 0.5 / 25)
    code = ((shift[~still] + 2) * torch.tensor([5, 1])).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    expected = len(code) / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7
    with pytest.raises(ValueError, match="pixels must be at least 0, got -1"):
        RandomTranslate(-1)


def test_amdims_views_share_their_flip_and_half_are_flipped() -> None:
    crop = RandomResizedCrop(16, (1.0, 1.0), (1.0, 1.0), flip=0.0)
    views = Views([View(crop, [])] * 2, shared_flip=amdim_views(16, "cifar").shared_flip)
    image = photos(1, 16, 16)
    keys = sample_keys(0, 0, torch.arange(400))
    first, second = views(image.expand(400, -1, -1, -1), keys)
    assert torch.equal(first, second)
    flipped = ((first - image / 255).abs() > 1e-3).flatten(1).any(1)
    torch.testing.assert_close(first[flipped][0], (image[0] / 255).flip(2))
    assert _near(flipped, 0.5)
    own = amdim_views(16, "cifar").views
    assert [view.crop.flip for view in own] == [0.0, 0.0], "no flip of one view alone"


def test_dims_view_is_the_image() -> None:
    images = photos(3, 32, 32)
    (view,) = dim_views(32)(images, sample_keys(0, 0, torch.arange(3)))
    torch.testing.assert_close(view, images / 255 * 2 - 1)


@pytest.mark.parametrize("op", [GaussianBlur(0.3), PILBlur(0.3), Grayscale(0.3), Solarize(0.3)])
def test_operations_are_applied_with_their_probability(
    op: GaussianBlur | PILBlur | Grayscale | Solarize,
) -> None:
    chosen, *sigma = op.draw(sample_keys(0, 0, torch.arange(20_000)))
    assert _near(chosen, 0.3)
    if sigma:
        unit = (sigma[0].double().sort().values - 0.1) / 1.9
        assert (unit - torch.linspace(0, 1, 20_000)).abs().max() < 1.95 / math.sqrt(20_000)


def test_recipes_hold_the_papers_order_and_numbers() -> None:
    def names(view: View) -> list[str]:
        return [type(op).__name__ for op in view.ops]

    first, second = byol_views().views
    assert names(first) == ["ColorJitter", "Grayscale", "GaussianBlur", "Clip", "Normalize"]
    assert names(second)[2:4] == ["GaussianBlur", "Solarize"]
    assert names(moco_v1_views().views[0])[:2] == ["Grayscale", "ColorJitter"]
    assert names(instdisc_views().views[0])[:2] == ["Grayscale", "ColorJitter"]
    assert names(instdisc_views(32, "cifar").views[0])[:2] == ["ColorJitter", "Grayscale"]
    assert [v.crop.flip for v in instdisc_views(32, "cifar").views] == [0.0]
    assert names(invaspread_views().views[0])[:2] == ["ColorJitter", "Grayscale"]
    assert [v.crop.flip for v in invaspread_views().views] == [0.5, 0.5]
    assert names(amdim_views().views[1]) == ["ColorJitter", "Grayscale", "Normalize"]
    assert names(amdim_views(32, "cifar").views[0])[0] == "RandomTranslate"
    assert amdim_views().views[0].crop.scale == (0.3, 1.0)
    assert names(moco_v2_views().views[0])[2] == "PILBlur"
    dino = multi_crop_views("dino", counts=(2, 8), scales=((0.4, 1.0), (0.05, 0.4))).views
    assert [op.p for v in dino for op in v.ops if isinstance(op, PILBlur)] == [1.0, 0.1] + [0.5] * 8
    assert [i for i, v in enumerate(dino) if "Solarize" in names(v)] == [1]
    assert names(lejepa_views().views[7]) == [
        *("ColorJitter", "Grayscale", "GaussianBlur", "Solarize", "Normalize")
    ]
    assert lejepa_views().sizes == [224] * 2 + [98] * 6
    assert [view.crop.scale for view in lejepa_views().views[1:3]] == [(0.3, 1.0), (0.05, 0.3)]
    assert names(w_mse_views(count=4).views[3]) == ["ColorJitter", "Grayscale", "Normalize"]
    assert multi_crop_views().sizes == [224] * 2 + [96] * 6
    for recipe, amounts in (("swav", (0.8, 0.8, 0.8, 0.2)), ("dino", (0.4, 0.4, 0.2, 0.1))):
        for view in multi_crop_views(recipe, strength=0.5).views:
            jitter = view.ops[0]
            assert jitter.p == 0.8
            assert jitter.low == pytest.approx([*(1 - x / 2 for x in amounts[:3]), -amounts[3] / 2])
            assert jitter.high == pytest.approx([*(1 + x / 2 for x in amounts[:3]), amounts[3] / 2])
    with pytest.raises(ValueError, match="strength must be at least 0, got -1"):
        multi_crop_views(strength=-1)
    assert simclr_views(32, blur=False).views[0].crop.scale == (0.08, 1.0)
    local = vicregl_views().views
    assert [op.p for v in local for op in v.ops if isinstance(op, PILBlur)] == [1.0, 0.1] * 4
    assert [i for i, v in enumerate(local) if "Solarize" in names(v)] == [1, 3, 5, 7]
    assert [v.crop.scale for v in local] == [(0.4, 1.0)] * 2 + [(0.08, 0.4)] * 6
    assert msn_views().sizes == [224] * 2 + [96] * 10
    assert names(msn_views().views[0]) == ["ColorJitter", "Grayscale", "PILBlur", "Normalize"]
    assert [v.crop.scale for v in msn_views().views[1:3]] == [(0.3, 1.0), (0.05, 0.3)]


class _Syncs(TorchDispatchMode):
    """Records what would make the host wait for the device, or copies from the host to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.__name__.split(".")[0]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "item"):
            self.seen.append(name)
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_", "lift_fresh_copy"):
            source = args[1] if name == "copy_" else args[0]
            if isinstance(out, Tensor) and out.device.type != source.device.type:
                self.seen.append(f"{name} {source.device} -> {out.device}")
        return out


WITHOUT_WAITS = ["simclr_v2", "digits", "mae_fine_tune", "cpc", "amdim_cifar", "cpc_v2", "dino"]


def test_every_operation_is_in_a_recipe_whose_waits_are_counted() -> None:
    def operations(recipes: Iterable[str]) -> set[type]:
        return {type(op) for name in recipes for view in RECIPES[name]().views for op in view.ops}

    assert operations(WITHOUT_WAITS) == operations(RECIPES)


@pytest.mark.parametrize("recipe", WITHOUT_WAITS)
def test_no_view_makes_the_host_wait(recipe: str) -> None:
    views = RECIPES[recipe]()
    with FakeTensorMode():
        images = torch.zeros(4, 3, 40, 50, dtype=torch.uint8, device="cuda")
        index = torch.zeros(4, dtype=torch.int64, device="cuda")
        views(images, sample_keys(0, 0, index))  # the first two batches make the plan of draws
        views(images, sample_keys(0, 0, index))
        with _Syncs() as syncs:
            out = views(images, sample_keys(0, 0, index))
            EvalView(32, resize=36, mean=(0.5,) * 3, std=(0.5,) * 3)(images)
    assert [view.device.type for view in out] == ["cuda"] * len(out)
    assert syncs.seen == []


@pytest.mark.parametrize("small", [4, 8])
def test_an_accelerator_starts_few_operations(small: int) -> None:
    """It takes each crop of a size for the same price: they are made together."""
    views = multi_crop_views("dino", (32, 16), (2, small), ((0.25, 1), (0.05, 0.25)), blur=False)
    with FakeTensorMode():
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda")
        index = torch.zeros(4, dtype=torch.int64, device="cuda")
        for _ in range(3):
            with Operations() as made:
                views(images, sample_keys(0, 0, index))
    assert made.count < 1200  # drawn one by one and crop by crop: 5,716 and 9,424


def test_evaluation_is_normalized_as_training_is() -> None:
    flat = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    for views in (simclr_views(32, color=False, blur=False), instdisc_views(32, "cifar")):
        seen = views.eval_view(32)(flat)
        norm = [op for op in views.views[0].ops if isinstance(op, Normalize)]
        wanted = torch.full((1, 3, 32, 32), 128 / 255)
        if norm:
            mean, std = torch.tensor(norm[0].mean), torch.tensor(norm[0].std)
            wanted = (wanted - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(seen, wanted)


# -- evaluation follows training


@pytest.mark.parametrize(
    ("size", "resize"), [(224, 256), (128, 146), (96, 110), (32, 37), (28, 32)]
)
def test_evaluation_keeps_seven_eighths_unless_images_have_the_training_size(
    size: int, resize: int
) -> None:
    views = simclr_views(size, mean=(0.5,) * 3, std=(0.2,) * 3)
    for side, wanted in ((None, resize), (size - 1, resize), (size, None)):
        view = views.trained_view(side)
        assert (view.size, view.resize, view.mean) == (size, wanted, (0.5,) * 3)


def test_multi_crop_is_evaluated_at_the_size_of_its_global_crops() -> None:
    small, large = (View(RandomResizedCrop(size), [Normalize([size], [1.0])]) for size in (16, 40))
    for views in ([large, small], [small, large, small]):
        view = Views(views).trained_view()
        assert (view.size, view.resize, view.mean) == (40, 46, (40,))
    mosaic = cpc_views(64, gray=False, patch=16, stride=8, per_patch=True)
    assert (mosaic.sizes, mosaic.trained_view().size) == ([112], 64)


def test_dinov2_blurs_as_its_code_does_or_as_was_meant() -> None:
    """Its class takes 1 - p for p; the shares are of 1,500 calls of the authors' code."""
    z = load("dinov2/blur_probability.npz")

    def blurs(**options: Any) -> list[float]:
        views = multi_crop_views(
            "dinov2", counts=(2, 1), scales=((0.32, 1), (0.05, 0.32)), **options
        )
        ops = [op for view in views.views for op in view.ops if isinstance(op, GaussianBlur)]
        assert all(
            (op.kernel_size, op.sigma, op.padding) == (9, (0.1, 2.0), "reflect") for op in ops
        )
        return [op.p for op in ops]

    assert [1 - p for p in blurs()] == pytest.approx(z["nominal_p"][:3].tolist())
    assert blurs(large_blur=(1.0, 0.1)) == z["nominal_p"][:3].tolist()
    applied = dict(zip(z["nominal_p"].tolist(), z["applied_fraction"].tolist(), strict=True))
    for nominal, p in zip((1.0, 0.1, 0.5), blurs(), strict=True):
        assert abs(applied[nominal] - p) <= 4 * math.sqrt(p * (1 - p) / 1500)


def test_the_blur_with_reflection_is_torchvisions() -> None:
    images, sigma = torch.rand(3, 2, 20, 30), torch.tensor([0.4, 1.7])
    got = images.clone()
    GaussianBlur(1.0, kernel_size=9, padding="reflect").blur_(got, sigma)
    for i, width in enumerate(sigma.tolist()):
        wanted = torchvision.transforms.functional.gaussian_blur(images[:, i], [9, 9], [width] * 2)
        torch.testing.assert_close(got[:, i], wanted, rtol=1e-5, atol=1e-5)


def test_the_gram_teachers_crops_are_the_large_ones_at_another_size() -> None:
    views = multi_crop_views(
        "dinov2", (64, 24), (2, 2), ((0.32, 1.0), (0.05, 0.32)), gram_size=32, mean=None
    )
    images, keys = photos(5), sample_keys(0, 0, torch.arange(5))
    for view in views.views[:2]:
        view.ops.clear()  # their colors would hide that the crops are the same
    made = views(images, keys)
    assert [view.shape[-1] for view in made] == views.sizes == [64, 64, 24, 24, 32, 32]
    for large, small in zip(made[:2], made[-2:], strict=True):
        halved = torch.nn.functional.avg_pool2d(large, 2)
        assert (halved - small).abs().mean() < 0.02
    assert (made[4] - made[5]).abs().mean() > 0.05
    assert views.trained_size == 64
    assert views.box_views == [0, 1, 2, 3, 0, 1]
    for i in range(5):
        one = views.crop_one(images[i], keys.rows(slice(i, i + 1)))
        for crop, view in zip(one[-2:], made[-2:], strict=True):
            assert (crop / 255 - view[i]).abs().max() < 0.02


def test_views_without_a_crop_are_evaluated_on_whole_images() -> None:
    plain = Views([])
    assert (plain.trained_view(17).size, plain.trained_view(17).resize) == (17, None)
    assert (plain.trained_view().size, plain.trained_view().resize) == (224, 256)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_view_of_evaluation_takes_any_number_of_channels(
    channels: int, dtype: torch.dtype
) -> None:
    images = torch.randint(0, 256, (2, channels, 20, 24), dtype=torch.uint8)
    given = images if dtype == torch.uint8 else images / 255
    mean = [i / 10 for i in range(channels)]
    view = EvalView(8, 10, mean, [0.5] * channels)
    out = view(given)
    assert out.shape == (2, channels, 8, 8)
    alone = EvalView(8, 10, mean[-1:], [0.5])(given[:, -1:])
    torch.testing.assert_close(out[:, -1:], alone)
    torch.testing.assert_close(EvalView(**view.arguments())(given), out)


def test_ijepas_switches_add_their_operations_alone() -> None:
    def names(views: Views) -> list[str]:
        return [type(op).__name__ for op in views.views[0].ops]

    assert names(ijepa_views()) == ["Normalize"]
    assert ijepa_views().crops[0].flip == 0.0
    views = ijepa_views(flip=True, color_strength=0.5, blur=True)
    assert names(views) == ["ColorJitter", "Grayscale", "PILBlur", "Normalize"]
    assert views.crops[0].flip == 0.5
    for strength in (-0.1, 2.6, float("nan")):
        with pytest.raises(ValueError, match=r"color_strength must be in \[0, 2\.5\], got"):
            ijepa_views(color_strength=strength)


@pytest.mark.parametrize("large_blur", [(2.0, 0.1), (0.5, float("nan")), (1.0,)])
def test_probabilities_of_blur_are_checked(large_blur: Any) -> None:
    with pytest.raises(ValueError, match=r"large_blur must be two probabilities in \[0, 1\]"):
        multi_crop_views("dino", large_blur=large_blur)


@pytest.mark.parametrize("recipe", [lejepa_views, w_mse_views])
def test_jitter_has_four_strengths(recipe: Any) -> None:
    with pytest.raises(ValueError, match=r"jitter must be four numbers, .* got \(0.4, 0.4\)"):
        recipe(jitter=(0.4, 0.4))


def test_clip_is_evaluated_on_the_whole_shorter_side() -> None:
    """As open_clip's Resize and CenterCrop."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    view = clip_views(20, mean=None, std=None).trained_view()
    assert view.arguments() == {"size": 20, "resize": 20, "interpolation": "bicubic"}
    image = torch.randint(0, 256, (3, 48, 37), dtype=torch.uint8)
    resized = v2.functional.resize(image, [20], v2.InterpolationMode.BICUBIC, antialias=True)
    wanted = v2.functional.center_crop(resized, [20]).float() / 255
    torch.testing.assert_close(view(image[None])[0], wanted, rtol=0, atol=1.1 / 255)
    assert clip_views(20).trained_view(20).resize is None


# By image_transform(4, resize_mode="squash") of open_clip_torch 3.3.0, of the image in the test.
SQUASHED = {
    (7, 12): [
        [[137, 152, 115, 85], [147, 157, 121, 91], [153, 162, 127, 97], [154, 168, 132, 101]],
        [[83, 144, 159, 124], [89, 105, 165, 130], [97, 99, 165, 137], [104, 84, 163, 142]],
        [[127, 93, 113, 169], [133, 99, 116, 175], [139, 108, 87, 164], [144, 114, 92, 168]],
    ],
    (12, 5): [
        [[91, 117, 151, 124], [140, 123, 128, 99], [109, 151, 130, 134], [151, 125, 110, 108]],
        [[109, 131, 120, 152], [108, 127, 118, 116], [149, 132, 125, 104], [119, 125, 115, 153]],
        [[131, 102, 152, 108], [129, 146, 131, 110], [120, 147, 126, 129], [140, 105, 141, 109]],
    ],
}


@pytest.mark.parametrize("size", SQUASHED)
def test_squashed_images_are_open_clips(size: tuple[int, int]) -> None:
    values = torch.arange(3 * size[0] * size[1]).view(*size, 3)
    image = ((values * 37 + values // 5 * 11) % 256).byte().permute(2, 0, 1)
    views = clip_views(4, mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash")
    wanted = torch.tensor(SQUASHED[size])
    for side in (None, 4, min(size)):  # also if all images have one shorter side
        view = views.trained_view(side)
        assert not complaints_of_preprocessing({"kind": "image", **view.arguments()})
        for made in (view, image_view(view.arguments())):  # of a card
            got = made(image[None])[0] * 127.5 + 127.5
            torch.testing.assert_close(got, wanted.float(), rtol=0, atol=1.01)
    in_worker = EvalCrops(view, fit=True).cut(
        image, sample_keys(0, 0, torch.arange(1)), Decoding(3)
    )
    torch.testing.assert_close(in_worker.views[0].int(), wanted.int(), rtol=0, atol=1)


def test_masks_are_squashed_as_their_images() -> None:
    mask = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]])
    found = _viewed(mask, EvalView(2, squash=True))
    assert found.tolist() == [[2, 6], [10, 14]]


@pytest.mark.parametrize("options", [{"resize": 8}, {"fraction": 0.5}])
def test_squash_takes_the_place_of_another_resize(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="resize and fraction must be None with squash, got"):
        EvalView(8, squash=True, **options)
    with pytest.raises(ValueError, match=r"resize must be one of .*, got 'longest'"):
        clip_views(8, resize="longest")  # type: ignore[arg-type]
