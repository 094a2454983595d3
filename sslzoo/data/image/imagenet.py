"""ImageNet-1k in the usual layout: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`.

O. Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 2015. For training
crops of 224 pixels, evaluation is that of torchvision's references: shorter side 256, center crop
224.
"""

from __future__ import annotations

from typing import get_args

from sslzoo.checks import check_choice
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.load import IMAGE_EXTENSIONS, load_images
from sslzoo.data.listing import check_folder, list_classes
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views


class ImageNet(ImageDataModule):
    """ImageNet, or a subset with fewer classes in the same layout.

    The EXIF orientation is ignored, as in the official loaders. Workers decode and crop.

    For the other arguments see `ImageDataModule`.

    Args:
        root: the folder that holds `train/` and `val/`.
        on_broken: raise an "error" for an unreadable image, or "skip" and count it.
        eval_view: the evaluation view; None: derived from `transform` (resize 256, center crop 224
            for training crops of 224), see `ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        transform: Views,
        batch_size: int = 256,
        on_broken: OnBroken = "error",
        eval_view: EvalView | None = None,
        eval_batch_size: int = 250,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        check_choice("on_broken", on_broken, get_args(OnBroken))
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.root = root
        self.on_broken: OnBroken = on_broken
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """List the training and validation images."""
        root = check_folder(self.root, "root")
        missing = [name for name in ("train", "val") if not (root / name).is_dir()]
        if missing:
            raise ValueError(
                f"root {self.root!r} must hold ImageNet's train/<class>/ and val/<class>/ (the "
                f"validation images sorted into class folders), but lacks {missing}"
            )
        train = list_classes(root / "train", "ImageNet's train/", IMAGE_EXTENSIONS)
        query = list_classes(root / "val", "ImageNet's val/", IMAGE_EXTENSIONS, train.classes)
        self.classes = list(train.classes)
        return load_images(train, query, "workers", self.on_broken, Decoding(upright=False))
