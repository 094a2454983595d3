"""Keyed randomness: draws that depend on their purpose, not on the order of drawing."""

from sslzoo.random.keys import (
    Keys,
    run_keys,
    run_permutation,
    run_seed,
    run_uniform,
    sample_keys,
)
from sslzoo.random.stratified import rows_per_class, stratified_split

__all__ = [
    "Keys",
    "rows_per_class",
    "run_keys",
    "run_permutation",
    "run_seed",
    "run_uniform",
    "sample_keys",
    "stratified_split",
]
