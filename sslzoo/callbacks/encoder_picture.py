"""EncoderPicture: base class of callbacks that save a picture at the end of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from sslzoo.atomic_write import replacing
from sslzoo.batch import as_batch
from sslzoo.callbacks.evaluation import eval_loaders
from sslzoo.callbacks.rehearsal import first_batch
from sslzoo.checks import check_at_least
from sslzoo.distributed import rank
from sslzoo.eval.dense.maps import encoder_of
from sslzoo.eval.features import eval_mode
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.run_folder import folder_of
from sslzoo.sharding import whole


class EncoderPicture(Callback, ABC):
    """Write what `picture` makes to `<filename>.png` in the run directory.

    The images are the first of the validation set, or of the training set if there is none. A
    picture of a few is made at the start of fit, so that what it cannot show fails before training.

    Args:
        count: number of images, one per row of the picture.
        filename: file name without suffix, in the run directory (the logger's, otherwise
            `default_root_dir`).
        loaders: source of the images; None: the data module's.

    Raises:
        ValueError: the count is below 1; at the start of fit, the data has no such loaders.
    """

    def __init__(self, count: int, filename: str, loaders: EvalLoaders | None) -> None:
        super().__init__()
        check_at_least("count", count, 1)
        self.count, self.filename, self.loaders = count, filename, loaders

    @abstractmethod
    def picture(self, encoder: nn.Module, images: Tensor) -> Image.Image:
        """The picture of images (B, C, H, W) by an encoder in eval mode.

        Raises:
            ValueError: the encoder has not what the picture shows.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = eval_loaders(trainer, self.loaders, type(self).__name__)
        first = first_batch(loaders.bank if loaders.query is None else loaders.query)
        shown = loaders.transform(move_data_to_device(first, pl_module.device)).views[0]
        with eval_mode(pl_module):
            self.picture(encoder_of(pl_module), shown[: self.count])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = folder_of(trainer)
        with whole(pl_module):
            if rank() == 0:
                self._write(trainer, pl_module, folder)

    def _write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        loaders = eval_loaders(trainer, self.loaders, type(self).__name__)
        images: list[Tensor] = []
        for raw in loaders.bank if loaders.query is None else loaders.query:
            batch = loaders.transform(move_data_to_device(as_batch(raw), pl_module.device))
            images.append(batch.views[0])
            if sum(map(len, images)) >= self.count:
                break
        with eval_mode(pl_module):
            made = self.picture(encoder_of(pl_module), torch.cat(images)[: self.count])
        with replacing(folder / f"{self.filename}.png") as part:
            made.save(part)
