"""A user's (image, label) data module serves `Batch` through `with_views`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from sslzoo.data import with_views
from sslzoo.transforms import EvalView, RandomResizedCrop, View, Views
from tests.data.toys import PlainEval, PlainViews, Recorder

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 10, 3), dtype=np.uint8)
KINDS = {
    "pil": lambda x: Image.fromarray(x),
    "gray pil": lambda x: Image.fromarray(x[:, :, 0]),
    "array": lambda x: x,
    "gray array": lambda x: x[:, :, 0],
    "uint8": lambda x: torch.from_numpy(x).permute(2, 0, 1),
    "float": lambda x: torch.from_numpy(x).permute(2, 0, 1) / 255,
}


class Rows(Dataset):
    def __init__(self, kind: Any, labels: bool = True, count: int = 12) -> None:
        self.kind, self.labels, self.count = kind, labels, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        image = self.kind(PIXELS[i])
        return (image, i % 3) if self.labels else image


class Users(LightningDataModule):
    def __init__(self, kind: Any = KINDS["pil"], labels: bool = True, val: bool = True) -> None:
        super().__init__()
        self.kind, self.labels, self.val = kind, labels, val
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.kind, self.labels), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(Rows(self.kind, self.labels, 5), batch_size=2)] if self.val else []


def first_batch(data: Any) -> Any:
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_image_is_served_with_its_index(kind: str):
    data = with_views(Users(KINDS[kind]), PlainViews(), seed=1, num_classes=3)
    data.setup("fit")
    data.setup("fit")
    assert (data.batch_size, data.num_samples, data.num_classes) == (4, 12, 3)
    assert data.inner.calls == ["fit", "validate"]
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    images = images[:, :1] if "gray" in kind else images
    for batch in data.train_dataloader():
        view = batch.views[0] * 255 if kind == "float" else batch.views[0].float()
        torch.testing.assert_close(view, images[batch.index].float())
        assert torch.equal(batch.label, batch.index % 3)
    loaders = data.eval_dataloaders()
    assert torch.cat([batch.index for batch in loaders.bank]).tolist() == list(range(12))
    assert loaders.transform(next(iter(loaders.query))).views[0].shape == (4, *images.shape[1:])


def test_large_images_are_cropped_where_they_are_loaded():
    def grow(x: np.ndarray) -> Image.Image:
        return Image.fromarray(x).resize((140 + int(x[0, 0, 0]) % 7, 150))

    transform = Views([View(RandomResizedCrop(40), []), View(RandomResizedCrop(24), [])])
    data = with_views(Users(grow), transform, EvalView(32, resize=40), seed=1, num_classes=3)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert [view.shape for view in batch.views] == [(4, 3, 40, 40), (4, 3, 24, 24)]
    assert [v.shape for v in data.train_views(batch, 0).views] == [(4, 3, 40, 40), (4, 3, 24, 24)]
    raw = with_views(Users(grow), transform, EvalView(32), crop_in_workers=False, num_classes=3)
    raw.setup("fit")
    with pytest.raises(ValueError, match=r"must have one shape, got .* crop_in_workers=True"):
        next(iter(raw.train_dataloader()))


def test_data_without_labels_or_validation():
    data = with_views(Users(labels=False, val=False), PlainViews())
    data.setup("fit")
    assert data.num_classes is None
    assert data.eval_dataloaders().query is None
    assert next(iter(data.train_dataloader())).label is None


def test_labels_of_unknown_number_are_reported():
    data = with_views(Users(), PlainViews())
    with pytest.warns(UserWarning, match="pass num_classes to with_views"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            lambda x: (torch.from_numpy(x).permute(2, 0, 1) / 255 - 0.5) / 0.2,
            r"float from 0 to 1, got float32 from .*value_range",
        ),
        (lambda x: torch.from_numpy(x), "got Tensor torch.uint8 .10, 10, 3."),
        (lambda x: "path", "got str"),
    ],
)
def test_other_images_are_refused(kind: Any, message: str):
    data = with_views(Users(kind), PlainViews(), PlainEval(), num_classes=3)
    with pytest.raises(ValueError, match=message):
        first_batch(data)


def test_a_trainer_fits_validates_and_predicts(tmp_path: Path):
    data = with_views(Users(), PlainViews(), num_classes=3, seed=2)
    module = Recorder()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert len(module.seen) == 6
    assert "prepare" in data.inner.calls
    # Callbacks evaluate; Lightning's own loop sees one token batch.
    assert all(batch.index.tolist() == [0] for batch in module.evaluated)
    module.evaluated.clear()
    trainer.validate(module, datamodule=data)
    assert [batch.index.tolist() for batch in module.evaluated] == [[0]]
    assert module.evaluated[0].views[0].shape == (1, 3, 10, 10)
    got = trainer.predict(module, datamodule=data)
    assert torch.cat(got).tolist() == list(range(5))


# -- samplers, collate functions and loaders


class Loader(LightningDataModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = {"batch_size": 4, "dataset": Rows(KINDS["pil"]), **options}

    def train_dataloader(self) -> Any:
        return DataLoader(**self.options)


def kept_rows(**options: Any) -> list[int]:
    """The first pixels, which tell the rows apart, of one epoch."""
    data = with_views(Loader(**options), PlainViews(), seed=1, num_classes=3)
    data.setup("fit")
    wanted = {tuple(PIXELS[i, 0, 0]): i for i in range(12)}
    seen = [
        wanted[tuple(image[:, 0, 0].tolist())]
        for batch in data.train_dataloader()
        for image in batch.views[0]
    ]
    return sorted(seen)


class Mine(Sampler):
    def __init__(self, source: Any) -> None:
        pass

    def __iter__(self) -> Any:
        return iter([0, 1])

    def __len__(self) -> int:
        return 2


SAMPLERS = {
    cls.__name__: cls for cls in vars(torch.utils.data).values()
    if inspect.isclass(cls) and issubclass(cls, Sampler)
}  # fmt: skip
SAMPLERS["Mine"] = Mine
MADE = {
    "SubsetRandomSampler": lambda: SubsetRandomSampler([1, 3, 5, 7, 9, 11, 0, 2]),
    "WeightedRandomSampler": lambda: WeightedRandomSampler([1.0] * 12, 12),
    "DistributedSampler": lambda: DistributedSampler(range(12), num_replicas=1, rank=0),
}


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n not in ("Sampler", "BatchSampler")])
def test_every_sampler_is_kept_or_refused(name: str) -> None:
    sampler = MADE.get(name, lambda: SAMPLERS[name](range(12)))()
    if name in ("SequentialSampler", "RandomSampler", "DistributedSampler"):
        assert kept_rows(sampler=sampler) == list(range(12))
    elif name == "SubsetRandomSampler":
        assert kept_rows(sampler=sampler) == [0, 1, 2, 3, 5, 7, 9, 11]
    else:
        with pytest.raises(ValueError, match=rf"the sampler of the train_dataloader .* got {name}"):
            kept_rows(sampler=sampler)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": RandomSampler(range(12), num_samples=8)}, "got RandomSampler.*num_samples=8"),
        ({"sampler": RandomSampler(range(12), replacement=True)}, "replacement=True"),
        ({"batch_sampler": [[0, 1], [2, 3]], "batch_size": 1}, "got list"),
        ({"dataset": []}, "must have samples, got none"),
        ({"dataset": iter([1])}, "got list_iterator|must have samples"),
        ({"collate_fn": lambda items: items[:1]}, r"collate_fn .* got .* images and"),
        ({"collate_fn": lambda items: {"x": items}}, "must be .image, label., got dict"),
        ({"dataset": [(PIXELS[0], "cat")] * 8}, "labels must be numbers .*'cat'"),
        ({"dataset": [(PIXELS[i % 2][: 9 + i % 2], 0) for i in range(8)]}, "must have one shape"),
    ],
)
def test_other_loaders_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kept_rows(**options)


@pytest.mark.parametrize("kind", ["iterable", "list", "dict", "user's own"])
def test_the_loader_is_one_of_a_map_style_dataset(kind: str) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(Rows(KINDS["pil"]))

    one = DataLoader(Rows(KINDS["pil"]), batch_size=4)
    made = {"iterable": DataLoader(Stream(), batch_size=4), "list": [one, one],
            "dict": {"a": one, "b": one}, "user's own": iter(one)}  # fmt: skip
    users = Users()
    users.train_dataloader = lambda: made[kind]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"train_dataloader .* one DataLoader .*, got"):
        with_views(users, PlainViews(), num_classes=3).setup("fit")


@pytest.mark.parametrize("crop", [False, True])
def test_a_collate_function_is_kept(crop: bool) -> None:
    def stack(items: list[Any]) -> Any:
        images = torch.stack([torch.from_numpy(x["image"]).permute(2, 0, 1) for x in items])
        return images.flip(3), torch.tensor([x["label"] for x in items])

    rows = [{"image": PIXELS[i], "label": i % 3} for i in range(12)]
    transform = Views([View(RandomResizedCrop(10, (1, 1), (1, 1), flip=0), [])])
    users = Loader(dataset=rows, collate_fn=stack)
    data = with_views(users, transform, num_classes=3, crop_in_workers=crop, seed=1)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.label, batch.index % 3)
    wanted = torch.from_numpy(PIXELS[batch.index.numpy()]).permute(0, 3, 1, 2).flip(3) / 255
    torch.testing.assert_close(data.train_views(batch, 0).views[0], wanted)


@pytest.mark.parametrize("crop", [False, True])
def test_pictures_may_be_gray_among_colors_but_not_transparent(crop: bool) -> None:
    def mode(which: str) -> Any:
        return [(Image.fromarray(x).convert(which if i == 5 else "RGB"), 0) for i, x in
                enumerate(PIXELS)]  # fmt: skip

    views = Views([View(RandomResizedCrop(8), [])])
    for which in ("L", "RGBA", "P", "CMYK"):
        users = Loader(dataset=mode(which))
        data = with_views(users, views, num_classes=1, crop_in_workers=crop, seed=1)
        data.setup("fit")
        if which == "RGBA":
            with pytest.raises(ValueError, match=r"3 channels, got 4 .mode RGBA.; convert it"):
                list(data.train_dataloader())
            continue
        assert all(batch.views[0].shape[1] == 3 for batch in data.train_dataloader())


def test_augmentation_of_the_user_s_dataset_is_warned_of() -> None:
    draw = np.random.default_rng(0)
    users = Users(lambda x: Image.fromarray(x).rotate(draw.uniform(0, 90)))
    data = with_views(users, PlainViews(), num_classes=3)
    with pytest.warns(UserWarning, match="should not augment"):
        data.setup("fit")
