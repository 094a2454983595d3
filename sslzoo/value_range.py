"""Value ranges: which numbers are pixels, sound or frames, decided here for every entry.

uint8 from 0 to 255, uint16 from 0 to 65535, bool and floats from 0 to 1 are pixels; int16 and
floats from -1 to 1 are sound. Other values must be declared (`value_range`); NaN and infinity are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

ValueRange = tuple[float, float]
TOLERANCE = 0.01  # of the range's width, for floats that a resize or a codec carries beyond it
_TWELVE_BITS = 4095  # uint16 values up to this one are usually a camera's or a scanner's 12 bits
_UNSIGNED = {torch.uint8: 255, torch.uint16: 65535}
_ARRAY_KINDS = "buif"  # bool, unsigned, signed and floating-point arrays
_KINDS = {
    "pixels": ((0.0, 1.0), "uint8, uint16, bool, or float from 0 to 1", "(black, white)"),
    "sound": ((-1.0, 1.0), "int16, or float from -1 to 1", "(lowest, highest)"),
}


class ValueRangeError(ValueError):
    """Values outside the range of their kind; the file that holds them is not broken."""


class TooDarkError(ValueRangeError):
    """uint16 images that use 12 bits or fewer: probably of another range."""


def check_value_range(value_range: Sequence[float] | None) -> ValueRange | None:
    """A declared range as (low, high).

    Raises:
        ValueError: it is not two finite numbers in increasing order.
    """
    if value_range is None:
        return None
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range!r}")
    return low, high


def as_pixels(
    values: Tensor,
    value_range: Sequence[float] | None = None,
    name: str = "images",
    check: bool = True,
    may_be_dark: bool = False,
    clip: bool = False,
) -> Tensor:
    """Images of any shape as uint8, or as float32 from 0 to 1.

    Args:
        values: the images.
        value_range: the values of black and white; None: those of the dtype.
        name: what the values are, for errors.
        check: whether to read the values, which synchronizes with an accelerator; the dtype is
            always checked.
        may_be_dark: whether uint16 images may have 12 bits or fewer.
        clip: whether values outside the declared range become black and white, as for a window of
            CT values; NaN is refused all the same.

    Raises:
        ValueRangeError: the values are not pixels, or not in the declared range.
    """
    declared = _check(values, value_range, name)
    full = _UNSIGNED.get(values.dtype)
    if declared is not None and declared != (0, full):
        return _from_declared(values, declared, "pixels", name, check, clip)
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    if values.dtype == torch.uint16:
        if check and declared is None and not may_be_dark and values.numel():
            most = int(values.to(torch.int32).max())
            if 0 < most <= _TWELVE_BITS:
                raise TooDarkError(
                    f"{name} of 16 bits must use the values from 0 to 65535, got at most {most}; "
                    f"set value_range=(0, {_TWELVE_BITS}) for 12 bits, or value_range=(0, 65535) "
                    "if they are that dark"
                )
        return values.to(torch.float32) / 65535
    return _floats(values, "pixels", name, check)


def as_sound(
    values: Tensor,
    value_range: Sequence[float] | None = None,
    name: str = "waveforms",
    check: bool = True,
) -> Tensor:
    """Waveforms of any shape as float32 from -1 to 1; for the arguments see `as_pixels`.

    Raises:
        ValueRangeError: the values are not sound, or not in the declared range.
    """
    declared = _check(values, value_range, name)
    if declared is not None:
        return _from_declared(values, declared, "sound", name, check)
    if values.dtype == torch.int16:
        return values.to(torch.float32) / 32768
    return _floats(values, "sound", name, check)


def check_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueRangeError: there is one.
    """
    if values.is_floating_point() and not bool(values.isfinite().all()):
        wrong = int((~values.isfinite()).sum())
        raise ValueRangeError(
            f"{name} must be finite, got NaN or infinity in {wrong} of {values.numel()} values"
        )


def from_array(array: Any, name: str) -> Tensor:
    """A NumPy array of numbers as a tensor of the same values.

    Raises:
        ValueRangeError: it does not hold numbers.
    """
    if array.dtype.kind not in _ARRAY_KINDS:
        raise ValueRangeError(f"{name} must be numbers, got an array of {array.dtype}")
    if np.ma.is_masked(array):
        raise ValueRangeError(
            f"{name} must have no masked values, got {np.ma.count_masked(array)}; fill them"
        )
    native = array.dtype.newbyteorder("=")
    native = np.dtype(np.float64) if native.kind == "f" and native.itemsize > 8 else native
    array = np.ascontiguousarray(array, dtype=native)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


class Look:
    """Decides whether to read the values of a batch: always on a CPU, once elsewhere.

    Reading a value on an accelerator synchronizes with the host.
    """

    __slots__ = ("done",)  # no attributes that a fingerprint would describe

    def __init__(self) -> None:
        self.done = False

    def __repr__(self) -> str:
        return "Look()"

    def __call__(self, values: Tensor) -> bool:
        """Whether to check these values."""
        if type(values) is not Tensor:  # a fake tensor has no values
            return False
        first, self.done = not self.done, True
        return first or values.device.type == "cpu"


def _check(values: Tensor, value_range: Sequence[float] | None, name: str) -> ValueRange | None:
    if values.layout != torch.strided or values.is_quantized:
        got = "a quantized tensor" if values.is_quantized else str(values.layout)
        raise ValueRangeError(f"{name} must be dense tensors, got {got}")
    return check_value_range(value_range)


def _floats(values: Tensor, kind: Literal["pixels", "sound"], name: str, check: bool) -> Tensor:
    limits, _, _ = _KINDS[kind]
    if not values.is_floating_point():
        raise _error(values, kind, name)
    numbers = values.to(torch.float32)  # the narrowest floats have no minimum
    if check and not _inside(numbers, limits):
        raise _error(values, kind, name)
    return numbers


def _from_declared(
    values: Tensor,
    declared: ValueRange,
    kind: Literal["pixels", "sound"],
    name: str,
    check: bool,
    clip: bool = False,
) -> Tensor:
    if values.is_complex():
        raise _error(values, kind, name)
    numbers = values.to(torch.float32 if values.is_floating_point() else torch.float64)
    numbers = numbers.clamp(*declared) if clip else numbers
    if check and not _inside(numbers, declared):
        low, high = declared
        raise ValueRangeError(
            f"{name} must be in the declared value_range ({low:g}, {high:g}), got {_told(values)}"
            + ("; clip=True of a data module clips them" if kind == "pixels" else "")
        )
    (low, high), (least, most) = declared, _KINDS[kind][0]
    return ((numbers - low) * ((most - least) / (high - low)) + least).to(torch.float32)


def _inside(values: Tensor, limits: ValueRange) -> bool:
    if not values.numel():
        return True
    low, high = (float(end) for end in values.aminmax())
    spare = TOLERANCE * (limits[1] - limits[0])
    return limits[0] - spare <= low and high <= limits[1] + spare  # False for NaN


def _told(values: Tensor) -> str:
    kind = str(values.dtype).rpartition(".")[2]
    if values.is_complex() or not values.numel():
        return kind
    numbers = values.to(torch.float64)
    if not bool(numbers.isfinite().all()):
        return f"{kind} with NaN or infinity"
    low, high = (float(end) for end in numbers.aminmax())
    return f"{kind} from {low:.4g} to {high:.4g}"


def _error(values: Tensor, kind: str, name: str) -> ValueRangeError:
    _, wanted, ends = _KINDS[kind]
    if values.is_floating_point() and not bool(values.to(torch.float32).isfinite().all()):
        return ValueRangeError(f"{name} must be finite numbers, got {_told(values)}")
    return ValueRangeError(
        f"{name} must be {wanted}, got {_told(values)}; leave normalization by mean and standard "
        f"deviation to the views, and declare another range by value_range={ends}, an "
        f"argument of data modules, of preprocess and of sslzoo.value_range.as_{kind}"
    )
