"""Frames: per-frame features with their labels, for probes such as phone classification.

Shapes: B sequences, T frames, D width, n frames in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from sslzoo.batch import Padded
from sslzoo.distributed import gather_objects
from sslzoo.eval.features import Features, eval_mode, own_batches
from sslzoo.eval.loaders import EvalLoaders


@torch.no_grad()
def extract_frames(
    encoder: nn.Module, loader: Iterable[Any], loaders: EvalLoaders, device: torch.device | str
) -> Features:
    """Extract the features of all labeled frames of this rank's sequences; collective.

    A sequence's last frames are matched with its last labels, as in Greedy InfoMax's phone probe,
    since padding adds frames at the front.

    Args:
        encoder: with `forward_frames`, a view -> `Padded` (B, T, D) (`backbones.SequenceEncoder`).
        loader: as for `extract`; labels are (B, T), padded with -1 after each sequence's own.
        loaders: as for `extract`.
        device: the encoder's device.

    Returns:
        Features (n, D), labels (n,), and the sequence's index of each frame.

    Raises:
        ValueError: the labels are not (B, T), or there are none.
    """
    frames: Any = getattr(encoder, "forward_frames", None)
    if frames is None:
        raise ValueError(
            f"encoder must have forward_frames, got {type(encoder).__name__} without it"
        )
    features, labels, index = [], [], []
    with isolate_rng(), eval_mode(encoder):
        for raw in own_batches(loader, loaders):
            batch = loaders.transform(move_data_to_device(raw, device))
            if batch.label is None or batch.label.dim() != 2:
                got = None if batch.label is None else tuple(batch.label.shape)
                raise ValueError(f"labels must be (B, T), one per frame, got {got}")
            made: Padded = frames(batch.views[0])
            given = (batch.label >= 0).sum(1)
            for row, (have, want) in enumerate(
                zip(made.lengths.tolist(), given.tolist(), strict=True)
            ):
                count = min(have, want)
                features.append(made.values[row, have - count : have].float())
                labels.append(batch.label[row, want - count : want])
                index.append(batch.index[row].expand(count))
    like = features[0] if features else None
    told = gather_objects(None if like is None else (like.shape[1], labels[0].dtype))
    known = next((other for other in told if other is not None), None)
    if known is None:
        raise ValueError("the loader must yield at least one batch, got none on any rank")
    if not features:
        width, kind = known
        features.append(torch.empty(0, width, device=device))
        labels.append(torch.empty(0, dtype=kind, device=device))
        index.append(torch.empty(0, dtype=torch.int64, device=device))
    return Features(torch.cat(features), torch.cat(labels), torch.cat(index))
