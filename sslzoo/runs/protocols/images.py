"""Protocols on image benchmarks in their official folders: VOC, Copydays, Oxford and Paris."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sslzoo.checks import check_at_least
from sslzoo.data.image.benchmarks import (
    COPYDAYS,
    Copydays,
    PathImages,
    Revisited,
    check_revisited,
    read_copydays,
    read_voc,
)
from sslzoo.data.image.image_set import EvalCrops, FileImages
from sslzoo.data.listing import check_folder, find_files
from sslzoo.data.loader import BatchSource, EvalLoader
from sslzoo.eval.features import Features, extract, gather_features
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.protocols.accuracy import Rule, class_precisions
from sslzoo.eval.protocols.logistic import SWEEP, logistic_scores
from sslzoo.eval.protocols.ranking import copy_detection, ranking_of, revisited
from sslzoo.runs.protocols.base import Protocol, Subject
from sslzoo.runs.results import Metrics
from sslzoo.text_file import read_text
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import pil_pixels
from sslzoo.zoo.safe_read import read


def view_of(subject: Subject) -> EvalView:
    """The encoder's evaluation view.

    Raises:
        ValueError: the encoder is not one of images, or records no preprocessing.
    """
    if not isinstance(subject.preprocess, EvalView):
        got = "none" if subject.preprocess is None else type(subject.preprocess).__name__
        raise ValueError(f"the encoder must record a preprocessing of images, got {got}")
    return subject.preprocess


def encode(
    subject: Subject,
    source: BatchSource,
    finish: Callable[[Tensor], Tensor],
    batch_size: int,
    forward: Callable[[Any], Tensor] | str = "forward",
) -> Features:
    """Features of a list of images on every rank, in order; collective.

    Args:
        subject: the encoder.
        source: raw images.
        finish: raw images -> the encoder's view.
        batch_size: images per batch; 1 if their sizes differ.
        forward: see `extract`.
    """
    loader = EvalLoader(source, batch_size, subject.workers)
    loaders = EvalLoaders(
        bank=loader,
        query=None,
        transform=lambda batch: batch._replace(views=[finish(batch.views[0])]),
        num_classes=None,
        sharded=True,
    )
    return gather_features(extract(subject.encoder, loader, loaders, forward, subject.device))


@dataclass(frozen=True)
class VocTransfer(Protocol):
    """Classification of PASCAL VOC by one logistic regression per class: mAP.

    Args:
        root: folder with JPEGImages and ImageSets/Main, such as VOCdevkit/VOC2007.
        train_split: split to train on.
        test_split: split to score.
        l2: see `logistic_scores`.
        rule: interpolation of the average precision: "eleven_points" for VOC 2007.
        batch_size: images per batch.
    """

    root: str = ""
    train_split: str = "trainval"
    test_split: str = "test"
    l2: tuple[float, ...] = SWEEP
    rule: Rule = "eleven_points"
    batch_size: int = 64
    needs_data = False

    def check(self) -> None:
        train, test = (read_voc(self.root, split) for split in (self.train_split, self.test_split))
        if train.classes != test.classes:
            raise ValueError(
                f"both splits must have the same classes, got {len(train.classes)} and "
                f"{len(test.classes)}"
            )

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        view = view_of(subject)
        parts = []
        for split in (self.train_split, self.test_split):
            voc = read_voc(self.root, split)
            images = FileImages(voc.paths, voc.labels, EvalCrops(view), keep_size=False)
            parts.append(encode(subject, images, view.finish, self.batch_size))
        train, test = parts
        assert train.label is not None
        assert test.label is not None
        known = train.features, train.label, test.features
        scores = logistic_scores(*known, len(voc.classes), self.l2)
        each = class_precisions(scores, test.label, self.rule)
        figures = {f"ap_{voc.classes[c]}": value for c, value in each.items()}
        return {"map": sum(each.values()) / len(each), **figures}


def square(image: Image.Image, size: int) -> Tensor:
    """Resize to a square by PIL's bicubic filter, whatever the shape. -> (C, size, size)."""
    return pil_pixels(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def class_and_gem(encoder: nn.Module, x: Tensor) -> Tensor:
    """A ViT's class token and generalized mean (exponent 4) of its patches; others' features.

    Shapes: (B, C, H, W) -> (B, 2 D).
    """
    give: Any = getattr(encoder, "forward_tokens", None)
    prefix: Any = getattr(encoder, "num_prefix", None)
    if give is None or prefix is None:
        return encoder(x)
    tokens = give(x)
    mean = tokens[:, prefix:].clamp(min=1e-6).pow(4).mean(1).pow(0.25)
    has_class = getattr(encoder, "cls_token", None) is not None
    return torch.cat([tokens[:, 0], mean], dim=1) if has_class else mean


@dataclass(frozen=True)
class CopyDetection(Protocol):
    """DINO's copy detection on Copydays: mAP of each block of queries.

    Args:
        root: folder of Copydays.
        distractors: folder of further images of the database; None: none. The paper has 10,000.
        whitening: folder of images whose covariance whitens the features; None: no whitening. The
            paper has 20,000.
        size: side of the images in pixels, which are squeezed to squares.
        batch_size: images per batch.
    """

    root: str = ""
    distractors: str | None = None
    whitening: str | None = None
    size: int = 320
    batch_size: int = 16
    needs_data = False

    def check(self) -> None:
        check_at_least("size", self.size, 1)
        read_copydays(self.root)
        for folder in (self.distractors, self.whitening):
            if folder is not None and not _images(folder):
                raise ValueError(f"the folder {folder!r} must have images, got none")

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        days: Copydays = read_copydays(self.root)
        database = self._features(subject, days.originals)
        if self.distractors is not None:
            database = torch.cat([database, self._features(subject, _images(self.distractors))])
        known = None
        if self.whitening is not None:
            known = self._features(subject, _images(self.whitening))
        figures: Metrics = {}
        for block in COPYDAYS:
            if block not in days.blocks:
                continue
            query = self._features(subject, days.blocks[block])
            kept = database
            if known is not None:
                query, kept = whiten(query, known), whiten(database, known)
            value = copy_detection(ranking_of(query, kept), days.positives[block])
            figures[f"map_{block.replace('/', '_')}"] = value
        return figures

    def _features(self, subject: Subject, paths: list[str]) -> Tensor:
        source = PathImages(paths, partial(square, size=self.size))
        forward = partial(class_and_gem, subject.encoder)
        return encode(subject, source, view_of(subject).finish, self.batch_size, forward).features


def whiten(x: Tensor, known: Tensor, power: float = 0.5) -> Tensor:
    """Center, rotate to the principal axes of `known`, and divide by their variance ** power.

    As in DINO's code, the second moment that is diagonalized is not centered, and all axes stay.

    Args:
        x: (n, D).
        known: (m, D) features that mean and covariance are taken from.
        power: 0.5 divides by the standard deviation.
    """
    known = known.double()
    values, vectors = torch.linalg.eigh(known.T @ known / len(known))
    scale = values.clamp_min(1e-5 * float(values.max())).pow(-power)
    return (x.double() - known.mean(0)) @ vectors * scale


def _images(folder: str) -> list[str]:
    check_folder(folder, "the folder of images")
    return find_files(folder, (".jpg", ".jpeg", ".png", ".bmp", ".webp")).paths


def read_revisited(root: str | Path, name: str) -> Revisited:
    """Read `<root>/<name>/gnd_<name>.json`, or the official .pkl, and list the images.

    The pickle is read without running code: names other than numpy's arrays are refused.

    Args:
        root: folder with roxford5k or rparis6k, each with `jpg`.
        name: "roxford5k" or "rparis6k".

    Raises:
        ValueError: a file is missing or malformed, or a pickle contains anything but plain values.
    """
    folder = check_folder(Path(root) / name, f"root with {name}")
    plain, pickled = (folder / f"gnd_{name}.{kind}" for kind in ("json", "pkl"))
    if plain.is_file():
        try:
            content = json.loads(read_text(plain))
        except json.JSONDecodeError as error:
            raise ValueError(f"{plain} must be JSON, got {error}") from None
        return check_revisited(folder, content, str(plain))
    if not pickled.is_file():
        raise ValueError(f"{str(folder)!r} must have {plain.name} or {pickled.name}, got neither")
    try:
        content = read(pickled)
    except ValueError as error:
        named = str(error).partition("it asks for ")[2].partition(";")[0]
        raise ValueError(
            f"{pickled} must contain only lists and arrays, got "
            f"{named or 'a damaged file'}; write them as {plain.name} instead"
        ) from error
    return check_revisited(folder, content, str(pickled))


def thumbnail(image: Image.Image, size: int, box: tuple[float, ...] | None = None) -> Tensor:
    """Resize the longer side to at most `size` by PIL's Lanczos filter. -> (C, H, W)."""
    image = image.convert("RGB")
    if box is not None:
        image = image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return pil_pixels(image)


class _Queries(PathImages):
    """Query images, cropped to their objects."""

    def __init__(self, given: Revisited, size: int) -> None:
        super().__init__(given.queries, partial(thumbnail, size=size))
        self.boxes = dict(zip(given.queries, given.boxes, strict=True))
        self.size = size

    def _read(self, path: str) -> Tensor:
        self.cut = partial(thumbnail, size=self.size, box=self.boxes[path])
        return super()._read(path)


@dataclass(frozen=True)
class RevisitedRetrieval(Protocol):
    """Retrieval of landmarks on revisited Oxford or Paris: mAP, easy, medium and hard.

    Args:
        root: folder with the folder of the data set, `dataset`, which has `jpg` and gnd_*.pkl.
        dataset: "roxford5k" or "rparis6k".
        size: longer side of the images in pixels.
        crop_queries: whether queries are cropped to their boxes, as the benchmark asks; DINO's code
            uses whole images.
        scales: scales of each image whose features are averaged; DINO's `--multiscale` has 1,
            1 / sqrt(2) and 1 / 2.
    """

    root: str = ""
    dataset: str = "roxford5k"
    size: int = 224
    crop_queries: bool = False
    scales: tuple[float, ...] = field(default=(1.0,))
    needs_data = False

    def check(self) -> None:
        check_at_least("size", self.size, 1)
        read_revisited(self.root, self.dataset)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        given = read_revisited(self.root, self.dataset)
        queries = PathImages(given.queries, partial(thumbnail, size=self.size))
        if self.crop_queries:
            queries = _Queries(given, self.size)
        images = PathImages(given.database, partial(thumbnail, size=self.size))
        forward = partial(several_scales, subject.encoder, self.scales)
        finish = view_of(subject).finish
        query, database = (
            encode(subject, source, finish, 1, forward).features for source in (queries, images)
        )
        return revisited(ranking_of(query, database), given.truth)


def several_scales(encoder: nn.Module, scales: tuple[float, ...], x: Tensor) -> Tensor:
    """Mean of the features at several scales, with the sides cut to whole patches of a ViT.

    Shapes: (B, C, H, W) -> (B, D).
    """
    patch = getattr(encoder, "patch_size", 1)
    patch = patch if isinstance(patch, int) else 1
    total = None
    for scale in scales:
        sized = x
        if not math.isclose(scale, 1):
            sized = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        height, width = (max(side // patch, 1) * patch for side in sized.shape[2:])
        if min(sized.shape[2:]) < patch:
            sized = F.interpolate(sized, size=(height, width), mode="bilinear")
        made = encoder(sized[:, :, :height, :width])
        total = made if total is None else total + made
    assert total is not None
    return total / len(scales)
