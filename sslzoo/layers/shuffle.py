"""Shuffling: encode a batch on a permutation of the global batch, and restore its order.

He, Fan, Wu, Xie and Girshick, CVPR 2020, https://arxiv.org/abs/1911.05722, section 3.3: a query and
its key are then in different groups of batch norm, whose statistics cannot reveal the pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sslzoo.distributed import gather_rows, row_layout


@torch.no_grad()
def encode_shuffled(
    encode: Callable[[Tensor], tuple[Tensor, ...]],
    view: Tensor,
    permutation: Callable[[int], Tensor],
) -> tuple[Tensor, ...]:
    """Encode a permutation of the global batch without gradient, back in the order of the view.

    Args:
        encode: (n, ...) -> tensors with one row per sample each.
        view: (n, ...), the rows of this rank.
        permutation: N -> (N,) int64, the order of the global batch, equal on every rank.

    Returns:
        The tensors of `encode` for the view's own rows, (n, ...) each.
    """
    rows = row_layout(len(view))
    order = permutation(rows.total)
    shuffled = gather_rows(view, rows)[order[rows.own]]
    back = order.argsort()[rows.own]
    return tuple(gather_rows(encoded, rows)[back] for encoded in encode(shuffled))
