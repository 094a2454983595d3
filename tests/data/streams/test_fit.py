"""Runs on shards: resumed within a shard, evaluated online, and with one memory row per sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from sslzoo.backbones import SmallResNet
from sslzoo.callbacks import OnlineKNN
from sslzoo.data import ImageShards
from sslzoo.data.streams.write import index_shards
from sslzoo.methods import InstDisc
from sslzoo.transforms import RandomResizedCrop, View, Views
from tests.commands.command import run
from tests.data.streams.toys import two_crops, write_photos, write_tars
from tests.data.toys import Recorder

pytestmark = [
    # Lightning 2.6.6 flattens loaders with an old spelling of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # A resumed run here saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Rows(Recorder):
    """Writes down (epoch, index, pixels) of batches whose views differ in size."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pixels = [view[:, 0, 0, 0].tolist() for view in batch.views]
        self.seen.append((self.current_epoch, batch_idx, batch.index.tolist(), pixels))
        return self.weight * 1.0


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01)


def fit(
    module: LightningModule, data: ImageShards, resume: Path | None = None, **options: Any
) -> Trainer:
    trainer = Trainer(
        **{"max_epochs": 2, "callbacks": [], **options},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer


def module_data(names: list[str], **options: Any) -> ImageShards:
    plain = {"transform": two_crops(), "batch_size": 4, "seed": 1, "num_workers": 0}
    plain |= {"shuffle_shards": 2, "shuffle_samples": 7, "num_classes": 3}
    return ImageShards(names, **{**plain, **options})


@pytest.mark.parametrize("step", [3, 7])
def test_a_run_resumes_in_the_middle_of_a_shard(tmp_path: Path, step: int):
    names = write_tars(tmp_path, [9, 4, 8])
    saves = ModelCheckpoint(
        tmp_path / "saved", "step={step}", every_n_train_steps=step, save_top_k=-1,
        auto_insert_metric_name=False,
    )  # fmt: skip
    whole = Rows()
    fit(whole, module_data(names), callbacks=[saves])
    assert len(whole.seen) == 10
    resumed = Rows()
    fit(
        *(
            resumed,
            module_data(names, num_workers=int(step == 3)),
            tmp_path / "saved" / f"step={step}.ckpt",
        ),
        enable_checkpointing=False,
    )
    assert resumed.seen == whole.seen[step:]


@pytest.mark.parametrize("rows", [21, 20])
def test_a_memory_has_a_row_per_sample_of_the_stream(tmp_path: Path, rows: int):
    names = write_tars(tmp_path, [9, 4, 8])
    view = Views([View(RandomResizedCrop(8), [])])
    data = module_data(names, transform=view, val=names[:2])
    method = InstDisc(SmallResNet((8, 16)), nn.Linear(16, 8), rows, 6, optimizer=sgd)
    options = {"callbacks": [OnlineKNN(k=3)], "enable_checkpointing": False, "max_epochs": 1}
    if rows == 21:
        assert "val/knn_top1_k3_t0.07" in fit(method, data, **options).callback_metrics
        return
    with pytest.raises(ValueError, match="bank_size must be 21, the size of the training set, got"):
        fit(method, data, **options)


def test_the_command_writes_shards_and_prints_the_data_that_reads_them(tmp_path: Path):
    import yaml

    write_photos(tmp_path / "photos")
    write_photos(tmp_path / "photos", (1, 2, 1), "val")
    done = run(["data", "shard", "photos", "--output", "out", "--shard_mb", "0.02"], tmp_path)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("train: 36 images of 3 classes in ")
    assert lines[1] == "val: 4 images of 3 classes in 1 shards, out/val.json"
    data = yaml.safe_load("\n".join(lines[2:]))["data"]["init_args"]
    assert (data["train"], data["val"]) == ("out/train.json", "out/val.json")
    again = run(["data", "shard", "photos", "--output", "out"], tmp_path, check=False)
    assert again.returncode == 1
    assert again.stderr.strip() == (
        "sslzoo data: the output must not exist, got 'out'; remove it or name another"
    )
    listed = ["data", "index", "out/train-*.tar", "--output", "out/again.json"]
    assert run(listed, tmp_path).stdout == "36 samples, out/again.json\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_cannot_be_downloaded_ends_the_command_in_a_sentence(
    tmp_path: Path, workers: int
):
    names = write_tars(tmp_path / "t", [9, 4, 8])
    index_shards(names, None, "auto", str(tmp_path / "t" / "all.json"))
    Path(names[1]).unlink()
    done = run(
        [
            *["fit", "--config", "simclr/folder_small_10ep", "--data", "sslzoo.data.ImageShards"],
            *[f"--data.train=file://{tmp_path}/t/all.json", f"--data.num_workers={workers}"],
            *[f"--data.cache_dir={tmp_path}/cache", "--data.on_broken=skip", "--data.batch_size=6"],
            *[f"--data.val={names[0]}", "--data.num_classes=3", "--trainer.accelerator=cpu"],
            "--trainer.max_epochs=1",
            *["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}/out"],
        ],
        tmp_path,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"sslzoo: (AddressError: )?the address", last), done.stderr
    assert f"the address of a shard must be readable, got {names[1]}" in last.replace("file://", "")
    assert "Traceback" not in done.stderr
