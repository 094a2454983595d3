"""From listings of files to image sets: decoded into memory, or left to workers."""

from __future__ import annotations

import os
from typing import Literal

import torch

from sslzoo.data.image.datamodule import ImageSets, keep
from sslzoo.data.image.decode import BROKEN, UnequalSizesError, decode_array, open_image
from sslzoo.data.image.images import ArrayImages, FileImages, OnBroken
from sslzoo.data.listing import Listing
from sslzoo.random import stratified_split

Decode = Literal["auto", "array", "workers"]

# Where "auto" ends: larger photographs cost more to store than to crop, and are seldom of one size.
_ARRAY_SIDE = 128  # pixels
_ARRAY_BYTES = 4 << 30


def check_choices(decode: str, on_broken: str) -> None:
    """Refuse unknown options.

    Raises:
        ValueError: names the value got and those wanted.
    """
    if decode not in ("auto", "array", "workers"):
        raise ValueError(f'decode must be "auto", "array" or "workers", got {decode!r}')
    if on_broken not in ("error", "skip"):
        raise ValueError(f'on_broken must be "error" or "skip", got {on_broken!r}')


def split_listing(listing: Listing, fraction: float) -> tuple[Listing, Listing]:
    """A listing in two, keyed and stratified, the same for every run seed."""
    rows = stratified_split(listing.labels, len(listing.paths), fraction)
    first, second = (
        Listing([listing.paths[i] for i in part.tolist()], keep(listing.labels, part),
                listing.classes)
        for part in rows
    )  # fmt: skip
    return first, second


def image_sets(
    train: Listing, query: Listing | None, decode: Decode, on_broken: OnBroken, upright: bool
) -> ImageSets:
    """The sets that an `ImageDataModule` serves.

    Args:
        train: what methods train on.
        query: what evaluation scores, or None.
        decode: "array" decodes all once into memory (all images of one size), "workers" decodes
            and crops in each batch, "auto" takes the array for images of one size up to 128 px
            that fit in 4 GiB.
        on_broken: "error", or "skip" to leave out and count.
        upright: turn photographs as their EXIF orientation says.
    """
    num_classes = len(train.classes) or None
    listings = [train] if query is None else [train, query]
    if decode == "array" or (decode == "auto" and _is_small(listings)):
        try:
            arrays = [_decode(listing, on_broken, upright) for listing in listings]
            if len({a.images.shape[1:] for a in arrays}) > 1:
                shapes = [tuple(a.images.shape[2:]) for a in arrays]
                raise UnequalSizesError(
                    f"training and validation images must have one size, got {shapes}; use "
                    'decode="workers"'
                )
            return ImageSets(arrays[0], arrays[1] if query is not None else None, num_classes)
        except UnequalSizesError:
            if decode == "array":
                raise
    files = [FileImages(x.paths, x.labels, None, on_broken, upright) for x in listings]
    return ImageSets(files[0], files[1] if query is not None else None, num_classes)


def _is_small(listings: list[Listing]) -> bool:
    total = sum(len(listing.paths) for listing in listings)
    for listing in listings:
        for path in listing.paths[:8]:  # the first that can be read speaks for all
            try:
                with open_image(path) as image:
                    width, height = image.size
            except BROKEN:
                continue
            if max(width, height) > _ARRAY_SIDE or 3 * width * height * total > _ARRAY_BYTES:
                return False
            break
    return True


def _decode(listing: Listing, on_broken: OnBroken, upright: bool) -> ArrayImages:
    images, rows = decode_array(
        listing.paths, on_broken, upright, processes=min(8, os.cpu_count() or 1)
    )
    labels = keep(listing.labels, rows.to(torch.int64))
    return ArrayImages(images, labels, left_out=len(listing.paths) - len(rows))
