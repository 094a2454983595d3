"""Load listed image files into memory, or leave decoding to the workers."""

from __future__ import annotations

from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from sslzoo.data.datamodule import OnBroken, default_workers
from sslzoo.data.image.datamodule import ImageSets
from sslzoo.data.image.decode import (
    BROKEN,
    UnequalSizesError,
    broken_error,
    check_sample,
    decode_array,
)
from sslzoo.data.image.image_set import ArrayImages, FileImages, Tiles
from sslzoo.data.image.rasters import ARRAY_EXTENSIONS, open_image
from sslzoo.data.listing import Listing, select_rows
from sslzoo.transforms.image.pixels import Decoding, is_deep, upright_size

# What Pillow identifies without decoding pixels, or decodes by another program.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_USUAL = (".jpg", ".png", ".tif")  # first in errors
Image.preinit()  # so that files are tried as JPEG and PNG first: 0.04 ms less per file
IMAGE_EXTENSIONS = _USUAL + tuple(
    sorted(
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_DECODED and extension not in _USUAL
    )
)
ANY_EXTENSIONS = (*IMAGE_EXTENSIONS, *ARRAY_EXTENSIONS)  # with those of arrays and of DICOM
Decode = Literal["auto", "array", "workers"]

# Limits of "auto": larger photographs cost more to store than to crop, and sizes usually differ.
_ARRAY_SIDE = 128  # pixels
_ARRAY_BYTES = 4 << 30


def load_images(
    train: Listing,
    query: Listing | None,
    decode: Decode,
    on_broken: OnBroken,
    decoding: Decoding,
    tile: int | None = None,
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
        tile: side in pixels of the parts of every image that are samples; None: whole images.

    Raises:
        ValueError: the values of a sample of the images are not pixels.
    """
    num_classes = len(train.classes) or None
    listings = [train] if query is None else [train, query]
    checked = [check_sample(listing.paths, decoding) for listing in listings]
    own = checked[0].channels  # of the first training image, if they are not given
    checked = [each._replace(channels=own) for each in checked]
    array = decode == "array" or (decode == "auto" and _is_small(listings, checked[0]))
    if array and tile is None:
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
        _files(listing, on_broken, each, tile)
        for listing, each in zip(listings, checked, strict=True)
    ]
    return ImageSets(files[0], files[1] if query is not None else None, num_classes)


def _files(
    listing: Listing, on_broken: OnBroken, decoding: Decoding, tile: int | None
) -> FileImages:
    if tile is None:
        return FileImages(listing.paths, listing.labels, None, on_broken, decoding)
    sizes = torch.tensor([_size(path, on_broken, decoding) for path in listing.paths])
    boxes = [grid(int(height), int(width), tile) for height, width in sizes]
    counts = torch.tensor([len(box) for box in boxes])
    file = torch.arange(len(boxes)).repeat_interleave(counts)
    labels = select_rows(listing.labels, file)
    tiles = Tiles(file, torch.cat(boxes))
    return FileImages(listing.paths, labels, None, on_broken, decoding, tiles=tiles)


def _size(path: str, on_broken: OnBroken, decoding: Decoding) -> tuple[int, int]:
    try:
        with open_image(path, decoding.channels, decoding.reader) as image:
            return upright_size(image, decoding.upright)
    except BROKEN as error:
        if on_broken == "error":
            raise broken_error(path, error) from error
        return 1, 1  # one part, which reading a batch skips


def grid(height: int, width: int, tile: int) -> Tensor:
    """Boxes (n, 4) of squares that cover an image, of which the last ones may overlap others.

    An image that is smaller than a square on a side has boxes of its own length there.
    """
    tall, wide = min(tile, height), min(tile, width)
    rows = [min(i * tile, height - tall) for i in range(-(-height // tile))]
    columns = [min(i * tile, width - wide) for i in range(-(-width // tile))]
    return torch.tensor([(top, left, tall, wide) for top in rows for left in columns])


def _is_small(listings: list[Listing], decoding: Decoding) -> bool:
    total = sum(len(listing.paths) for listing in listings)
    for listing in listings:
        for path in listing.paths[:8]:  # the first readable image decides
            try:
                with open_image(path, decoding.channels, decoding.reader) as image:
                    width, height = image.size
                    bytes_per_pixel = (decoding.channels or 3) * (4 if is_deep(image) else 1)
            except BROKEN:
                continue
            needed = bytes_per_pixel * width * height * total
            if max(width, height) > _ARRAY_SIDE or needed > _ARRAY_BYTES:
                return False
            break
    return True


def _decode(listing: Listing, decoding: Decoding, on_broken: OnBroken) -> ArrayImages:
    images, rows = decode_array(listing.paths, on_broken, decoding, processes=default_workers())
    labels = select_rows(listing.labels, rows.to(torch.int64))
    return ArrayImages(images, labels, left_out=len(listing.paths) - len(rows))
