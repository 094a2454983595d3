"""One rule decides at every entry which numbers are pixels or sound; the rest is refused."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

import sslzoo.transforms
from sslzoo.data import WaveformInput, with_views
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.random import Keys
from sslzoo.transforms import EvalView, RandomResizedCrop, View, Views
from sslzoo.value_range import ValueRangeError, as_pixels, as_sound, check_value_range

KEYS = Keys(torch.arange(4))


def can_fill(dtype: torch.dtype) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.ones(2).to(dtype).to(torch.float32).sum().item() == 2
        except (RuntimeError, NotImplementedError, TypeError):
            return False


DTYPES = sorted(
    {d for d in vars(torch).values() if isinstance(d, torch.dtype) and can_fill(d)}, key=str
)
BYTES = torch.randint(0, 256, (4, 3, 40, 40), generator=torch.Generator().manual_seed(0))
BYTES[0, 0, 0, :2] = torch.tensor([0, 255])


class Users(LightningDataModule):
    def __init__(self, images: Any) -> None:
        super().__init__()
        self.pairs = [(image, 0) for image in images]

    def train_dataloader(self) -> Any:
        return DataLoader(self.pairs, batch_size=4)


def served(images: Any, crop: bool | None, value_range: Any = None) -> Tensor:
    """The evaluation view that `with_views` makes of a user's samples."""
    views = Views([View(RandomResizedCrop(24), [])])
    given = {"num_classes": 1, "crop_in_workers": crop, "value_range": value_range}
    data = with_views(Users(images), views, EvalView(24, 24), seed=1, **given)
    data.setup("fit")
    next(iter(data.train_dataloader()))
    (batch,) = data.eval_dataloaders().bank
    return data.eval_views(batch).views[0]


def stored(images: Tensor, value_range: Any = None) -> Tensor:
    return EvalView(24, 24)(ArrayImages(images, None, 0, value_range).images)


# Entries that take a declared range, and those of transforms, found by their signature.
ENTRIES: dict[str, Callable[..., Any]] = {
    "preprocess": EvalView(24, 24),
    "arrays": stored,
    "with_views": lambda x, value_range=None: served(x, False, value_range),
    "with_views, cropped": lambda x, value_range=None: served(x, True, value_range),
}
RECIPES = {
    name: kind
    for name, kind in vars(sslzoo.transforms).items()
    if inspect.isfunction(kind)
    and inspect.signature(kind).return_annotation in ("Views", Views)
    and all(p.default is not p.empty for p in inspect.signature(kind).parameters.values())
}
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "RandomResizedCrop": lambda x: RandomResizedCrop(24)(x, KEYS),
    **{name: (lambda x, kind=kind: kind()(x, KEYS)) for name, kind in RECIPES.items()},
}
assert len(RECIPES) > 8


def is_pixels(dtype: torch.dtype) -> bool:
    return dtype in (torch.uint8, torch.uint16, torch.bool) or dtype.is_floating_point


@pytest.mark.filterwarnings("ignore:.*support is experimental")
@pytest.mark.parametrize("entry", [*ENTRIES, "RandomResizedCrop"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_scaled_or_refused(entry: str, dtype: torch.dtype) -> None:
    run = {**ENTRIES, **TRANSFORMS}[entry]
    images = BYTES.to(torch.float32) / 255 if dtype.is_floating_point else BYTES
    images = (images * 257 if dtype == torch.uint16 else images).to(dtype)
    images = BYTES > 127 if dtype == torch.bool else images
    if not is_pixels(dtype):
        with pytest.raises(ValueRangeError, match=r"must be .*, got"):
            run(images)
        return
    wanted = (BYTES > 127) * 255 if dtype == torch.bool else BYTES
    room = 0.6 if "float8" in str(dtype) or "float4" in str(dtype) else 0.02
    assert (run(images) - run(wanted.to(torch.uint8))).abs().max() <= room


WRONG = {
    "0 to 255": BYTES.float(),
    "-1 to 1": BYTES / 127.5 - 1,
    "normalized": (BYTES / 255 - 0.45) / 0.25,
    "NaN": (BYTES / 255).masked_fill(BYTES == 0, torch.nan),
    "infinity": (BYTES / 255).masked_fill(BYTES == 0, torch.inf),
    "12 bits": (BYTES * 16).to(torch.uint16),
    "CT": (BYTES * 10 - 1000).to(torch.int16),
    "int64": BYTES,
}


@pytest.mark.parametrize("entry", [*ENTRIES, *TRANSFORMS])
def test_every_other_range_is_an_error_that_says_what_to_do(entry: str) -> None:
    run = {**ENTRIES, **TRANSFORMS}[entry]
    for name, images in WRONG.items():
        with pytest.raises(ValueRangeError, match=r"must (be|use) .*, got") as refused:
            run(images)
        assert name in ("NaN", "infinity") or "value_range=" in str(refused.value), name


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize(
    ("name", "declared", "rtol"),
    [("0 to 255", (0, 255), 0.01), ("-1 to 1", (-1, 1), 0.01), ("12 bits", (0, 4080), 0.01),
     ("CT", (-1000, 1550), 0.01), ("int64", [0, 255], 0.01)],
)  # fmt: skip
def test_a_declared_range_is_that_of_bytes(
    entry: str, name: str, declared: Any, rtol: float
) -> None:
    got = ENTRIES[entry](WRONG[name], value_range=declared)
    assert (got - ENTRIES[entry](BYTES.to(torch.uint8))).abs().max() <= rtol
    with pytest.raises(ValueRangeError, match=r"in the declared value_range \(0, 0.5\), got"):
        ENTRIES[entry](WRONG[name], value_range=(0, 0.5))


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0,), (0, 1, 2), ("a", 1), 3, (0, np.nan)])
def test_a_range_is_two_numbers_in_order(value_range: Any) -> None:
    with pytest.raises(ValueError, match=r"value_range must be \(low, high\) with low < high, got"):
        check_value_range(value_range)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("crop", [False, True])
def test_with_views_keeps_channels_and_bits(channels: int, crop: bool) -> None:
    fine = torch.linspace(0.5, 0.5 + 1 / 255, 40).expand(4, channels, 40, 40)
    got = served(fine, crop)
    assert got.shape == (4, channels, 24, 24)
    assert got[0, 0, 0].unique().numel() == 24  # eight bits have two values here


def test_a_range_is_read_once_on_an_accelerator() -> None:
    from sslzoo.value_range import Look

    look = Look()
    elsewhere = torch.zeros(1, device="meta")
    assert [look(elsewhere), look(elsewhere), look(torch.zeros(1))] == [True, False, True]
    assert torch.equal(as_pixels(BYTES.float(), check=False), BYTES.float())


# -- sound

SOUNDS = {
    name: kind()
    for name, kind in vars(sslzoo.transforms).items()
    if inspect.isclass(kind) and hasattr(kind, "evaluation") and name != "LogMelViews"
}
SOUNDS["LogMelViews"] = sslzoo.transforms.LogMelViews(sslzoo.transforms.LogMel())
WAVES = torch.randint(-20000, 20000, (4, 2000), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:.*support is experimental")
@pytest.mark.parametrize("name", list(SOUNDS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_sound_or_refused(name: str, dtype: torch.dtype) -> None:
    for run in (SOUNDS[name].evaluation, WaveformInput(SOUNDS[name], 16000)):
        waves = (WAVES / 32768 if dtype.is_floating_point else WAVES).to(dtype)
        if dtype == torch.int16 or dtype.is_floating_point:
            error = (run(waves) - run(WAVES.to(torch.int16))).abs().mean()
            assert error <= 0.1 or dtype.itemsize == 1  # eight bits have no such precision
            continue
        with pytest.raises(ValueRangeError, match=r"waveforms must be .*, got"):
            run(waves)
    for wrong in (WAVES.float(), WAVES / 32768 * 3, WAVES / 0.0):
        with pytest.raises(ValueRangeError, match=r"waveforms must be .*, got"):
            SOUNDS[name].evaluation(wrong)


@pytest.mark.parametrize("name", list(SOUNDS))
def test_use_changes_no_fingerprint(name: str) -> None:
    mel = [sslzoo.transforms.LogMel()] if name == "LogMelViews" else []
    given = WaveformInput(getattr(sslzoo.transforms, name)(*mel), 16000)
    before = given.fingerprint()
    given(WAVES.to(torch.int16))
    assert pickle.loads(pickle.dumps(given)).fingerprint() == before


def test_sound_is_declared_as_pixels_are() -> None:
    got = as_sound(WAVES.to(torch.int32) * 65536, (-(2.0**31), 2.0**31))
    torch.testing.assert_close(got, as_sound(WAVES.to(torch.int16)))


def test_one_file_names_the_ranges() -> None:
    """No other module divides by the largest byte, word or sample."""
    root = Path(sslzoo.__file__).parent
    naming = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(sign in path.read_text() for sign in ("/ 32768", "/ 65535"))
    }
    assert naming == {"value_range.py"}
