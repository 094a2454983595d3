"""Lists of files, arrays of images, and data sets of others, without a wrapper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import FakeData

from sslzoo.batch import Batch
from sslzoo.data import HFImages, ImageArrays, ImageDataset, ImageList
from sslzoo.data.sampler import KeyedSampler
from sslzoo.transforms import channel_views
from tests.data.toys import PlainViews

RNG = np.random.default_rng(0)
BANDS = RNG.integers(0, 65536, (12, 5, 10, 12), dtype=np.uint16)  # (N, C, H, W)
LABELS = np.arange(12) % 3


def set_up(data: Any) -> Any:
    data.setup("fit")
    return data


def batches(data: Any, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [data.train_views(batch, epoch) for batch in loader]


# -- lists


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i, image in enumerate(BANDS):
        np.save(tmp_path / f"{i}.npy", image)
    return tmp_path


def rows(labels: bool = True, splits: bool = True) -> list[dict[str, Any]]:
    table = []
    for i in range(12):
        row: dict[str, Any] = {"path": f"{i}.npy"}
        row |= {"label": int(LABELS[i]) + 9} if labels else {}
        row |= {"split": "val" if i >= 9 else "train"} if splits else {}
        table.append(row)
    return table


def write_table(path: Path, table: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(table[0]), *(mark.join(map(str, row.values())) for row in table)]
        path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def listed(file: Path, **changes: Any) -> ImageList:
    plain: dict[str, Any] = {"batch_size": 3, "seed": 1, "channels": 5, "num_workers": 0}
    return set_up(ImageList(str(file), PlainViews(), **{**plain, **changes}))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_table_has_paths_labels_and_splits(images: Path, ending: str) -> None:
    data = listed(write_table(images / f"list{ending}", rows()))
    assert (len(data.sets.train), len(data.sets.query), data.num_classes) == (9, 3, 3)
    assert data.classes == ["9", "10", "11"]
    assert data.sets.train.labels.tolist() == LABELS[:9].tolist()
    torch.testing.assert_close(
        data.sets.train.images, torch.from_numpy(BANDS[:9].astype(np.float32) / 65535)
    )


def test_columns_and_splits_have_other_names(images: Path, tmp_path_factory: Any) -> None:
    table = [{"file": r["path"], "kind": "abc"[i % 3], "fold": i % 2} for i, r in enumerate(rows())]
    file = write_table(tmp_path_factory.mktemp("lists") / "list.csv", table)
    names = {"path_column": "file", "label_column": "kind", "split_column": "fold"}
    data = listed(file, root=str(images), train_split="0", val_split="1", **names)
    assert (data.num_samples, len(data.sets.query), data.classes) == (6, 6, ["a", "b", "c"])
    whole = listed(file, root=str(images), path_column="file", val_fraction=0.25, label_column=None)
    assert (whole.num_samples, len(whole.sets.query), whole.num_classes) == (9, 3, None)


def test_a_text_file_has_one_path_per_line(images: Path) -> None:
    file = images / "list.txt"
    file.write_text("".join(f"{images / str(i)}.npy\n" for i in range(12)) + "\n")
    data = listed(file)
    assert (data.num_samples, data.num_classes, data.sets.query) == (12, None, None)


def test_wrong_lists_are_refused(images: Path) -> None:
    write_table(images / "list.csv", rows())
    missing = [*rows(False, False), {"path": "nowhere.npy"}]
    write_table(images / "missing.csv", missing)
    (images / "short.csv").write_text("path,label\n0.npy\n")
    (images / "none.csv").write_text("path,label\n0.npy,a\n1.npy,\n")
    (images / "empty.csv").write_text("path\n")
    for name, changes, said in (
        ("list.csv", {"path_column": "file"}, r"path_column must be one of .*got 'file'"),
        ("list.csv", {"label_column": "kind"}, r"label_column must be one of .*got 'kind'"),
        ("list.csv", {"train_split": "all"}, r"train_split must be one of .*got 'all'"),
        ("list.csv", {"val_split": "dev"}, r"val_split must be one of .*null for no validation"),
        ("list.csv", {"root": "/nowhere"}, r"existing files, got '0.npy' .*set root"),
        ("missing.csv", {}, r"got 'nowhere.npy' in .*row 13"),
        ("short.csv", {}, "rows must have 2 columns, got another number in line 2"),
        ("none.csv", {}, "row 2 has none"),
        ("empty.csv", {}, "must have rows, got none"),
        ("list.xlsx", {}, "must be an existing file of .csv"),
    ):
        with pytest.raises(ValueError, match=said):
            listed(images / name, **changes)


# -- arrays


def write_arrays(path: Path, images: np.ndarray) -> Path:
    parts = {"images": images, "label": LABELS}
    if path.suffix == ".npz":
        np.savez(path, **parts)
    elif path.suffix == ".h5":
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, values in parts.items():
                file[name] = values
    elif path.suffix == ".zarr":
        group = pytest.importorskip("zarr").open_group(str(path), mode="w")
        for name, values in parts.items():
            group.create_array(name, shape=values.shape, dtype=values.dtype)[:] = values
    else:
        np.save(path, images)
    return path


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".zarr"])
def test_arrays_keep_channels_and_bits(tmp_path: Path, ending: str, last: bool) -> None:
    given = BANDS.transpose(0, 2, 3, 1) if last else BANDS
    file = write_arrays(tmp_path / f"a{ending}", np.ascontiguousarray(given))
    label = None if ending == ".npy" else "label"
    for workers in (0, 2):
        data = ImageArrays(str(file), PlainViews(), 4, label=label, seed=1, num_workers=workers)
        data.val_fraction = 0.25 if label else None
        set_up(data)
        assert (data.sets.train.channels, data.num_classes) == (5, 3 if label else None)
        raw = list(data.train_dataloader())
        data.teardown()
        used = torch.arange(12) if label is None else data.sets.train.rows
        for batch in raw:
            wanted = torch.from_numpy(BANDS.astype(np.float32) / 65535)[used[batch.index]]
            torch.testing.assert_close(batch.views[0], wanted)
            if label:
                assert batch.label.tolist() == LABELS[used[batch.index]].tolist()
    assert data.fingerprint() == data.fingerprint()


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    npz = str(write_arrays(tmp_path / "a.npz", BANDS))
    square = str(write_arrays(tmp_path / "square.npy", np.zeros((4, 5, 9, 5), np.uint8)))
    dark = str(write_arrays(tmp_path / "dark.npz", BANDS // 16))
    flat = str(write_arrays(tmp_path / "flat.npy", np.zeros((4, 5), np.uint8)))
    for file, changes, said in (
        ("nowhere.npy", {}, "must be an existing file of .npy, .npz"),
        (npz, {"images": "x"}, r"must have the arrays \['x'\].* but has \['images', 'label'\]"),
        (npz, {"label": "images"}, r"labels must be \(N,\) classes"),
        (npz, {"channels": 12, "val": square}, "same channels|must be the second or last axis"),
        (square, {}, "set channels"),
        (dark, {}, r"set value_range=\(0, 4095\)"),
        (flat, {}, r"\(N, H, W, C\) or \(N, C, H, W\), got \(4, 5\)"),
    ):
        with pytest.raises(ValueError, match=said):
            set_up(ImageArrays(file, PlainViews(), 4, **changes))
    assert set_up(ImageArrays(dark, PlainViews(), 4, value_range=(0, 4095))).num_samples == 12


# -- data sets of others


class Own(Dataset):
    def __init__(self, keys: bool = False, count: int = 12) -> None:
        self.keys, self.count = keys, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        image, label = torch.from_numpy(BANDS[i]), int(LABELS[i])
        return {"image": image, "label": label} if self.keys else (image, label)


class OwnStream(IterableDataset):
    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter([Own()[i] for i in range(self.count)])


def of(dataset: Any, **changes: Any) -> ImageDataset:
    plain: dict[str, Any] = {"batch_size": 4, "seed": 1, "num_classes": 3}
    return set_up(ImageDataset(dataset, PlainViews(), **{**plain, **changes}))


@pytest.mark.parametrize("keys", [False, True])
def test_a_users_data_set_is_served_as_it_is(keys: bool) -> None:
    data = of(Own(keys), val=Own(keys, 5))
    assert (data.sets.train.channels, len(data.sets.query), data.num_classes) == (5, 5, 3)
    raw = list(data.train_dataloader())
    assert sorted(torch.cat([b.index for b in raw]).tolist()) == list(range(12))
    for batch in raw:
        wanted = torch.from_numpy(BANDS.astype(np.float32) / 65535)[batch.index]
        torch.testing.assert_close(batch.views[0], wanted)
        assert batch.label.tolist() == LABELS[batch.index].tolist()


def test_torchvision_is_served_from_yaml(tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser
    from lightning import LightningDataModule

    kind = {"class_path": "torchvision.datasets.FakeData"}
    sizes = {"size": 12, "image_size": [3, 16, 16], "num_classes": 3}
    views = {"class_path": "sslzoo.transforms.simclr_views", "init_args": {"size": 16}}
    given = {"train": {**kind, "init_args": sizes}, "transform": views, "batch_size": 4}
    parser = ArgumentParser()
    parser.add_argument("--data", type=LightningDataModule)
    config = {"class_path": "sslzoo.data.ImageDataset", "init_args": given}
    data = parser.instantiate(parser.parse_args([f"--data={json.dumps(config)}"])).data
    assert isinstance(data.given[0], FakeData)
    batch = batches(set_up(data))[0]
    assert [view.shape for view in batch.views] == [(4, 3, 16, 16)] * 2


def test_a_stream_has_the_batches_of_its_order_on_any_rank_and_after_a_resume() -> None:
    data = of(OwnStream(), num_samples=12)
    assert (data.num_samples, data.sets.train.channels, data.shuffles()) == (12, 5, False)
    raw = [list(data.train_dataloader()) for _ in range(2)]
    for epoch in raw:
        assert torch.cat([b.index for b in epoch]).tolist() == list(range(12))
        for batch in epoch:
            wanted = torch.from_numpy(BANDS.astype(np.float32) / 65535)[batch.index]
            torch.testing.assert_close(batch.views[0], wanted)
    views = batches(data)
    parts = []
    for rank in range(2):
        sampler = KeyedSampler(12, 4, 1, shuffle=False, rank=rank, world=2)
        source = data.train_source(sampler)
        split = torch.tensor(list(sampler)).split(2)
        parts.append([data.train_views(source.__getitems__(i.tolist()), 0) for i in split])
    for whole, first, second in zip(views, *parts, strict=True):
        for view, pair in zip(
            whole.views, zip(first.views, second.views, strict=True), strict=True
        ):
            assert torch.equal(view, torch.cat(pair))
    first = data.train_dataloader()
    next(iter(first))
    again = of(OwnStream(), num_samples=12)
    again.load_state_dict({"train_loader": first.state_dict()})
    assert [b.index[0].item() for b in again.train_dataloader()] == [4, 8]
    bank = data.eval_dataloaders().bank
    assert torch.cat([b.index for b in bank]).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("dataset", "changes", "said"),
    [
        (OwnStream(), {}, "num_samples must be the number of samples per epoch"),
        (OwnStream(), {"num_samples": 12, "train_fraction": 0.5}, "train_fraction must be 1"),
        (OwnStream(), {"num_samples": 12, "num_workers": 2}, "num_workers must be 0"),
        (OwnStream(), {"num_samples": 12, "val": OwnStream()}, "val must be a map-style data set"),
        (OwnStream(0), {"num_samples": 12}, "ended before item 1 of 12"),
        (Own(count=0), {}, "must have samples, got none"),
        (3, {}, "must have __getitem__ and __len__, or be iterable, got int"),
    ],
)
def test_what_a_data_set_cannot_do_is_refused(
    dataset: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        of(dataset, **changes)


def test_a_stream_that_ends_early_says_so() -> None:
    data = of(OwnStream(9), num_samples=12)
    with pytest.raises(ValueError, match=r"num_samples must be at most .* before item 10 of 12"):
        list(data.train_dataloader())


@pytest.mark.parametrize("streaming", [False, True])
def test_hugging_face_is_served_by_folder_and_as_an_object(tmp_path: Path, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pixels = RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    table = {"image": [Image.fromarray(x) for x in pixels], "label": LABELS.tolist()}
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"])
    )
    saved = datasets.Dataset.from_dict(table, kinds)
    datasets.DatasetDict(train=saved, test=saved.select(range(4))).save_to_disk(str(tmp_path))
    named = HFImages(
        *(str(tmp_path), PlainViews(), 4),
        val_split="test",
        streaming=streaming,
        num_samples=12 if streaming else None,
        seed=1,
    )
    given = ImageDataset(
        saved.to_iterable_dataset() if streaming else saved,
        *(PlainViews(), 4, saved.select(range(4))),
        num_samples=12 if streaming else None,
        seed=1,
    )
    for data in (named, given):
        data.prepare_data()
        set_up(data)
        assert (data.num_samples, data.num_classes, len(data.sets.query)) == (12, 3, 4)
        for batch in data.train_dataloader():
            wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2)[batch.index]
            assert torch.equal(batch.views[0], wanted)
            assert batch.label.tolist() == LABELS[batch.index].tolist()
    if not streaming:
        assert named.sets.train.labels.tolist() == LABELS.tolist()
        with pytest.raises(ValueError, match=r"one of \['test', 'train'\] of .*got 'dev'"):
            set_up(HFImages(str(tmp_path), PlainViews(), 4, train_split="dev"))


def test_channel_recipes_run_on_every_source(tmp_path: Path) -> None:
    transform = channel_views([8], mean=[0.5] * 5, std=[0.3] * 5)
    file = str(write_arrays(tmp_path / "a.npz", BANDS))
    for data in (
        ImageArrays(file, transform, 4, seed=1),
        ImageDataset(Own(), transform, 4, seed=1, num_classes=3),
    ):
        batch = batches(set_up(data))[0]
        assert [view.shape for view in batch.views] == [(4, 5, 8, 8)] * 2
        assert data.preprocessing()["channels"] == 5
