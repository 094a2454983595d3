"""Span masks: random spans of the frames of a sequence, for speech.

Baevski, Zhou, Mohamed and Auli, wav2vec 2.0, NeurIPS 2020, https://arxiv.org/abs/2006.11477,
section 3.1. Reference code: facebookresearch/fairseq at 3d262bb, data/data_utils.py,
compute_mask_indices.

Deviations:
    draws: keyed, so that a sample's spans do not depend on its batch; the code draws from numpy.
    same_count: the smallest count is that of the global batch; the code's is that of one GPU.
    short sequences: one of at most `length` frames is not masked; the code raises an error or masks
        all of it.

Shapes: B sequences, T frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sslzoo.batch import length_mask
from sslzoo.checks import check_interval, check_whole
from sslzoo.distributed import gather_rows
from sslzoo.random import Keys


@dataclass(frozen=True)
class SpanMasks:
    """Mask spans that begin at random frames and may overlap; never the last frame.

    A sequence of n frames gets max(min_spans, floor(fraction n / length + u)) spans, with u uniform
    in [0, 1). With fraction 0.65 and length 10, 43 % of 120 frames are masked.

    Args:
        fraction: frames that all spans together would have without overlap; 0.65 in wav2vec 2.0 and
            data2vec, 0.8 in HuBERT.
        length: frames of a span; 10 in these papers.
        min_spans: smallest number of spans; 2 in the code.
        same_count: whether random frames are unmasked where a sequence has more masked frames than
            the one with the fewest; True in the code.
        dropout: fraction of the masked frames that are then unmasked again; 0 in the papers.

    Raises:
        ValueError: an argument is out of its range.
    """

    fraction: float = 0.65
    length: int = 10
    min_spans: int = 2
    same_count: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_interval("fraction", self.fraction, 0, 1)
        check_whole("length", self.length, 1)
        check_whole("min_spans", self.min_spans, 0)
        check_interval("dropout", self.dropout, 0, 1, "[)")
        if not self.fraction and not self.min_spans:
            raise ValueError("fraction or min_spans must be above 0, got 0 and 0")

    def check_size(self, size: int) -> None:
        """Refuse sequences that are too short to be masked.

        Raises:
            ValueError: there are at most `length` frames.
        """
        if size <= self.length:
            raise ValueError(
                f"sequences must have more than {self.length} frames (the length of a masked "
                f"span), got {size}; give longer windows"
            )

    def most(self, size: int) -> int:
        """Largest number of masked frames among `size`."""
        spans = max(self.min_spans, math.ceil(self.fraction * size / self.length))
        return min(spans * self.length, size)

    @torch.no_grad()
    def __call__(self, keys: Keys, lengths: Tensor, size: int) -> Tensor:
        """Draw which frames are masked; collective with `same_count`.

        Args:
            keys: (B,).
            lengths: (B,) int64 frames of each sequence; the others are never masked.
            size: T.

        Returns:
            (B, T) bool.
        """
        extra = keys.unit("spans: number", 1)
        start, keep, drop = (
            keys.unit(f"spans: {what}", size) for what in ("start", "keep", "drop")
        )
        return self.frames(lengths, extra[:, 0], start, keep, drop)

    def frames(
        self, lengths: Tensor, extra: Tensor, start: Tensor, keep: Tensor, drop: Tensor
    ) -> Tensor:
        """Masked frames for given draws, of which the smallest are chosen first.

        Args:
            lengths: (B,) int64 frames of each sequence.
            extra: (B,) the u of the number of spans.
            start: (B, T) of the frames at which spans begin.
            keep: (B, T) of the frames that stay masked with `same_count`.
            drop: (B, T) of the masked frames that `dropout` unmasks.

        Returns:
            (B, T) bool.
        """
        size = start.shape[1]
        spans = self.fraction * lengths.double() / self.length + extra.double()
        count = spans.long().clamp_min(self.min_spans)
        room = torch.where(lengths - self.length > count, lengths - self.length, count + 1)
        starts = _smallest(start, length_mask(room, size), count)
        begun = starts.cumsum(1)
        ended = torch.nn.functional.pad(begun, (self.length, 0))[:, :size]
        long = (lengths > self.length)[:, None]
        mask = (begun > ended) & length_mask(lengths, size) & long
        if self.same_count:
            counts = mask.sum(1)
            every = gather_rows(counts)
            fewest = torch.where(every > 0, every, size).min()
            mask = _smallest(keep, mask, counts.minimum(fewest))
        if self.dropout:
            holes = (mask.sum(1) * self.dropout).round().long()
            mask = mask & ~_smallest(drop, mask, holes)
        return mask


def masked_first(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first `most` masked positions of each row, without a device synchronization.

    Args:
        mask: (B, T) bool with at most `most` True per row.
        most: M.

    Returns:
        Positions (B, M) int64, masked ones first, and (B, M) bool, whether they are masked.
    """
    masked, order = mask.sort(dim=1, descending=True, stable=True)
    return order[:, :most], masked[:, :most]


def _smallest(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` (B,) smallest scores (B, T) of each row among the given ones, (B, T) bool."""
    order = score.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
    return length_mask(count, score.shape[1]).gather(1, order.argsort(dim=1)) & among
