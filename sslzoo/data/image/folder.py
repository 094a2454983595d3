"""ImageFolder: any folder of images, with classes or without."""

from __future__ import annotations

from pathlib import Path

from sslzoo.data.image.datamodule import ImageDataModule, ImageSets, PredictOn
from sslzoo.data.image.images import OnBroken
from sslzoo.data.image.sets import (
    Decode,
    check_choices,
    image_sets,
    split_listing,
)
from sslzoo.data.listing import Listing, check_folder, list_classes, list_unlabeled
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views


class ImageFolder(ImageDataModule):
    """Images in one of three layouts.

    1. `<root>/train/<class>/*` and `<root>/val/<class>/*` (names by `train_dir`, `val_dir`;
       `val_dir: null` for none).
    2. `<root>/<class>/*` with `val_fraction`: split, keyed and stratified.
    3. `labels: false`: all images below `<root>/train`, or below `<root>`; no validation, and
       only metrics that need no labels.

    Args:
        root: the folder.
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        train_dir: of layout 1, inside `root`.
        val_dir: of layout 1, inside `root`.
        val_fraction: of each class that is kept for validation (layout 2).
        labels: whether sub-folders are classes.
        decode: "array" decodes all once into memory (images of one size), "workers" decodes and
            crops in each batch, "auto" takes the array for small images of one size.
        on_broken: an image that cannot be read is an "error", or is left out and counted ("skip").
        eval_view: makes the view of evaluation; None: it follows `transform`, see
            `ImageDataModule`.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0 for arrays, else one a core, at most 8.
        seed: of batches and views; None: the run's. The split does not depend on it.
        train_fraction: of the training set that is used, stratified.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
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
        check_choices(decode, on_broken)
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be inside (0, 1), got {val_fraction}")
        if not labels and val_fraction is not None:
            raise ValueError(f"val_fraction={val_fraction} wants labels=True, got labels=False")
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
        """List the images, and decode them where that is the choice."""
        train, query = self._list()
        self.classes = train.classes
        return image_sets(train, query, self.decode, self.on_broken, upright=True)

    def _list(self) -> tuple[Listing, Listing | None]:
        root = check_folder(self.root, "root")
        inner = root / self.train_dir
        whole = inner if inner.is_dir() else root
        if not self.labels:
            return list_unlabeled(whole, "root"), None
        if self.val_fraction is not None:
            return split_listing(list_classes(whole, "root"), self.val_fraction)
        if self.val_dir is None:
            return list_classes(whole, "root"), None
        self._check_layout(root)
        train = list_classes(inner, "the training folder")
        query = list_classes(root / self.val_dir, "the validation folder", train.classes)
        return train, query

    def _check_layout(self, root: Path) -> None:
        wanted = [self.train_dir, str(self.val_dir)]
        missing = [name for name in wanted if not (root / name).is_dir()]
        if missing:
            raise ValueError(
                f"root {self.root!r} must hold the folders {wanted}, it lacks {missing}; set "
                "train_dir and val_dir, or val_dir=null for no validation, or val_fraction to "
                "split one folder of classes, or labels=false for images without classes"
            )
