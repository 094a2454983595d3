"""SegmentationFolder and Davis: layouts, masks that follow their images, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.data import Davis, SegmentationFolder
from sslzoo.data.image.davis import frame_size
from sslzoo.transforms import EvalView, RandomResizedCrop, View, Views
from sslzoo.transforms.image.normalize import Normalize

SIZE = (24, 36)  # height and width


def views(size: int = 16) -> Views:
    return Views([View(RandomResizedCrop(size), [Normalize([0.5] * 3, [0.5] * 3)])])


def write_pair(image: Path, mask: Path, seed: int, shift: int = 0) -> None:
    """The red channel of the image is 100 times its label."""
    labels = np.random.default_rng(seed).integers(0, 3, (6, 9)).repeat(4, 0).repeat(4, 1)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([100 * labels, np.zeros(SIZE), np.zeros(SIZE)], 2).astype(np.uint8)
    Image.fromarray(pixels).save(image)
    palette = Image.fromarray((labels + shift).astype(np.uint8), mode="P")
    palette.putpalette([9, 8, 7] * 256)
    palette.save(mask)


def write_tree(root: Path, split: str = "{part}/{kind}/{name}.png", **options: Any) -> Path:
    for part, count in (("train", 5), ("val", 3)):
        for i in range(count):
            names = [
                split.format(part=part, kind=kind, name=f"{part}{i}")
                for kind in ("images", "masks")
            ]
            write_pair(root / names[0], root / names[1], i, **options)
    return root


def folder(root: Path, **options: Any) -> SegmentationFolder:
    plain: dict[str, Any] = {"classes": 3, "batch_size": 2, "num_workers": 0, "seed": 0}
    made = SegmentationFolder(str(root), views(), **{**plain, **options})
    made.setup()
    return made


def follows(data: SegmentationFolder) -> None:
    """The mask of each evaluation view is the red channel's."""
    loaders = data.eval_dataloaders()
    assert loaders.query is not None
    for raw in (*loaders.bank, *loaders.query):
        batch = loaders.transform(raw)
        red = (batch.views[0][:, 0] * 0.5 + 0.5) * 2.55  # 0, 1, 2, but mixed at edges
        assert batch.label is not None
        assert batch.label.shape == red.shape
        sure = (red - red.round()).abs() < 0.02
        agree = (red.round() == batch.label)[sure].float().mean()
        assert sure.float().mean() > 0.4
        assert agree > 0.97


def test_masks_follow_their_images(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path))
    assert (data.num_samples, data.num_classes, data.classes) == (5, 3, ["0", "1", "2"])
    assert data.eval_view.resize == data.eval_view.size == 16
    follows(data)
    batch = next(iter(data.train_dataloader()))
    assert batch.label is None  # random crops have no mask
    assert data.train_views(batch, 0).views[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    "view", [EvalView(16, 20, [0.5] * 3, [0.5] * 3), EvalView(16, None, [0.5] * 3, [0.5] * 3),
             EvalView(16, None, [0.5] * 3, [0.5] * 3, fraction=0.8)],
)  # fmt: skip
def test_masks_follow_any_evaluation_view(tmp_path: Path, view: EvalView) -> None:
    follows(folder(write_tree(tmp_path), eval_view=view))


def test_other_layouts(tmp_path: Path) -> None:
    inside = write_tree(tmp_path / "ade", "{kind}/{part}/{name}.png")
    assert folder(inside).num_samples == 5
    flat = write_tree(tmp_path / "voc", "{kind}/{name}.png")
    (flat / "train.txt").write_text("train0\ntrain2\n\nval1\n")
    (flat / "val.txt").write_text("val2\n")
    data = folder(flat, train_dir="train.txt", val_dir="val.txt")
    assert (data.num_samples, len(data.sets.query)) == (3, 1)
    data = folder(flat, val_fraction=0.25)
    assert (data.num_samples, len(data.sets.query)) == (6, 2)
    (flat / "classes.txt").write_text("sky\nsea\nsand\n")
    assert folder(flat, val_fraction=0.25, classes=None).classes == ["sky", "sea", "sand"]
    for path in [*flat.glob("images/*"), *flat.glob("masks/*")]:
        end = "_leftImg8bit" if path.parent.name == "images" else "_labelIds"
        path.rename(path.with_name(f"{path.stem}{end}.png"))
    (flat / "masks" / "val0_color.png").touch()  # of another kind
    suffixes = {"image_suffix": "_leftImg8bit", "mask_suffix": "_labelIds"}
    assert folder(flat, val_fraction=0.25, **suffixes).num_samples == 6


def test_labels_of_ade20k(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path), classes=2, reduce_zero_label=True)
    raw = next(iter(data.eval_dataloaders().bank))
    assert set(raw.label.unique().tolist()) == {0, 1, 255}


def test_values_that_stand_for_classes(tmp_path: Path) -> None:
    root = write_tree(tmp_path, shift=7)
    data = folder(root, values=[9, 7, 8])
    raw, plain = (next(iter(x.eval_dataloaders().bank)) for x in (data, folder(root, classes=10)))
    assert torch.equal(torch.tensor([9, 7, 8])[raw.label], plain.label)


def test_a_mask_may_be_an_array(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    path = root / "train" / "masks" / "train0.png"
    np.save(path.with_suffix(".npy"), np.array(Image.open(path))[..., None].astype(np.int32))
    path.unlink()
    assert folder(root).num_samples == 5


def put(name: str, array: Any) -> Any:
    def change(root: Path) -> None:
        path = root / name
        if path.suffix == ".npy":
            path.with_suffix(".png").unlink()
            np.save(path, array)
        elif array is None:
            path.unlink()
        else:
            Image.fromarray(array).save(path)

    return change


MASK = "train/masks/train1.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(MASK, None), r"1 of 5 images in .* have no mask in .*: \['train1'\]"),
        (put("train/images/train1.png", None), r"1 of 5 masks in .* have no image in .*'train1'"),
        (
            put(MASK, np.zeros((24, 35), np.uint8)),
            r"must have the size of its image, got 35x24 pixels in .*train1.png and 36x24",
        ),
        (
            put(MASK, np.full(SIZE, 3, np.uint8)),
            r"labels of masks must be in 0\.\.2 \(the classes\) or 255 \(ignored\), got \[3\] in",
        ),
        (put(MASK, np.zeros((*SIZE, 3), np.uint8)), r"must have one channel.*got \(24, 36, 3\)"),
        (put("train/masks/train1.npy", np.full(SIZE, 0.5)), "must be whole numbers, got float64"),
        (lambda root: (root / MASK).write_bytes(b"no"), "cannot read the mask .*train1.png"),
        (lambda root: (root / "train/images/train1.png").write_bytes(b"no"), "cannot read the im"),
        (put("train/images/train1.jpg", np.zeros((*SIZE, 3), np.uint8)), "must have one file, got"),
    ],
)
def test_errors_before_the_first_step(tmp_path: Path, change: Any, message: str) -> None:
    root = write_tree(tmp_path)
    change(root)
    with pytest.raises(ValueError, match=message) as error:
        folder(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dir": "training"}, "root must hold training/images, images/training or the file"),
        ({"classes": None}, r"classes must be .* got None, and .*classes.txt.* does not exist"),
        ({"classes": 1}, "classes must be at least two"),
        ({"classes": ["a", "a"]}, "classes must be at least two, with distinct names"),
        ({"values": [0, 1]}, "values must be 3 distinct numbers"),
        ({"values": [0, 1, 4]}, r"values of masks must be \[0, 1, 4\] or 255 .* got \[2\]"),
        ({"val_fraction": 1.5}, "val_fraction must be in"),
        ({"val_fraction": 0.5}, "the folder of images must be a folder"),
        ({"mask_suffix": "_x"}, "must hold image files whose names end with '_x', got none"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folder(write_tree(tmp_path), **options)


def test_masks_of_0_and_255_need_their_values(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    for path in root.glob("*/masks/*"):
        Image.fromarray(np.array(Image.open(path)).clip(0, 1) * 255).save(path)
    with pytest.raises(ValueError, match=r"at least two classes, got labels \[0, 255\]"):
        folder(root, classes=2)
    raw = next(iter(folder(root, classes=2, values=[0, 255]).eval_dataloaders().bank))
    assert set(raw.label.unique().tolist()) == {0, 1}


def test_a_list_must_name_images(tmp_path: Path) -> None:
    root = write_tree(tmp_path, "{kind}/{name}.png")
    (root / "train.txt").write_text("train0\nother\n")
    with pytest.raises(ValueError, match=r"must list names of images, got 2 .*\['other'\]"):
        folder(root, train_dir="train.txt", val_dir=None)


def write_davis(root: Path, names: tuple[str, ...] = ("bear", "camel")) -> Path:
    for name in names:
        for step in range(4):
            image = np.random.default_rng(step).integers(0, 30, (40, 64, 3), np.uint8)
            mask = np.zeros((40, 64), np.uint8)
            left = 4 * step
            image[10:30, left : left + 20, 0], mask[10:30, left : left + 20] = 250, 1
            for kind, array, end in (("JPEGImages", image, "jpg"), ("Annotations", mask, "png")):
                path = root / kind / "480p" / name / f"{step:05d}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    path = root / "ImageSets" / "2017" / "val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(names) + "\n")
    return root


def test_frames_have_the_size_of_dino() -> None:
    assert frame_size((480, 854), 480) == (480, 832)
    assert frame_size((1920, 1080), 480) == (832, 480)
    assert frame_size((40, 64), 32) == (32, 64)


def test_davis_in_the_official_layout(tmp_path: Path) -> None:
    root = write_davis(tmp_path)
    data = Davis(str(root), views(), num_workers=0, batch_size=4)
    data.setup()
    assert [video.name for video in data.videos] == ["bear", "camel"]
    assert data.num_samples == 8
    frame = next(data.frames(data.videos[0], 32, "cpu"))()
    assert frame.shape == (1, 3, 32, 64 * 32 // 40 // 64 * 64 or 64)
    assert data.masks(data.videos[0])[1].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("ImageSets/2017/val.txt", "root must hold ImageSets/2017/val.txt"),
        ("Annotations/480p/bear/00001.png", r"'bear' must have .*4 frames and 3 masks.*'00001'"),
    ],
)
def test_davis_without_a_file(tmp_path: Path, lost: str, message: str) -> None:
    root = write_davis(tmp_path)
    (root / lost).unlink()
    with pytest.raises(ValueError, match=message):
        Davis(str(root), views()).setup()
