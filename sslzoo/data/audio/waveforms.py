"""Waveforms: a set of sound files, in memory or left to workers, cut into windows or whole.

N files, B of them a batch, L samples of a window or of a batch's longest file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch, Padded
from sslzoo.data.audio.sound_files import SoundFileError, num_samples, read_sound
from sslzoo.data.datamodule import SampleSet, readable_rows
from sslzoo.data.image.images import OnBroken
from sslzoo.eval.fingerprint import array_digest, files_digest, labels_digest, text_digest
from sslzoo.random import Keys, sample_keys

Short = Literal["pad", "loop"]


class AudioListing(NamedTuple):
    """Sound files, sorted, and what is known of each.

    Args:
        paths: N files.
        labels: (N,) int64, or None.
        classes: names of the labels, sorted.
        groups: (N,) int64, such as the speaker, for batches of one; or None.
        frame_labels: N arrays of a label a frame (phones), or None.
    """

    paths: list[str]
    labels: Tensor | None = None
    classes: Sequence[str] = ()
    groups: Tensor | None = None
    frame_labels: list[np.ndarray] | None = None

    def take(self, rows: Tensor) -> AudioListing:
        """The files of these rows."""
        chosen = rows.tolist()
        return AudioListing(
            [self.paths[i] for i in chosen],
            None if self.labels is None else self.labels[rows],
            self.classes,
            None if self.groups is None else self.groups[rows],
            None if self.frame_labels is None else [self.frame_labels[i] for i in chosen],
        )


class Waveforms(SampleSet):
    """Files whose lengths are known.

    Args:
        listing: the files.
        lengths: (N,) int64 samples of each at `rate`.
        rate: Hz of what is served.
        on_broken: a file that cannot be read is an "error", or is left out with a warning ("skip").
        memory: all samples one after another, int16; None: files are read where a batch is made.
        offsets: (N,) int64, where each file begins in `memory`; None: in this order, all of it.
        left_out: see `SampleSet`.
    """

    def __init__(
        self,
        listing: AudioListing,
        lengths: Tensor,
        rate: int,
        on_broken: OnBroken = "error",
        memory: np.ndarray | None = None,
        offsets: Tensor | None = None,
        left_out: int = 0,
    ) -> None:
        self.listing, self.lengths, self.rate = listing, lengths, rate
        self.labels, self.groups = listing.labels, listing.groups
        self.on_broken: OnBroken = on_broken
        self.memory, self.left_out = memory, left_out
        # One block of bytes: a list of str would be copied into each forked worker, page by page.
        self._paths = np.array([os.fsencode(path) for path in listing.paths], dtype=np.bytes_)
        self.offsets = lengths.cumsum(0) - lengths if offsets is None else offsets
        self.broken = torch.zeros(len(lengths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, index: list[int]) -> Batch:
        return Whole(self).__getitems__(index)

    @property
    def num_broken(self) -> int:
        return self.left_out + int(self.broken.sum())

    def subset(self, rows: Tensor) -> Waveforms:
        return Waveforms(
            self.listing.take(rows),
            self.lengths[rows],
            self.rate,
            self.on_broken,
            self.memory,
            self.offsets[rows],
            self.left_out,
        )

    def fingerprint(self) -> str:
        files = files_digest(os.fsdecode(bytes(path)) for path in self._paths)
        frames = map(array_digest, self.listing.frame_labels or [])
        return files + labels_digest(self.labels) + text_digest(frames)

    def read(self, index: int, start: int, count: int) -> np.ndarray | None:
        """Samples of one file, (count,) int16 with zeros behind its end; None where it is broken.

        Raises:
            SoundFileError: it is broken, and that is an error.
        """
        if self.memory is not None:
            offset, length = int(self.offsets[index]), int(self.lengths[index])
            wave = self.memory[offset + start : offset + min(start + count, length)]
            return np.pad(wave, (0, count - len(wave))) if len(wave) < count else wave
        path = os.fsdecode(bytes(self._paths[index]))
        try:
            return read_sound(path, self.rate, start, count)
        except SoundFileError as error:
            if self.on_broken == "error":
                raise
            if not self.broken[index]:
                self.broken[index] = True
                warnings.warn(f"skipped: {error}", stacklevel=2)
            return None

    def label(self, rows: Tensor) -> Tensor | None:
        """(B,), or (B, T) with -1 behind each file's own frames."""
        if self.listing.frame_labels is None:
            return None if self.labels is None else self.labels[rows]
        parts = [torch.from_numpy(self.listing.frame_labels[i]).long() for i in rows.tolist()]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1)

    def batch(self, waves: list[np.ndarray | None], index: list[int], keep_size: bool) -> Batch:
        """A batch of equally long waves; a broken one's row is filled, or left out."""
        rows = readable_rows([wave is not None for wave in waves], keep_size)
        if not rows:
            raise SoundFileError(
                f"none of the {len(index)} files of a batch can be read, the first is "
                f"{os.fsdecode(bytes(self._paths[index[0]]))}"
            )
        kept = torch.tensor([index[row] for row in rows])
        stacked = np.stack([waves[row] for row in rows])  # type: ignore[misc]
        return Batch([torch.from_numpy(stacked)], kept, self.label(kept))


class Windows:
    """A random window of each file, keyed by (seed, epoch, index): (B, L) int16.

    Args:
        waveforms: the files.
        window: L.
        short: files below L are zero-padded, at a random place of the window ("pad"), or repeated
            from a random start ("loop").
        seed: of the draws.
        epoch: shared int64 scalar, written by the sampler (`KeyedSampler.shared_epoch`).
        partners: further views that are windows of files drawn from all, for transforms that mix.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        window: int,
        short: Short,
        seed: int,
        epoch: Tensor,
        partners: int = 0,
    ) -> None:
        self.waveforms, self.window, self.short = waveforms, window, short
        self.seed, self.epoch, self.partners = seed, epoch, partners

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitems__(self, index: list[int]) -> Batch:
        keys = sample_keys(self.seed, int(self.epoch), torch.tensor(index))
        batch = self.waveforms.batch(self._windows(index, keys), index, keep_size=True)
        keys = sample_keys(self.seed, int(self.epoch), batch.index)
        views = batch.views
        for number in range(self.partners):
            own = keys.fold("partner", number)
            others = own.integers("file", len(self.waveforms)).tolist()
            waves = self._windows(others, own)
            views = [*views, self.waveforms.batch(waves, others, keep_size=True).views[0]]
        return batch._replace(views=views)

    def _windows(self, index: list[int], keys: Keys) -> list[np.ndarray | None]:
        """A window of each file, at its key's place."""
        lengths = self.waveforms.lengths[torch.tensor(index)]
        if self.short == "loop":
            room = torch.where(lengths < self.window, lengths - 1, lengths - self.window)
        else:
            room = (lengths - self.window).abs()
        places = (keys.integers("window", 1 << 31) * (room + 1) >> 31).tolist()
        return [self._cut(*case) for case in zip(index, lengths.tolist(), places, strict=True)]

    def _cut(self, index: int, length: int, place: int) -> np.ndarray | None:
        if length >= self.window:
            return self.waveforms.read(index, place, self.window)
        wave = self.waveforms.read(index, 0, length)
        if wave is None:
            return None
        if self.short == "loop":
            return np.resize(np.roll(wave, -place), self.window)
        return np.pad(wave, (place, self.window - length - place))


class Whole:
    """Whole files, padded to the longest of a batch: `Padded` (B, L) int16.

    Args:
        waveforms: the files.
    """

    def __init__(self, waveforms: Waveforms) -> None:
        self.waveforms = waveforms

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitems__(self, index: list[int]) -> Batch:
        lengths = self.waveforms.lengths[torch.tensor(index)]
        longest = int(lengths.max())
        waves = [self.waveforms.read(i, 0, longest) for i in index]
        batch = self.waveforms.batch(waves, index, keep_size=False)
        return batch._replace(views=[Padded(batch.views[0], self.waveforms.lengths[batch.index])])


class Centers:
    """The central window of each file, zero-padded on both sides where it is shorter.

    Args:
        waveforms: the files.
        window: L.
    """

    def __init__(self, waveforms: Waveforms, window: int) -> None:
        self.waveforms, self.window = waveforms, window

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitems__(self, index: list[int]) -> Batch:
        waves = [self._cut(i, int(self.waveforms.lengths[i])) for i in index]
        return self.waveforms.batch(waves, index, keep_size=False)

    def _cut(self, index: int, length: int) -> np.ndarray | None:
        if length >= self.window:
            return self.waveforms.read(index, (length - self.window) // 2, self.window)
        wave = self.waveforms.read(index, 0, length)
        before = (self.window - length) // 2
        return None if wave is None else np.pad(wave, (before, self.window - length - before))


Decode = Literal["auto", "memory", "workers"]
_MEMORY_BYTES = 1 << 30  # where "auto" ends


def waveforms(listing: AudioListing, rate: int, decode: Decode, on_broken: OnBroken) -> Waveforms:
    """A listing's files with their lengths, and their samples where they fit.

    Raises:
        SoundFileError: a file is broken, and that is an error; or all are.
    """
    lengths, good = [], []
    for row, path in enumerate(listing.paths):
        try:
            lengths.append(num_samples(path, rate))
            good.append(row)
        except SoundFileError as error:
            if on_broken == "error":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if not good:
        raise SoundFileError(f"none of {len(listing.paths)} files can be read")
    kept = Waveforms(
        listing.take(torch.tensor(good)),
        torch.tensor(lengths),
        rate,
        on_broken,
        left_out=len(listing.paths) - len(good),
    )
    if decode == "workers" or (decode == "auto" and 2 * sum(lengths) > _MEMORY_BYTES):
        return kept
    waves = [kept.read(i, 0, length) for i, length in enumerate(lengths)]
    rows = torch.tensor([i for i, wave in enumerate(waves) if wave is not None])
    memory = np.concatenate([wave for wave in waves if wave is not None])
    return Waveforms(
        kept.listing.take(rows),
        kept.lengths[rows],
        rate,
        on_broken,
        memory,
        left_out=len(listing.paths) - len(rows),
    )
