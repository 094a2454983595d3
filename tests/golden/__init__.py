"""Golden arrays: what the original authors' code computed on small fixed inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def load(name: str) -> dict[str, Any]:
    """The arrays of one file by name, and `meta` as a dict.

    Args:
        name: such as `simclr/ntxent_0.npz`.
    """
    with np.load(FOLDER / name) as arrays:
        loaded: dict[str, Any] = {key: arrays[key] for key in arrays.files}
    loaded["meta"] = json.loads(str(loaded["meta"]))
    return loaded


def assert_close_to_golden(
    actual: Tensor | np.ndarray | float, wanted: Any, tol: float = 1e-4
) -> None:
    """Shapes equal; error at most `tol` of the wanted array's largest entry."""
    got = torch.as_tensor(actual).detach().cpu().double()
    want = torch.as_tensor(np.asarray(wanted)).double()
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    if want.numel() == 0:
        return
    scale = want.abs().max().clamp_min(1e-30)
    error = ((got - want).abs().max() / scale).item()
    assert error <= tol, f"error {error:.3g} of the largest entry {scale:.6g}, wanted <= {tol:g}"
