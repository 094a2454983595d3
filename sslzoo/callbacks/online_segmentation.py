"""OnlineSegmentation: mIoU of frozen feature maps during training.

The maps of bank and query set are computed in eval mode without augmentation, each image once, and
streamed to disk; the value is the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from sslzoo.callbacks.evaluation import Evaluation, eval_loaders, query_set
from sslzoo.callbacks.rehearsal import first_batch
from sslzoo.checks import check_at_least, check_choice
from sslzoo.eval.dense.linear import LinearOptions
from sslzoo.eval.dense.linear_head import IGNORE
from sslzoo.eval.dense.map_file import check_masks
from sslzoo.eval.dense.maps import Mapper, check_map, encoder_of, map_of, patch_of
from sslzoo.eval.dense.protocols import DenseOptions, DenseProtocol, dense_metrics
from sslzoo.eval.dense.retrieval import RetrievalOptions
from sslzoo.eval.features import eval_mode
from sslzoo.eval.loaders import EvalLoaders


class OnlineSegmentation(Evaluation):
    """Log `val/knn_miou_k<k>_t<T>`, and `val/linear_miou` if asked, of patch tokens or maps.

    Retrieval trains nothing and is the default. It needs a data module with masks, such as
    `SegmentationFolder`.

    Args:
        protocols: "knn_segmentation", "linear_segmentation" or both.
        k: number of neighbors.
        temperature: T of the weights softmax(cosine / T).
        memory_size: most patches in the memory.
        epochs: epochs of the linear head.
        lr: largest learning rate of the linear head.
        loss_scale: see `LinearOptions`.
        blocks: number of a ViT's last blocks whose tokens are concatenated.
        ignore_index: the label of pixels that do not count.
        every_n_epochs: training epochs between two evaluations; the last always has one.
        loaders: bank, query and transform; None: the data module's.
        features: name of the module's method from a view to a map (B, D, h, w); None: the map of
            the module's `encoder()`, see `sslzoo.eval.dense.feature_map`.
        folder: where the maps are stored during an evaluation; None: the folder of temporary files.
    """

    def __init__(
        self,
        protocols: Sequence[DenseProtocol] = ("knn_segmentation",),
        k: int = 30,
        temperature: float = 0.02,
        memory_size: int = 10_240,
        epochs: int = 5,
        lr: float = 1e-3,
        loss_scale: int | None = 4,
        blocks: int = 1,
        ignore_index: int = IGNORE,
        every_n_epochs: int = 1,
        loaders: EvalLoaders | None = None,
        features: str | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__(every_n_epochs, loaders, features or "encoder")
        self.protocols = list(protocols)
        check_at_least("the number of protocols", len(self.protocols), 1)
        for protocol in self.protocols:
            check_choice("protocols", protocol, get_args(DenseProtocol))
        self.options = DenseOptions(
            LinearOptions(epochs=epochs, lr=lr, loss_scale=loss_scale),
            RetrievalOptions(k, temperature, memory_size),
            blocks,
            ignore_index,
        )
        self.method, self.folder = features, folder

    def metric_names(self) -> list[str]:
        return [f"val/{name}" for name in self.options.names(self.protocols)]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = eval_loaders(trainer, self.loaders, "OnlineSegmentation")
        query = query_set(loaders, "OnlineSegmentation")
        mapper = self._mapper(trainer, pl_module)
        with torch.no_grad(), isolate_rng(), eval_mode(pl_module):
            for loader in (loaders.bank, query):
                first = move_data_to_device(first_batch(loader), pl_module.device)
                batch = loaders.transform(first)
                view, ignore = batch.views[0], self.options.ignore_index
                check_masks(batch.label, view, loaders.num_classes, ignore)
                check_map(mapper(view), type(pl_module).__name__)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, self.loaders, "OnlineSegmentation")
        found = dense_metrics(
            pl_module,
            loaders,
            self.protocols,
            self.options,
            pl_module.device,
            None if self.folder is None else Path(self.folder),
            self._mapper(trainer, pl_module),
            patch=(1, 1) if self.method else patch_of(encoder_of(pl_module)),
        )
        return {f"val/{name}": value for name, value in found.items()}

    def _mapper(self, trainer: Trainer, pl_module: LightningModule) -> Mapper:
        precision: Any = trainer.precision_plugin
        if self.method is None:
            own: Any = map_of(pl_module, self.options.blocks)
        else:
            own = getattr(pl_module, self.method, None)
            if own is None:
                raise ValueError(
                    f"features must be a method of {type(pl_module).__name__}, which has no "
                    f"{self.method!r}"
                )

        def in_precision(view: Tensor) -> Tensor:
            with precision.forward_context():
                return own(precision.convert_input(view)).float()

        return in_precision
