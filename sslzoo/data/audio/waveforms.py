"""Waveforms: a set of sound files, read as random windows or as a whole.

Shapes: N files, B files of a batch, L samples of a window or of the longest file of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch, Padded, UnitSequence
from sslzoo.data.audio.sound_files import SoundFileError, num_samples, read_sound
from sslzoo.data.audio.units import UnitTable, window_units
from sslzoo.data.datamodule import OnBroken, SampleSet, readable_rows
from sslzoo.data.listing import Listing, pack_paths, select_rows, spread, unpack_path
from sslzoo.eval.fingerprint import array_digest, files_digest, labels_digest, text_digest
from sslzoo.eval.loaders import BrokenBatchError
from sslzoo.random import Keys, sample_keys
from sslzoo.value_range import ValueRange

Short = Literal["pad", "loop", "mask"]


class Waveforms(SampleSet):
    """Sound files with known lengths.

    Args:
        listing: the files.
        lengths: (N,) int64 samples per file at `rate`.
        rate: sampling rate in Hz.
        on_broken: raise an "error" for an unreadable file, or "skip" it with a warning.
        memory: concatenated int16 samples of all files; None: files are read for each batch.
        offsets: (N,) int64 first sample of each file in `memory`; None: files are contiguous.
        left_out: see `SampleSet`.
        value_range: see `read_sound`.
    """

    def __init__(
        self,
        listing: Listing,
        lengths: Tensor,
        rate: int,
        on_broken: OnBroken = "error",
        memory: np.ndarray | None = None,
        offsets: Tensor | None = None,
        left_out: int = 0,
        value_range: ValueRange | None = None,
    ) -> None:
        self.listing, self.lengths, self.rate = listing, lengths, rate
        self.labels, self.groups = listing.labels, listing.groups
        self.on_broken: OnBroken = on_broken
        self.memory, self.left_out = memory, left_out
        self.value_range = value_range
        self._paths = pack_paths(listing.paths)
        self.offsets = lengths.cumsum(0) - lengths if offsets is None else offsets
        self.broken = torch.zeros(len(lengths), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.lengths)

    def paths(self) -> list[str]:
        """Path of each file."""
        return [unpack_path(packed) for packed in self._paths]

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
            self.value_range,
        )

    def fingerprint(self) -> str:
        files = files_digest(map(unpack_path, self._paths))
        frames = map(array_digest, self.listing.frame_labels or [])
        known = files + labels_digest(self.labels) + text_digest(frames)
        return known if self.value_range is None else f"{known} {self.value_range}"

    def read(self, index: int, start: int, count: int) -> np.ndarray | None:
        """Read samples of one file, (count,) int16, zero after its end; None if unreadable.

        Raises:
            SoundFileError: the file is unreadable (with "error").
        """
        if self.memory is not None:
            offset, length = int(self.offsets[index]), int(self.lengths[index])
            wave = self.memory[offset + start : offset + min(start + count, length)]
            return np.pad(wave, (0, count - len(wave))) if len(wave) < count else wave
        try:
            path = unpack_path(self._paths[index])
            return read_sound(path, self.rate, start, count, self.value_range)
        except SoundFileError as error:
            if self.on_broken == "error":
                raise
            if not self.broken[index]:
                self.broken[index] = True
                warnings.warn(f"skipped: {error}", stacklevel=2)
            return None

    def label(self, rows: Tensor) -> Tensor | None:
        """Labels (B,), or frame labels (B, T) or segments (B, S, 3) padded with -1."""
        if self.listing.frame_labels is None:
            return select_rows(self.labels, rows)
        parts = [torch.from_numpy(self.listing.frame_labels[i]).long() for i in rows.tolist()]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1)

    def batch(self, waves: list[np.ndarray | None], index: list[int], keep_size: bool) -> Batch:
        """A batch of waves of one length; an unreadable one's row is filled or dropped."""
        rows = readable_rows([wave is not None for wave in waves], keep_size)
        if not rows:
            raise BrokenBatchError(
                f"all {len(index)} files of a batch are unreadable, the first is "
                f"{unpack_path(self._paths[index[0]])}"
            )
        kept = torch.tensor([index[row] for row in rows])
        stacked = np.stack([waves[row] for row in rows])  # type: ignore[misc]
        return Batch([torch.from_numpy(stacked)], kept, self.label(kept))


class Windows:
    """A random window of each file, keyed by (seed, epoch, index): (B, L) int16.

    Args:
        waveforms: the files.
        window: L.
        short: zero-pad files shorter than L at a random position ("pad") or at the end, with their
            lengths (`Padded`; "mask"), or repeat them from a random start ("loop").
        seed: seed of the draws.
        epoch: shared int64 scalar that the sampler writes (`KeyedSampler.shared_epoch`).
        partners: number of further views, windows of random other files, for transforms that mix.
        units: sets of units of the files; the view is then `UnitSequence`.
    """

    def __init__(
        self,
        waveforms: Waveforms,
        window: int,
        short: Short,
        seed: int,
        epoch: Tensor,
        partners: int = 0,
        units: Sequence[UnitTable] = (),
    ) -> None:
        self.waveforms, self.window, self.short = waveforms, window, short
        self.seed, self.epoch, self.partners = seed, epoch, partners
        self.units = units

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitems__(self, index: list[int]) -> Batch:
        keys = sample_keys(self.seed, int(self.epoch), torch.tensor(index))
        batch = self.waveforms.batch(self._windows(index, keys), index, keep_size=True)
        keys = sample_keys(self.seed, int(self.epoch), batch.index)
        if self.short == "mask" or self.units:
            return self._with_lengths(batch, keys)
        views = batch.views
        for number in range(self.partners):
            own = keys.fold("partner", number)
            others = own.integers("file", len(self.waveforms)).tolist()
            waves = self._windows(others, own)
            views = [*views, self.waveforms.batch(waves, others, keep_size=True).views[0]]
        return batch._replace(views=views)

    def _with_lengths(self, batch: Batch, keys: Keys) -> Batch:
        """The windows with their lengths, and with their units if there are any."""
        index = batch.index.tolist()
        lengths = self.waveforms.lengths[batch.index]
        inside = lengths.clamp_max(self.window)
        if self.short != "mask":
            inside = torch.full_like(lengths, self.window)
        if not self.units:
            return batch._replace(views=[Padded(batch.views[0], inside)])
        found = [
            window_units(self.units, *case, self.waveforms.rate)
            for case in zip(index, self._samples(index, keys), strict=True)
        ]
        return batch._replace(views=[UnitSequence(batch.views[0], inside, torch.stack(found))])

    def _samples(self, index: list[int], keys: Keys) -> list[np.ndarray]:
        """The file's sample at each position of its window, -1 for padding."""
        position = np.arange(self.window)
        samples = []
        for start, length in zip(*self._starts(index, keys), strict=True):
            if length >= self.window:
                samples.append(start + position)
            elif self.short == "loop":
                samples.append((start + position) % length)
            else:
                at = position - start
                samples.append(np.where((at >= 0) & (at < length), at, -1))
        return samples

    def _starts(self, index: list[int], keys: Keys) -> tuple[list[int], list[int]]:
        """Where each window begins, see `_cut`, and the length of its file."""
        lengths = self.waveforms.lengths[torch.tensor(index)]
        if self.short == "loop":
            room = torch.where(lengths < self.window, lengths - 1, lengths - self.window)
        else:
            room = (lengths - self.window).abs()
        if self.short == "mask":
            room = room.where(lengths >= self.window, 0)
        starts = (keys.integers("window", 1 << 31) * (room + 1) >> 31).tolist()
        return starts, lengths.tolist()

    def _windows(self, index: list[int], keys: Keys) -> list[np.ndarray | None]:
        """A window of each file, at a random position."""
        starts, lengths = self._starts(index, keys)
        return [self._cut(*case) for case in zip(index, lengths, starts, strict=True)]

    def _cut(self, index: int, length: int, start: int) -> np.ndarray | None:
        if length >= self.window:
            return self.waveforms.read(index, start, self.window)
        wave = self.waveforms.read(index, 0, length)
        if wave is None:
            return None
        if self.short == "loop":
            return np.resize(np.roll(wave, -start), self.window)
        return np.pad(wave, (start, self.window - length - start))


class Whole:
    """Whole files, padded to the longest of the batch: `Padded` (B, L) int16.

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
    """The central window of each file, zero-padded on both sides if it is shorter.

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
_MEMORY_BYTES = 1 << 30  # limit of "auto"
_SAMPLE, _SECONDS = 8, 10  # files that are read before training, and how much of each


def load_waveforms(
    listing: Listing,
    rate: int,
    decode: Decode,
    on_broken: OnBroken,
    value_range: ValueRange | None = None,
) -> Waveforms:
    """Read the lengths of listed files, and their samples if `decode` says so.

    Otherwise the first seconds of a few files are read, to check the range of their values.

    Raises:
        SoundFileError: a file is unreadable (with "error"), or all are.
        ValueRangeError: floats of a file are in another range.
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
        raise SoundFileError(f"all {len(listing.paths)} files are unreadable")
    kept = Waveforms(
        listing.take(torch.tensor(good)),
        torch.tensor(lengths),
        rate,
        on_broken,
        left_out=len(listing.paths) - len(good),
        value_range=value_range,
    )
    if decode == "workers" or (decode == "auto" and 2 * sum(lengths) > _MEMORY_BYTES):
        for row in spread(len(kept), _SAMPLE):
            kept.read(row, 0, min(lengths[row], _SECONDS * rate))
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
        value_range=value_range,
    )
