"""ImageNet-1k in the usual layout: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`.

O. Russakovsky et al., ImageNet large scale visual recognition challenge, IJCV 2015. Evaluation
as in torchvision's references where training crops have 224 pixels: shorter side 256, center crop
224.
"""

from __future__ import annotations

from sslzoo.data.image.datamodule import ImageDataModule, ImageSets, PredictOn
from sslzoo.data.image.images import OnBroken
from sslzoo.data.image.sets import check_choices, image_sets
from sslzoo.data.listing import check_folder, list_classes
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.views import Views


class ImageNet(ImageDataModule):
    """ImageNet, or a subset with fewer classes in the same layout.

    EXIF orientations are ignored, as in the official loaders. Workers decode and crop.

    Args:
        root: the folder that holds `train/` and `val/`.
        transform: makes the training views.
        batch_size: the global batch, over all ranks.
        on_broken: an image that cannot be read is an "error", or is left out and counted ("skip").
        eval_view: makes the view of evaluation; None: it follows `transform` (224 px out of
            256 for crops of 224), see `ImageDataModule`.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that decode and crop; None: one a core, at most 8.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used, stratified.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
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
        check_choices("workers", on_broken)
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
        self.on_broken: OnBroken = on_broken
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """List both parts."""
        root = check_folder(self.root, "root")
        missing = [name for name in ("train", "val") if not (root / name).is_dir()]
        if missing:
            raise ValueError(
                f"no ImageNet in {self.root!r}: it must hold train/<class>/ and val/<class>/ "
                f"(the validation images sorted into class folders), and lacks {missing}"
            )
        train = list_classes(root / "train", "ImageNet's train/")
        query = list_classes(root / "val", "ImageNet's val/", train.classes)
        self.classes = train.classes
        return image_sets(train, query, "workers", self.on_broken, upright=False)
