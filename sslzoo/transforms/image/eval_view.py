"""The evaluation view: the deterministic resize, center crop and normalization of an image.

Shapes: B images, C channels, sources (H, W), results (S, S).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslzoo.checks import check_at_least, check_choice
from sslzoo.eval.fingerprint import described
from sslzoo.transforms.image.color_space import Space, to_space_
from sslzoo.transforms.image.layout import to_planes
from sslzoo.transforms.image.normalize import check_mean_std, normalize_
from sslzoo.transforms.image.resample import Interpolation, center_crop, crop_planes, pixels_of

_ROUNDING = 0.01  # tolerance of resized images outside [0, 1]


@final
class EvalView:
    """Resize the shorter side, crop the center, normalize.

    Args:
        size: S, side of the result in pixels.
        resize: shorter side before the crop, such as 256 for 224; None: no resize.
        mean: mean per channel; None: no normalization (SimCLR).
        std: standard deviation per channel.
        interpolation: "bilinear" or "bicubic", antialiased.
        fraction: instead of `resize`: crop the central square of this fraction of the shorter side
            and resize it without antialiasing, as TensorFlow does; 0.875 and bicubic in SimCLR.
        space: color space before the normalization: "rgb", "lab" or "ycbcr" (CMC), or "gray".
    """

    def __init__(
        self,
        size: int,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: Interpolation = "bilinear",
        fraction: float | None = None,
        space: Space = "rgb",
    ) -> None:
        check_choice("space", space, get_args(Space))
        check_choice("interpolation", interpolation, get_args(Interpolation))
        check_mean_std(mean, std)
        if resize is not None:
            check_at_least("resize", resize, size)
            if fraction is not None:
                raise ValueError(f"fraction must be None with resize, got {fraction}")
        self.size = size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.interpolation: Interpolation = interpolation
        self.fraction = fraction
        self.space: Space = space

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The view of images (B, C, H, W), uint8 or float in [0, 1]: (B, C, S, S) float32.

        Raises:
            ValueError: the images have another type, shape or range.
        """
        _refuse_no_images(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.finish(self._center(images))

    @torch.no_grad()
    def crop_one(self, image: Image.Image | Tensor) -> Tensor:
        """Crop one image in a loader's worker: PIL or (C, H, W) uint8 -> (C, S, S) uint8."""
        out = self._center(pixels_of(image)[None])[0]
        if out.dtype == torch.uint8:
            return out.contiguous()
        return out.mul(255).round_().to(torch.uint8)

    @torch.no_grad()
    def finish(self, crops: Tensor) -> Tensor:
        """Convert and normalize crops (B, C, S, S), uint8 or float in [0, 1], to float32."""
        planes = to_planes(crops)
        to_space_(planes, self.space)
        if self.mean is not None and self.std is not None:
            normalize_(planes, self.mean, self.std)
        return planes.transpose(0, 1).contiguous()

    def fingerprint(self) -> str:
        """Hash of everything the view depends on."""
        return described(self)

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments that build an equal view, without those that are None."""
        found = {key: getattr(self, key) for key in ("size", "resize", "fraction", "space")}
        found["interpolation"] = self.interpolation
        if self.mean is not None and self.std is not None:
            found |= {"mean": _floats(self.mean), "std": _floats(self.std)}
        if self.space == "rgb":
            del found["space"]  # the default, which also allows gray images
        return {key: value for key, value in found.items() if value is not None}

    def _center(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self.fraction is not None:
            return self._central_fraction(to_planes(images).transpose(0, 1), self.fraction)
        if self.resize is not None:
            short = min(height, width)
            height, width = (int(self.resize * side / short) for side in (height, width))
            if images.dtype != torch.uint8 or images.device.type != "cpu":
                images = to_planes(images).transpose(0, 1)  # only CPUs resize bytes
            images = F.interpolate(images, (height, width), mode=self.interpolation, antialias=True)
            if images.is_floating_point():
                images = images.clamp(0, 1)
        return center_crop(images, self.size)

    def _central_fraction(self, images: Tensor, fraction: float) -> Tensor:
        height, width = images.shape[2:]
        side = round(min(height, width) * fraction)
        box = torch.tensor(
            [[(height - side + 1) // 2, (width - side + 1) // 2, side, side]], device=images.device
        ).expand(len(images), -1)
        flip = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        planes = crop_planes(images, box, flip, self.size, self.interpolation, antialias=False)
        return planes.transpose(0, 1).clamp(0, 1)


def _refuse_no_images(images: Any) -> None:
    if not isinstance(images, Tensor):
        got, more = f"a {type(images).__module__}.{type(images).__qualname__}", ""
        if isinstance(images, list | tuple) and images:
            got += f" of {type(images[0]).__module__}.{type(images[0]).__qualname__}"
        if "PIL" in got:
            more = ": torchvision.transforms.functional.pil_to_tensor gives (C, H, W)"
    elif images.dim() != 4:
        got, more = f"shape {tuple(images.shape)}", ": images[None] is a batch of one"
        more = more if images.dim() == 3 else ""
    elif images.dtype != torch.uint8 and not images.is_floating_point():
        got, more = f"{images.dtype}", ""
    elif images.dtype == torch.uint8 or not images.numel():
        return
    else:
        least, most = (float(end) for end in images.aminmax())
        if least >= -_ROUNDING and most <= 1 + _ROUNDING:
            return
        got, more = f"floats from {least:.3g} to {most:.3g}", ""
    raise ValueError(
        f"images must be a tensor (B, C, H, W), uint8 or float in [0, 1], got {got}{more}"
    )


def _floats(numbers: Sequence[float] | Tensor) -> list[float]:
    return numbers.flatten().tolist() if isinstance(numbers, Tensor) else [*map(float, numbers)]
