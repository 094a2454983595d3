"""Image folders: layouts, decoding, crops in workers, broken images, errors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.batch import Batch
from sslzoo.data import ImageFolder, ImageNet
from sslzoo.data.image.decode import reduce
from sslzoo.random import sample_keys
from sslzoo.transforms import EvalView, RandomResizedCrop, View, Views
from sslzoo.transforms.image.normalize import Normalize
from sslzoo.transforms.image.pixels import pil_pixels, upright_size
from tests.data.toys import PlainViews


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colors, as a photograph has."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def write_tree(
    root: Path,
    parts: tuple[str, ...] = ("train", "val"),
    count: int = 4,
    size: tuple[int, int] | None = None,
) -> Path:
    """Two classes; sizes like ImageNet's unless one is given."""
    sizes = [size] * 4 if size else [(500, 375), (375, 500), (333, 500), (640, 480)]
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = picture(*sizes[i % 4], seed=100 * label + i)  # type: ignore[misc]
                image.save(folder / f"{i}.jpg", quality=90)
    return root


def two_crops(size: int = 128) -> Views:
    return Views([View(RandomResizedCrop(size), []), View(RandomResizedCrop(size // 2), [])])


def folder(root: Path, **options: Any) -> ImageFolder:
    plain: dict[str, Any] = {"transform": PlainViews(), "batch_size": 4, "seed": 1}
    return ImageFolder(str(root), **{**plain, **options})


def train_batches(data: ImageFolder, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = [data.train_views(batch, epoch) for batch in loader]
    loader.close()
    return batches


def set_up(data: ImageFolder) -> list[Batch]:
    data.setup("fit")
    return train_batches(data)


def test_small_images_become_one_array(tmp_path: Path):
    data = folder(write_tree(tmp_path, size=(20, 16)))
    data.setup("fit")
    assert data.sets.train.images.shape == (8, 3, 16, 20)
    assert (data.num_samples, data.num_classes, data.classes) == (8, 2, ["cat", "dog"])
    with Image.open(tmp_path / "train/dog/1.jpg") as image:
        wanted = np.array(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(data.sets.train.images[5].numpy(), wanted)
    assert data.sets.train.labels.tolist() == [0] * 4 + [1] * 4
    view = data.eval_views(next(iter(data.eval_dataloaders().query))).views[0]
    assert view.shape == (8, 3, 16, 16)


def test_a_folder_of_classes_is_split_the_same_for_all_seeds(tmp_path: Path):
    root = write_tree(tmp_path, ("all",), 10, (8, 8)) / "all"
    first, second = (folder(root, val_fraction=0.3, seed=seed) for seed in (0, 1))
    first.setup("fit")
    second.setup("fit")
    assert first.sets.train.labels.bincount().tolist() == [7, 7]
    assert first.sets.query.labels.bincount().tolist() == [3, 3]
    assert torch.equal(first.sets.train.images, second.sets.train.images)


def test_images_without_labels_have_no_query(tmp_path: Path):
    data = folder(write_tree(tmp_path, size=(8, 8)), labels=False)
    data.setup("fit")
    loaders = data.eval_dataloaders()
    assert (data.num_samples, data.num_classes, loaders.query) == (8, None, None)
    assert next(iter(loaders.bank)).label is None
    assert next(iter(data.train_dataloader())).label is None


def test_names_of_the_parts_are_free_and_validation_optional(tmp_path: Path):
    root = write_tree(tmp_path, ("train", "test"), size=(8, 8))
    data = folder(root, val_dir="test")
    data.setup()
    assert len(data.sets.query) == 8
    data = folder(root, val_dir=None)
    data.setup()
    assert data.sets.query is None
    assert data.num_classes == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_make_the_crops_of_the_device_path(tmp_path: Path, num_workers: int):
    data = folder(write_tree(tmp_path), transform=two_crops(), num_workers=num_workers)
    data.setup("fit")
    epochs = [train_batches(data, epoch) for epoch in (0, 1)]
    for epoch, batches in enumerate(epochs):
        for batch in batches:
            assert [view.shape for view in batch.views] == [(4, 3, 128, 128), (4, 3, 64, 64)]
            for row, index in enumerate(batch.index.tolist()):
                with Image.open(data.sets.train.path(index)) as image:
                    pixels = pil_pixels(image)
                keys = sample_keys(data.seed, epoch, batch.index[row : row + 1])
                wanted = data.transform(pixels[None], keys)
                for view, other in zip(batch.views, wanted, strict=True):
                    assert (view[row] - other[0]).abs().max() <= 1.01 / 255
    assert not torch.equal(epochs[0][0].views[0], epochs[1][0].views[0])


def test_persistent_workers_follow_the_epoch(tmp_path: Path):
    data = folder(write_tree(tmp_path), transform=two_crops(), num_workers=2)
    data.setup("fit")
    loader = data.train_dataloader()
    alone = folder(tmp_path, transform=two_crops(), num_workers=0)
    alone.setup("fit")
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        got = [data.train_views(batch, epoch) for batch in loader]
        for batch, wanted in zip(got, train_batches(alone, epoch), strict=True):
            assert torch.equal(batch.index, wanted.index)
            assert torch.equal(batch.views[1], wanted.views[1])
    loader.close()


def test_the_eval_view_of_files_is_that_of_arrays(tmp_path: Path):
    data = folder(write_tree(tmp_path), eval_view=EvalView(96, resize=112), eval_batch_size=3)
    data.setup()
    batches = [data.eval_views(batch) for batch in data.eval_dataloaders().query]
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    with Image.open(data.sets.query.path(5)) as image:
        pixels = pil_pixels(image)[None]
    assert (batches[1].views[0][2] - EvalView(96, resize=112)(pixels)[0]).abs().max() <= 1.01 / 255


def test_reduced_decoding_keeps_twice_the_pixels_and_hardly_changes_a_crop(tmp_path: Path):
    picture(2400, 1600).save(tmp_path / "large.jpg", quality=92)
    for spare, factor in [(3.9, 1), (4, 2), (8, 4), (16, 8), (99, 8)]:
        with Image.open(tmp_path / "large.jpg") as image:
            reduce(image, spare)
            assert image.size == (2400 // factor, 1600 // factor)
    view = EvalView(64, resize=80)
    with Image.open(tmp_path / "large.jpg") as image:
        whole = view.crop_one(pil_pixels(image)).float()
    with Image.open(tmp_path / "large.jpg") as image:
        reduce(image, 1600 / 80)
        assert (view.crop_one(pil_pixels(image)).float() - whole).abs().mean() < 1


def modes() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    rgb = picture(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(np.uint16))
    return {
        "gray.jpg": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "grayalpha.png": (rgb.convert("LA"), {}),
        "palette.png": (rgb.convert("P"), {"transparency": b"\x00\x80"}),
        "bits.png": (rgb.convert("1"), {}),
        "deep.png": (deep, {}),
        "turned.jpg": (rgb, {"exif": exif, "quality": 100, "subsampling": 0}),
        "film.gif": (rgb.convert("P"), {}),
        "page.tiff": (rgb, {}),
        "shot.webp": (rgb, {}),
    }


@pytest.mark.parametrize("name", list(modes()))
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, name: str):
    image, options = modes()[name]
    image.save(tmp_path / name, **options)
    with Image.open(str(tmp_path / name)) as opened:
        size = upright_size(opened)
        rgb = pil_pixels(opened)
    assert len(rgb) == 3
    assert tuple(rgb.shape[1:]) == size == ((30, 20) if name == "turned.jpg" else (20, 30))
    assert rgb.dtype == (torch.float32 if name == "deep.png" else torch.uint8)
    if name == "deep.png":
        torch.testing.assert_close(rgb.max(), torch.tensor(59900 / 65535))
    if name == "turned.jpg":  # turned by a quarter, clockwise
        wanted = np.rot90(np.asarray(picture(30, 20)), -1).astype(float)
        assert np.abs(rgb.permute(1, 2, 0).numpy() - wanted).mean() < 2


def break_images(root: Path) -> list[Path]:
    """One cut short, one empty, one of another kind."""
    whole = (root / "train/cat/1.jpg").read_bytes()
    (root / "train/cat/1.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/dog/0.jpg").write_bytes(b"")
    (root / "train/dog/2.jpg").write_bytes(b"not an image at all")
    return [root / "train/cat/1.jpg", root / "train/dog/0.jpg", root / "train/dog/2.jpg"]


@pytest.mark.parametrize("decode", ["array", "workers"])
def test_a_broken_image_is_named(tmp_path: Path, decode: str):
    root = write_tree(tmp_path, size=(20, 16))
    (root / "train/dog/2.jpg").write_bytes(b"not an image at all")
    data = folder(root, transform=two_crops(8), decode=decode, batch_size=8, num_workers=0)
    with pytest.raises(ValueError, match=r'cannot read .*dog/2.jpg .*on_broken="skip"'):
        set_up(data)


def test_arrays_leave_out_broken_images_and_say_how_many(tmp_path: Path):
    root = write_tree(tmp_path, size=(20, 16))
    break_images(root)
    data = folder(root, on_broken="skip")
    with pytest.warns(UserWarning, match="skipped 3 of 8 images that are unreadable"):
        data.setup("fit")
    assert data.sets.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert len(data.sets.query) == 8
    assert data.num_broken == 3
    with pytest.warns(UserWarning, match="3 of 8 training images were unreadable"):
        data.teardown("fit")


def test_arrays_count_broken_images_of_a_part_too(tmp_path: Path):
    root = write_tree(tmp_path, size=(20, 16))
    break_images(root)
    data = folder(root, on_broken="skip", train_fraction=0.5, batch_size=2)
    with pytest.warns(UserWarning, match="skipped 3 of 8 images"):
        data.setup("fit")
    assert data.num_samples < 5
    assert data.num_broken == 3
    whole = folder(write_tree(tmp_path / "whole", size=(20, 16)))
    whole.setup("fit")
    assert whole.num_broken == 0


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:skipped an unreadable image")
def test_workers_fill_the_row_of_a_broken_image(tmp_path: Path, num_workers: int):
    root = write_tree(tmp_path, size=(20, 16))
    options = {"transform": two_crops(8), "decode": "workers", "batch_size": 8}
    whole = folder(root, **options, num_workers=0)
    whole.setup("fit")
    order = train_batches(whole)[0].index.tolist()
    break_images(root)
    data = folder(root, **options, num_workers=num_workers, on_broken="skip", eval_batch_size=5)
    data.eval_view = EvalView(8)
    data.setup("fit")
    batch = train_batches(data)[0]
    broken = {1, 4, 6}
    wanted = [next(i for i in order[row:] + order if i not in broken) for row in range(len(order))]
    assert batch.index.tolist() == wanted
    assert batch.label.tolist() == [int(i >= 4) for i in wanted]
    assert data.num_broken == 3
    first, second = [row for row, i in enumerate(wanted) if i == wanted[order.index(1)]][:2]
    assert torch.equal(batch.views[0][first], batch.views[0][second])
    bank = [batch.index.tolist() for batch in data.eval_dataloaders().bank]
    assert bank == [[0, 2, 3], [5, 7]]
    with pytest.warns(UserWarning, match="3 of 8 training images were unreadable"):
        data.teardown("fit")


def test_errors_before_training_name_what_is_wrong(tmp_path: Path):
    root = write_tree(tmp_path / "good", size=(8, 8))
    (tmp_path / "empty").mkdir()
    (root / "train" / "fox").mkdir()
    (tmp_path / "file").write_bytes(b"")
    cases = [
        ({"root": tmp_path / "none"}, "must be a folder, got .*none', which does not exist"),
        ({"root": tmp_path / "file"}, "which is a file"),
        ({"root": tmp_path / "empty"}, r"but lacks \['train', 'val'\]; set train_dir"),
        ({"root": tmp_path / "empty", "labels": False}, "must hold files of .* got none"),
        ({"root": tmp_path / "empty", "val_dir": None}, "one sub-folder per class, got none"),
        ({"root": root}, r"must hold a file of .* none in: \['fox'\]"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            folder(**options).setup("fit")
    (root / "train" / "fox").rmdir()
    (root / "val" / "hen").mkdir()
    with pytest.raises(ValueError, match=r"classes that training lacks: \['hen'\]"):
        folder(root).setup("fit")
    (root / "val" / "hen").rmdir()
    with pytest.raises(ValueError, match=r"at most 8 .*training set.*, got 9"):
        folder(root, batch_size=9).setup("fit")
    picture(9, 8).save(root / "val" / "cat" / "x.png")
    with pytest.raises(ValueError, match=r'one size, got 8x9 in .*x.png and 8x8.*"workers"'):
        folder(root, decode="array").setup("fit")
    data = folder(root)
    data.setup("fit")
    assert data.sets.train.needs_crops  # "auto" leaves images of several sizes to workers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "disk"}, r"decode must be one of \['auto', 'array', 'workers'\], got 'disk'"),
        ({"on_broken": "ignore"}, "got 'ignore'"),
        ({"val_fraction": 1.0}, r"in \(0, 1\), got 1.0"),
        ({"val_fraction": 0.1, "labels": False}, "labels must be True"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"train_fraction": 0.0}, r"in \(0, 1\], got 0.0"),
        ({"predict_on": "bank"}, "got 'bank'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        folder(Path("x"), **options)


def test_imagenet_uses_its_official_evaluation(tmp_path: Path):
    root = write_tree(tmp_path)
    norm = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    views = Views([View(RandomResizedCrop(size), [norm]) for size in (224, 96)])
    data = ImageNet(str(root), views, batch_size=4, num_workers=0, seed=1)
    data.setup("fit")
    assert data.sets.train.needs_crops
    batch = data.eval_views(next(iter(data.eval_dataloaders().query)))
    assert batch.views[0].shape == (8, 3, 224, 224)
    from torchvision.transforms import v2

    official = v2.Compose([
        v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    for row in range(8):
        with Image.open(io.BytesIO(Path(data.sets.query.path(row)).read_bytes())) as image:
            wanted = official(image)
        assert (batch.views[0][row] - wanted).abs().max() <= 1.01 / 255 / 0.224
    train = data.train_views(next(iter(data.train_dataloader())), 0)
    assert train.views[0].shape == (4, 3, 224, 224)
    with pytest.raises(ValueError, match=r"lacks \['val'\]"):
        ImageNet(str(write_tree(tmp_path / "half", ("train",))), two_crops()).setup()


# -- evaluation follows training


def small_tree(root: Path, odd: str | None = None, size: tuple[int, int] = (32, 32)) -> Path:
    """16 images of one size, of which one may be another."""
    write_tree(root, size=size)
    if odd is not None:
        picture(90, 70).save(root / odd)
    return root


@pytest.mark.parametrize("decode", ["auto", "workers"])
@pytest.mark.parametrize(
    ("odd", "size", "wanted"),
    [
        (None, (32, 32), (32, None)),
        (None, (40, 32), (32, None)),  # its shorter side
        (None, (48, 48), (32, 37)),
        (None, (500, 375), (32, 37)),
    ],
)
def test_the_eval_view_follows_training(
    decode: Any, odd: str | None, size: tuple[int, int], wanted: Any, tmp_path: Path
) -> None:
    data = folder(small_tree(tmp_path, odd, size), transform=two_crops(32), decode=decode)
    assert data.eval_view.size == 32  # before anything is read
    data.setup("fit")
    assert (data.eval_view.size, data.eval_view.resize) == wanted
    for batch in data.eval_dataloaders().query:
        assert data.eval_views(batch).views[0].shape[1:] == (3, 32, 32)
    about = data.state_dict()["preprocessing"]
    assert (about["size"], about.get("resize"), about["channels"]) == (*wanted, 3)


def test_an_eval_view_that_is_given_counts(tmp_path: Path) -> None:
    given = EvalView(20, resize=24)
    data = folder(small_tree(tmp_path), transform=two_crops(32), eval_view=given)
    data.setup("fit")
    assert data.eval_view is given


def test_a_broken_image_does_not_change_the_eval_view(tmp_path: Path) -> None:
    root = small_tree(tmp_path)
    (root / "train/dog/2.jpg").write_bytes(b"no image")
    data = folder(root, transform=two_crops(32), decode="workers", on_broken="skip")
    data.setup("fit")
    assert (data.eval_view.size, data.eval_view.resize) == (32, None)
