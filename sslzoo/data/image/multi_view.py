"""MultiViewFolder: aligned modalities of each sample, such as color, depth and normals.

Each modality has one folder, and files are matched by name. All modalities of a sample get the same
keyed crop and flip. Shapes: B samples, M modalities, C channels of all modalities, S side of a
view.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.checks import check_choice, check_interval
from sslzoo.data.datamodule import PredictOn, default_workers
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.decode import BROKEN
from sslzoo.data.image.image_set import Crops, EvalCrops, ImageSet, TrainCrops
from sslzoo.data.image.load import IMAGE_EXTENSIONS
from sslzoo.data.listing import (
    check_folder,
    check_known,
    list_files,
    pack_paths,
    select_rows,
    spread,
    unpack_path,
)
from sslzoo.eval.fingerprint import described, files_digest, labels_digest
from sslzoo.random import Keys
from sslzoo.transforms.image.color_space import (
    LAB_MEAN,
    LAB_STD,
    YCBCR_MEAN,
    YCBCR_STD,
    ColorSpace,
    Space,
)
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from sslzoo.transforms.image.pixels import pil_pixels
from sslzoo.transforms.image.resample import center_crop
from sslzoo.transforms.image.views import View, Views
from sslzoo.value_range import (
    TOLERANCE,
    ValueRangeError,
    as_pixels,
    check_finite,
    check_value_range,
    from_array,
)

_EXTENSIONS = (*IMAGE_EXTENSIONS, ".npy")
_CHANNELS = {"image": 3, "depth": 1, "normals": 3, "labels": 1}
_VOID = 255  # the label of pixels without a class
_CHECKED = 4096  # samples that are read before training
_SHORT = 13107  # a fifth of 65535: 16-bit depth that stays below it has another unit
_CONSTANTS = {
    "rgb": (IMAGENET_MEAN, IMAGENET_STD),
    "lab": (LAB_MEAN, LAB_STD),
    "ycbcr": (YCBCR_MEAN, YCBCR_STD),
}


@dataclass(frozen=True)
class Modality:
    """One modality: its folder, its kind and its normalization.

    8-bit files are scaled from 0..255 to 0..1, 16-bit files from 0..65535 to 0..1, and floats
    are from 0 to 1. Integer normals are then mapped from 0..1 to -1..1, and float normals are
    from -1 to 1. Depth in units of length needs its `value_range`.

    Args:
        folder: name of its folder.
        kind: "image" (3 channels, RGB), "depth" (1), "normals" (3: x to the right, y, z) or
            "labels" (class numbers of a segmentation, resized by the nearest pixel: one channel
            per class with `num_classes`, else one channel). A flip negates the x of normals.
        mean: mean per channel; None: that of the color space for an image, else 0.
        std: standard deviation per channel; None: that of the color space for an image, else 1.
        value_range: the depths that become 0 and 1, such as [0, 10000] for millimeters up to 10
            meters, of any type; None: those of the file's type, or, with `mean`, floats as they
            are.
        clip: whether depths outside `value_range` become 0 and 1.
        num_classes: number of classes of labels, 0 to num_classes - 1 in the files; 255 is no
            class, 0 in all channels.

    Raises:
        ValueError: the kind is unknown, mean or std has another number of channels, or an argument
            is of another kind.
    """

    folder: str
    kind: Literal["image", "depth", "normals", "labels"]
    mean: list[float] | None = None
    std: list[float] | None = None
    value_range: tuple[float, float] | None = None
    clip: bool = False
    num_classes: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, _CHANNELS)
        check_value_range(self.value_range)
        if self.clip and self.value_range is None:
            raise ValueError("clip must be left out without value_range, got True")
        for argument, kind in (("value_range", "depth"), ("num_classes", "labels")):
            given = getattr(self, argument)
            if given is not None and self.kind != kind:
                raise ValueError(f"{argument} must be left out for {self.kind}, got {given}")
        if self.num_classes is not None:
            check_interval("num_classes", self.num_classes, 1, _VOID)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) != self.channels:
                raise ValueError(
                    f"{name} of {self.kind} must have {self.channels} numbers, got {numbers}"
                )

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.num_classes or _CHANNELS[self.kind]


class MultiViewFolder(ImageDataModule):
    """Aligned modalities in `<root>/train/<modality>/*` and `<root>/val/<modality>/*`.

    `<root>/<modality>/*` is a training set without validation.

    Files are images (8 bits, or 16 bits with one channel) or .npy ((H, W), (H, W, C) or (C, H, W)
    of uint8, uint16 or floats); with `labels`, they lie in `<modality>/<class>/*`. A sample is a
    file name (without its extension) that every modality has. A training batch has one view per
    modality (two for an image in Lab or YCbCr: L and ab). An evaluation batch has one image of all
    C channels, which `backbones.Towers` splits. The EXIF orientation is ignored, since modalities
    are aligned as stored. Before training, up to 4096 samples of each set are read, so that wrong
    files are named before the first step.

    For the other arguments see `ImageDataModule`.

    Args:
        root: the folder.
        modalities: an image comes first; at least two, unless `space` splits an image.
        size: S.
        space: color space of the image; "lab" and "ycbcr" split it into two views.
        scale: range of the crop's fraction of the image area.
        ratio: range of the crop's width / height.
        flip: probability of a horizontal flip.
        train_dir: training folder inside `root`; if it is missing, `root` itself.
        val_dir: validation folder inside `root`; None, or without `train_dir` if it is missing: no
            validation.
        labels: whether the folders inside a modality are classes.
        resize: shorter side in evaluation, before the center crop; None: no resize.

    Attributes:
        channels: channels of each training view, in order, for `Towers`.
    """

    def __init__(
        self,
        root: str,
        modalities: list[Modality],
        size: int = 224,
        space: Space = "lab",
        scale: tuple[float, float] = (0.2, 1.0),
        flip: float = 0.5,
        batch_size: int = 128,
        train_dir: str = "train",
        val_dir: str | None = "val",
        labels: bool = False,
        resize: int | None = None,
        eval_batch_size: int = 128,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        check_choice("space", space, get_args(Space))
        _check_modalities(modalities, space)
        self.channels: list[int] = []
        mean: list[float] = []
        std: list[float] = []
        for modality in modalities:
            image, count = modality.kind == "image", modality.channels
            default = _CONSTANTS[space] if image else ((0.0,) * count, (1.0,) * count)
            mean += default[0] if modality.mean is None else modality.mean
            std += default[1] if modality.std is None else modality.std
            self.channels += [1, 2] if image and space != "rgb" else [count]
        space = space if modalities[0].kind == "image" else "rgb"
        crop = RandomResizedCrop(size, scale, ratio, flip=flip)
        views = Views([View(crop, [ColorSpace(space), Normalize(mean, std)])], self.channels)
        eval_view = EvalView(size, resize, mean, std, space=space)
        super().__init__(
            *(views, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.root = root
        self.modalities = modalities
        self.train_dir, self.val_dir = train_dir, val_dir
        self.labels = labels
        self.classes: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once; before training, check the files (see the class).

        Raises:
            ValueError: a modality is missing or unreadable, or its size, unit or labels are wrong.
        """
        first = self._sets is None
        super().setup(stage)
        if first and stage in ("fit", None):
            for part in (self.sets.train, self.sets.query):
                if part is not None:
                    part.check()

    def read(self) -> ImageSets:
        """Match the files of the modalities by name."""
        root = check_folder(self.root, "root")
        inner, first = root / self.train_dir, root / self.modalities[0].folder
        alone = not inner.is_dir() and (self.val_dir is None or first.is_dir())
        whole = root if alone else inner
        train = _match(whole, self.modalities)
        val = None
        if self.val_dir is not None and not (alone and not (root / self.val_dir).is_dir()):
            val = _match(root / self.val_dir, self.modalities)
        if self.labels:
            self.classes = sorted({_class_of(name, whole) for name in train.names})
        query = None if val is None else self._set(val)
        return ImageSets(self._set(train), query, len(self.classes) or None)

    def _set(self, matched: _Matched) -> AlignedFiles:
        label = None
        if self.labels:
            names = [_class_of(name, matched.folder) for name in matched.names]
            check_known(names, self.classes, repr(str(matched.folder)))
            label = torch.tensor([self.classes.index(name) for name in names])
        return AlignedFiles(matched.paths, label, self.modalities)


class AlignedFiles(ImageSet):
    """N samples of M files each, read and cropped per batch (in a worker).

    Args:
        paths: (N, M) packed paths (`pack_paths`).
        labels: (N,) int64, or None.
        modalities: M modalities.
        crops: the training crops or the evaluation view; None: batches cannot be read.
    """

    def __init__(
        self,
        paths: np.ndarray,
        labels: Tensor | None,
        modalities: Sequence[Modality],
        crops: Crops | None = None,
    ) -> None:
        self._paths = paths
        self.labels = labels
        self.needs_crops = True
        self.modalities = modalities
        self.channels = sum(modality.channels for modality in modalities)
        self.crops = crops

    def __len__(self) -> int:
        return len(self._paths)

    def fingerprint(self) -> str:
        files = files_digest(map(unpack_path, self._paths.flat))
        return files + labels_digest(self.labels) + described(self.modalities)

    def subset(self, rows: Tensor) -> AlignedFiles:
        labels = select_rows(self.labels, rows)
        return AlignedFiles(self._paths[rows.numpy()], labels, self.modalities, self.crops)

    def cropped(self, crops: Crops, keep_size: bool) -> AlignedFiles:
        return AlignedFiles(self._paths, self.labels, self.modalities, crops)

    def __getitems__(self, index: list[int]) -> Batch:
        if self.crops is None:
            raise ValueError("crops must be set to read a batch, got None; use `cropped(...)`")
        rows = torch.tensor(index)
        keys, boxes, samples = self.crops.keys(rows), _Boxes(self.crops), []
        for row, i in enumerate(index):
            parts = self.read(i)
            samples.append(self._cut(parts, *boxes(row, keys, *parts[0].shape[1:])))
        return Batch([torch.stack(samples)], rows, select_rows(self.labels, rows))

    def read(self, index: int) -> list[Tensor]:
        """Read one sample, uncropped: (channels, H, W) float32 per modality.

        Raises:
            ValueError: a file is unreadable, or the sizes differ.
        """
        paths = list(map(unpack_path, self._paths[index]))
        parts = [read_modality(p, m) for p, m in zip(paths, self.modalities, strict=True)]
        for path, part in zip(paths, parts, strict=True):
            if part.shape[1:] != parts[0].shape[1:]:
                raise ValueError(
                    "the modalities of a sample must have one size, got "
                    f"{tuple(part.shape[1:])} in {path} and {tuple(parts[0].shape[1:])} in "
                    f"{paths[0]}"
                )
        return parts

    def check(self) -> None:
        """Read up to 4096 samples, evenly spread.

        Raises:
            ValueError: as `read`, or 16-bit depth without `value_range` is of another unit.
        """
        rows = spread(len(self), _CHECKED)
        with ThreadPoolExecutor(default_workers() or 1) as pool:
            most = np.array(list(pool.map(self._most, rows))).max(0)
        for modality, depth in zip(self.modalities, most, strict=True):
            if modality.kind == "depth" and modality.value_range is None and 0 < depth < _SHORT:
                raise ValueError(
                    f"16-bit depth of {modality.folder!r} must use the values from 0 to 65535, got "
                    f"at most {depth:.0f} in {len(rows)} files; set value_range of the modality, "
                    "to [0, 10000] for millimeters up to 10 meters"
                )

    def _most(self, index: int) -> list[float]:
        """The largest value of 16-bit depth of a sample, per modality; 0 for other files."""
        parts = self.read(index)
        paths = map(unpack_path, self._paths[index])
        return [
            float(part.max()) * 65535 if m.kind == "depth" and _is_16_bit(path) else 0.0
            for path, part, m in zip(paths, parts, self.modalities, strict=True)
        ]

    def _cut(
        self, parts: list[Tensor], box: list[int], size: tuple[int, int], mirrored: bool
    ) -> Tensor:
        top, left, tall, wide = box
        cut = []
        for part, modality in zip(parts, self.modalities, strict=True):
            inside = part[:, top : top + tall, left : left + wide]
            out = _resize(inside, size, modality.kind == "labels")
            out = out.flip(2) if mirrored else out
            if mirrored and modality.kind == "normals":
                out[0].neg_()
            cut.append(out)
        sample = torch.cat(cut)
        train = isinstance(self.crops, TrainCrops)
        return sample if train else center_crop(sample, cast(EvalCrops, self.crops).view.size)


class _Boxes:
    """The box, the size after the resize and the flip per sample, drawn per batch and size."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops
        self.drawn: dict[tuple[int, int], list[list[int]]] = {}
        self.flips: list[bool] = []

    def __call__(
        self, row: int, keys: Keys, height: int, width: int
    ) -> tuple[list[int], tuple[int, int], bool]:
        if not isinstance(self.crops, TrainCrops):
            view = cast(EvalCrops, self.crops).view
            scale = 1.0 if view.resize is None else view.resize / min(height, width)
            return [0, 0, height, width], (int(height * scale), int(width * scale)), False
        crop, own = self.crops.transform.crops[0], keys.fold("view", 0)
        if (height, width) not in self.drawn:
            self.drawn[height, width] = crop.draw(own, height, width).tolist()
        self.flips = self.flips or crop.draw_flip(own).tolist()
        return self.drawn[height, width][row], (crop.size, crop.size), self.flips[row]


def read_modality(path: str, modality: Modality) -> Tensor:
    """Read one file as (channels, H, W) float32, scaled as `Modality` describes.

    Raises:
        ValueError: it is unreadable, or has another number of channels or another type.
    """
    try:
        array = np.load(path) if path.endswith(".npy") else _pixels(path, modality)
    except ValueRangeError as error:
        raise ValueRangeError(f"{error}; the file is {path}") from error
    except BROKEN as error:
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error})") from error
    count = _CHANNELS[modality.kind]
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] != count:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != count:
        raise ValueError(f"{modality.kind} must have {count} channels, got {array.shape} in {path}")
    name = f"{modality.kind} in {path}"
    values = from_array(array, name)
    if modality.num_classes is not None:
        return _one_hot(values, modality.num_classes, path)
    if modality.value_range is not None:
        try:
            return as_pixels(values, modality.value_range, name, clip=modality.clip).float()
        except ValueRangeError as error:
            told = str(error).replace(" of a data module", " of the modality")
            raise ValueRangeError(told) from None
    if values.dtype in (torch.uint8, torch.uint16):
        out = as_pixels(values, may_be_dark=True)
        out = out / 255 if out.dtype == torch.uint8 else out
        return out * 2 - 1 if modality.kind == "normals" else out
    if not values.is_floating_point():
        raise ValueError(
            f"{modality.kind} must be uint8, uint16 or float, got {array.dtype} in {path}"
        )
    if modality.kind == "image":
        return as_pixels(values, name=name)
    check_finite(values, name)
    low, high = (float(end) for end in values.to(torch.float32).aminmax())
    if modality.kind == "normals" and max(-low, high) > 1 + TOLERANCE:
        raise ValueRangeError(f"{name} must be from -1 to 1, got {low:.4g} to {high:.4g}")
    if modality.kind == "depth" and modality.mean is None and not (0 <= low <= high <= 1):
        raise ValueRangeError(
            f"{name} must be from 0 to 1, got {low:.4g} to {high:.4g}; set value_range of the "
            "modality, such as [0, 10] for meters"
        )
    return values.to(torch.float32)


def _one_hot(labels: Tensor, num_classes: int, path: str) -> Tensor:
    """Class numbers (1, H, W) as (num_classes, H, W) float32; 255 is 0 everywhere."""
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, got {labels.dtype} in {path}")
    labels = labels.to(torch.int64)[0]
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != _VOID)].unique().tolist()
    if wrong:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, the modality's num_classes, or {_VOID} "
            f"for none, got {wrong[:5]} in {path}"
        )
    return (labels == torch.arange(num_classes)[:, None, None]).to(torch.float32)


def _pixels(path: str, modality: Modality) -> np.ndarray:
    with Image.open(path) as image:
        if modality.channels == 3:
            return pil_pixels(image, 3, upright=False, may_be_dark=True).numpy()
        if image.mode == "P" and modality.kind != "labels":
            image = image.convert("L")
        array = np.array(image)  # palette indices are the classes
    whole = array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535
    return array.astype(np.uint16) if whole else array


def _is_16_bit(path: str) -> bool:
    if path.endswith(".npy"):
        return np.load(path, mmap_mode="r").dtype == np.uint16
    with Image.open(path) as image:
        return image.mode.startswith("I")


def _resize(part: Tensor, size: tuple[int, int], nearest: bool) -> Tensor:
    if tuple(part.shape[1:]) == size:
        return part.clone()
    if nearest:
        return F.interpolate(part[None], size, mode="nearest-exact")[0]
    return F.interpolate(part[None], size, mode="bilinear", antialias=True)[0]


class _Matched(NamedTuple):
    folder: Path
    names: list[str]
    paths: np.ndarray  # (N, M), packed


def _match(folder: Path, modalities: Sequence[Modality]) -> _Matched:
    """The samples below `folder`, sorted by name.

    Raises:
        ValueError: a folder is missing or empty, two files have one name, or the names differ.
    """
    files = [_files(check_folder(folder / m.folder, f"modality {m.folder!r}")) for m in modalities]
    first = modalities[0].folder
    for modality, found in zip(modalities, files, strict=True):
        for have, lack, there, here in (
            (files[0], found, first, modality.folder),
            (found, files[0], modality.folder, first),
        ):
            lost = sorted(have.keys() - lack.keys())
            if lost:
                raise ValueError(
                    f"modalities must have the same file names, but {len(lost)} of {len(have)} "
                    f"samples of {there!r} are not in {here!r} ({str(folder)!r}): {lost[:5]}"
                )
    names = sorted(files[0])
    paths = pack_paths(found[name] for name in names for found in files)
    return _Matched(folder, names, paths.reshape(len(names), len(files)))


def _files(folder: Path) -> dict[str, str]:
    """The files below a folder by their name without extension."""
    found: dict[str, str] = {}
    for path in map(Path, list_files(folder, _EXTENSIONS)):
        name = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            raise ValueError(f"a sample must have one file, got {found[name]} and {path}")
        found[name] = str(path)
    if not found:
        raise ValueError(f"{str(folder)!r} must hold files of images or .npy, got none")
    return found


def _class_of(name: str, folder: Path) -> str:
    parts = name.split("/")
    if len(parts) < 2:
        raise ValueError(
            f"with labels=True a file must be <modality>/<class>/<file>, got {name!r} in "
            f"{str(folder)!r}"
        )
    return parts[0]


def _check_modalities(modalities: Sequence[Modality], space: Space) -> None:
    folders = [modality.folder for modality in modalities]
    two = len(folders) > 1 or (space != "rgb" and [m.kind for m in modalities] == ["image"])
    if not two or len(set(folders)) < len(folders):
        raise ValueError(
            "modalities must be at least two, or one image that space splits, in different "
            f"folders, got {folders}"
        )
    if any(modality.kind == "image" for modality in modalities[1:]):
        kinds = [modality.kind for modality in modalities]
        raise ValueError(f"only the first modality may be an image, got {kinds}")
