"""Random resized crop: Inception's box for each sample, as torchvision draws it.

Szegedy et al., Going Deeper with Convolutions, CVPR 2015. Shapes: B samples, C channels, sources
(H, W), results (S, S); a box is (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from typing import final

import torch
from PIL import Image
from torch import Tensor

from sslzoo.random import Keys
from sslzoo.transforms.image.layout import to_planes
from sslzoo.transforms.image.resample import Interpolation, crop_pixels, crop_planes, pixels_of

_ATTEMPTS = 10  # torchvision's


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
        # No box fitted: as much as the aspect range allows, in the center.
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
