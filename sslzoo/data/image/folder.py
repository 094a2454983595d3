"""ImageFolder: any folder of images, with classes or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.load import ANY_EXTENSIONS, Decode, load_images
from sslzoo.data.listing import list_folders
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding, Reader
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
        channels: number of channels; None: that of the first image. Photographs are converted to 1
            (gray), 3 (RGB) or 4 (RGBA), and one channel is repeated to 3. Other files (TIFF, .npy,
            .npz, HDF5, Zarr, DICOM) keep their channels and bits, and are refused if they have
            others.
        value_range: the values of black and white; None: those that the file tells (DICOM, TIFF of
            12 bits), or 0 and 255, 0 and 65535 for 16 bits, 0 and 1 for floats. `(0, 4095)` for 12
            bits in 16, `(-1000, 2000)` for a window of CT values, with `clip`.
        clip: whether values outside `value_range` become black and white; otherwise they are an
            error.
        reader: your function, path -> array (H, W), (H, W, C) or (C, H, W), that reads every file.
        extensions: of the files, such as `[.tif]`; None: of all image formats, or all files with a
            `reader`.
        tile: side in pixels of squares into which every image is cut, each a sample; None: whole
            images. Of tiled or uncompressed TIFF, Zarr, HDF5 and .npy, only the crops are read.
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
        channels: int | None = 3,
        value_range: tuple[float, float] | None = None,
        clip: bool = False,
        reader: Reader | None = None,
        extensions: Sequence[str] | None = None,
        tile: int | None = None,
    ) -> None:
        check_at_least("channels", 1 if channels is None else channels, 1)
        check_at_least("tile", 1 if tile is None else tile, 1)
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
        self.clip = clip
        self.reader = reader
        self.extensions = extensions
        self.tile = tile
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """List the images, and decode them if `decode` says so."""
        train, query = list_folders(
            *(self.root, self.train_dir, self.val_dir, self.val_fraction, self.labels),
            extensions_of(self.extensions, self.reader),
        )
        self.classes = list(train.classes)
        decoding = Decoding(self.channels, self.value_range, clip=self.clip, reader=self.reader)
        return load_images(train, query, self.decode, self.on_broken, decoding, self.tile)


def extensions_of(given: Sequence[str] | None, reader: Reader | None) -> tuple[str, ...]:
    """The extensions of the files to list; all files with a reader, unless they are given."""
    if given is not None:
        return tuple(extension.lower() for extension in given)
    return ANY_EXTENSIONS if reader is None else ("",)
