"""Multi-crop: embeddings of views of several sizes, one forward for each run of equal ones.

Caron et al., NeurIPS 2020, https://arxiv.org/abs/2006.09882, section 3.2.
Reference code: facebookresearch/swav at 06b1b7c, src/resnet50.py, forward.

Deviations: none. Batch norm of the backbone sees the crops of one size together, that of the head
all crops, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def multi_crop(backbone: nn.Module, head: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Head's outputs for V views; neighbors of one size go through the backbone together.

    Rows are joined sample by sample, so that batch norm in groups keeps a sample's crops in one.

    Args:
        backbone: (B, C, H, W) -> (B, F).
        head: (B, F) -> (B, D), called once.
        views: V tensors (B, C, H, W) of sizes of their own.

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
