"""Image folders as they are: odd sizes, loops of links, every format, every bit depth."""

from __future__ import annotations

import os
import shutil
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from sslzoo.data import ImageFolder
from sslzoo.data.image.load import IMAGE_EXTENSIONS
from sslzoo.data.image.rasters import open_image
from sslzoo.data.listing import find_files, list_classes
from sslzoo.transforms import RandomResizedCrop, View, Views
from sslzoo.transforms.image.pixels import Decoding

RNG = np.random.default_rng(0)
FINE = np.linspace(0, 1, 24 * 24).reshape(24, 24)  # more values than 8 bits have


def views(size: int = 24) -> Views:
    return Views([View(RandomResizedCrop(size, scale=(1, 1), ratio=(1, 1), flip=0), [])])


def folder(root: Path, **changes: Any) -> ImageFolder:
    given: dict[str, Any] = {"batch_size": 4, "labels": False, "seed": 1, "num_workers": 0}
    data = ImageFolder(str(root), views(changes.pop("size", 24)), **{**given, **changes})
    data.setup("fit")
    return data


def evaluated(data: ImageFolder) -> torch.Tensor:
    """The evaluation views of all images; one training batch is made too."""
    batch = next(iter(data.train_dataloader()))
    assert data.train_views(batch, 0).views[0].isfinite().all()
    return torch.cat([data.eval_views(batch).views[0] for batch in data.eval_dataloaders().bank])


def colors(side: int = 24) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8))


# -- bit depth and range

DEPTHS: dict[str, tuple[np.ndarray, str, tuple[float, float] | None]] = {
    "8 bits": ((FINE * 255).round().astype(np.uint8), "png", None),
    "16-bit PNG": ((FINE * 65535).astype(np.uint16), "png", None),
    "16-bit TIFF": ((FINE * 65535).astype(np.uint16), "tif", None),
    "big-endian TIFF": ((FINE * 65535).astype(">u2"), "tif", None),
    "float TIFF": (FINE.astype(np.float32), "tif", None),
    "bits": (FINE > 0.5, "png", None),
    "12 bits": ((FINE * 4095).astype(np.uint16), "png", (0, 4095)),
    "float TIFF of bytes": ((FINE * 255).astype(np.float32), "tif", (0, 255)),
    "CT": ((FINE * 3000 - 1000).astype(np.int32), "tif", (-1000, 2000)),
    "float of -1 to 1": ((FINE * 2 - 1).astype(np.float32), "tif", (-1, 1)),
    "declared 8 bits": ((FINE * 15).round().astype(np.uint8), "png", (0, 15)),
}


def write(root: Path, name: str) -> None:
    root.mkdir(exist_ok=True)
    array, ending, _ = DEPTHS[name]
    for i in range(5):
        Image.fromarray(array).save(root / f"{i}.{ending}")


@pytest.mark.parametrize("decode", ["array", "workers"])
@pytest.mark.parametrize("name", list(DEPTHS))
def test_values_are_those_of_the_file_or_refused(tmp_path: Path, name: str, decode: Any) -> None:
    write(tmp_path, name)
    _, _, declared = DEPTHS[name]
    for channels in (1, 3):
        data = folder(tmp_path, decode=decode, value_range=declared, channels=channels)
        got = evaluated(data)
        assert got.shape == (5, channels, 24, 24)
        wanted = torch.tensor(FINE > 0.5 if name == "bits" else FINE, dtype=torch.float32)
        error = (got - wanted).abs().max()
        assert error <= (0.04 if name == "declared 8 bits" else 1 / 255 if "8" in name else 1e-3)
    if declared is not None and name != "declared 8 bits":
        with pytest.raises(ValueError, match=r"must .*, got .* value_range=.*the file is .*0\."):
            folder(tmp_path, decode=decode)


@pytest.mark.parametrize("decode", ["array", "workers"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3.0])
def test_a_value_that_is_no_pixel_is_never_skipped(
    tmp_path: Path, wrong: float, decode: Any
) -> None:
    write(tmp_path, "float TIFF")
    array = DEPTHS["float TIFF"][0].copy()
    array[3, 3] = wrong
    Image.fromarray(array).save(tmp_path / "2.tif")
    with pytest.raises(ValueError, match=r"images must be .*, got .*2\.tif"):
        folder(tmp_path, decode=decode, on_broken="skip")


def test_a_wrong_value_that_the_sample_missed_is_an_error_too(tmp_path: Path) -> None:
    write(tmp_path, "float TIFF")
    data = folder(tmp_path, decode="workers", on_broken="skip")
    Image.fromarray(DEPTHS["float TIFF"][0] * 255).save(tmp_path / "2.tif")
    with pytest.raises(ValueError, match=r"images must be .*, got float32 .*2\.tif"):
        evaluated(data)


def test_one_dark_image_of_16_bits_is_an_image(tmp_path: Path) -> None:
    write(tmp_path, "16-bit PNG")
    Image.fromarray(DEPTHS["12 bits"][0]).save(tmp_path / "0.png")
    for decode in ("array", "workers"):
        got = evaluated(folder(tmp_path, decode=decode, channels=1))
        assert got[0].max() == pytest.approx(4095 / 65535, rel=1e-3)


@pytest.mark.parametrize("decode", ["auto", "workers"])
def test_depths_may_be_mixed(tmp_path: Path, decode: Any) -> None:
    write(tmp_path, "8 bits")
    Image.fromarray(DEPTHS["16-bit PNG"][0]).save(tmp_path / "5.png")
    got = evaluated(folder(tmp_path, decode=decode))
    assert (got - torch.tensor(FINE)).abs().max() <= 1 / 255
    with pytest.raises(ValueError, match="images of an array must have one bit depth, got more"):
        folder(tmp_path, decode="array")


def png_of_16_bits(path: Path) -> np.ndarray:
    """A color PNG of 16 bits, which Pillow can read but not write."""
    import struct
    import zlib

    values = RNG.integers(0, 65536, (24, 24, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", 24, 24, 16, 2, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(rows))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    return values


def test_color_of_16_bits_keeps_its_bits(tmp_path: Path) -> None:
    values = png_of_16_bits(tmp_path / "0.png")
    head = b"P6 24 24 60000\n"
    (tmp_path / "1.ppm").write_bytes(head + (values % 60001).astype(">u2").tobytes())
    for name, most in (("0.png", 65535), ("1.ppm", 60000)):
        with open_image(str(tmp_path / name)) as image:
            pixels = Decoding()(image)
        wanted = torch.from_numpy((values.astype(int) % (most + 1) / most).astype(np.float32))
        torch.testing.assert_close(pixels, wanted.permute(2, 0, 1))
    data = folder(tmp_path, batch_size=2, decode="workers")
    data.setup("fit")
    assert len(evaluated(data).unique()) > 256


def test_alpha_is_kept_or_its_loss_is_said(tmp_path: Path) -> None:
    for i in range(5):
        colors().convert("RGBA").save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match=r"alpha channel .*0\.png is dropped; set channels=4"):
        assert evaluated(folder(tmp_path)).shape[1] == 3
    kept = folder(tmp_path, channels=4)
    assert evaluated(kept).shape[1] == 4
    assert kept.preprocessing()["channels"] == 4
    with pytest.raises(ValueError, match=r"must have 2 channels, got 4 .mode RGBA"):
        folder(tmp_path, channels=2)


def test_what_changes_features_changes_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, "12 bits")
    ranges = [(0, 4095), (0, 8000)]
    found = {folder(tmp_path, value_range=r, decode="workers").fingerprint() for r in ranges}
    found.add(folder(tmp_path, value_range=ranges[0], channels=1, decode="workers").fingerprint())
    assert len(found) == 3


# -- formats: found by themselves


def writable() -> list[str]:
    Image.init()
    kinds = Image.registered_extensions()
    return [e for e in IMAGE_EXTENSIONS if kinds[e] in Image.SAVE]


@pytest.mark.filterwarnings("ignore:IM image format is deprecated", "ignore:the alpha channel")
@pytest.mark.parametrize("ending", writable())
def test_every_format_of_pillow_is_read(tmp_path: Path, ending: str) -> None:
    for mode in ("RGB", "L", "1", "P"):
        try:
            colors(16).convert(mode).save(tmp_path / f"0{ending}")
            break
        except (OSError, ValueError, KeyError):
            continue
    else:
        pytest.skip("Pillow has no encoder here")
    for i in range(1, 4):
        shutil.copy(tmp_path / f"0{ending}", tmp_path / f"{i}{ending}")
    data = folder(tmp_path, size=16)
    assert data.num_samples == 4
    assert evaluated(data).shape == (4, 3, 16, 16)


def test_the_usual_endings_are_among_them() -> None:
    usual = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
    assert usual | {".pgm", ".jp2", ".tga", ".ico", ".pbm"} <= set(IMAGE_EXTENSIONS)
    assert not {".mp4", ".pdf", ".h5", ".eps", ".txt"} & set(IMAGE_EXTENSIONS)


# -- sizes


@pytest.mark.parametrize("decode", ["auto", "workers"])
@pytest.mark.parametrize("size", [(90, 70), (9, 12)])
def test_most_images_decide_on_the_evaluation(tmp_path: Path, decode: Any, size: Any) -> None:
    for i in range(12):
        colors().save(tmp_path / f"{i:02}.png")
    colors().resize(size).save(tmp_path / "05.png")
    with pytest.warns(UserWarning, match=r"1 of 12 images have another .* than 24 .*05\.png"):
        data = folder(tmp_path, decode=decode)
    assert (data.eval_view.size, data.eval_view.resize) == (24, None)
    assert evaluated(data).shape == (12, 3, 24, 24)


def test_photographs_are_resized_and_their_headers_not_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(60):
        Image.new("RGB", (30 + i % 7, 40)).save(tmp_path / f"{i:02}.png")
    data = folder(tmp_path, decode="workers")
    assert (data.eval_view.size, data.eval_view.resize) == (24, 27)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real(path))
    assert data.sets.train.side(24) is None
    assert len(opened) <= 32


# -- listing


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(root: Path) -> list[str]:
    return [os.path.relpath(p, root) for p in find_files(root, (".png",)).paths]


def test_loops_of_links_end(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.png", "b/2.png", "c/d/3.png")
    for link, target in (
        ("a/up", "."),
        ("b/again", "."),
        ("c/d/b", "b"),
        ("c/d/e", "a"),
        ("0", "c"),
    ):
        (root / link).symlink_to(root / target)
    assert names(root) == ["0/d/3.png", "0/d/b/2.png", "0/d/e/1.png"]
    assert len(find_files(root, (".png",)).left_out) >= 2


LEFT_OUT = {
    "another ending": "cat/notes.txt",
    "no ending": "cat/0001",
    "hidden file": "cat/.1.png",
    "hidden folder": ".trash/1.png",
    "beside the classes": "1.png",
    "inside a class": "cat/deep/a.mp4",
}


@pytest.mark.parametrize("kind", list(LEFT_OUT))
def test_what_is_left_out_is_counted_and_named(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path, "cat/1.png", "dog/1.PNG", "dog/2.png", LEFT_OUT[kind])
    tree(root, "cat/.DS_Store", "cat/._1.png", "Thumbs.db")  # of operating systems
    with pytest.warns(UserWarning, match=r"1 files are left out, .*: ") as said:
        listing = list_classes(root, "root", (".png",))
    assert LEFT_OUT[kind].split("/")[0] in str(said[0].message).rpartition(": ")[2]
    assert listing.labels.tolist() == [0, 1, 1]


def test_pipes_are_no_images(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.png")
    os.mkfifo(root / "b.png")  # opening it would wait for ever
    (root / "c.png").symlink_to(root / "nowhere")  # an unreadable image
    assert names(root) == ["a.png", "c.png"]


def test_classes_have_one_name_in_all_forms_of_unicode(tmp_path: Path) -> None:
    composed, parts = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = tree(tmp_path / "a", f"train/{parts}/1.png", "train/x/1.png", f"val/{composed}/1.png")
    train = list_classes(root / "train", "root", (".png",))
    val = list_classes(root / "val", "root", (".png",), train.classes)
    assert list(train.classes) == [composed, "x"]
    assert val.labels.tolist() == [0]
    both = tree(tmp_path / "b", f"{parts}/1.png", f"{composed}/1.png")
    with pytest.raises(ValueError, match="one folder per class, got two Unicode forms of 'café'"):
        list_classes(both, "root", (".png",))


BROKEN = {
    "empty": b"",
    "truncated": None,
    "text": b"<html>not found</html>",
    "dangling link": "link",
}


@pytest.mark.parametrize("decode", ["array", "workers"])
@pytest.mark.parametrize("kind", list(BROKEN))
def test_files_that_are_no_images_are_named(tmp_path: Path, kind: str, decode: Any) -> None:
    for i in range(4):
        colors().save(tmp_path / f"{i}.png")
    content, path = BROKEN[kind], tmp_path / "2.png"
    whole = path.read_bytes()
    path.unlink()
    if content == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cannot read the image .*2\.png"):
        evaluated(folder(tmp_path, decode=decode))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(evaluated(folder(tmp_path, decode=decode, on_broken="skip", batch_size=3))) == 3


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    for name in ("a/1.png", *(f"b/{i}.png" for i in range(5))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        colors().save(tmp_path / name)
    data = folder(tmp_path, labels=True, val_fraction=0.4, batch_size=2)
    assert data.sets.train.labels.bincount().tolist() == [1, 3]


@pytest.mark.parametrize("ending", ["tif", "gif", "png", "webp"])
def test_further_frames_are_left_out_with_a_word(tmp_path: Path, ending: str) -> None:
    for i in range(4):
        more = {"save_all": True, "append_images": [colors()]}
        colors().save(tmp_path / f"{i}.{ending}", **more)
    with pytest.warns(UserWarning, match=rf"only the first frame of images .*\.{ending} is read"):
        assert folder(tmp_path).num_samples == 4
