"""`check_data` finds what a folder or a list holds, and its YAML loads as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from PIL import Image

from sslzoo.data.check import DataReport, check_data
from sslzoo.trust import build

RNG = np.random.default_rng(0)


def values(kind: str, most: float, channels: int = 5, side: int = 32) -> np.ndarray:
    return (RNG.random((channels, side, side)) * most).astype(kind)


def tree(root: Path, kind: str = "uint16", most: float = 65535, **sizes: int) -> Path:
    for part, count in (("train", 6), ("val", 2)):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                np.save(root / part / name / f"{i}.npy", values(kind, most, **sizes))
    return root


def loaded(report: DataReport) -> Any:
    """The data module of the report's YAML, as the command makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    parsed = parser.parse_object(yaml.safe_load(report.yaml))
    data = parser.instantiate(parsed)["data"]
    data.setup("fit")
    return data


def normalized(data: Any) -> torch.Tensor:
    """All evaluation views of the training set."""
    return torch.cat([data.eval_views(batch).views[0] for batch in data.eval_dataloaders().bank])


@pytest.mark.parametrize(
    ("kind", "most", "wanted"),
    [
        ("uint16", 65535, None),
        ("uint16", 4095, [0, 4095]),
        ("uint16", 1000, [0, 1023]),
        ("uint16", 10000, [0, 16383]),
        ("uint8", 255, None),
        ("float32", 1, None),
        ("float32", 300, "observed"),
        ("int16", 2000, [0, 4095]),
        ("uint32", 70000, [0, 2**32 - 1]),
    ],
)
def test_the_yaml_reads_the_values_of_every_type(
    tmp_path: Path, kind: str, most: float, wanted: Any
) -> None:
    report = check_data(str(tree(tmp_path, kind, most)))
    args = report.data["init_args"]
    found = args.get("value_range")
    assert found == wanted or (wanted == "observed" and 0 <= found[0] < found[1] <= most)
    data = loaded(report)
    assert (data.num_samples, len(data.sets.query), data.num_classes) == (12, 4, 2)
    view = normalized(data)
    assert view.shape == (12, 5, 32, 32)
    if kind != "uint32":  # of which little of the range is used
        assert view.mean((0, 2, 3)).abs().max() < 0.1
        assert (view.std((0, 2, 3)) - 1).abs().max() < 0.1
    batch = data.train_views(next(iter(data.train_dataloader())), 0)
    assert [v.shape for v in batch.views] == [(8, 5, 32, 32)] * 2


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path)
    np.save(root / "val/a/copy.npy", np.load(root / "train/b/3.npy"))
    np.save(root / "train/a/copy.npy", np.load(root / "train/b/2.npy"))
    np.save(root / "train/a/nan.npy", np.full((5, 32, 32), np.nan, np.float32))
    (root / "train/a/broken.png").write_bytes(b"none")
    report = check_data(str(root))
    assert [[Path(p).name for p in group] for group in report.duplicates] == [
        ["copy.npy", "2.npy"],
        ["3.npy", "copy.npy"],
    ]
    assert [[Path(p).name for p in group] for group in report.leaks] == [["3.npy", "copy.npy"]]
    assert {Path(path).name for path in report.unreadable} == {"broken.png", "nan.npy"}
    assert report.counts == {"train": {"a": 9, "b": 6}, "val": {"a": 3, "b": 2}}
    text = str(report)
    for said in (
        "train: 15 images, 2 classes: a (9), b (6)",
        "kinds: 5 x uint16 (18)",
        "sizes (height x width): 32 x 32 (18)",
        "unreadable files: 2",
        "broken.png: UnidentifiedImageError",
        "groups of equal images: 2",
        "of these, in more than one split: 1",
    ):
        assert said in text
    assert text.endswith(report.yaml.rstrip())
    assert report.data["init_args"]["on_broken"] == "skip"


def test_photographs_get_a_color_recipe_and_layouts_are_found(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (8, 33, 33, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        for folder in (tmp_path / "flat", tmp_path / "classes" / "xy"[i % 2]):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image if i else image[:, :, 0]).save(folder / f"{i}.png")
    flat = check_data(str(tmp_path / "flat"))
    args = flat.data["init_args"]
    assert (args["labels"], args["channels"]) == (False, 3)
    assert args["transform"]["class_path"] == "sslzoo.transforms.simclr_views"
    assert "kinds: RGB uint8 (7), L uint8 (1)" in str(flat)
    color = pixels[1:].reshape(-1, 3) / 255
    wanted = {"size": 32, "mean": color.mean(0).round(4).tolist(), "std": color.std(0).tolist()}
    got = args["transform"]["init_args"]
    assert got["size"] == wanted["size"]
    np.testing.assert_allclose(got["mean"], wanted["mean"], atol=1e-3)
    np.testing.assert_allclose(got["std"], wanted["std"], atol=1e-3)
    assert loaded(flat).num_samples == 8
    classes = loaded(check_data(str(tmp_path / "classes")))
    assert (classes.num_samples, len(classes.sets.query), classes.num_classes) == (4, 4, 2)


def test_a_list_is_checked_as_it_is_read(tmp_path: Path) -> None:
    lines = ["file,kind,fold"]
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", values("uint16", 4095, 2))
        lines.append(f"{i}.npy,{'ab'[i % 2]},{'test' if i > 5 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    names = {"path_column": "file", "label_column": "kind", "split_column": "fold"}
    report = check_data(str(tmp_path / "list.csv"), **names)
    assert report.counts == {"train": {"a": 3, "b": 3}, "test": {"a": 1, "b": 1}}
    data = loaded(report)
    assert (data.num_samples, len(data.sets.query), data.classes) == (6, 2, ["a", "b"])
    assert data.value_range == (0, 4095)


def read_first_two(path: str) -> np.ndarray:
    return np.load(path)[:2]


def test_a_reader_and_a_declared_range_are_in_the_yaml(tmp_path: Path) -> None:
    root = tree(tmp_path)
    report = check_data(str(root), (100, 50000), True, read_first_two)
    args = report.data["init_args"]
    assert args["reader"] == f"{__name__}.read_first_two"
    assert (args["channels"], args["value_range"], args["clip"]) == (2, [100, 50000], True)
    data = loaded(report)
    assert data.sets.train.channels == 2
    made = build(report.data, LightningDataModule, "the config", trust=True)
    assert made.reader is read_first_two
    args["reader"] = "os.system"
    with pytest.raises(ValueError, match=r"os\.system"):
        build(report.data, LightningDataModule, "the config")


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold readable images, got 0 files"):
        check_data(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"got 1 files .*a\.png"):
        check_data(str(tmp_path))
    with pytest.raises(ValueError, match="must be a folder, got"):
        check_data(str(tmp_path / "nowhere"))
