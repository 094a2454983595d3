"""FeatureWriter: write the features, labels and indices of `sslzoo predict` to one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from sslzoo.distributed import rank
from sslzoo.eval.features import Features, collect, gather_features


class FeatureWriter(Callback):
    """Write the output of `predict_step` from all ranks, sorted by index.

    `predict_step` must return a dict of `features` (B, D), `index` (B,) and `label` (B,) or None.
    The file has the arrays `features`, `index` and, with labels, `label`; each sample once.

    Args:
        filename: file name without suffix, in the run directory (the logger's, otherwise
            `default_root_dir`).
        format: file format; both load without executing code.
    """

    def __init__(
        self, filename: str = "features", format: Literal["safetensors", "npz"] = "safetensors"
    ) -> None:
        super().__init__()
        if format not in ("safetensors", "npz"):
            raise ValueError(f"format must be 'safetensors' or 'npz', got {format!r}")
        self.filename = filename
        self.format = format
        self._outputs: list[Features] = []

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outputs = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, dict) or not {"features", "index"} <= outputs.keys():
            raise ValueError(
                "predict_step must return a dict of features, index and label for FeatureWriter, "
                f"got {sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__}"
            )
        label = outputs.get("label")
        features, index = outputs["features"].detach().cpu(), outputs["index"].cpu()
        self._outputs.append(Features(features, None if label is None else label.cpu(), index))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device  # device for collectives
        own = collect(self._outputs, device)
        self._outputs = []
        everything = gather_features(own)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is collective
        if rank() == 0:
            path = self._write(folder, everything)
            print(f"{len(everything.index)} features written to {path}")

    def _write(self, folder: Path, everything: Features) -> Path:
        arrays = {"features": everything.features, "index": everything.index}
        if everything.label is not None:
            arrays["label"] = everything.label
        arrays = {name: x.cpu().contiguous() for name, x in arrays.items()}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.filename}.{self.format}"
        if self.format == "safetensors":
            save_file(arrays, path)
        else:
            np.savez(path, **{name: x.numpy() for name, x in arrays.items()})  # type: ignore[arg-type]
        return path
