"""ImageFolder: any folder of images, with classes or without."""

from __future__ import annotations

from typing import get_args

from sslzoo.checks import check_choice, check_interval
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.load import IMAGE_EXTENSIONS, Decode, load_images
from sslzoo.data.listing import list_folders
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views
from sslzoo.value_range import check_value_range


class ImageFolder(ImageDataModule):
    """Images in one of three layouts.

    1. `<root>/train/<class>/*` and `<root>/val/<class>/*` (folder names: `train_dir` and
       `val_dir`; `val_dir: null` for no validation).
    2. `<root>/<class>/*` with `val_fraction`: a keyed, stratified split.
    3. `labels: false`: all images below `<root>/train`, or else below `<root>`; no validation and
       only label-free metrics.

    For the other arguments see `ImageDataModule`.

    Args:
        root: the folder.
        train_dir: training folder inside `root` (layout 1).
        val_dir: validation folder inside `root` (layout 1); None: no validation.
        val_fraction: fraction of each class to hold out for validation (layout 2).
        labels: whether sub-folders are classes.
        decode: "array" decodes all images once into memory (they must have one size), "workers"
            decodes and crops for each batch, "auto" chooses the array for small images of one size.
        on_broken: raise an "error" for an unreadable image, or "skip" and count it.
        seed: seed of batches and views; None: the run's seed. The split does not depend on it.
        channels: 3 (RGB), 1 (gray) or 4 (RGBA); images of other channels are converted. Gray images
            of more than 8 bits keep their bits.
        value_range: the values of black and white; None: 0 and 255, 0 and 65535 for 16 bits, 0 and
            1 for floats. `(0, 4095)` for 12 bits, `(-1000, 2000)` for a window of CT values.
    """

    def __init__(
        self,
        root: str,
        transform: Views,
        batch_size: int = 256,
        train_dir: str = "train",
        val_dir: str | None = "val",
        val_fraction: float | None = None,
        labels: bool = True,
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        check_choice("channels", channels, (1, 3, 4))
        check_choice("decode", decode, get_args(Decode))
        check_choice("on_broken", on_broken, get_args(OnBroken))
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
            if not labels:
                raise ValueError("labels must be True to split by val_fraction, got False")
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.root = root
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.val_fraction = val_fraction
        self.labels = labels
        self.decode: Decode = decode
        self.on_broken: OnBroken = on_broken
        self.channels = channels
        self.value_range = check_value_range(value_range)
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """List the images, and decode them if `decode` says so."""
        train, query = list_folders(
            *(self.root, self.train_dir, self.val_dir, self.val_fraction, self.labels),
            IMAGE_EXTENSIONS,
        )
        self.classes = list(train.classes)
        decoding = Decoding(self.channels, self.value_range)
        return load_images(train, query, self.decode, self.on_broken, decoding)
