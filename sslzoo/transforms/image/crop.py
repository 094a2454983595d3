"""Random resized crop (Inception's), with one box per sample, drawn as torchvision does.

Szegedy et al., Going Deeper with Convolutions, CVPR 2015. Shapes: B samples, C channels, sources
(H, W), results (S, S); a box is (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from typing import final, get_args

import torch
from PIL import Image
from torch import Tensor

from sslzoo.checks import check_at_least, check_choice
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import to_planes
from sslzoo.transforms.image.pixels import Raster, pixels_of
from sslzoo.transforms.image.resample import Interpolation, crop_pixels, crop_planes
from sslzoo.value_range import Look, as_pixels

_ATTEMPTS = 10  # torchvision's


@final
class RandomResizedCrop:
    """Crop a random box, resize it to a square, and flip it at random.

    The first of ten random boxes that fits is used, or else the largest central box within the
    aspect range, as in torchvision. A CPU resizes large uint8 images in bytes, as PIL does, within
    1/255 of the matrix products on other devices.

    Args:
        size: S, side of the result in pixels.
        scale: range of the box's fraction of the image area.
        ratio: range of width / height, uniform in its logarithm.
        interpolation: "bilinear" or "bicubic".
        antialias: widen the filter to shrink, as PIL and torchvision do; False: as TensorFlow.
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
        check_choice("interpolation", interpolation, get_args(Interpolation))
        check_at_least("size", size, 1)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must have 0 < low <= high <= 1, got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must have 0 < low <= high, got {ratio}")
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolation = interpolation
        self.antialias = antialias
        self.flip = flip
        self._look = Look()

    def draw(self, keys: Keys, height: int | Tensor, width: int | Tensor) -> Tensor:
        """Draw boxes (B, 4) int64: top, left, height, width.

        Args:
            keys: B keys.
            height: height of the source images, one number or (B,).
            width: width of the source images, likewise.
        """
        unit = keys.uniform("box", _ATTEMPTS, 2).double()  # so that devices round alike
        position = keys.uniform("place", 2).double()
        zero = torch.zeros_like(position[:, 0])
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
        # Without a fitting box: the largest central one within the aspect range.
        most_width = torch.minimum(full_width, (full_height * self.ratio[1]).round().clamp_min(1))
        most_height = torch.minimum(full_height, (full_width / self.ratio[0]).round().clamp_min(1))
        box_width = torch.where(found, widths.gather(1, first)[:, 0], most_width)
        box_height = torch.where(found, heights.gather(1, first)[:, 0], most_height)
        room = torch.stack((full_height - box_height, full_width - box_width), 1)
        corner = torch.where(found[:, None], position * (room + 1), room / 2).floor()
        return torch.stack((corner[:, 0], corner[:, 1], box_height, box_width), 1).long()

    def draw_flip(self, keys: Keys) -> Tensor:
        """Draw which samples are flipped, (B,) bool."""
        return keys.bernoulli("flip", self.flip)

    def planes(
        self, images: Tensor, boxes: Tensor, flip: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """The crops as planes (C, B, S, S) in [0, 1].

        Args:
            images: as in `crop_planes`, as are the next two.
            boxes: their boxes.
            flip: which are flipped.
            out: memory that may be used for the planes.
        """
        small = images.shape[2] * images.shape[3] <= 64 * 64
        if images.device.type != "cpu" or small or not self.antialias:
            made = crop_planes(images, boxes, flip, self.size, self.interpolation, self.antialias)
        else:
            cases = zip(images, boxes.tolist(), flip.tolist(), strict=True)
            crops = [crop_pixels(x, b, f, self.size, self.interpolation)[None] for x, b, f in cases]
            made = to_planes(torch.cat(crops) if crops[1:] else crops[0], out)
        return made.clamp_(0, 1) if self.interpolation == "bicubic" else made

    @torch.no_grad()
    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        """Crop images (B, C, H, W), pixels of any type, to (B, C, S, S) float32."""
        images = as_pixels(images, check=self._look(images))
        boxes = self.draw(keys, images.shape[2], images.shape[3])
        return self.planes(images, boxes, self.draw_flip(keys)).transpose(0, 1).contiguous()

    def crop_one(self, image: Image.Image | Tensor | Raster, keys: Keys) -> Tensor:
        """The same crop of one sample in a loader's worker, within 1/255 of the device's.

        Args:
            image: PIL image, (C, H, W), uint8 or float in [0, 1], or a file of which only the box
                is read.
            keys: one key, of the sample and view as in `Views`.

        Returns:
            (C, S, S), uint8 or float32 as the image.
        """
        pixels = image if isinstance(image, Raster) else pixels_of(image)
        boxes = self.draw(keys, pixels.shape[1], pixels.shape[2])
        flip = self.draw_flip(keys)
        if isinstance(pixels, Raster):
            pixels = pixels.pixels(boxes[0].tolist())
            boxes[:, :2] = 0
        if self.antialias:
            cut = crop_pixels(pixels, boxes[0].tolist(), bool(flip), self.size, self.interpolation)
            return cut.contiguous() if cut.dtype == torch.uint8 else cut.clamp_(0, 1)
        planes = crop_planes(pixels[None], boxes, flip, self.size, self.interpolation, False)
        out = planes[:, 0].clamp_(0, 1)
        return out.mul_(255).round_().to(torch.uint8) if pixels.dtype == torch.uint8 else out
