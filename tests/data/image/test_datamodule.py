"""What all data modules share: loaders of each stage, YAML, workers that are spawned."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from sslzoo.batch import Batch
from sslzoo.data import (
    ImageDataModule,
    ImageFolder,
    ImageSets,
    Modality,
    MultiViewFolder,
    SegmentationFolder,
    with_views,
)
from sslzoo.data.image.image_set import ArrayImages, FileImages, TrainCrops
from sslzoo.data.loader import TrainLoader
from sslzoo.data.sampler import KeyedSampler
from sslzoo.random import stratified_split
from sslzoo.transforms import RandomResizedCrop, View, Views
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.normalize import Normalize
from tests.data.image.test_folder import two_crops, write_tree
from tests.data.toys import Recorder, ToyData

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def trainer(folder: Path) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_views_depend_on_seed_epoch_and_index_alone():
    data = ToyData()
    data.setup("fit")
    images = data.sets.train
    whole = data.train_views(images.__getitems__([3, 8, 11]), 2)
    alone = data.train_views(images.__getitems__([8]), 2)
    assert torch.equal(whole.views[1][1:2], alone.views[1])
    for other, epoch in ((data, 3), (ToyData(seed=6), 2)):
        other.setup("fit")
        assert not torch.equal(other.train_views(images.__getitems__([8]), epoch).views[1],
                               alone.views[1])  # fmt: skip


def test_each_stage_has_its_loader(tmp_path: Path):
    data, module = ToyData(), Recorder()
    with pytest.raises(ValueError, match="call setup"):
        data.eval_dataloaders()
    run = trainer(tmp_path)
    run.validate(module, datamodule=data)
    run.test(module, datamodule=data)
    assert [batch.index.tolist() for batch in module.evaluated] == [[0], [0]]
    assert torch.cat(run.predict(module, datamodule=data)).tolist() == list(range(7))
    run.fit(module, datamodule=data)
    assert len(module.seen) == 5
    assert all(batch.index.tolist() == [0] for batch in module.evaluated)  # token batches
    on_train = ToyData(predict_on="train")
    assert torch.cat(run.predict(module, datamodule=on_train)).tolist() == list(range(23))
    assert not list(tmp_path.iterdir())  # nothing is written


def test_a_plain_loop_after_fit_chooses_its_epochs(tmp_path: Path):
    data, module = ToyData(), Recorder()
    trainer(tmp_path).fit(module, datamodule=data)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    assert [batch.index.tolist() for batch in loader] == [x[2] for x in module.seen]
    loader.sampler.set_epoch(4)
    assert [batch.index.tolist() for batch in loader] != [x[2] for x in module.seen]
    assert loader.epoch == 4


def test_a_set_without_query_still_predicts_and_validates(tmp_path: Path):
    class NoQuery(ToyData):
        def read(self):
            return super().read()._replace(query=None, num_classes=None)

    module = Recorder()
    run = trainer(tmp_path)
    assert torch.cat(run.predict(module, datamodule=NoQuery())).tolist() == list(range(23))
    run.validate(module, datamodule=NoQuery())
    assert len(module.evaluated) == 1


def test_the_seed_is_the_runs_by_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    assert ToyData(seed=None).seed == 77
    assert ToyData(seed=3).seed == 3


def test_a_fraction_of_the_training_set_is_stratified():
    data = ToyData(num_samples=60, train_fraction=0.5)
    data.setup("fit")
    assert data.sets.train.labels.bincount().tolist() == [10, 10, 10]
    assert len(data.sets.query) == 7


def test_a_split_takes_at_least_one_and_leaves_one():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    first, second = stratified_split(labels, 13, 0.01)
    assert labels[second].tolist() == [0, 1]
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(13))
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 0"):
        stratified_split(labels, 13, 0)


def test_pickled_workers_follow_the_epoch(tmp_path: Path):
    """They get all that they need by pickling, as where a system spawns them."""
    root = write_tree(tmp_path, ("train",), 2)
    files = FileImages(sorted(str(p) for p in root.rglob("*.jpg")), None)
    results = []
    for context in (None, "forkserver"):
        sampler = KeyedSampler(4, 2, seed=1)
        crops = TrainCrops(two_crops(16), 1, sampler.shared_epoch)
        loader = TrainLoader(files.cropped(crops, True), sampler, 1 if context else 0)
        loader._loader.multiprocessing_context = context
        batches: list[Batch] = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches += list(loader)
        loader.close()
        results.append(batches)
    for here, there in zip(*results, strict=True):
        assert torch.equal(here.index, there.index)
        assert all(torch.equal(a, b) for a, b in zip(here.views, there.views, strict=True))
    pickle.dumps(files)


class Learner(Recorder, LightningModule):
    """A module for the command line."""


YAML = """
seed_everything: false
trainer: {{accelerator: cpu, logger: false, max_epochs: 1, enable_progress_bar: false,
          enable_model_summary: false, enable_checkpointing: false}}
model: {{class_path: tests.data.image.test_datamodule.Learner}}
data:
  class_path: sslzoo.data.ImageFolder
  init_args:
    root: {root}
    batch_size: 4
    decode: workers
    num_workers: 0
    on_broken: skip
    val_dir: null
    transform:
      class_path: sslzoo.transforms.byol_views
      init_args: {{size: 32}}
"""


def test_a_data_module_is_built_and_run_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tmp_path / "run.yaml"
    config.write_text(YAML.format(root=write_tree(tmp_path / "images", ("train",))))
    # Lightning 2.6.6 calls jsonargparse in a way that 4.53 deprecates.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr(sys, "argv", ["sslzoo", "fit", "--config", str(config)])
    cli = LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
    )
    assert isinstance(cli.datamodule, ImageFolder)
    assert isinstance(cli.datamodule.transform, Views)
    assert sorted(chain.from_iterable(x[2] for x in cli.model.seen)) == list(range(8))


# -- evaluation follows training

SHIPPED = [kind for kind in ImageDataModule.__subclasses__() if not kind.__name__.startswith("_")]
SHIPPED = [kind for kind in SHIPPED if kind.__module__.startswith("sslzoo.")]
SHIPPED = [kind for kind in SHIPPED if not inspect.isabstract(kind)]


def normalized(size: int, channels: int = 3) -> Views:
    norm = Normalize([0.4] * channels, [0.3] * channels)
    return Views([View(RandomResizedCrop(s), [norm]) for s in (size, size // 2)])


@pytest.mark.parametrize("kind", SHIPPED)
def test_every_image_data_module_evaluates_at_the_training_size(kind: Any) -> None:
    wanted = inspect.signature(kind).parameters
    given = {"root": "nowhere", "transform": normalized(40), "size": 40, "file": "nowhere"}
    given["train"] = "nowhere"
    given["modalities"] = [Modality("a", "image"), Modality("b", "depth")]
    data = kind(**{key: value for key, value in given.items() if key in wanted})
    assert data.eval_view.size == data.transform.trained_size == 40
    if kind is not MultiViewFolder:  # its resize is an argument
        assert data.eval_view.resize == (40 if kind is SegmentationFolder else 46)  # no margin
        assert data.eval_view.mean == (0.4,) * 3


class Planes(ImageDataModule):
    """16 images of any number of channels and any size."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__(normalized(12, channels), 4, None, 4, None, 0, 1.0, "query")
        self.shape = 16, channels, side, side

    def read(self) -> ImageSets:
        images = torch.randint(0, 256, self.shape, dtype=torch.uint8)
        return ImageSets(ArrayImages(images, torch.arange(16) % 2), None, 2)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize(("side", "resize"), [(12, None), (20, 14)])
def test_channels_and_size_are_those_of_training(
    channels: int, side: int, resize: int | None
) -> None:
    data = Planes(channels, side)
    data.setup("fit")
    trained = data.train_views(next(iter(data.train_dataloader())), 0).views[0]
    batch = next(iter(data.eval_dataloaders().bank))
    assert data.eval_views(batch).views[0].shape[1:] == trained.shape[1:] == (channels, 12, 12)
    assert data.eval_view.resize == resize
    assert data.state_dict()["preprocessing"] == {
        "kind": "image",
        "range": [0.0, 1.0],
        "size": 12,
        "channels": channels,
        **({} if resize is None else {"resize": resize}),
        "mean": [0.4] * channels,
        "std": [0.3] * channels,
        "interpolation": "bilinear",
    }


class Users(LightningDataModule):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.images = torch.rand(8, channels, side, side)

    def train_dataloader(self) -> Any:
        pairs = list(zip(self.images, range(8), strict=True))
        return torch.utils.data.DataLoader(pairs, batch_size=4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "resize"), [(12, None), (20, 14), (150, 14)])
def test_a_user_s_data_module_with_views_evaluates_at_the_training_size(
    channels: int, side: int, resize: int | None
) -> None:
    data = with_views(Users(channels, side), Views([View(RandomResizedCrop(12), [])]), seed=1)
    with pytest.warns(UserWarning, match="number of classes is unknown"):
        data.setup("fit")
    assert (data.eval_view.size, data.eval_view.resize) == (12, resize)
    assert data.preprocessing()["channels"] == channels
    for batch in data.train_dataloader():
        assert batch.views[0].dtype == torch.float32
        view = data.train_views(batch, 0).views[0]
        assert view.shape == (4, channels, 12, 12)


def test_a_place_in_the_epoch_is_saved_before_anything_is_read() -> None:
    assert ToyData().state_dict() == {}
    data = Planes(3, 12)
    assert data.state_dict() == {}
    data.load_state_dict({})


def test_views_that_the_net_was_not_trained_on_are_said():
    data = ToyData()
    net = SimpleNamespace(expected_mean=[0.5] * 3, expected_std=[0.25] * 3)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(backbone=net))
    data._check_look()  # a view of the user's own that does not tell
    for mean, std, wrong in (((0.5,) * 3, (0.25,) * 3, ()), ((0.4,) * 3, None, ("mean", "std"))):
        data.eval_view = EvalView(4, mean=mean, std=std or (1.0,) * 3)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            data._check_look()
        assert [str(one.message).split()[0] for one in seen] == list(wrong)
