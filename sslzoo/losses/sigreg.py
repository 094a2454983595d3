"""SIGReg: embeddings are pulled to an isotropic Gaussian, one random direction at a time.

Balestriero and LeCun, LeJEPA: Provable and Scalable Self-Supervised Learning Without the
Heuristics, 2025, https://arxiv.org/abs/2511.08544. Epps and Pulley, A Test for Normality Based on
the Empirical Characteristic Function, Biometrika 1983.
Reference code: rbalestr-lab/lejepa at eddffdd, lejepa/univariate/epps_pulley.py,
lejepa/multivariate/slicing.py and MINIMAL.md. Written from the formulas.

Deviations:
    directions: keyed by seed and step, so that they are the same on every kind of device; the
        package seeds torch's generator of the device with the step, MINIMAL.md uses the global one.
    ranks: none; as in the package, the statistic is that of the global batch.

Shapes: n local and N global rows, V views, D width, S directions, T knots. The knots are equally
spaced, so that exp(i t_k x) is the k-th power of exp(i t_1 x), and the gradient is a polynomial in
it: neither needs a tensor with an axis of knots, and only a block of directions exists at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import check_at_least, check_positive, shapes
from sslzoo.distributed import row_layout, sum_over_ranks, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast
from sslzoo.losses.blockwise import attach_gradient, entries_per_block, needs_gradient
from sslzoo.random import run_keys

# Entries (n, V, directions) per block: smaller ones wait for the threads of a busy processor.
_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 22}


def random_directions(
    dim: int, num_directions: int, seed: int, step: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw unit vectors that depend on seed and step alone: (D, S) float32.

    Args:
        dim: D.
        num_directions: S.
        seed: seed of the run.
        step: optimizer step.
        device: of the result.

    Raises:
        ValueError: for a num_directions below 1.
    """
    check_at_least("num_directions", num_directions, 1)
    keys = run_keys(seed, "sigreg", step, device=device)
    return torch.nn.functional.normalize(keys.normal("directions", dim, num_directions)[0], dim=0)


def knots(
    t_max: float = 3.0, count: int = 17, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """The knots t of the integral, the target phi(t) = exp(-t^2 / 2), and the weights.

    The weights are those of the trapezoidal rule on [-t_max, t_max] times the window phi, folded
    onto the knots of [0, t_max] by symmetry.

    Returns:
        Three tensors (T,) float64.
    """
    t = torch.linspace(0, t_max, count, dtype=torch.float64, device=device)
    phi = (-t.square() / 2).exp()
    weights = torch.full_like(t, 2 * t_max / (count - 1))
    weights[0] /= 2
    weights[-1] /= 2
    return t, phi, weights * phi


def sigreg(z: Tensor, directions: Tensor, t_max: float = 3.0, num_knots: int = 17) -> Tensor:
    """Mean over views and directions of the Epps-Pulley statistic of the projections.

    For the N projections x of one view on one direction, the statistic is N times the integral of
    |mean exp(i t x) - phi(t)|^2 phi(t) over [-t_max, t_max]; it grows with N unless x is standard
    normal.

    Args:
        z: (n, V, D) embeddings.
        directions: (D, S) unit vectors in columns, the same on every rank.
        t_max: end of the integral; 3 in the code.
        num_knots: knots in [0, t_max]; 17 in the code.

    Returns:
        Scalar, the same on every rank.

    Raises:
        ValueError: for other shapes, a t_max that is not positive, fewer than two knots, or a
            global batch of one sample.

    Example:
        >>> import torch
        >>> z = torch.tensor([[[-1.0]], [[1.0]]])
        >>> sigreg(z, torch.ones(1, 1), t_max=2.0, num_knots=2)  # 2 (cos 2 - e^-2)^2 2 e^-2
        tensor(0.1649)
    """
    if z.dim() != 3 or directions.dim() != 2 or z.shape[2] != len(directions):
        raise ValueError(
            f"z and directions must be (n, V, D) and (D, S), got {shapes(z, directions)}"
        )
    check_positive("t_max", t_max)
    check_at_least("num_knots", num_knots, 2)
    rows = row_layout(len(z))
    if rows.total < 2:
        raise ValueError(f"the global batch must have at least 2 samples, got {rows.total}")
    with no_autocast(z):
        x = at_least_float32(z)
        grad = torch.zeros_like(x) if needs_gradient(x) else None
        with torch.no_grad():
            value = x.new_zeros(())
            per_direction = max(1, max(rows.counts) * z.shape[1])
            size = max(1, entries_per_block(_BLOCK, x) // per_direction)
            for block in directions.to(x.dtype).split(size, dim=1):
                statistic, slope = _epps_pulley(x @ block, rows.total, t_max, num_knots, grad)
                value += statistic.sum()
                if grad is not None and slope is not None:
                    grad += slope @ block.T
            scale = 1 / (z.shape[1] * directions.shape[1])
            value *= scale
            if grad is not None:
                grad *= scale * world_size()
        return attach_gradient(value, x, grad)


def _epps_pulley(
    x: Tensor, total: int, t_max: float, num_knots: int, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The statistics (V, b) of projections (n, V, b), and, unless `grad` is None, their slopes.

    With e_k = mean exp(i t_k x) - phi_k, the slope is the real part of
    sum_k 2 w_k t_k i conj(e_k) exp(i t_k x). The first knot, 0, contributes to neither.
    """
    t, phi, weights = (part[1:].to(x.dtype) for part in knots(t_max, num_knots, x.device))
    x = x * (t_max / (num_knots - 1))
    turn = torch.complex(x.cos(), x.sin())  # exp(i t_1 x); torch.polar is slower
    power, sums = turn.clone(), [turn.sum(dim=0)]
    for _ in range(num_knots - 2):
        power.mul_(turn)
        sums.append(power.sum(dim=0))
    pairs = sum_over_ranks(torch.view_as_real(torch.stack(sums))) / total  # (T - 1, V, b, 2)
    error = torch.view_as_complex(pairs) - phi[:, None, None]
    statistic = total * torch.einsum("k,kvb->vb", weights, error.abs().square())
    if grad is None:
        return statistic, None
    coefficients = (2 * weights * t)[:, None, None] * (1j * error.conj())
    slope = torch.zeros_like(turn)
    for coefficient in coefficients.flip(0):  # Horner's rule
        slope.add_(coefficient).mul_(turn)
    return statistic, slope.real


def view_invariance(z: Tensor, num_global: int | None = None) -> Tensor:
    """Mean squared difference of a sample's embeddings and their center.

    The gradient flows through the center too.

    Args:
        z: (n, V, D) embeddings.
        num_global: the center is the mean of so many first views, the paper's global ones; None:
            of all views.

    Returns:
        Scalar whose mean over ranks is that of the global batch.

    Raises:
        ValueError: for other shapes, or a num_global outside 1..V.

    Example:
        >>> import torch
        >>> z = torch.tensor([[[0.0], [4.0]]])
        >>> view_invariance(z), view_invariance(z, num_global=1)
        (tensor(4.), tensor(8.))
    """
    if z.dim() != 3:
        raise ValueError(f"z must be (n, V, D), got {tuple(z.shape)}")
    if num_global is not None and not 1 <= num_global <= z.shape[1]:
        raise ValueError(f"num_global must be in 1..{z.shape[1]}, the views, got {num_global}")
    z = at_least_float32(z)
    difference = z - z[:, :num_global].mean(dim=1, keepdim=True)
    scale = world_size() / (row_layout(len(z)).total * z.shape[1] * z.shape[2])
    return difference.square().sum() * scale
