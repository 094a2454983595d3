"""Schedules, parameter groups, and the optimizers missing from torch and timm."""

from sslzoo.optim.clock import Clock
from sslzoo.optim.depth import Depth, depth_of
from sslzoo.optim.groups import (
    BiasAndNormRate,
    ConstantRateFor,
    ExemptNamed,
    LayerDecay,
    ZeroRateFirst,
    all_alike,
    exempt_bias_and_norm,
    exempt_bias_norm_and_classifier,
    exempt_bias_norm_and_positions,
    exempt_bias_norm_and_prototypes,
)
from sslzoo.optim.larc import LARC
from sslzoo.optim.lars import LARS
from sslzoo.optim.schedule import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    MomentumForRun,
    RiseAndCosine,
    RunLength,
    Schedule,
    SineSchedule,
    StepSchedule,
    StepWarmup,
    StretchedSchedule,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    as_schedule,
)
from sslzoo.optim.schedule_lr import ScheduleLR
from sslzoo.optim.schedules_by_step import (
    ExponentialSchedule,
    LinearBySteps,
    TriStage,
    WarmupPolynomial,
)

__all__ = [
    "LARC",
    "LARS",
    "BiasAndNormRate",
    "Clock",
    "ConstantRateFor",
    "ConstantSchedule",
    "CosineSchedule",
    "Depth",
    "ExemptNamed",
    "ExponentialSchedule",
    "LayerDecay",
    "LinearBySteps",
    "LinearSchedule",
    "MomentumForRun",
    "RiseAndCosine",
    "RunLength",
    "Schedule",
    "ScheduleLR",
    "SineSchedule",
    "StepSchedule",
    "StepWarmup",
    "StretchedSchedule",
    "TriStage",
    "WarmupConstant",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupPolynomial",
    "ZeroRateFirst",
    "all_alike",
    "as_schedule",
    "depth_of",
    "exempt_bias_and_norm",
    "exempt_bias_norm_and_classifier",
    "exempt_bias_norm_and_positions",
    "exempt_bias_norm_and_prototypes",
]
