"""MultiViewFolder: several aligned pictures of each scene, such as color, depth and normals.

One folder a modality, matched by file name. All modalities of a sample get the same keyed crop
and flip. Shapes: B samples, M modalities, C the channels of all of them together, S a view's side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets, PredictOn
from sslzoo.data.image.decode import BROKEN, to_rgb
from sslzoo.data.image.images import Crops, EvalCrops, ImageSet, TrainCrops
from sslzoo.data.listing import check_folder
from sslzoo.eval.fingerprint import described, files_digest, labels_digest
from sslzoo.random import Keys
from sslzoo.transforms.image.color_space import (
    LAB_MEAN,
    LAB_STD,
    YCBCR_MEAN,
    YCBCR_STD,
    ColorSpace,
    Space,
    check_space,
)
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from sslzoo.transforms.image.views import View, Views

_EXTENSIONS = (".png", ".npy", ".jpg", ".jpeg")
_CHANNELS = {"image": 3, "depth": 1, "normals": 3, "labels": 1}
_CONSTANTS = {
    "rgb": (IMAGENET_MEAN, IMAGENET_STD),
    "lab": (LAB_MEAN, LAB_STD),
    "ycbcr": (YCBCR_MEAN, YCBCR_STD),
}


@dataclass(frozen=True)
class Modality:
    """One folder of pictures.

    8-bit files are read as 0..1 of 255, 16-bit ones as 0..1 of 65535, floats (.npy) as they are;
    a PNG of normals, 0..1, is taken to -1..1.

    Args:
        folder: its name.
        kind: "image" (3 channels, RGB), "depth" (1), "normals" (3: x to the right, y, z) or
            "labels" (1: class numbers of a segmentation, resized without mixing). A mirrored
            sample's normals have their x turned round.
        mean: one number a channel, subtracted; None: of the color space for an image, else 0.
        std: one number a channel, divided by; None: of the color space for an image, else 1.

    Raises:
        ValueError: an unknown kind, or another number of means or deviations.
    """

    folder: str
    kind: Literal["image", "depth", "normals", "labels"]
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in _CHANNELS:
            raise ValueError(f"kind is one of {list(_CHANNELS)}, got {self.kind!r}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) != self.channels:
                raise ValueError(f"{self.kind} wants {self.channels} numbers, got {name} {numbers}")

    @property
    def channels(self) -> int:
        """Of its pictures."""
        return _CHANNELS[self.kind]


class MultiViewFolder(ImageDataModule):
    """Aligned modalities in `<root>/train/<modality>/*` and `<root>/val/<modality>/*`.

    Files are PNG (8 bits, or 16 bits of one channel), .npy ((H, W), (H, W, C) or (C, H, W) of
    uint8, uint16 or floats) or JPEG; with `labels`, `<modality>/<class>/*`. A sample is a file
    name (without its ending) that every modality has. While training a batch has one view a
    modality (two of an image in Lab or YCbCr: L and ab); in evaluation one image of all C channels,
    which `backbones.Towers` cuts. EXIF orientations are ignored: pixels match as they are stored.

    Args:
        root: the folder.
        modalities: at least two; an image comes first.
        size: S.
        space: of the image: "lab" and "ycbcr" split it into two views, "rgb" leaves it.
        scale: range of the crop's share of the area.
        flip: probability of a horizontal flip.
        batch_size: the global batch, over all ranks.
        train_dir: inside `root`; where it is missing and `val_dir` is null, `root` itself.
        val_dir: inside `root`; null for no validation.
        labels: whether the folders inside a modality are classes.
        resize: shorter side in evaluation, before the center crop; None: no resize.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: one a core, at most 8.
        seed: of batches and views; None: the run's.
        train_fraction: of the training set that is used.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.

    Attributes:
        channels: of the training views, in order: what `Towers` is built with.
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
    ) -> None:
        check_space(space)
        _check_modalities(modalities)
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
        crop = RandomResizedCrop(size, scale, flip=flip)
        views = Views([View(crop, [ColorSpace(space), Normalize(mean, std)])], self.channels)
        eval_view = EvalView(size, resize, mean, std, space=space)
        super().__init__(
            views,
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
        self.modalities = modalities
        self.train_dir, self.val_dir = train_dir, val_dir
        self.labels = labels
        self.classes: list[str] = []

    def read(self) -> ImageSets:
        """Match the files of the modalities by name."""
        root = check_folder(self.root, "root")
        inner = root / self.train_dir
        whole = inner if inner.is_dir() or self.val_dir is not None else root
        train = _match(whole, self.modalities)
        val = None if self.val_dir is None else _match(root / self.val_dir, self.modalities)
        if self.labels:
            self.classes = sorted({_class_of(name, whole) for name in train.names})
        query = None if val is None else self._set(val)
        return ImageSets(self._set(train), query, len(self.classes) or None)

    def _set(self, matched: _Matched) -> AlignedFiles:
        label = None
        if self.labels:
            names = [_class_of(name, matched.folder) for name in matched.names]
            unknown = sorted(set(names) - set(self.classes))
            if unknown:
                raise ValueError(
                    f"{str(matched.folder)!r} has classes that training lacks: {unknown[:5]}"
                )
            label = torch.tensor([self.classes.index(name) for name in names])
        return AlignedFiles(matched.paths, label, self.modalities)


class AlignedFiles(ImageSet):
    """N samples of M files each, read and cropped where the batch is made (in a worker).

    Args:
        paths: (N, M) file names.
        labels: (N,) int64 or None.
        modalities: M.
        crops: the training crops or the view of evaluation; None where only the listing is wanted.
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
        files = files_digest(os.fsdecode(bytes(path)) for path in self._paths.flat)
        return files + labels_digest(self.labels) + described(self.modalities)

    def subset(self, rows: Tensor) -> AlignedFiles:
        labels = None if self.labels is None else self.labels[rows]
        return AlignedFiles(self._paths[rows.numpy()], labels, self.modalities, self.crops)

    def cropped(self, crops: Crops, keep_size: bool) -> AlignedFiles:
        return AlignedFiles(self._paths, self.labels, self.modalities, crops)

    def __getitems__(self, index: list[int]) -> Batch:
        if self.crops is None:
            raise ValueError("a listing of files has no crops: use `cropped(...)`")
        places = torch.tensor(index)
        key = self.crops.keys(places).key
        samples = [self._cut(i, Keys(key[row : row + 1])) for row, i in enumerate(index)]
        label = None if self.labels is None else self.labels[places]
        return Batch([torch.stack(samples)], places, label)

    def read(self, index: int) -> list[Tensor]:
        """The whole pictures of one sample, (channels, H, W) float32 each.

        Raises:
            ValueError: a file cannot be read, or the sizes differ.
        """
        paths = [os.fsdecode(bytes(path)) for path in self._paths[index]]
        parts = [read_picture(p, m) for p, m in zip(paths, self.modalities, strict=True)]
        for path, part in zip(paths, parts, strict=True):
            if part.shape[1:] != parts[0].shape[1:]:
                raise ValueError(
                    f"the modalities of a sample have one size, got {tuple(part.shape[1:])} in "
                    f"{path} and {tuple(parts[0].shape[1:])} in {paths[0]}"
                )
        return parts

    def _cut(self, index: int, keys: Keys) -> Tensor:
        parts = self.read(index)
        height, width = parts[0].shape[1:]
        if isinstance(self.crops, TrainCrops):
            crop, own = self.crops.transform.crops[0], keys.fold("view", 0)
            top, left, tall, wide = crop.draw(own, height, width)[0].tolist()
            size, mirrored = (crop.size, crop.size), bool(crop.draw_flip(own))
        else:
            view = cast(EvalCrops, self.crops).view
            top, left, tall, wide, mirrored = 0, 0, height, width, False
            scale = 1.0 if view.resize is None else view.resize / min(height, width)
            size = (int(height * scale), int(width * scale))
        cut = []
        for part, modality in zip(parts, self.modalities, strict=True):
            box = part[:, top : top + tall, left : left + wide]
            out = _resize(box, size, modality.kind == "labels")
            out = out.flip(2) if mirrored else out
            if mirrored and modality.kind == "normals":
                out[0].neg_()
            cut.append(out)
        sample = torch.cat(cut)
        return sample if isinstance(self.crops, TrainCrops) else _center(sample, view.size)


def read_picture(path: str, modality: Modality) -> Tensor:
    """(channels, H, W) float32 of one file; scaled as `Modality` says.

    Raises:
        ValueError: it cannot be read, or has another number of channels or another type.
    """
    try:
        array = np.load(path) if path.endswith(".npy") else _pixels(path, modality)
    except BROKEN as error:
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error})") from error
    count = modality.channels
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] != count:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != count:
        raise ValueError(f"{modality.kind} has {count} channels, got {array.shape} in {path}")
    scale = {"uint8": 255, "uint16": 65535}.get(str(array.dtype))
    if scale is None and array.dtype.kind != "f":
        raise ValueError(f"pictures are uint8, uint16 or floats, got {array.dtype} in {path}")
    out = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    out = out if scale is None else out / scale
    return out * 2 - 1 if scale is not None and modality.kind == "normals" else out


def _pixels(path: str, modality: Modality) -> np.ndarray:
    with Image.open(path) as image:
        if modality.channels == 3:
            return np.array(to_rgb(image, upright=False))
        if image.mode == "P" and modality.kind != "labels":
            image = image.convert("L")
        array = np.array(image)  # a palette's numbers are the classes
    return array.astype(np.uint16) if array.dtype == np.int32 else array


def _resize(part: Tensor, size: tuple[int, int], nearest: bool) -> Tensor:
    if tuple(part.shape[1:]) == size:
        return part.clone()
    if nearest:
        return F.interpolate(part[None], size, mode="nearest-exact")[0]
    return F.interpolate(part[None], size, mode="bilinear", antialias=True)[0]


def _center(sample: Tensor, size: int) -> Tensor:
    height, width = sample.shape[1:]
    if min(height, width) < size:
        raise ValueError(f"pictures of {height} x {width} are smaller than size {size}; set resize")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return sample[:, top : top + size, left : left + size]


class _Matched(NamedTuple):
    folder: Path
    names: list[str]
    paths: np.ndarray  # (N, M) bytes: a list of str would be copied into each forked worker


def _match(folder: Path, modalities: Sequence[Modality]) -> _Matched:
    """The samples of a part, sorted by name.

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
                    f"modalities match by file name: {len(lost)} of {len(have)} samples of "
                    f"{there!r} are not in {here!r} ({str(folder)!r}): {lost[:5]}"
                )
    names = sorted(files[0])
    rows: Any = [[os.fsencode(found[name]) for found in files] for name in names]
    return _Matched(folder, names, np.array(rows, dtype=np.bytes_))


def _files(folder: Path) -> dict[str, str]:
    """Files below a folder by their name without ending."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _EXTENSIONS or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"one file a sample wanted, got {found[name]} and {path}")
        found[name] = str(path)
    if not found:
        raise ValueError(f"{str(folder)!r} must hold files ({', '.join(_EXTENSIONS)}), it has none")
    return found


def _class_of(name: str, folder: Path) -> str:
    parts = name.split("/")
    if len(parts) < 2:
        raise ValueError(
            f"labels=True wants <modality>/<class>/<file>, got {name!r} in {str(folder)!r}"
        )
    return parts[0]


def _check_modalities(modalities: Sequence[Modality]) -> None:
    folders = [modality.folder for modality in modalities]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise ValueError(f"at least two modalities in folders of their own wanted, got {folders}")
    if any(modality.kind == "image" for modality in modalities[1:]):
        kinds = [modality.kind for modality in modalities]
        raise ValueError(f"one image, the first of the modalities, wanted, got {kinds}")
