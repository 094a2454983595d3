"""Frames: per-frame features with their labels, for probes such as phone classification.

Shapes: B sequences, T frames, D width, S segments, n frames in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.backbones.sequence import SequenceEncoder
from sslzoo.backbones.speech import SpeechEncoder
from sslzoo.backbones.wave import WaveEncoder
from sslzoo.batch import Padded
from sslzoo.distributed import gather_objects
from sslzoo.eval.features import Features, eval_mode, own_batches
from sslzoo.eval.loaders import EvalLoaders

_EDGES = 5  # frames that padding may add, or that labels may lack


def as_padded(frames: Tensor | Padded) -> Padded:
    """Sequences (B, T, ...) of one length as `Padded`."""
    if not isinstance(frames, Tensor):
        return frames
    return Padded(frames, torch.full((len(frames),), frames.shape[1], device=frames.device))


def frame_centers(encoder: nn.Module, count: int, samples: int) -> Tensor:
    """Position of each frame's center in its recording, (count,) float64 samples.

    It follows the convolutions of a `SpeechEncoder`, or of a `SequenceEncoder` of a `WaveEncoder`;
    frames of other encoders are taken to be evenly spaced over the recording.

    Args:
        encoder: the encoder of the frames.
        count: number of frames.
        samples: length of the recording.
    """
    position = torch.arange(count, dtype=torch.float64)
    sizes: list[tuple[int, int, int]] | None = None
    if isinstance(encoder, SpeechEncoder):
        sizes = [(kernel, stride, 0) for kernel, stride in encoder.frames.sizes]
    elif isinstance(encoder, SequenceEncoder) and isinstance(encoder.encoder, WaveEncoder):
        sizes = encoder.encoder.sizes
    if sizes is None:
        return (position + 0.5) * (samples / max(count, 1)) - 0.5
    step, center = 1, 0.0
    for kernel, stride, padding in sizes:
        center += step * ((kernel - 1) / 2 - padding)
        step *= stride
    return center + step * position


def segment_labels(segments: Tensor, centers: Tensor) -> Tensor:
    """The class of the segment around each position, -1 outside of all.

    Args:
        segments: (S, 3) int64: first sample, sample after the last, class; without overlaps.
        centers: (T,) samples.

    Returns:
        (T,) int64.
    """
    inside = (segments[:, 0] <= centers[:, None]) & (centers[:, None] < segments[:, 1])
    return torch.where(inside.any(1), segments[inside.int().argmax(1), 2], -1)


@torch.no_grad()
def extract_frames(
    encoder: nn.Module,
    loader: Iterable[Any],
    loaders: EvalLoaders,
    device: torch.device | str,
    frames: Callable[[Any], Padded] | None = None,
    unlabeled: bool = False,
) -> Features:
    """Extract the features of all labeled frames of this rank's sequences; collective.

    Labels (B, S, 3) are segments in samples (`read_alignments`): a frame has the class of the
    segment around its center. Labels (B, T) are one per frame: a sequence's last frames are
    matched with its last labels, as in Greedy InfoMax's phone probe, since padding adds frames at
    the front. If it has more than 5 frames more or fewer than labels, as with an encoder of another
    frame rate, labels are evenly spaced over the sequence, and a frame has the one at its center.

    Args:
        encoder: with `forward_frames`, a view -> `Padded` (B, T, D) (`backbones.SequenceEncoder`).
        loader: as for `extract`; labels (B, T) are padded with -1 after each sequence's own.
        loaders: as for `extract`.
        device: the encoder's device.
        frames: function to use instead of `forward_frames`.
        unlabeled: whether to give frames between segments, too, with the label -1.

    Returns:
        Features (n, D), labels (n,), and the sequence's index of each frame.

    Raises:
        ValueError: the labels are of another shape, or there are none; or see
            `EvalLoaders.check`.
    """
    if frames is None:
        frames = getattr(encoder, "forward_frames", None)
    if frames is None:
        raise ValueError(
            f"encoder must have forward_frames, got {type(encoder).__name__} without it"
        )
    loaders.check_module(encoder)
    features, labels, index = [], [], []
    with isolate_rng(), eval_mode(encoder):
        for raw in own_batches(loader, loaders):
            batch = loaders.transform(move_data_to_device(raw, device))
            label = batch.label
            if label is None or not (label.ndim == 2 or (label.ndim == 3 and label.shape[2] == 3)):
                got = None if label is None else tuple(label.shape)
                raise ValueError(
                    f"labels must be (B, T), one per frame, or segments (B, S, 3), got {got}; set "
                    "alignments of an audio data module, or phones of LibriSpeech"
                )
            made = as_padded(frames(batch.views[0]))
            samples = as_padded(raw.views[0]).lengths.tolist()
            for row, have in enumerate(made.lengths.tolist()):
                if label.ndim == 3:
                    centers = frame_centers(encoder, have, samples[row])
                    own = segment_labels(label[row].cpu(), centers).to(label.device)
                    rows = (own >= (-1 if unlabeled else 0)).nonzero()[:, 0]
                    own = own[rows]
                else:
                    own = label[row][label[row] >= 0]
                    rows = torch.arange(have, device=label.device)
                    if not len(own) or abs(have - len(own)) <= _EDGES:
                        count = min(have, len(own))
                        rows, own = rows[have - count :], own[len(own) - count :]
                    else:
                        centers = frame_centers(encoder, have, samples[row]) + 0.5
                        at = (centers * len(own) / samples[row]).long().clamp(0, len(own) - 1)
                        own = own[at.to(label.device)]
                features.append(made.values[row, rows].float())
                labels.append(own)
                index.append(batch.index[row].expand(len(own)))
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
