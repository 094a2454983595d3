"""ImageFolder: any folder of images, with classes or without."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from sslzoo.checks import check_choice, check_interval
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.load import IMAGE_EXTENSIONS, Decode, load_images
from sslzoo.data.listing import Listing, check_folder, list_classes, list_unlabeled
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views


class ImageFolder(ImageDataModule):
    """Images in one of three layouts.

    1. `<root>/train/<class>/*` and `<root>/val/<class>/*` (folder names: `train_dir` and
       `val_dir`; `val_dir: null` for no validation).
    2. `<root>/<class>/*` with `val_fraction`: a keyed, stratified split.
    3. `labels: false`: all images below `<root>/train`, or else below `<root>`; no validation and
       only label-free metrics.

    Args:
        root: the folder.
        transform: makes the training views.
        batch_size: size of the global batch, over all ranks.
        train_dir: training folder inside `root` (layout 1).
        val_dir: validation folder inside `root` (layout 1); None: no validation.
        val_fraction: fraction of each class to hold out for validation (layout 2).
        labels: whether sub-folders are classes.
        decode: "array" decodes all images once into memory (they must have one size), "workers"
            decodes and crops for each batch, "auto" chooses the array for small images of one size.
        on_broken: raise an "error" for an unreadable image, or "skip" and count it.
        eval_view: the evaluation view; None: derived from `transform`, see `ImageDataModule`.
        eval_batch_size: batch size in evaluation.
        num_workers: loader processes; None: 0 for arrays, else one per core, at most 8.
        seed: seed of batches and views; None: the run's seed. The split does not depend on it.
        train_fraction: fraction of the training set to use, stratified.
        predict_on: the set that `predict` runs on.
        drop_last: drop the last batch of an epoch if it is incomplete.
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
    ) -> None:
        check_choice("decode", decode, get_args(Decode))
        check_choice("on_broken", on_broken, get_args(OnBroken))
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
            if not labels:
                raise ValueError("labels must be True to split by val_fraction, got False")
        super().__init__(
            transform,
            batch_size,
            eval_view,
            eval_batch_size,
            num_workers,
            seed,
            train_fraction,
            predict_on,
            drop_last,
        )
        self.root = root
        self.train_dir = train_dir
        self.val_dir = val_dir
        self.val_fraction = val_fraction
        self.labels = labels
        self.decode: Decode = decode
        self.on_broken: OnBroken = on_broken
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """List the images, and decode them if `decode` says so."""
        train, query = self._list()
        self.classes = list(train.classes)
        return load_images(train, query, self.decode, self.on_broken, upright=True)

    def _list(self) -> tuple[Listing, Listing | None]:
        root = check_folder(self.root, "root")
        inner = root / self.train_dir
        whole = inner if inner.is_dir() else root
        if not self.labels:
            return list_unlabeled(whole, "root", IMAGE_EXTENSIONS), None
        if self.val_fraction is not None:
            return list_classes(whole, "root", IMAGE_EXTENSIONS).split(self.val_fraction)
        if self.val_dir is None:
            return list_classes(whole, "root", IMAGE_EXTENSIONS), None
        self._check_layout(root)
        train = list_classes(inner, "the training folder", IMAGE_EXTENSIONS)
        outer = root / self.val_dir
        return train, list_classes(outer, "the validation folder", IMAGE_EXTENSIONS, train.classes)

    def _check_layout(self, root: Path) -> None:
        wanted = [self.train_dir, str(self.val_dir)]
        missing = [name for name in wanted if not (root / name).is_dir()]
        if missing:
            raise ValueError(
                f"root {self.root!r} must hold the folders {wanted}, but lacks {missing}; set "
                "train_dir and val_dir, or val_dir=null for no validation, or val_fraction to "
                "split one folder of classes, or labels=false for images without labels"
            )
