"""Views made by the loader's workers are those that the device would have made."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from sslzoo.backbones import SmallResNet
from sslzoo.callbacks import ViewsInWorkers
from sslzoo.data import with_views
from sslzoo.data.image.datamodule import ImageSets
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.transforms import LogMel, LogMelViews, simclr_views
from tests.data.audio.test_datamodule import digits, folder
from tests.data.text.test_datamodule import data as lines
from tests.data.text.test_datamodule import sentences
from tests.data.toys import Recorder, ToyData

pytestmark = [
    # Lightning 2.6.6 flattens loaders with an old spelling of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    # A resumed run here saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:the number of classes is unknown"),
]

PIXELS = torch.randint(0, 256, (12, 3, 96, 80), generator=torch.Generator().manual_seed(0)).byte()


class Users(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(list(PIXELS), batch_size=4, num_workers=2)  # type: ignore[arg-type]


class Arrays(ToyData):
    def read(self) -> ImageSets:
        return ImageSets(ArrayImages(PIXELS, None), None, None)


def arrays(where: Path, workers: int | None) -> Any:
    return Arrays(transform=simclr_views(64), eval_view=None, num_workers=workers)


def crops(where: Path, workers: int | None) -> Any:
    made = with_views(Users(), simclr_views(64), crop_in_workers=True, seed=3)
    made.setup("fit")
    made.num_workers = workers
    return made


def sounds(where: Path, workers: int | None) -> Any:
    mel = LogMel(8000, bands=8, window=100, hop=40)
    return folder(
        digits(where), transform=LogMelViews(mel, 8), num_workers=workers, eval_window=400
    )


def text(where: Path, workers: int | None) -> Any:
    (where / "text.txt").write_text("\n".join(sentences()) + "\n")
    return lines(where / "text.txt", num_workers=workers)


class Keep(Recorder):
    """Keeps each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


def trainer(*callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 2, **options},
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [x for part in value for x in flat(part)]


@pytest.mark.parametrize("made", [arrays, crops, sounds, text])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_view_is_that_of_the_device(
    made: Callable[[Path, int | None], Any], threads: int, tmp_path: Path
):
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for workers, callbacks in ((0, []), (1, [ViewsInWorkers()]), (None, [ViewsInWorkers()])):
            module = Keep()
            data = made(tmp_path, workers)
            trainer(*callbacks).fit(module, datamodule=data)
            assert not data.views_in_workers  # for the next trainer
            seen.append(flat(module.batches))
    finally:
        torch.set_num_threads(before)
    assert len(seen[0]) > 8
    for other in seen[1:]:
        assert len(other) == len(seen[0])
        assert all(torch.equal(x, y) for x, y in zip(seen[0], other, strict=True))


def test_the_precision_of_the_trainer_is_kept():
    module = Keep()
    options: dict[str, Any] = {"precision": "64-true", "max_epochs": 1}
    trainer(ViewsInWorkers(), **options).fit(module, datamodule=ToyData(num_workers=1))
    assert module.batches[0].views[0].dtype == torch.float64


class Fails(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise RuntimeError("no memory")


def test_a_run_that_fails_leaves_the_data_module_as_it_was():
    data = ToyData(num_workers=1)
    with pytest.raises(RuntimeError, match="no memory"):
        trainer(ViewsInWorkers(), Fails()).fit(Keep(), datamodule=data)
    assert not data.views_in_workers


def test_a_run_resumes_in_the_middle_of_an_epoch(tmp_path: Path):
    def run(*callbacks: Any, resume: Path | None = None) -> SimCLR:
        torch.manual_seed(0)
        module = SimCLR(
            SmallResNet((8, 16)),
            simclr_projector(16, 16, 8),
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        )
        fit = trainer(ViewsInWorkers(), *callbacks, precision="64-true")
        fit.fit(
            module, datamodule=ToyData(transform=simclr_views(8), num_workers=1), ckpt_path=resume
        )
        return module

    saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    whole = run(saves)
    again = run(resume=tmp_path / "step=7.ckpt")  # of 5 steps an epoch
    for x, y in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_what_workers_get_can_be_sent_to_a_new_interpreter():
    data = ToyData(transform=simclr_views(8), num_workers=2)
    data.trainer = trainer()
    data.views_in_workers = True
    data.setup("fit")
    source = data.train_dataloader()._loader.dataset
    again = pickle.loads(pickle.dumps(source))
    batches = source.__getitems__([3, 1]), again.__getitems__([3, 1])
    assert all(torch.equal(x, y) for x, y in zip(*map(flat, batches), strict=True))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match=r"num_workers must be at least 1 .* got 0"):
        trainer(ViewsInWorkers()).fit(Keep(), datamodule=ToyData(num_workers=0))
    with pytest.raises(ValueError, match=r"overfit_batches must be 0 .* got 1"):
        trainer(ViewsInWorkers(), overfit_batches=1).fit(Keep(), datamodule=ToyData())
    loader = DataLoader(list(PIXELS), batch_size=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be a data module of sslzoo, .* got NoneType"):
        trainer(ViewsInWorkers(), limit_val_batches=0).fit(Keep(), loader)
