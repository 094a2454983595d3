"""SegmentationFolder: images with masks, for dense evaluation and pre-training without labels.

Masks are files of one channel: palette or gray PNG, 16 bits, or .npy. Training views have no label;
evaluation batches have the mask of the evaluation view, cropped and resized like the image, by the
nearest pixel. Shapes: N images, B images of a batch, S side of the view.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.checks import check_at_least, check_interval
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.decode import BROKEN, check_sample
from sslzoo.data.image.image_set import Crops, EvalCrops, FileImages, ImageSet
from sslzoo.data.image.load import ANY_EXTENSIONS
from sslzoo.data.image.rasters import open_image
from sslzoo.data.listing import check_folder, list_files, pack_paths, spread, unpack_path
from sslzoo.eval.fingerprint import described, files_digest
from sslzoo.random import stratified_split
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding, upright_size
from sslzoo.transforms.image.resample import center_crop
from sslzoo.transforms.image.views import Views

_SAMPLE = 2048  # pairs of files that are checked before training
_UNKNOWN_SIZE = 224
IGNORE = 255  # the customary label of pixels that do not count


class MaskLabels(NamedTuple):
    """How the values of mask files become labels.

    Args:
        num_classes: K.
        ignore_index: the value of pixels that do not count.
        reduce_zero_label: whether 0 is ignored and k is class k - 1, as in ADE20K.
        values: the value of each class in the files; None: the classes' numbers.
    """

    num_classes: int
    ignore_index: int = IGNORE
    reduce_zero_label: bool = False
    values: tuple[int, ...] | None = None

    def __call__(self, mask: np.ndarray, path: str) -> Tensor:
        """Labels (H, W) int64 of a file's values.

        Raises:
            ValueError: a value stands for no class.
        """
        values = torch.from_numpy(mask.astype(np.int64))
        ignored = values == self.ignore_index
        if self.values is not None:
            table = torch.tensor(self.values)
            order = table.argsort()
            place = torch.searchsorted(table[order], values).clamp_max(len(table) - 1)
            known = table[order][place] == values
            labels = order[place]
            ignored &= ~known  # a value that is listed is a class
        else:
            labels = values - int(self.reduce_zero_label)
            ignored |= self.reduce_zero_label & (values == 0)
            known = (labels >= 0) & (labels < self.num_classes)
        wrong = values[~known & ~ignored]
        if wrong.numel():
            raise ValueError(f"{self._wanted()}, got {_few(wrong)} in {path}{self._hint()}")
        return torch.where(ignored, self.ignore_index, labels)

    def _wanted(self) -> str:
        if self.values is not None:
            return f"values of masks must be {list(self.values)} or {self.ignore_index} (ignored)"
        first = int(self.reduce_zero_label)
        return (
            f"labels of masks must be in {first}..{self.num_classes - 1 + first} (the classes) or "
            f"{'0 or ' * first}{self.ignore_index} (ignored)"
        )

    def _hint(self) -> str:
        return "" if self.values is not None else "; `values` lists the value of each class"


def _few(values: Tensor) -> str:
    found = values.unique().tolist()
    return f"{found[:5]}{' and others' if len(found) > 5 else ''}"


def read_mask(path: str) -> np.ndarray:
    """Read the values of a mask file, (H, W) integers; palette indices are the values.

    Raises:
        ValueError: it is unreadable, or has several channels or fractions.
    """
    try:
        array = np.load(path) if path.lower().endswith(".npy") else _values(path)
    except BROKEN as error:
        raise ValueError(f"cannot read the mask {path} ({type(error).__name__}: {error})") from None
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array.squeeze(0 if array.shape[0] == 1 else 2)
    if array.ndim != 2:
        raise ValueError(
            "masks must have one channel, the number of each pixel's class, got "
            f"{array.shape} in {path}; colors must be converted to numbers first"
        )
    if array.dtype.kind not in "biu":
        whole = np.rint(array)
        if array.dtype.kind != "f" or not np.array_equal(whole, array):
            raise ValueError(f"masks must be whole numbers, got {array.dtype} in {path}")
        array = whole
    return array


def _values(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


class SegmentationFolder(ImageDataModule):
    """Images and masks of equal names, in one of three layouts.

    1. `<root>/<train_dir>/<image_dir>/*` and `<root>/<train_dir>/<mask_dir>/*`, likewise for
       `val_dir`.
    2. `<root>/<image_dir>/<train_dir>/*` and `<root>/<mask_dir>/<train_dir>/*` (ADE20K: `training`
       and `validation`; Cityscapes: `train` and `val`, with the suffixes).
    3. `<root>/<image_dir>/*` and `<root>/<mask_dir>/*`, with `val_fraction`, or with `train_dir`
       and `val_dir` files of names, one per line (VOC: `ImageSets/Segmentation/train.txt`).

    Names are compared without extension and suffix, with their sub-folders. All files are listed
    before training, and sizes and labels of up to 2048 evenly spaced pairs are checked.

    For the other arguments see `ImageDataModule` and `ImageFolder`.

    Args:
        root: the folder.
        transform: makes the training views.
        classes: names of the K classes, or K; None: the lines of `<root>/classes.txt`.
        image_dir: folder of the images.
        mask_dir: folder of the masks.
        train_dir: the training split: a folder, or a file of names.
        val_dir: the validation split; None: no validation.
        val_fraction: fraction of the images to hold out for validation (layout 3).
        image_suffix: end of the images' names that masks do not have, as `_leftImg8bit`.
        mask_suffix: end of the masks' names; files without it are left out.
        ignore_index: the value of pixels that do not count.
        reduce_zero_label: whether 0 is ignored and k is class k - 1, as in ADE20K.
        values: the value of each class in the masks, as `[0, 255]`; None: 0..K-1.
        eval_view: the evaluation view; None: the shorter side is resized to the training size and
            the center is cropped. Give a larger size for finer maps.

    Raises:
        ValueError: a folder, file, image or mask is missing, sizes differ, or a label is outside
            the classes.
    """

    def __init__(
        self,
        root: str,
        transform: Views,
        classes: list[str] | int | None = None,
        image_dir: str = "images",
        mask_dir: str = "masks",
        train_dir: str = "train",
        val_dir: str | None = "val",
        val_fraction: float | None = None,
        image_suffix: str = "",
        mask_suffix: str = "",
        ignore_index: int = IGNORE,
        reduce_zero_label: bool = False,
        values: list[int] | None = None,
        batch_size: int = 64,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 32,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        channels: int = 3,
    ) -> None:
        check_at_least("channels", channels, 1)
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
        size = transform.trained_size or _UNKNOWN_SIZE
        eval_view = eval_view or transform.eval_view(size, size)
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.root = root
        self.folders = image_dir, mask_dir
        self.splits = train_dir, val_dir
        self.suffixes = image_suffix, mask_suffix
        self.val_fraction = val_fraction
        self.ignore_index = ignore_index
        self.reduce_zero_label = reduce_zero_label
        self.values = values
        self.channels = channels
        self.given_classes = classes
        self.classes: list[str] = [] if classes is None else class_names(classes)
        if values is not None:
            self._check_values(values)

    def read(self) -> ImageSets:
        """Match images and masks by name, and check a sample of them."""
        root = check_folder(self.root, "root")
        if self.given_classes is None:
            self.classes = read_classes(root)
            if self.values is not None:
                self._check_values(self.values)
        labels = MaskLabels(
            *(len(self.classes), self.ignore_index, self.reduce_zero_label),
            None if self.values is None else tuple(self.values),
        )
        train_dir, val_dir = self.splits
        if self.val_fraction is not None:
            images, masks = self.folders
            pairs = match(root / images, root / masks, self.suffixes)
            parts = stratified_split(None, len(pairs.names), self.val_fraction)
            train, query = (self._set(pairs.take(rows), labels) for rows in parts)
            return ImageSets(train, query, len(self.classes))
        train = self._set(self._split(root, train_dir), labels)
        val = None if val_dir is None else self._set(self._split(root, val_dir), labels)
        return ImageSets(train, val, len(self.classes))

    def _split(self, root: Path, split: str) -> Pairs:
        images, masks = self.folders
        if (root / split).is_file():
            names = [line.split()[0] for line in (root / split).read_text().splitlines() if line]
            found = match(root / images, root / masks, self.suffixes, names)
            return found.named(names, root / split)
        inside = (root / split / images).is_dir()
        layouts = [(root / split / images, root / split / masks)] if inside else []
        if not inside and (root / images / split).is_dir():
            layouts = [(root / images / split, root / masks / split)]
        if not layouts:
            raise ValueError(
                f"root must hold {split}/{images}, {images}/{split} or the file {split}, got "
                f"{str(root)!r} without them; without splits set val_fraction"
            )
        return match(*layouts[0], self.suffixes)

    def _set(self, pairs: Pairs, labels: MaskLabels) -> MaskedImages:
        decoding = check_sample(pairs.images, Decoding(self.channels, upright=False))
        found = MaskedImages(FileImages(pairs.images, None, decoding=decoding), pairs.masks, labels)
        found.check()
        return found

    def _check_values(self, values: Sequence[int]) -> None:
        count = len(self.classes)
        if self.reduce_zero_label or len(set(values)) != len(values) or len(values) != count:
            raise ValueError(
                f"values must be {count} distinct numbers, one per class, without "
                f"reduce_zero_label, got {list(values)}"
            )


def class_names(classes: list[str] | int) -> list[str]:
    """Names of classes, "0".."K-1" for a number.

    Raises:
        ValueError: there are fewer than two, or a name is repeated.
    """
    names = list(map(str, range(classes))) if isinstance(classes, int) else list(classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"classes must be at least two, with distinct names, got {classes}")
    return names


def read_classes(root: Path) -> list[str]:
    """The class names in classes.txt, one per line.

    Raises:
        ValueError: there is no such file.
    """
    path = root / "classes.txt"
    if not path.is_file():
        raise ValueError(
            "classes must be the names of the classes, or their number, got None, and "
            f"{str(path)!r} with one name per line does not exist"
        )
    return class_names([line.strip() for line in path.read_text().splitlines() if line.strip()])


class Pairs(NamedTuple):
    """Images with their masks, by name."""

    names: list[str]
    images: list[str]
    masks: list[str]

    def take(self, rows: Tensor) -> Pairs:
        """The pairs at `rows`."""
        return Pairs(*([part[i] for i in rows.tolist()] for part in self))

    def named(self, names: Sequence[str], where: Path) -> Pairs:
        """The pairs of a list of names, in its order.

        Raises:
            ValueError: the list is empty, or a name has no image.
        """
        place = {name: row for row, name in enumerate(self.names)}
        lost = [name for name in names if name not in place]
        if lost or not names:
            raise ValueError(
                f"{str(where)!r} must list names of images, got {len(names)} names, of which "
                f"{len(lost)} have no image: {lost[:5]}"
            )
        return self.take(torch.tensor([place[name] for name in names]))


def match(
    images: Path, masks: Path, suffixes: tuple[str, str] = ("", ""), only: Sequence[str] = ()
) -> Pairs:
    """Match the files of two folders by name.

    Args:
        images: folder of the images.
        masks: folder of the masks.
        suffixes: ends of the names of images and of masks.
        only: names that must have both; empty: all of them.

    Raises:
        ValueError: a folder is missing or empty, or an image has no mask, or the reverse.
    """
    found = [
        _named(check_folder(folder, name), suffix)
        for folder, name, suffix in zip(
            (images, masks), ("the folder of images", "the folder of masks"), suffixes, strict=True
        )
    ]
    if only:
        wanted = set(only)
        found = [{name: path for name, path in part.items() if name in wanted} for part in found]
    for part, other, what, lacks in (
        (found[0], found[1], "images", "mask"),
        (found[1], found[0], "masks", "image"),
    ):
        lost = sorted(part.keys() - other.keys())
        if lost:
            raise ValueError(
                f"every image must have a mask of its name, but {len(lost)} of {len(part)} {what} "
                f"in {str(images if lacks == 'mask' else masks)!r} have no {lacks} in "
                f"{str(masks if lacks == 'mask' else images)!r}: {lost[:5]}"
            )
    names = sorted(found[0])
    return Pairs(names, *([part[name] for name in names] for part in found))


def _named(folder: Path, suffix: str) -> dict[str, str]:
    """The files below a folder by name, without extension and suffix."""
    found: dict[str, str] = {}
    for path in map(Path, list_files(folder, ANY_EXTENSIONS)):
        name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if not name.endswith(suffix):
            continue
        name = name.removesuffix(suffix)
        if name in found:
            raise ValueError(f"a name must have one file, got {found[name]} and {path}")
        found[name] = str(path)
    if not found:
        ending = f" whose names end with {suffix!r}" if suffix else ""
        raise ValueError(f"{str(folder)!r} must hold image files{ending}, got none")
    return found


class MaskedImages(ImageSet):
    """N images with a mask each, read and cropped per batch (in a worker).

    Args:
        images: the images, without labels.
        masks: N paths, or the array of `pack_paths`.
        values: turns the values of a mask into labels.
        crops: the crops; None: batches cannot be read. Masks are read for the evaluation view.
    """

    def __init__(
        self,
        images: FileImages,
        masks: Sequence[str] | np.ndarray,
        values: MaskLabels,
        crops: Crops | None = None,
    ) -> None:
        self.images, self.values, self.crops = images, values, crops
        self._masks = masks if isinstance(masks, np.ndarray) else pack_paths(masks)
        self.labels = None
        self.needs_crops = True
        self.channels = images.channels

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        masks = files_digest(map(unpack_path, self._masks))
        return self.images.fingerprint() + masks + described(tuple(self.values))

    def subset(self, rows: Tensor) -> MaskedImages:
        masks = self._masks[rows.numpy()]
        return MaskedImages(self.images.subset(rows), masks, self.values, self.crops)

    def cropped(self, crops: Crops, keep_size: bool) -> ImageSet:
        images = self.images.cropped(crops, keep_size)
        if not isinstance(crops, EvalCrops):
            return images
        return MaskedImages(images, self._masks, self.values, crops)

    def __getitems__(self, index: list[int]) -> Batch:
        batch = self.images.__getitems__(index)
        assert isinstance(self.crops, EvalCrops)
        view = self.crops.view
        masks = [_viewed(self.mask(i), view) for i in batch.index.tolist()]
        return batch._replace(label=torch.stack(masks))

    def mask(self, index: int) -> Tensor:
        """Labels (H, W) int64 of an image, at its own size.

        Raises:
            ValueError: the mask is unreadable, of another size, or has labels of no class.
        """
        path = unpack_path(self._masks[index])
        labels = self.values(read_mask(path), path)
        height, width = self.size(index)
        if labels.shape != (height, width):
            raise ValueError(
                f"a mask must have the size of its image, got {labels.shape[1]}x{labels.shape[0]} "
                f"pixels in {path} and {width}x{height} in {self.images.path(index)}"
            )
        return labels

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        path, decoding = self.images.path(index), self.images.decoding
        try:
            with open_image(path, decoding.channels) as image:
                return upright_size(image, upright=False)
        except BROKEN as error:
            raise ValueError(
                f"cannot read the image {path} ({type(error).__name__}: {error})"
            ) from None

    def check(self) -> None:
        """Read the masks of evenly spaced images.

        Raises:
            ValueError: a mask does not fit its image or the classes, or the masks have fewer than
                two classes.
        """
        found: set[int] = set()
        for row in spread(len(self), _SAMPLE):
            found |= set(self.mask(row).unique().tolist())
        classes = found - {self.values.ignore_index}
        if len(classes) < 2:
            path = unpack_path(self._masks[0])
            raise ValueError(
                f"masks must have at least two classes, got labels {sorted(found)} of which "
                f"{self.values.ignore_index} is ignored, as in {path}; for masks of 0 and 255 set "
                "values=[0, 255]"
            )


def _viewed(labels: Tensor, view: EvalView) -> Tensor:
    """The labels of an evaluation view. Shapes: (H, W) -> (S, S)."""
    height, width = labels.shape
    wide: Any = labels[None, None].double()  # exact for class numbers
    if view.fraction is not None:
        side = round(min(height, width) * view.fraction)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        wide = wide[:, :, top : top + side, left : left + side]
        return F.interpolate(wide, (view.size, view.size), mode="nearest-exact")[0, 0].long()
    if view.resize is not None or view.squash:
        wide = F.interpolate(wide, view.resized(height, width), mode="nearest-exact")
    return center_crop(wide, view.size)[0, 0].long()
