"""Dense InfoNCE: the contrast of each position of a feature map with its match in the other view.

Wang, Zhang, Shen, Kong and Li, CVPR 2021, https://arxiv.org/abs/2011.09157, section 3.
Reference code: WXinlong/DenseCL at b64bbb6, openselfsup/models/densecl.py.

Deviations: none.

Shapes: n local images, S and R positions of the query's and of the key's map, C channels of the
backbone's map, D width of the projections, K queue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.layers.precision import at_least_float32, l2_normalize, no_autocast
from sslzoo.losses.info_nce import info_nce


@torch.no_grad()
def dense_matches(query_features: Tensor, key_features: Tensor) -> Tensor:
    """The key position of largest cosine similarity for each query position, within an image.

    Args:
        query_features: (n, S, C) of the backbone.
        key_features: (n, R, C) of the momentum backbone.

    Returns:
        (n, S) int64 in 0..R - 1.

    Raises:
        ValueError: for other shapes.
    """
    if query_features.dim() != 3 or query_features.shape[::2] != key_features.shape[::2]:
        raise ValueError(
            "query_features and key_features must be (n, S, C) and (n, R, C), got "
            f"{shapes(query_features, key_features)}"
        )
    with no_autocast(query_features):
        f, g = l2_normalize(query_features), l2_normalize(key_features)
        return (f @ g.transpose(1, 2)).argmax(dim=2)


def dense_info_nce(
    query: Tensor, key: Tensor, matches: Tensor, queue: Tensor, temperature: float
) -> Tensor:
    """Mean InfoNCE over all positions, with the matched key position as the positive.

    Args:
        query: (n, S, D), L2-normalized by the caller.
        key: (n, R, D), L2-normalized by the caller.
        matches: (n, S) int64 from `dense_matches`.
        queue: (K, D) pooled dense keys of earlier images; a constant.
        temperature: T; 0.2 in the recipes.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch, if S is the same on all.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    if query.dim() != 3 or key.shape[::2] != query.shape[::2] or matches.shape != query.shape[:2]:
        raise ValueError(
            "query, key and matches must be (n, S, D), (n, R, D) and (n, S), got "
            f"{shapes(query, key, matches)}"
        )
    positive = at_least_float32(key).gather(1, matches[..., None].expand(-1, -1, key.shape[2]))
    return info_nce(query.flatten(0, 1), positive.flatten(0, 1), queue, temperature)
