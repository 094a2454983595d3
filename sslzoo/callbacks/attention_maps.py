"""AttentionMaps: save a picture of a ViT's class-token attention at the end of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from sslzoo.atomic_write import replacing
from sslzoo.batch import as_batch
from sslzoo.callbacks.evaluation import eval_loaders
from sslzoo.callbacks.rehearsal import first_batch
from sslzoo.distributed import rank
from sslzoo.eval.attention import attention_picture, cls_attention
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.run_folder import folder_of
from sslzoo.sharding import whole


class AttentionMaps(Callback):
    """Write `eval.attention.attention_picture` to `<filename>.png` in the run directory.

    The images are the first of the validation set, or of the training set if there is none.
    The encoder is the method's `encoder()`: the teacher's for DINO and iBOT.

    Args:
        count: number of images, one per row of the picture.
        filename: file name without suffix, in the run directory (the logger's, otherwise
            `default_root_dir`).
        loaders: source of the images; None: the data module's.

    Raises:
        ValueError: the count is below 1; at the start of fit, the data has no such loaders.
    """

    def __init__(
        self, count: int = 8, filename: str = "attention", loaders: EvalLoaders | None = None
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count, self.filename, self.loaders = count, filename, loaders

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = eval_loaders(trainer, self.loaders, "AttentionMaps")
        first = first_batch(loaders.bank if loaders.query is None else loaders.query)
        shown = loaders.transform(move_data_to_device(first, pl_module.device)).views[0]
        with whole(pl_module):
            cls_attention(_encoder(pl_module), shown)  # fail at once, not after training

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = folder_of(trainer)
        with whole(pl_module):
            if rank() == 0:
                self._write(trainer, pl_module, folder)

    def _write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        loaders = eval_loaders(trainer, self.loaders, "AttentionMaps")
        images, device = [], pl_module.device
        for raw in loaders.bank if loaders.query is None else loaders.query:
            batch = loaders.transform(move_data_to_device(as_batch(raw), device))
            images.append(batch.views[0])
            if sum(map(len, images)) >= self.count:
                break
        shown = torch.cat(images)[: self.count]
        maps = cls_attention(_encoder(pl_module), shown)
        with replacing(folder / f"{self.filename}.png") as part:
            attention_picture(shown, maps).save(part)


def _encoder(pl_module: LightningModule) -> nn.Module:
    return cast(Any, pl_module).encoder() if hasattr(pl_module, "encoder") else pl_module
