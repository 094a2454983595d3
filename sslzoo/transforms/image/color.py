"""Color jitter (brightness, contrast, saturation and hue in random order) and grayscale.

There are two sets of formulas. In torchvision's, contrast blends with the mean of the gray image,
and saturation blends with the gray image. In TensorFlow's (SimCLR, BYOL), contrast blends with each
channel's mean, and saturation is that of HSV. Brightness is multiplied (torchvision, SimCLR's later
releases) or added (SimCLR v1, BYOL). All of these except HSV's are affine in a pixel and its gray
value, so one pass applies a different operation to every sample.

Shapes: planes (C, B, H, W) as in `layout.py`, changed in place; images (B, C, H, W).
"""

from __future__ import annotations

import math
from typing import Literal, final, get_args

import torch
from torch import Tensor

from sslzoo.checks import check_choice, check_interval
from sslzoo.random import Keys
from sslzoo.transforms.image.layout import on_rows, per_sample, require_rgb

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2 as torchvision, TensorFlow and BYOL round it
_TINY = 1e-20  # keeps 0 / 0 of a gray pixel finite; its hue has no effect
_HUGE = 1e30
# Columns of the jitter's coefficients, and the values of an unchanged image.
_SCALE, _GRAY, _MEAN, _SHIFT, _TURNS, _HSV = range(6)
_NEUTRAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def gray_plane(planes: Tensor) -> Tensor:
    """The gray value of each pixel. Shapes: (3, B, ...) -> (B, ...)."""
    red, green, blue = GRAY_WEIGHTS
    return (planes[0] * red).add_(planes[1], alpha=green).add_(planes[2], alpha=blue)


def grayscale_(planes: Tensor) -> None:
    """Set every channel to the gray value in place. Shapes: planes (3, B, H, W)."""
    planes.copy_(gray_plane(planes).expand_as(planes))


def _extremes(planes: Tensor) -> tuple[Tensor, Tensor]:
    """HSV's value and chroma (value times saturation); 0 chroma for a value below 0."""
    low, high = planes.amin(0), planes.amax(0)
    return high, torch.minimum(high - low, (high * _HUGE).clamp_min_(0))


def hue_(planes: Tensor, turns: Tensor) -> None:
    """Rotate the hue in HSV, exactly and without a branch.

    With m the smallest and M the largest channel, the hue from red in sixths of a turn is
    sign(g - b) (1 + (g + b - r - m) / (M - m)), whichever channel is the largest. Conversely, a
    channel is m + 6 (M - m) clamp(1/3 - d, 0, 1/6), with d the distance in turns to that channel's
    hue. For red, the distance wraps around, so it is clamp(d - 1/6, 0, 1/6) with d that to cyan.

    Args:
        planes: (3, B, H, W), changed in place.
        turns: (B,) rotation in turns (0.5 is the complementary color).
    """
    red, green, blue = planes
    high, chroma = _extremes(planes)
    low = torch.sub(high, chroma, out=high)
    hue = torch.add(green, blue).sub_(red).sub_(low)
    scratch = chroma.clamp_min(_TINY)
    hue.div_(scratch).add_(1).copysign_(torch.sub(green, blue, out=scratch))
    hue = torch.add(per_sample(turns + 2), hue, alpha=1 / 6).frac_()  # 0 to 1, from red
    torch.sub(hue, 1 / 2, out=red).abs_().sub_(1 / 6)
    torch.sub(hue, 1 / 3, out=green).abs_().neg_().add_(1 / 3)
    torch.sub(hue, 2 / 3, out=blue).abs_().neg_().add_(1 / 3)
    for plane in (red, green, blue):  # plane by plane, in the cache
        torch.addcmul(low, plane.clamp_(0, 1 / 6), chroma, value=6, out=plane)


def fast_hue_(planes: Tensor, turns: Tensor) -> None:
    """Rotate the colors about the gray axis, which keeps the channels' mean.

    This equals `hue_` for thirds of a turn, is close to it for weak colors, and costs a fifth.
    Shapes: planes (3, B, H, W), changed in place; turns (B,).
    """
    angle = turns * (2 * math.pi)
    weights = [
        per_sample((1 + 2 * torch.cos(angle + third * (2 * math.pi / 3))) / 3) for third in range(3)
    ]
    source = planes.clone()
    for channel in range(3):
        torch.mul(source[0], weights[-channel % 3], out=planes[channel])
        for other in (1, 2):
            planes[channel].addcmul_(source[other], weights[(other - channel) % 3])


def hsv_saturation_(planes: Tensor, factor: Tensor) -> None:
    """Multiply HSV's saturation, with at most 1 as the result (TensorFlow, BYOL).

    Shapes: planes (3, B, H, W), changed in place; factor (B,).
    """
    high, chroma = _extremes(planes)
    gain = torch.minimum(high / chroma.clamp_min(_TINY), per_sample(factor)).clamp_min_(0)
    planes.sub_(high).mul_(gain).add_(high)


Weight = Tensor | float | None  # (B, 1, 1), or a number for a single sample; None: unused


def _blend(
    planes: Tensor, scale: Weight, gray: Weight, mean: Weight, shift: Weight, channel_mean: bool
) -> None:
    """Set x to scale * x + gray * gray_value(x) + mean * image_mean + shift, in place."""
    offset = shift
    if mean is not None:
        means = planes.mean((2, 3))  # (3, B)
        moved = per_sample(means if channel_mean else gray_plane(means)) * mean
        offset = moved if offset is None else moved + offset
    if gray is not None:
        values = gray_plane(planes).mul_(gray)
        offset = values if offset is None else values.add_(offset)
    if isinstance(offset, Tensor) and isinstance(scale, Tensor):
        torch.addcmul(offset, planes, scale, out=planes)
    elif isinstance(offset, Tensor) and isinstance(scale, float):
        torch.add(offset, planes, alpha=scale, out=planes)
    else:
        if scale is not None:
            planes.mul_(scale)
        if offset is not None:
            planes.add_(offset)


Formulas = Literal["torchvision", "tensorflow"]


@final
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in an order drawn per sample.

    Args:
        brightness: half-width of the factor's range about 1, or of the added amount's about 0.
        contrast: half-width of the factor's range about 1, clipped at 0.
        saturation: half-width of the factor's range about 1, clipped at 0.
        hue: half-width of the rotation's range, in turns, at most 0.5.
        p: probability per sample.
        formulas: contrast and saturation of "torchvision" or "tensorflow", see the module.
        additive: whether brightness is added instead of multiplied.
        fast_hue: whether colors are rotated about the gray axis instead of in HSV.
        clip: whether to clip to [0, 1] after each operation, as torchvision and SimCLR do; BYOL
            does not.
    """

    def __init__(
        self,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        p: float = 1.0,
        formulas: Formulas = "torchvision",
        additive: bool = False,
        fast_hue: bool = False,
        clip: bool = True,
    ) -> None:
        check_interval("hue", hue, 0, 0.5)
        check_choice("formulas", formulas, get_args(Formulas))
        self.p = p
        self.additive = additive
        self.tensorflow = formulas == "tensorflow"
        self.turn = fast_hue_ if fast_hue else hue_
        self.keeps_range = not (self.tensorflow or fast_hue)  # another clip then has no effect
        self.clip = clip
        low = -brightness if additive else max(0.0, 1 - brightness)
        self.low = (low, max(0.0, 1 - contrast), max(0.0, 1 - saturation), -hue)
        self.high = (brightness + (not additive), 1 + contrast, 1 + saturation, hue)

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The coefficients of the four steps, (B, 4, 6)."""
        unit = keys.uniform("factor", 4).unbind(1)
        ranges = zip(unit, self.low, self.high, strict=True)
        factors = torch.stack([low + (high - low) * u for u, low, high in ranges], dim=1)
        order = keys.permutation("order", 4)
        return (self.coefficients(factors, order, keys.bernoulli("apply", self.p)),)

    def coefficients(self, factors: Tensor, order: Tensor, applied: Tensor) -> Tensor:
        """The coefficients of each step: weights of a blend, a rotation and a saturation.

        Args:
            factors: (B, 4) factors of brightness, contrast, saturation and hue.
            order: (B, 4) int64 operation (0 to 3, in that order) per step.
            applied: (B,) bool, whether the sample is jittered.

        Returns:
            (B, 4, 6): scale, gray, mean, shift, turns, HSV saturation; neutral if unused.
        """
        steps = factors.gather(1, order)
        chosen = (order[..., None] == torch.arange(4, device=order.device)) & applied[:, None, None]
        bright, contrast, saturate, turn = chosen.to(factors.dtype).unbind(2)
        shade = contrast if self.tensorflow else contrast + saturate
        scale = shade if self.additive else shade + bright
        zero = torch.zeros_like(steps)
        return torch.stack(
            (
                1 + scale * (steps - 1),
                zero if self.tensorflow else saturate * (1 - steps),
                contrast * (1 - steps),
                bright * steps if self.additive else zero,
                turn * steps,
                1 + saturate * (steps - 1) if self.tensorflow else zero + 1,
            ),
            dim=2,
        )

    def apply(self, planes: Tensor, coefficients: Tensor) -> Tensor:
        """Jitter the planes in place. Shapes: (3, B, H, W); coefficients (B, 4, 6)."""
        require_rgb(planes, "color jitter")
        if planes.device.type != "cpu" and self.keeps_range:
            return self.turn_once(planes, coefficients)
        for step, (*blend, turns, saturation) in enumerate(self._steps(coefficients)):
            if any(weight is not None for weight in blend):
                self._blend(planes, *blend)
            if turns is not None:
                turn = coefficients[:, step, _TURNS]
                on_rows(planes, turn != 0, self.turn, turn)
            if saturation is not None:
                factor = coefficients[:, step, _HSV]
                on_rows(planes, factor != 1, hsv_saturation_, factor)
        return planes

    def _steps(self, coefficients: Tensor) -> list[list[Weight]]:
        """The weights of each step: those that are used on a CPU, all on an accelerator."""
        if coefficients.device.type != "cpu":
            used = [[True, not self.tensorflow, True, self.additive, True, self.tensorflow]] * 4
        elif len(coefficients) == 1:  # as numbers, which saves a tensor for each
            (steps,) = coefficients.tolist()
            pairs = [zip(step, _NEUTRAL, strict=True) for step in steps]
            return [
                [None if value == unused else value for value, unused in each] for each in pairs
            ]
        else:
            used = (coefficients != torch.tensor(_NEUTRAL)).any(0).tolist()
        weights = [[per_sample(x) for x in step.unbind(1)] for step in coefficients.unbind(1)]
        pairs = [zip(step, use, strict=True) for step, use in zip(weights, used, strict=True)]
        return [[value if use else None for value, use in each] for each in pairs]

    def turn_once(self, planes: Tensor, coefficients: Tensor) -> Tensor:
        """As `apply`, for torchvision's exact formulas: a single rotation for all samples.

        An accelerator runs every operation of every step for all samples, and the rotation is the
        most expensive. So this runs three blends, the rotation and three blends, each neutral for
        samples that have no such step.
        """
        turns = coefficients[..., _TURNS]
        turned = ((turns != 0).cumsum(1) > 0)[..., None]
        blends = coefficients[..., :_TURNS]
        neutral = torch.zeros_like(blends)
        neutral[..., _SCALE] = 1
        before, after = torch.where(turned, neutral, blends), torch.where(turned, blends, neutral)
        after[:, 3] = blends[:, 3]
        for weights in before[:, :3].unbind(1):
            self._blend(planes, *self._all(weights))
        turn = turns.sum(1)
        on_rows(planes, turn != 0, self.turn, turn)
        for weights in after[:, 1:].unbind(1):
            self._blend(planes, *self._all(weights))
        return planes

    def _all(self, weights: Tensor) -> list[Weight]:
        """Weights (B, 4) of a blend."""
        *used, shift = (per_sample(x) for x in weights.unbind(1))
        return [*used, shift if self.additive else None]

    def _blend(
        self, planes: Tensor, scale: Weight, gray: Weight, mean: Weight, shift: Weight
    ) -> None:
        _blend(planes, scale, gray, mean, shift, self.tensorflow)
        if self.clip:  # the exact rotation and HSV's saturation stay in the range
            planes.clamp_(0, 1)


@final
class Grayscale:
    """Convert samples to gray, in three equal channels.

    Args:
        p: probability per sample.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def draw(self, keys: Keys) -> tuple[Tensor, ...]:
        """The chosen samples, (B,) bool."""
        return (keys.bernoulli("apply", self.p),)

    def apply(self, planes: Tensor, chosen: Tensor) -> Tensor:
        """Convert the chosen samples (B,) of planes (3, B, H, W) in place."""
        require_rgb(planes, "grayscale")
        on_rows(planes, chosen, grayscale_)
        return planes
