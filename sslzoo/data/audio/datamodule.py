"""AudioDataModule: the base class of audio data modules."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.batch import Batch, Padded, UnitSequence, length_mask
from sslzoo.checks import check_at_least, check_choice
from sslzoo.data.audio.alignments import read_alignments
from sslzoo.data.audio.units import APART, UnitTable, check_lengths, read_units
from sslzoo.data.audio.waveforms import (
    Centers,
    Decode,
    Short,
    Waveforms,
    Whole,
    Windows,
    load_waveforms,
)
from sslzoo.data.datamodule import OnBroken, PredictOn, SampleDataModule, Sets, default_workers
from sslzoo.data.inputs import AudioViews, WaveformInput, as_config
from sslzoo.data.listing import Listing
from sslzoo.data.loader import BatchSource
from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.too_short import told_short, too_short
from sslzoo.random import sample_keys
from sslzoo.transforms.audio.log_mel_image import LogMelImage
from sslzoo.transforms.audio.log_mel_views import LogMelViews
from sslzoo.transforms.audio.waveform import Waveform
from sslzoo.value_range import check_value_range

Batches = Literal["uniform", "same_group"]
ShortFiles = Literal["pad", "loop", "skip", "mask"]


class AudioDataModule(SampleDataModule):
    """Base class of audio data modules; subclasses implement `files`.

    A training sample is a random window of a file, int16 until it is on the device. Evaluation
    reads whole files, in batches of similar length, or central windows. Silent files are kept,
    stereo is mixed to mono, and other sampling rates are resampled.

    Args:
        transform: makes the views.
        window: samples of a training window, at `rate`.
        batch_size: size of the global batch, over all ranks.
        rate: sampling rate in Hz.
        batches: "uniform", or "same_group": every batch has files of one group (speaker).
        short: zero-pad ("pad") files shorter than the window, likewise with their lengths, so that
            no frame of the padding counts ("mask"), repeat them ("loop"), or exclude them from
            training ("skip").
        decode: "memory" reads all files once, "workers" reads windows for each batch, "auto"
            chooses memory up to 1 GiB.
        on_broken: raise an "error" for an unreadable file, or "skip" it with a warning; likewise
            for a file shorter than a frame of the encoder, if evaluation reads it.
        eval_window: samples of the central window in evaluation; None: the whole file.
        eval_batch_size: batch size in evaluation.
        num_workers: loader processes; None: 0 for memory, else one per core, at most 8.
        seed: seed of batches and windows; None: the run's seed.
        train_fraction: fraction of the training set to use, stratified.
        predict_on: the set that `predict` runs on.
        drop_last: drop the last batch of an epoch if it is incomplete.
        value_range: the lowest and highest values of floating-point files; None: -1 and 1.
        units: files of `sslzoo units`, in `root` or anywhere, one per set of units (HuBERT); the
            view is `UnitSequence`.
        alignments: table of phones with their times, or "phn" or "textgrid" for such files
            (`read_alignments`), instead of labels; evaluation then classifies frames.
        min_samples: files with fewer samples, at `rate`, are excluded from training.
    """

    noun = "files"
    label_seconds: float | None = None  # from one frame label of `files` to the next

    def __init__(
        self,
        transform: AudioViews,
        window: int,
        batch_size: int,
        rate: int,
        batches: Batches,
        short: ShortFiles,
        decode: Decode,
        on_broken: OnBroken,
        eval_window: int | None,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int | None,
        train_fraction: float,
        predict_on: PredictOn,
        drop_last: bool,
        value_range: tuple[float, float] | None = None,
        units: Sequence[str] = (),
        alignments: str | None = None,
        min_samples: int = 0,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, seed, train_fraction, predict_on, drop_last
        )
        check_choice("batches", batches, get_args(Batches))
        check_choice("short", short, get_args(ShortFiles))
        check_choice("decode", decode, get_args(Decode))
        check_choice("on_broken", on_broken, get_args(OnBroken))
        check_at_least("window", window, 1)
        check_at_least("rate", rate, 1)
        check_at_least("min_samples", min_samples, 0)
        made_for = getattr(transform, "rate", rate)
        if made_for != rate:
            raise ValueError(
                f"rate of the data must be the transform's {made_for} Hz, got {rate} Hz; set "
                "data.rate, to which files are resampled, or rate of the transform"
            )
        if eval_window is not None:
            check_at_least("eval_window", eval_window, 1)
        self.transform, self.window, self.rate = transform, window, rate
        self.batches, self.short, self.min_samples = batches, short, min_samples
        self.decode, self.on_broken = decode, on_broken
        self.eval_window = eval_window
        self.value_range = check_value_range(value_range)
        if (units or short == "mask") and not isinstance(transform, Waveform):
            raise ValueError(
                "transform must be Waveform with units or short='mask', got "
                f"{type(transform).__name__}"
            )
        if alignments is not None:
            self._check_timed(transform)
        if alignments is not None and eval_window is not None:
            raise ValueError(
                "eval_window must be None with alignments, whose times are those of whole files, "
                f"got {eval_window}"
            )
        self.alignments, self.timed_labels = alignments, alignments is not None
        self.units = [units] if isinstance(units, str) else list(units)
        self.classes: list[str] = []
        self._tables: tuple[Waveforms, list[UnitTable]] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once, and check them against what the model takes.

        Raises:
            ValueError: the rates differ, the units are others than the model's, or no recording is
                long enough to be masked, or for a frame.
        """
        super().setup(stage)
        module = None if self.trainer is None else self.trainer.lightning_module
        wanted = getattr(getattr(module, "backbone", None), "rate", None)
        if isinstance(wanted, int) and wanted != self.rate:
            raise ValueError(
                f"rate of the data must be the net's {wanted} Hz, got {self.rate} Hz; set "
                "data.rate, to which files are resampled, or rate of the backbone"
            )
        if module is not None:
            self._sets = self.without_short(module).sets
            if stage == "fit":
                self._sampler()  # whose batch may be larger than what is left
        if stage == "fit" and module is not None:
            if self.short == "mask" and not hasattr(module, "least_samples"):
                self.check_module(module)  # the training views have no other padding
            self._check_lengths(getattr(module, "least_samples", 0))
            self._check_units(module)

    def without_short(self, module: Any) -> AudioDataModule:
        """The same data without the recordings that are shorter than a frame of an encoder.

        Args:
            module: the encoder, or a module that has it as `backbone`; see `too_short`.

        Returns:
            A copy with `on_broken="skip"` if there are such recordings, otherwise `self`. A warning
            counts them.

        Raises:
            ValueError: all recordings of a set are too short.
        """
        short = self._too_short(module) if self.on_broken == "skip" else {}
        if not short:
            return self
        told, kept = self._told_short(module, short), {}
        for key, rows in short.items():
            samples = getattr(self.sets, key)
            if len(rows) == len(samples):
                raise ValueError(told)
            long = torch.ones(len(samples), dtype=torch.bool)
            long[rows] = False
            kept[key] = samples.subset(long.nonzero()[:, 0])
        rank_zero_warn(f"{told}; all of them are left out")
        other = copy.copy(self)
        other._sets = self.sets._replace(**kept)
        return other

    def check_module(self, module: Any) -> None:
        """Refuse recordings that are shorter than a frame of the module's encoder.

        Raises:
            ValueError: says how many there are, and which is the first.
        """
        short = self._too_short(module)
        if short:
            how = "set on_broken: skip to leave them out"
            if self.on_broken == "skip":  # the module was not known when the data were set up
                how = "leave them out by data.without_short(encoder)"
            raise ValueError(f"{self._told_short(module, short)}; {how}")

    def _too_short(self, module: Any) -> dict[str, list[int]]:
        """Rows of `too_short` of the training and the query set, if there are any."""
        seen = self.encoder_input().lengths
        sets = {"train": self.sets.train, "query": self.sets.query}
        rows = {
            key: too_short(module, seen(samples.lengths))
            for key, samples in sets.items()
            if samples is not None
        }
        return {key: own for key, own in rows.items() if own}

    def _told_short(self, module: Any, short: dict[str, list[int]]) -> str:
        def name(samples: Waveforms, row: int) -> str:
            length = self.eval_window or int(samples.lengths[row])
            return f"{samples.paths()[row]} with {length} samples at {self.rate} Hz"

        return told_short(module, self.noun, self.sets._asdict(), short, name)

    def _check_lengths(self, least: int) -> None:
        """Refuse recordings none of which the model can mask, and count such as are among them."""
        if self.short != "mask":  # padding counts as sound, or there is none
            return
        lengths = self.sets.train.lengths
        few = int((lengths < least).sum())
        if few == len(lengths):
            raise ValueError(
                f"recordings must have at least {least} samples at {self.rate} Hz, more than the "
                f"model's masked span, got {few} shorter ones, the longest {int(lengths.max())}"
            )
        if few:
            rank_zero_warn(
                f"{few} of {len(lengths)} recordings have fewer than {least} samples, no more than "
                "the model's masked span, and teach it nothing; exclude them by data.min_samples"
            )

    def _check_units(self, module: Any) -> None:
        """Refuse units of another rate or number than the model's, or of other recordings."""
        wanted = getattr(module, "unit_rate", None)
        if wanted is None:
            return
        train = self.sets.train
        tables = self._unit_tables()
        for path, table in zip(self.units, tables, strict=True):
            if not math.isclose(table.rate, wanted, rel_tol=1e-4):
                raise ValueError(
                    f"unit_rate of the model must be that of {path!r}, {table.rate:g} per second, "
                    f"got {wanted:g}"
                )
            check_lengths(path, table, train.paths(), train.lengths.numpy() / self.rate)
        have = [table.num_units for table in tables]
        if have and have != list(module.head.num_units):
            raise ValueError(
                f"num_units of the model's head must be those of the files, {have}, got "
                f"{list(module.head.num_units)}"
            )

    @abstractmethod
    def files(self) -> tuple[Listing, Listing | None]:
        """The files of the training set and of the query set.

        Raises:
            ValueError: a file is missing or malformed.
        """

    def read(self) -> Sets:
        """List the files, and decode them if `decode` says so."""
        train, query = self.files()
        self.classes = list(train.classes)
        sets = [
            load_waveforms(listing, self.rate, self.decode, self.on_broken, self.value_range)
            for listing in ([train] if query is None else [train, query])
        ]
        least = max(self.min_samples, self.window if self.short == "skip" else 0)
        long = (sets[0].lengths >= least).nonzero()[:, 0]
        if not len(long):
            skips = least > self.min_samples
            name, how = ("window", ' with short="skip"') if skips else ("min_samples", "")
            raise ValueError(
                f"{name} must be at most the longest file's {int(sets[0].lengths.max())} samples"
                f"{how}, got {least}"
            )
        if len(long) < len(sets[0]):
            sets[0] = sets[0].subset(long)
        sets = self._with_own_labels(sets)
        if self.alignments is not None:
            listed = [*train.paths, *([] if query is None else query.paths)]
            self._align(sets, self.alignments, listed)
        return Sets(sets[0], sets[1] if query is not None else None, len(self.classes) or None)

    def _with_own_labels(self, sets: list[Waveforms]) -> list[Waveforms]:
        """Refuse, or leave out, recordings with frame labels of another duration."""
        if self.label_seconds is None or sets[0].listing.frame_labels is None:
            return sets
        kept, told, first = [], [], ""
        for key, each in zip(("train", "query"), sets, strict=False):
            labels = torch.tensor([len(own) for own in each.listing.frame_labels or []])
            seconds, own = each.lengths / self.rate, labels * self.label_seconds
            fits = (own - seconds).abs() <= APART + self.label_seconds
            kept.append(each.subset(fits.nonzero()[:, 0]))
            if not fits.all():
                row = int((~fits).nonzero()[0])
                told.append(f"{int((~fits).sum())} of {len(each)} ({key})")
                first = first or (
                    f"{own[row]:.2f} s of labels for {seconds[row]:.2f} s of {each.paths()[row]}"
                )
        if not told:
            return sets
        message = (
            f"frame labels must be those of the {self.noun}, got {' and '.join(told)} of another "
            f"duration, the first is {first}"
        )
        if self.on_broken == "error":
            raise ValueError(f"{message}; set on_broken: skip to leave them out")
        if not all(map(len, kept)):
            raise ValueError(message)
        rank_zero_warn(f"{message}; all of them are left out")
        return kept

    def _align(self, sets: list[Waveforms], source: str, listed: list[str]) -> None:
        """Replace the labels by aligned phones; `listed` also has the files that are left out."""
        seconds = {
            path: int(length) / self.rate
            for each in sets
            for path, length in zip(each.paths(), each.lengths, strict=True)
        }
        root = Path(getattr(self, "root", "")).expanduser()
        found = read_alignments(source, root, listed, seconds, self.rate)
        self.classes = found.phones
        for each in sets:
            own = [found.segments[path] for path in each.paths()]
            each.listing = each.listing._replace(
                labels=None, classes=found.phones, frame_labels=own
            )
            each.labels = None

    def groups(self) -> Tensor | None:
        if self.batches == "uniform":
            return None
        groups = self.sets.train.groups
        if groups is None:
            raise ValueError('batches must be "uniform" for files without groups, got "same_group"')
        return groups

    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        short: Short = "pad" if self.short == "skip" else self.short
        given = self.window, short, self.seed, sampler.shared_epoch
        return Windows(self.sets.train, *given, self.transform.partners, self._unit_tables())

    def _unit_tables(self) -> list[UnitTable]:
        """The units of the training set's files, in their order, read once."""
        train = self.sets.train
        if self._tables is not None and self._tables[0] is train:
            return self._tables[1]
        root = Path(getattr(self, "root", "")).expanduser()
        tables = [read_units(root / path, train.paths()) for path in self.units]
        rates = sorted({table.rate for table in tables})
        if len(rates) > 1:
            raise ValueError(f"units must have one rate in all files, got {rates} per second")
        self._tables = train, tables
        return tables

    def eval_source(self, samples: Waveforms) -> BatchSource:
        return Whole(samples) if self.eval_window is None else Centers(samples, self.eval_window)

    def eval_order(self, samples: Waveforms) -> Tensor | None:
        """Order by length, so that batches need little padding."""
        return samples.lengths.argsort(stable=True) if self.eval_window is None else None

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        keys = sample_keys(self.seed, epoch, batch.index)
        view = batch.views[0]
        if isinstance(view, Padded | UnitSequence):
            (values,) = self.transform([view.values], keys)
            values = values * length_mask(view.lengths, values.shape[1])
            return self._in_precision(batch._replace(views=[view._replace(values=values)]))
        return self._in_precision(batch._replace(views=self.transform(batch.views, keys)))

    def has_pairs(self) -> bool:
        """Whether the views are two spectrograms."""
        return isinstance(self.transform, LogMelViews)

    def eval_views(self, batch: Batch) -> Batch:
        view = self.transform.evaluation(batch.views[0])
        return self._in_precision(batch._replace(views=[view]))

    def encoder_input(self) -> WaveformInput:
        return WaveformInput(self.transform, self.rate, self.eval_window)

    def preprocessing(self) -> dict[str, Any] | None:
        transform = as_config(self.transform)
        if transform is None:
            return None
        window = {} if self.eval_window is None else {"window": self.eval_window}
        return {"kind": "waveform", "rate": self.rate, **window, "transform": transform}

    def take_input(self, given: Any) -> None:
        """Use another encoder's transform, and its window if it has one, at the same rate."""
        if given.rate != self.rate:
            raise ValueError(
                f"rate must be the encoder's {given.rate} Hz, got {self.rate} Hz; set data.rate"
            )
        if self.timed_labels:
            self._check_timed(given.transform)
        elif given.window is not None:
            self.eval_window = given.window
        self.transform = given.transform

    def _check_timed(self, transform: AudioViews) -> None:
        """Refuse transforms that make no frames of whole files."""
        if isinstance(transform, LogMelImage | LogMelViews):
            raise ValueError(
                "labels with times (alignments, phones) need frames of whole files, but "
                f"{type(transform).__name__} makes images of windows"
            )

    def workers(self, samples: Waveforms) -> int:
        return 0 if samples.memory is not None else default_workers()
