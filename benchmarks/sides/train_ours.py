"""Training, ours: SimCLR's `fit`, the same step in a plain loop, and single steps of a ResNet."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any, cast

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from benchmarks.rounds import Rounds
from benchmarks.sides.same import fill, images, pace, step_views
from sslzoo.backbones import SmallResNet, cifar_resnet, timm_backbone
from sslzoo.batch import Batch
from sslzoo.callbacks.progress import ProgressBar
from sslzoo.commands.precision import best_precision
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import ArrayImages
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.optim import RunLength, ScheduleLR, WarmupCosine
from sslzoo.runs.allocation import keep_freed_memory
from sslzoo.transforms import EvalView, simclr_views

EPOCHS = 10


class Pictures(ImageDataModule):
    """Random images of 32 px in memory, through configs/simclr/folder_small_10ep's views."""

    def __init__(self, count: int, batch: int) -> None:
        views = simclr_views(32, 0.5, blur=False)
        super().__init__(views, batch, EvalView(32), 256, 0, 0, 1.0, "query")
        self.count = count

    def read(self) -> ImageSets:
        return ImageSets(ArrayImages(images(self.count, 32), None), None, None)


def _small_simclr() -> SimCLR:
    """The method of configs/simclr/folder_small_10ep.yaml."""
    method = SimCLR(
        SmallResNet(),
        simclr_projector(256, out_dim=128),
        temperature=0.2,
        optimizer=partial(torch.optim.AdamW, lr=0.003, weight_decay=0.01),
        schedule=WarmupCosine(warmup_epochs=1),
    )
    fill(method.backbone, method.projector)
    return method


def fit(
    rounds: Rounds,
    count: int,
    batch: int,
    steps: int,
    device: str = "cpu",
    precision: str | None = None,
) -> None:
    """A Trainer with the precision, the progress bar and the CSV log that the command has."""
    keep_freed_memory()  # as the command does
    seed_everything(0)
    method = _small_simclr()
    size = sum(p.numel() for p in method.backbone.parameters())
    pacing = pace(Callback, rounds, steps, batch, parameters=size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=device,
            devices=1,
            max_epochs=EPOCHS,
            precision=cast(Any, precision or best_precision(device)[0]),
            log_every_n_steps=20,
            logger=CSVLogger(folder),
            callbacks=[ProgressBar(), pacing],
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(method, Pictures(count, batch))


def plain_loop(rounds: Rounds, count: int, batch: int, steps: int, device: str = "cpu") -> None:
    """The step of `fit` without Lightning: same batches, views, loss, optimizer, precision."""
    keep_freed_memory()
    bf16 = best_precision(device)[0].startswith("bf16")
    seed_everything(0)
    method = _small_simclr().to(device)
    data = Pictures(count, batch)
    data.setup("fit")
    method.run_length = RunLength(EPOCHS * (count // batch), count // batch)
    optimizer = method.configure_optimizers()
    schedule = ScheduleLR(optimizer, WarmupCosine(warmup_epochs=1), method.run_length)
    if not rounds.begin():
        return
    done = 0
    loader = data.train_dataloader()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for raw in loader:
            views = data.train_views(_moved(raw, device), epoch)
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = torch.stack(list(method.losses(views).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            first = {"loss": loss.item()} if rounds.number == 0 else {}
            if done % steps == 0 and not rounds.end(steps * batch, **first):
                return


def _moved(batch: Batch, device: str) -> Batch:
    views = [view.to(device, non_blocking=True) for view in batch.views]
    return Batch(views, batch.index.to(device, non_blocking=True))


def resnet_step(
    rounds: Rounds, net: str, size: int, batch: int, bf16: bool, device: str = "cpu"
) -> None:
    """Forward, backward and SGD step of SimCLR on given views; one forward of both views."""
    backbone = cifar_resnet(net) if size <= 64 else timm_backbone(net)
    projector = simclr_projector(cast(int, backbone.num_features))
    method = SimCLR(
        backbone,
        projector,
        temperature=0.5,
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
    )
    fill(backbone, projector)
    method = method.to(device)
    optimizer = method.configure_optimizers()
    data = Batch(step_views(batch, size, device), torch.arange(batch, device=device))
    _steps(rounds, method, optimizer, data, bf16)


def _steps(
    rounds: Rounds, method: SimCLR, optimizer: torch.optim.Optimizer, data: Batch, bf16: bool
) -> None:
    def work() -> dict[str, Any]:
        with torch.autocast(data.index.device.type, torch.bfloat16, enabled=bf16):
            loss = method.losses(data)["nt_xent"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        count = sum(p.numel() for p in method.backbone.parameters())
        return {"loss": loss.item(), "parameters": count} if rounds.number == 0 else {}

    rounds.repeat(work, len(data.index))
