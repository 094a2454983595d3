"""PCAMaps: save a picture of the principal components of patch tokens at the end of training."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer

from sslzoo.atomic_write import replacing
from sslzoo.batch import as_batch
from sslzoo.callbacks.evaluation import eval_loaders
from sslzoo.callbacks.rehearsal import first_batch
from sslzoo.checks import check_at_least
from sslzoo.distributed import rank
from sslzoo.eval.dense.maps import encoder_of, feature_map
from sslzoo.eval.dense.pca import pca_picture
from sslzoo.eval.features import eval_mode
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.run_folder import folder_of
from sslzoo.sharding import whole


class PCAMaps(Callback):
    """Write `eval.dense.pca_picture` to `<filename>.png` in the run directory.

    The images are the first of the validation set, or of the training set if there is none.

    Args:
        count: number of images, one per row of the picture, which share one PCA.
        filename: file name without suffix, in the run directory (the logger's, otherwise
            `default_root_dir`).
        foreground: see `pca_colors`.
        loaders: source of the images; None: the data module's.

    Raises:
        ValueError: the count is below 1; at the start of fit, the encoder has no feature map, or
            the data has no such loaders.
    """

    def __init__(
        self,
        count: int = 8,
        filename: str = "pca",
        foreground: bool = False,
        loaders: EvalLoaders | None = None,
    ) -> None:
        super().__init__()
        check_at_least("count", count, 1)
        self.count, self.filename, self.foreground = count, filename, foreground
        self.loaders = loaders

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = eval_loaders(trainer, self.loaders, "PCAMaps")
        first = first_batch(loaders.bank if loaders.query is None else loaders.query)
        shown = loaders.transform(move_data_to_device(first, pl_module.device)).views[0]
        with eval_mode(pl_module):
            pca_picture(shown, feature_map(encoder_of(pl_module), shown))  # fail at once

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = folder_of(trainer)
        with whole(pl_module):
            if rank() == 0:
                self._write(trainer, pl_module, folder)

    def _write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        loaders = eval_loaders(trainer, self.loaders, "PCAMaps")
        images, device = [], pl_module.device
        for raw in loaders.bank if loaders.query is None else loaders.query:
            batch = loaders.transform(move_data_to_device(as_batch(raw), device))
            images.append(batch.views[0])
            if sum(map(len, images)) >= self.count:
                break
        shown = torch.cat(images)[: self.count]
        with eval_mode(pl_module):
            maps = feature_map(encoder_of(pl_module), shown)
        with replacing(folder / f"{self.filename}.png") as part:
            pca_picture(shown, maps, self.foreground).save(part)
