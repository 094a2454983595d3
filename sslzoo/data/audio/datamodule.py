"""AudioDataModule, the base class of audio data modules, and AudioFolder, a folder of sounds."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sslzoo.batch import Batch, Padded, UnitSequence, length_mask
from sslzoo.checks import check_at_least, check_choice, check_interval
from sslzoo.data.audio.alignments import read_alignments
from sslzoo.data.audio.sound_files import SOUND_EXTENSIONS
from sslzoo.data.audio.units import UnitTable, read_units
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
from sslzoo.data.listing import Listing, check_folder, list_folders, list_unlabeled
from sslzoo.data.loader import BatchSource
from sslzoo.data.sampler import KeyedSampler
from sslzoo.random import sample_keys
from sslzoo.transforms.audio.log_mel_views import LogMelViews
from sslzoo.transforms.audio.waveform import Waveform
from sslzoo.value_range import check_value_range

_APART = 0.1  # seconds between the ends of units and recording, as fairseq tolerates
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
        on_broken: raise an "error" for an unreadable file, or "skip" it with a warning.
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
        if alignments is not None and eval_window is not None:
            raise ValueError(
                "eval_window must be None with alignments, whose times are those of whole files, "
                f"got {eval_window}"
            )
        self.alignments = alignments
        self.units = [units] if isinstance(units, str) else list(units)
        self.classes: list[str] = []
        self._tables: tuple[Waveforms, list[UnitTable]] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the sets once, and check them against what the model takes.

        Raises:
            ValueError: the rates differ, the units are others than the model's, or no recording is
                long enough to be masked.
        """
        super().setup(stage)
        module = None if self.trainer is None else self.trainer.lightning_module
        wanted = getattr(getattr(module, "backbone", None), "rate", None)
        if isinstance(wanted, int) and wanted != self.rate:
            raise ValueError(
                f"rate of the data must be the net's {wanted} Hz, got {self.rate} Hz; set "
                "data.rate, to which files are resampled, or rate of the backbone"
            )
        if stage == "fit" and module is not None:
            self._check_lengths(getattr(module, "least_samples", 0))
            self._check_units(module)

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
            seconds = train.lengths.numpy() / self.rate
            apart = np.abs(np.diff(table.starts) / table.rate - seconds)
            other = np.flatnonzero(apart > _APART + 1 / table.rate)
            if len(other):
                row = int(other[0])
                raise ValueError(
                    f"units of {path!r} must be those of the recordings, got {len(other)} of other "
                    f"lengths, such as {np.diff(table.starts)[row] / table.rate:.2f} s of units "
                    f"for {seconds[row]:.2f} s of {train.paths()[row]}; run sslzoo units again"
                )
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
        if self.alignments is not None:
            listed = [*train.paths, *([] if query is None else query.paths)]
            self._align(sets, self.alignments, listed)
        return Sets(sets[0], sets[1] if query is not None else None, len(self.classes) or None)

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
        self.transform = given.transform
        self.eval_window = self.eval_window if given.window is None else given.window

    def workers(self, samples: Waveforms) -> int:
        return 0 if samples.memory is not None else default_workers()


class AudioFolder(AudioDataModule):
    """Sound files in one of four layouts.

    1. `<root>/train/<class>/*` and `<root>/val/<class>/*` (folder names: `train_dir` and
       `val_dir`; `val_dir: null` for no validation).
    2. `<root>/<class>/*` with `val_fraction`: a keyed, stratified split.
    3. File names with fields: `pattern`, such as `{digit}_{speaker}_{n}.wav`, matches the path
       below `root`; `label` and `group` name fields, and `query` gives the field values of the
       query set, such as `{n: [0, 1, 2, 3, 4]}` (or `val_fraction`).
    4. `labels: false`: all files below `<root>/train`, or else below `<root>`.

    For the other arguments see `AudioDataModule`.

    Args:
        root: the folder.
        window: see `AudioDataModule`; 20480 in CPC's paper.
        train_dir: training folder inside `root` (layout 1).
        val_dir: validation folder inside `root` (layout 1); None: no validation.
        val_fraction: fraction of each class to hold out for validation.
        labels: whether sub-folders are classes.
        pattern: pattern of the file names (layout 3).
        label: the field with the class; None: no classes.
        group: the field with the group, for `batches`.
        query: the values per field of the query set.
    """

    def __init__(
        self,
        root: str,
        transform: AudioViews,
        window: int = 20480,
        batch_size: int = 64,
        rate: int = 16000,
        train_dir: str = "train",
        val_dir: str | None = "val",
        val_fraction: float | None = None,
        labels: bool = True,
        pattern: str | None = None,
        label: str | None = None,
        group: str | None = None,
        query: dict[str, list[Any]] | None = None,
        batches: Batches = "uniform",
        short: ShortFiles = "pad",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_window: int | None = None,
        eval_batch_size: int = 32,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        value_range: tuple[float, float] | None = None,
        units: Sequence[str] = (),
        alignments: str | None = None,
        min_samples: int = 0,
    ) -> None:
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
            if query is not None:
                raise ValueError(f"query must be None with val_fraction, got {query}")
        named = set(re.findall(r"{(\w+)}", pattern or ""))
        asked = {name for name in (label, group, *(query or {})) if name is not None}
        if asked - named:
            raise ValueError(
                f"pattern must have the fields of label, group and query, got {pattern!r} without "
                f"{sorted(asked - named)}"
            )
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            *(drop_last, value_range, units, alignments, min_samples),
        )
        self.root, self.train_dir, self.val_dir = root, train_dir, val_dir
        self.val_fraction, self.labels = val_fraction, labels
        self.pattern, self.label, self.group, self.query = pattern, label, group, query

    def files(self) -> tuple[Listing, Listing | None]:
        if self.pattern is not None:
            return self._by_pattern(check_folder(self.root, "root"), self.pattern)
        return list_folders(
            *(self.root, self.train_dir, self.val_dir, self.val_fraction, self.labels),
            *(SOUND_EXTENSIONS, ", or pattern for classes in file names"),
        )

    def _by_pattern(self, root: Path, pattern: str) -> tuple[Listing, Listing | None]:
        paths = list_unlabeled(root, "root", SOUND_EXTENSIONS).paths
        fields = parse_fields([os.path.relpath(path, root) for path in paths], pattern)
        labels, classes = field_labels(fields, self.label)
        listing = Listing(paths, labels, classes, field_labels(fields, self.group)[0])
        if self.val_fraction is not None:
            return listing.split(self.val_fraction)
        if self.query is None:
            return listing, None
        form = partial(unicodedata.normalize, "NFC")
        wanted = {
            name: {form(str(value)) for value in values} for name, values in self.query.items()
        }
        asked = torch.tensor([all(f[k] in v for k, v in wanted.items()) for f in fields])
        if asked.all() or not asked.any():
            raise ValueError(
                f"query must match some files but not all, got {self.query}, which matches "
                f"{int(asked.sum())} of {len(paths)}"
            )
        return listing.take((~asked).nonzero()[:, 0]), listing.take(asked.nonzero()[:, 0])


def parse_fields(names: list[str], pattern: str) -> list[dict[str, str]]:
    """Parse the fields of file names.

    Args:
        names: relative paths, with `/` or the system's separator.
        pattern: such as `{word}/{speaker}_nohash_{n}.wav`; a field contains no `/`.

    Raises:
        ValueError: a name does not match.
    """
    parts = re.split(r"{(\w+)}", pattern)
    expression = "".join(
        f"(?P<{part}>[^/]+?)" if i % 2 else re.escape(unicodedata.normalize("NFC", part))
        for i, part in enumerate(parts)
    )
    plain = [unicodedata.normalize("NFC", name.replace(os.sep, "/")) for name in names]
    matches = [re.fullmatch(expression, name) for name in plain]
    wrong = [name for name, match in zip(names, matches, strict=True) if match is None]
    if wrong:
        raise ValueError(
            f"all files must match {pattern!r}, {len(wrong)} do not, such as {wrong[:3]}"
        )
    return [match.groupdict() for match in matches if match is not None]


def field_labels(fields: list[dict[str, str]], name: str | None) -> tuple[Tensor | None, list[str]]:
    """A field's values as labels (N,) int64, and the sorted distinct values."""
    if name is None:
        return None, []
    values = sorted({field[name] for field in fields})
    number = {value: i for i, value in enumerate(values)}
    return torch.tensor([number[field[name]] for field in fields]), values
