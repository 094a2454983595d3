"""Random resized crop: a box for each sample, resized by two matrix products.

A resize is linear, so crop, resize and flip of one sample are `rows @ image @ columns^T`, with
resampling matrices that hold the filter (triangle or Keys' cubic), its antialiasing and the box.
Inception's crop (Szegedy et al., CVPR 2015) as torchvision draws it. Shapes: B samples, C
channels, sources (H, W), results (S, S); a box is (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.planes import to_planes

Interpolation = Literal["bilinear", "bicubic"]
_ATTEMPTS = 10  # torchvision's
_TABLE_FLOATS = 1 << 22  # 16 MiB: all boxes of a 32 px side, at two flips, take half of it


def _filter(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """The filter's value at a distance in (widened) pixels; Keys' a = -1/2, as PIL has it."""
    x = distance.abs()
    if interpolation == "bilinear":
        return (1 - x).clamp_min(0)
    near, far = x.clamp_max(1), x.clamp(1, 2)  # each cubic piece is constant outside its range
    inner = (1.5 * near - 2.5) * near * near + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    return inner + outer


def resampling_matrix(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    source: int,
    size: int,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """Matrices that crop, resize and flip one axis; pixels outside the box have no weight.

    Args:
        start: (B,) first pixel of the box.
        length: (B,) pixels of the box.
        flip: (B,) bool, mirror the result.
        source: length of the axis.
        size: length of the result.
        interpolation: the filter.
        antialias: widen the filter when shrinking (PIL, torchvision); otherwise TensorFlow's
            resize, which for "bicubic" is not torch's (a = -3/4 and repeated edges).

    Returns:
        (B, size, source) float32, rows that sum to 1.
    """
    start, length = start[:, None].to(torch.float32), length[:, None].to(torch.float32)
    step = length / size
    target = torch.arange(size, device=start.device, dtype=torch.float32).expand(len(start), -1)
    target = torch.where(flip[:, None], size - 1 - target, target)
    centre = (target + 0.5) * step
    pixel = torch.arange(source, device=start.device, dtype=torch.float32) - start
    inside = ((pixel >= 0) & (pixel < length)).to(torch.float32)
    distance = (pixel + 0.5)[:, None, :] - centre[:, :, None]
    if antialias:
        distance /= step.clamp_min(1)[:, :, None]
    weights = _filter(distance, interpolation).mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


@lru_cache(maxsize=16)
def _table(source: int, size: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    """The matrices of every box of a short axis, by length, then start; flipped ones second."""
    boxes = [(s, n) for n in range(1, source + 1) for s in range(source - n + 1)]
    start, length = torch.tensor(boxes).repeat(2, 1).unbind(1)
    flip = torch.arange(len(start)) >= len(boxes)
    return resampling_matrix(start, length, flip, source, size, interpolation, antialias)


def _matrix(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    source: int,
    size: int,
    interpolation: Interpolation,
    antialias: bool,
) -> Tensor:
    """`resampling_matrix`, looked up on a CPU where all boxes of the axis fit in a table."""
    count = source * (source + 1) // 2
    # A table made of a fake tensor (torch.compile, tests) would outlive its mode.
    if type(start) is not Tensor or start.device.type != "cpu":
        count = _TABLE_FLOATS
    if 2 * count * size * source > _TABLE_FLOATS:
        return resampling_matrix(start, length, flip, source, size, interpolation, antialias)
    shorter = (length - 1) * (source + 1) - (length - 1) * length // 2
    row = shorter + start + flip * count
    return _table(source, size, interpolation, antialias).index_select(0, row)


def crop_planes(
    images: Tensor,
    boxes: Tensor,
    flip: Tensor,
    size: int,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Crop, resize and flip by matrices, on any device.

    Antialiased uint8 images are clipped to their range after each of the two passes, as PIL's
    bytes are; others are not clipped (bicubic overshoots), as in torchvision and TensorFlow.

    Args:
        images: (B, C, H, W) uint8, or float in [0, 1].
        boxes: (B, 4) int64.
        flip: (B,) bool.
        size: S.
        interpolation: the filter.
        antialias: see `resampling_matrix`.

    Returns:
        planes (C, B, S, S) float32.
    """
    batch, channels, height, width = images.shape
    top, left, box_height, box_width = boxes.unbind(1)
    never = torch.zeros_like(flip)
    rows = _matrix(top, box_height, never, height, size, interpolation, antialias)
    columns = _matrix(left, box_width, flip, width, size, interpolation, antialias).mT
    clip = images.dtype == torch.uint8 and antialias and interpolation == "bicubic"
    planes = to_planes(images)
    out = torch.empty(channels, batch, size, size, device=images.device)
    for plane, result in zip(planes, out, strict=True):
        half = torch.bmm(plane, columns)
        torch.bmm(rows, half.clamp_(0, 1) if clip else half, out=result)
    return out.clamp_(0, 1) if clip else out


def crop_pixels(
    image: Tensor, box: list[int], flip: bool, size: int, interpolation: Interpolation
) -> Tensor:
    """Crop, antialiased resize and flip of one image in its own dtype, on a CPU.

    Shapes: image (C, H, W) uint8 or float -> (C, size, size).
    """
    top, left, height, width = box
    part = image[None, :, top : top + height, left : left + width]
    if image.dtype == torch.uint8:  # torch's kernel for bytes is fastest on interleaved channels
        part = part.contiguous(memory_format=torch.channels_last)
    out = F.interpolate(part, (size, size), mode=interpolation, antialias=True)[0]
    return out.flip(2) if flip else out


@final
class RandomResizedCrop:
    """A box of random area and aspect, resized to a square and flipped at random.

    Ten boxes are drawn and the first that fits is taken; if none does, the largest central box
    within the aspect range (torchvision). Large uint8 images on a CPU are resized in bytes, as
    PIL does, within 1/255 of the matrices that other devices use.

    Args:
        size: S, pixels of each side of the result.
        scale: range of the box's share of the image's area.
        ratio: range of width / height, uniform in its logarithm.
        interpolation: "bilinear" or "bicubic".
        antialias: widen the filter when shrinking, as PIL and torchvision; False is TensorFlow's.
        flip: probability of a horizontal flip.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        antialias: bool = True,
        flip: float = 0.5,
    ) -> None:
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation is 'bilinear' or 'bicubic', got {interpolation!r}")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f"scale wants 0 < low <= high <= 1, ratio 0 < low <= high, got {scale}, {ratio}"
            )
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolation = interpolation
        self.antialias = antialias
        self.flip = flip

    def draw(self, keys: Keys, height: int | Tensor, width: int | Tensor) -> Tensor:
        """Boxes (B, 4) int64: top, left, height, width.

        Args:
            keys: B keys.
            height: of the source images: one number or (B,).
            width: likewise.
        """
        unit = keys.uniform("box", _ATTEMPTS, 2).double()  # a rounding must not differ by device
        place = keys.uniform("place", 2).double()
        zero = torch.zeros_like(place[:, 0])
        full_height, full_width = zero + height, zero + width
        log_low, log_high = math.log(self.ratio[0]), math.log(self.ratio[1])
        low, high = self.scale
        area = (full_height * full_width)[:, None] * (low + (high - low) * unit[..., 0])
        aspect = (log_low + (log_high - log_low) * unit[..., 1]).exp()
        widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (widths > 0) & (heights > 0)
        fits &= (widths <= full_width[:, None]) & (heights <= full_height[:, None])
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        found = fits.any(1)
        # No box fitted: as much as the aspect range allows, in the centre.
        most_width = torch.minimum(full_width, (full_height * self.ratio[1]).round())
        most_height = torch.minimum(full_height, (full_width / self.ratio[0]).round())
        box_width = torch.where(found, widths.gather(1, first)[:, 0], most_width)
        box_height = torch.where(found, heights.gather(1, first)[:, 0], most_height)
        room = torch.stack((full_height - box_height, full_width - box_width), 1)
        corner = torch.where(found[:, None], place * (room + 1), room / 2).floor()
        return torch.stack((corner[:, 0], corner[:, 1], box_height, box_width), 1).long()

    def draw_flip(self, keys: Keys) -> Tensor:
        """Which samples are mirrored, (B,) bool."""
        return keys.bernoulli("flip", self.flip)

    def planes(self, images: Tensor, boxes: Tensor, flip: Tensor) -> Tensor:
        """The drawn crops as planes (C, B, S, S) in [0, 1]; arguments as in `crop_planes`."""
        small = images.shape[2] * images.shape[3] <= 64 * 64
        if images.device.type != "cpu" or small or not self.antialias:
            out = crop_planes(images, boxes, flip, self.size, self.interpolation, self.antialias)
            return out.clamp_(0, 1) if self.interpolation == "bicubic" else out
        cases = zip(images, boxes.tolist(), flip.tolist(), strict=True)
        crops = [crop_pixels(x, b, f, self.size, self.interpolation) for x, b, f in cases]
        out = to_planes(torch.stack(crops))
        return out.clamp_(0, 1) if self.interpolation == "bicubic" else out

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        """Shapes: images (B, C, H, W) uint8, or float in [0, 1] -> (B, C, S, S) float32."""
        boxes = self.draw(keys, images.shape[2], images.shape[3])
        return self.planes(images, boxes, self.draw_flip(keys)).transpose(0, 1).contiguous()

    def crop_one(self, image: Image.Image | Tensor, keys: Keys) -> Tensor:
        """The same crop of one sample in a loader's worker, within 1/255 of the device's.

        Args:
            image: PIL image or (C, H, W) uint8.
            keys: one key, the sample's, folded with the view as in `Views`.

        Returns:
            (C, S, S) uint8.
        """
        pixels = pixels_of(image)
        boxes = self.draw(keys, pixels.shape[1], pixels.shape[2])
        flip = self.draw_flip(keys)
        if self.antialias:
            return crop_pixels(
                pixels, boxes[0].tolist(), bool(flip), self.size, self.interpolation
            ).contiguous()
        planes = crop_planes(pixels[None], boxes, flip, self.size, self.interpolation, False)
        return planes[:, 0].clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def pixels_of(image: Image.Image | Tensor) -> Tensor:
    """(C, H, W) uint8 of a PIL image (RGB, or gray if it is "L") or of such a tensor."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise ValueError(f"wanted (C, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
        return image
    array = np.array(image if image.mode in ("RGB", "L") else image.convert("RGB"))
    return torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def draft_for(image: Image.Image, crops: list[tuple[RandomResizedCrop, Keys]]) -> list[Tensor]:
    """Crops of a JPEG decoded no finer than the most demanding of them needs.

    Args:
        image: a PIL image; only a JPEG that has not been loaded decodes smaller.
        crops: each crop with its key.

    Returns:
        (C, S, S) uint8 tensors, from boxes drawn on the full image.
    """
    width, height = image.size
    boxes = [crop.draw(keys, height, width)[0].tolist() for crop, keys in crops]
    need = max(crop.size / min(b[2:]) for (crop, _), b in zip(crops, boxes, strict=True))
    image.draft("RGB", (math.ceil(width * min(1.0, need)), math.ceil(height * min(1.0, need))))
    pixels = pixels_of(image)
    ratio_y, ratio_x = pixels.shape[1] / height, pixels.shape[2] / width
    out = []
    for (crop, keys), (top, left, tall, wide) in zip(crops, boxes, strict=True):
        y, x = round(top * ratio_y), round(left * ratio_x)
        box = [y, x, max(1, round(tall * ratio_y)), max(1, round(wide * ratio_x))]
        flip = bool(crop.draw_flip(keys))
        out.append(crop_pixels(pixels, box, flip, crop.size, crop.interpolation).contiguous())
    return out
