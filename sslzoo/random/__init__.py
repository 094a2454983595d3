"""Keyed randomness: every draw is a function of what it is for, not of when it is drawn."""

from sslzoo.random.keys import (
    Keys,
    mix,
    run_keys,
    run_seed,
    run_uniform,
    sample_keys,
    signed,
    step_of,
    unit_of,
)
from sslzoo.random.stratified import stratified_split

__all__ = [
    "Keys",
    "mix",
    "run_keys",
    "run_seed",
    "run_uniform",
    "sample_keys",
    "signed",
    "step_of",
    "stratified_split",
    "unit_of",
]
