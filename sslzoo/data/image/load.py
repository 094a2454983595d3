"""Load listed image files into memory, or leave decoding to the workers."""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image

from sslzoo.data.datamodule import OnBroken, default_workers
from sslzoo.data.image.datamodule import ImageSets
from sslzoo.data.image.decode import BROKEN, UnequalSizesError, check_sample, decode_array
from sslzoo.data.image.image_set import ArrayImages, FileImages
from sslzoo.data.listing import Listing, select_rows
from sslzoo.transforms.image.pixels import Decoding

# What Pillow identifies without decoding pixels, or decodes by another program.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_USUAL = (".jpg", ".png", ".tif")  # first in errors
IMAGE_EXTENSIONS = _USUAL + tuple(
    sorted(
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_DECODED and extension not in _USUAL
    )
)
Decode = Literal["auto", "array", "workers"]

# Limits of "auto": larger photographs cost more to store than to crop, and sizes usually differ.
_ARRAY_SIDE = 128  # pixels
_ARRAY_BYTES = 4 << 30


def load_images(
    train: Listing, query: Listing | None, decode: Decode, on_broken: OnBroken, decoding: Decoding
) -> ImageSets:
    """Make the sets of an `ImageDataModule` from listed files.

    Args:
        train: files of the training set.
        query: files of the query set, or None.
        decode: "array" decodes all images once into memory (they must have one size), "workers"
            decodes and crops for each batch, "auto" chooses the array for images of one size up to
            128 pixels that fit in 4 GiB.
        on_broken: raise an "error" for an unreadable image, or "skip" and count it.
        decoding: how a file becomes pixels.

    Raises:
        ValueError: the values of a sample of the images are not pixels.
    """
    num_classes = len(train.classes) or None
    listings = [train] if query is None else [train, query]
    checked = [check_sample(listing.paths, decoding) for listing in listings]
    if decode == "array" or (decode == "auto" and _is_small(listings)):
        try:
            arrays = [_decode(*case, on_broken) for case in zip(listings, checked, strict=True)]
            if len({a.images.shape[1:] for a in arrays}) > 1:
                shapes = [tuple(a.images.shape[2:]) for a in arrays]
                raise UnequalSizesError(
                    f"training and validation images must have one size, got {shapes}; set "
                    'decode="workers"'
                )
            return ImageSets(arrays[0], arrays[1] if query is not None else None, num_classes)
        except UnequalSizesError:
            if decode == "array":
                raise
    files = [
        FileImages(listing.paths, listing.labels, None, on_broken, own)
        for listing, own in zip(listings, checked, strict=True)
    ]
    return ImageSets(files[0], files[1] if query is not None else None, num_classes)


def _is_small(listings: list[Listing]) -> bool:
    total = sum(len(listing.paths) for listing in listings)
    for listing in listings:
        for path in listing.paths[:8]:  # the first readable image decides
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except BROKEN:
                continue
            if max(width, height) > _ARRAY_SIDE or 3 * width * height * total > _ARRAY_BYTES:
                return False
            break
    return True


def _decode(listing: Listing, decoding: Decoding, on_broken: OnBroken) -> ArrayImages:
    images, rows = decode_array(listing.paths, on_broken, decoding, processes=default_workers())
    labels = select_rows(listing.labels, rows.to(torch.int64))
    return ArrayImages(images, labels, left_out=len(listing.paths) - len(rows))
