"""RunReport: write the run's report at the end of fit."""

from __future__ import annotations

import importlib.util
import warnings

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from sslzoo.run_folder import folder_of

NEEDS = {"jinja2": "jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


class RunReport(Callback):
    """Write `report.html` into the run directory at the end of `sslzoo fit`, which says its path.

    It reads the run directory as `sslzoo report` does, on the CPU. It needs the packages of the
    extra `report`; without them, or with several processes, a sentence says what to do instead.
    The run's random state is left as it was.

    Args:
        samples: number of test samples for maps, spectrum and neighbors.
        images: rows of the views and of the attention maps.
        maps: any of "pca", "tsne" and "umap".
    """

    def __init__(
        self, samples: int = 500, images: int = 4, maps: tuple[str, ...] = ("pca", "tsne")
    ) -> None:
        super().__init__()
        if samples < 3 or images < 1:
            raise ValueError(
                f"samples must be at least 3 and images at least 1, got {samples} and {images}"
            )
        self.samples, self.images, self.maps = samples, images, maps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say before training if there will be no report."""
        if missing := _missing():
            rank_zero_info(
                f"no report will be written, since {' and '.join(missing)} must be installed for "
                "it: pip install 'sslzoo[report]'"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = folder_of(trainer)
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False) or _missing():
            return
        if trainer.world_size > 1:
            print(f"report: run `sslzoo report {folder}` now that all processes have ended")
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
        from sslzoo.report.page import Layout
        from sslzoo.report.write import ReportWarning, write

        layout = Layout(self.maps, num_queries=6, num_neighbors=8)
        try:
            with isolate_rng(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                write([str(folder)], samples=self.samples, images=self.images, layout=layout)
        except (ValueError, OSError, ImportError) as error:
            print(f"report: not written: {' '.join(str(error).split())}")
            return
        for warning in caught:
            if warning.category is ReportWarning:
                print(f"report: {warning.message}")


def _missing() -> list[str]:
    """Packages of the extra `report` that are not installed."""
    return [name for module, name in NEEDS.items() if importlib.util.find_spec(module) is None]
