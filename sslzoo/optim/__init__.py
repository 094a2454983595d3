"""Schedules, curves, parameter groups, and the optimizers that torch and timm lack."""

from sslzoo.optim.curve import Constant, Cosine, Curve, Horizon, Linear, as_curve
from sslzoo.optim.groups import (
    BiasAndNormRate,
    ConstantRateFor,
    LayerDecay,
    all_alike,
    exempt_bias_and_norm,
    exempt_bias_norm_and_classifier,
)
from sslzoo.optim.larc import LARC
from sslzoo.optim.lars import LARS
from sslzoo.optim.schedule import ConstantRate, Schedule, Steps, WarmupCosine, WarmupLinear

__all__ = [
    "LARC",
    "LARS",
    "BiasAndNormRate",
    "Constant",
    "ConstantRate",
    "ConstantRateFor",
    "Cosine",
    "Curve",
    "Horizon",
    "LayerDecay",
    "Linear",
    "Schedule",
    "Steps",
    "WarmupCosine",
    "WarmupLinear",
    "all_alike",
    "as_curve",
    "exempt_bias_and_norm",
    "exempt_bias_norm_and_classifier",
]
