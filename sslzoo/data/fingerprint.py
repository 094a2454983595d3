"""Fingerprint of a data module's evaluation: changes where the features would."""

from __future__ import annotations

import hashlib
import os

from torch import Tensor

from sslzoo.data.images import ArrayImages, FileImages, ImageSet
from sslzoo.data.module import ImageDataModule
from sslzoo.eval.cache import tensor_digest


def fingerprint(data: ImageDataModule) -> str:
    """sha256 of the sets that evaluation reads, and of its view. After `setup`.

    Images in memory count by their pixels, files by path, size and time of change: hashing the
    bytes of ImageNet would take longer than many an evaluation.
    """
    sets = data.sets
    bank = sets.train if sets.bank is None else sets.bank
    view = data.eval_view
    text = [f"{name}={_plain(value)}" for name, value in sorted(vars(view).items())]
    text += [_of_set(bank), "no query" if sets.query is None else _of_set(sets.query)]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, Tensor) else value


def _of_set(images: ImageSet) -> str:
    labels = {} if images.labels is None else {"labels": images.labels}
    if isinstance(images, ArrayImages):
        return tensor_digest({"images": images.images, **labels})
    if not isinstance(images, FileImages):
        raise ValueError(f"images in memory or in files wanted, got {type(images).__name__}")
    digest = hashlib.sha256(tensor_digest(labels).encode())
    for number in range(len(images)):
        path = images.path(number)
        status = os.stat(path)
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
