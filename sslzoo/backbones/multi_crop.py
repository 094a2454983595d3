"""Multi-crop: embeddings of views of several sizes, with one forward per run of equal sizes.

Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882, section 3.2.
Reference code: facebookresearch/swav at 06b1b7c, src/resnet50.py, forward.

Deviations: none. As in the code, the backbone's batch norm is over the crops of one size, the
head's over all crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def multi_crop(
    backbone: Callable[[Tensor], Tensor], head: nn.Module, views: Sequence[Tensor]
) -> Tensor:
    """The head's outputs for V views; consecutive views of one size share a forward.

    Rows are ordered by sample, so that batch norm in groups has a sample's crops in one group.

    Args:
        backbone: (B, C, H, W) -> (B, F).
        head: (B, F) -> (B, D), called once.
        views: V tensors (B, C, H, W), whose sizes may differ.

    Returns:
        (B, V, D).
    """
    features, start = [], 0
    for stop in range(1, len(views) + 1):
        if stop == len(views) or views[stop].shape != views[start].shape:
            crops = torch.stack(list(views[start:stop]), dim=1)  # (B, n, C, H, W)
            features.append(backbone(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]))
            start = stop
    rows = torch.cat(features, dim=1)  # (B, V, F)
    return head(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
