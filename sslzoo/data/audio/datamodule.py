"""AudioDataModule: what all data modules of sound share; AudioFolder: any folder of sound files."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.data.audio.sound_files import EXTENSIONS
from sslzoo.data.audio.waveforms import (
    AudioListing,
    Centers,
    Decode,
    Short,
    Waveforms,
    Whole,
    Windows,
    waveforms,
)
from sslzoo.data.datamodule import PredictOn, SampleDataModule, Sets
from sslzoo.data.image.images import OnBroken
from sslzoo.data.inputs import AudioViews, WaveformInput, as_config
from sslzoo.data.listing import check_folder, list_classes, list_files
from sslzoo.data.loader import BatchSource
from sslzoo.data.sampler import KeyedSampler
from sslzoo.random import sample_keys, stratified_split
from sslzoo.transforms.audio.log_mel_views import LogMelViews

Batches = Literal["uniform", "same_group"]


class AudioDataModule(SampleDataModule):
    """Serves sound files; subclasses implement `files`.

    A training sample is a random window of a file, raw int16 until it is on the device. Evaluation
    has whole files, in batches of about one length, or central windows. A silent file is as good
    as any other; stereo is mixed to mono; other rates are resampled.

    Args:
        transform: makes the views.
        window: samples of a training window, at `rate`.
        batch_size: the global batch, over all ranks.
        rate: Hz of what is served.
        batches: "uniform", or "same_group": each batch of one speaker, where files have one.
        short: files below the window are zero-padded ("pad"), repeated ("loop"), or left out of
            training ("skip").
        decode: "memory" reads all files once, "workers" reads windows in each batch, "auto" takes
            memory up to 1 GiB.
        on_broken: a file that cannot be read is an "error", or is left out with a warning ("skip").
        eval_window: samples of the central window that evaluation sees; None: the whole file.
        eval_batch_size: of one batch in evaluation.
        num_workers: processes that load; None: 0 for memory, else one a core, at most 8.
        seed: of batches and windows; None: the run's.
        train_fraction: of the training set that is used, stratified.
        predict_on: what `predict` goes through.
        drop_last: leave out an epoch's last batch where it is short.
    """

    noun = "files"

    def __init__(
        self,
        transform: AudioViews,
        window: int,
        batch_size: int,
        rate: int,
        batches: Batches,
        short: Literal["pad", "loop", "skip"],
        decode: Decode,
        on_broken: OnBroken,
        eval_window: int | None,
        eval_batch_size: int,
        num_workers: int | None,
        seed: int | None,
        train_fraction: float,
        predict_on: PredictOn,
        drop_last: bool,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, seed, train_fraction, predict_on, drop_last
        )
        for name, value, wanted in (
            ("batches", batches, ("uniform", "same_group")),
            ("short", short, ("pad", "loop", "skip")),
            ("decode", decode, ("auto", "memory", "workers")),
            ("on_broken", on_broken, ("error", "skip")),
        ):
            if value not in wanted:
                raise ValueError(f"{name} must be one of {list(wanted)}, got {value!r}")
        if min(window, rate, eval_window or 1) < 1:
            raise ValueError(
                f"window, rate and eval_window of at least 1 wanted, got {window}, {rate} and "
                f"{eval_window}"
            )
        self.transform, self.window, self.rate = transform, window, rate
        self.batches, self.short = batches, short
        self.decode, self.on_broken = decode, on_broken
        self.eval_window = eval_window
        self.classes: list[str] = []

    @abstractmethod
    def files(self) -> tuple[AudioListing, AudioListing | None]:
        """The files of training and of the query set.

        Raises:
            ValueError: what is missing or wrong on the disk.
        """

    def read(self) -> Sets:
        """List the files, and decode them where that is the choice."""
        train, query = self.files()
        self.classes = list(train.classes)
        sets = [
            waveforms(listing, self.rate, self.decode, self.on_broken)
            for listing in ([train] if query is None else [train, query])
        ]
        if self.short == "skip":
            long = (sets[0].lengths >= self.window).nonzero()[:, 0]
            if not len(long):
                raise ValueError(f"no file has the window's {self.window} samples")
            sets[0] = sets[0].subset(long)
        return Sets(sets[0], sets[1] if query is not None else None, len(train.classes) or None)

    def groups(self) -> Tensor | None:
        if self.batches == "uniform":
            return None
        groups = self.sets.train.groups
        if groups is None:
            raise ValueError('batches="same_group" wants files with a group, such as the speaker')
        return groups

    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        short: Short = "loop" if self.short == "loop" else "pad"
        given = self.window, short, self.seed, sampler.shared_epoch
        return Windows(self.sets.train, *given, self.transform.partners)

    def eval_source(self, samples: Waveforms) -> BatchSource:
        return Whole(samples) if self.eval_window is None else Centers(samples, self.eval_window)

    def eval_order(self, samples: Waveforms) -> Tensor | None:
        """By length, so that little is padded."""
        return samples.lengths.argsort(stable=True) if self.eval_window is None else None

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        keys = sample_keys(self.seed, epoch, batch.index)
        return self._in_precision(batch._replace(views=self.transform(batch.views, keys)))

    def has_pairs(self) -> bool:
        """Two spectrograms."""
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
        """Its transform, and its window where it has one; the rate must be the own."""
        if given.rate != self.rate:
            raise ValueError(
                f"the encoder takes sound of {given.rate} Hz, {type(self).__name__} serves "
                f"{self.rate} Hz: set data.rate to {given.rate}"
            )
        self.transform = given.transform
        self.eval_window = self.eval_window if given.window is None else given.window

    def workers(self, samples: Waveforms) -> int:
        return 0 if samples.memory is not None else min(8, os.cpu_count() or 1)


class AudioFolder(AudioDataModule):
    """Sound files in one of four layouts.

    1. `<root>/train/<class>/*` and `<root>/val/<class>/*` (names by `train_dir`, `val_dir`;
       `val_dir: null` for none).
    2. `<root>/<class>/*` with `val_fraction`: split, keyed and stratified.
    3. Names that say it: `pattern`, such as `{digit}_{speaker}_{n}.wav`, of the path below `root`;
       `label` and `group` name its fields, `query` those of the files that evaluation scores, such
       as `{n: [0, 1, 2, 3, 4]}` (or `val_fraction`).
    4. `labels: false`: all files below `<root>/train`, or below `<root>`.

    Args:
        root: the folder.
        transform: see `AudioDataModule`; as are all that are not named here.
        window: see there; 20480 in CPC's paper.
        batch_size: see there.
        rate: see there.
        train_dir: of layout 1, inside `root`.
        val_dir: of layout 1, inside `root`.
        val_fraction: of each class that is kept for validation.
        labels: whether there are classes.
        pattern: of layout 3.
        label: the field that is the class; None: no classes.
        group: the field that batches may have in common.
        query: field -> values of the query set.
        batches: see there.
        short: see there.
        decode: see there.
        on_broken: see there.
        eval_window: see there.
        eval_batch_size: see there.
        num_workers: see there.
        seed: see there.
        train_fraction: see there.
        predict_on: see there.
        drop_last: see there.
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
        short: Literal["pad", "loop", "skip"] = "pad",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_window: int | None = None,
        eval_batch_size: int = 32,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be inside (0, 1), got {val_fraction}")
        if query is not None and val_fraction is not None:
            raise ValueError(f"query or val_fraction, not both, got {query} and {val_fraction}")
        named = set(re.findall(r"{(\w+)}", pattern or ""))
        asked = {name for name in (label, group, *(query or {})) if name is not None}
        if asked - named:
            raise ValueError(f"pattern {pattern!r} has no field {sorted(asked - named)}")
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            drop_last,
        )
        self.root, self.train_dir, self.val_dir = root, train_dir, val_dir
        self.val_fraction, self.labels = val_fraction, labels
        self.pattern, self.label, self.group, self.query = pattern, label, group, query

    def files(self) -> tuple[AudioListing, AudioListing | None]:
        root = check_folder(self.root, "root")
        if self.pattern is not None:
            return self._by_pattern(root, self.pattern)
        inner = root / self.train_dir
        whole = inner if inner.is_dir() else root
        if not self.labels:
            return AudioListing(_some(whole)), None
        train = _classes(whole, "the training folder")
        if self.val_fraction is not None:
            return _split(train, self.val_fraction)
        if self.val_dir is None:
            return train, None
        outer = root / self.val_dir
        if not (inner.is_dir() and outer.is_dir()):
            raise ValueError(
                f"root {self.root!r} must hold the folders {[self.train_dir, self.val_dir]}; set "
                "train_dir and val_dir, or val_dir=null for no validation, or val_fraction to "
                "split one folder of classes, or pattern where names say the class, or labels=false"
            )
        return train, _classes(outer, "the validation folder", list(train.classes))

    def _by_pattern(self, root: Path, pattern: str) -> tuple[AudioListing, AudioListing | None]:
        paths = _some(root)
        fields = fields_of([os.path.relpath(path, root) for path in paths], pattern)
        labels, classes = numbered(fields, self.label)
        listing = AudioListing(paths, labels, classes, numbered(fields, self.group)[0])
        if self.val_fraction is not None:
            return _split(listing, self.val_fraction)
        if self.query is None:
            return listing, None
        wanted = {name: {str(value) for value in values} for name, values in self.query.items()}
        asked = torch.tensor([all(f[k] in v for k, v in wanted.items()) for f in fields])
        if asked.all() or not asked.any():
            raise ValueError(
                f"query {self.query} must match some files and not all, it matches "
                f"{int(asked.sum())} of {len(paths)}"
            )
        return listing.take((~asked).nonzero()[:, 0]), listing.take(asked.nonzero()[:, 0])


def fields_of(names: list[str], pattern: str) -> list[dict[str, str]]:
    """The fields of each name.

    Args:
        names: relative paths, with `/` or the system's separator.
        pattern: such as `{word}/{speaker}_nohash_{n}.wav`; a field has no `/`.

    Raises:
        ValueError: a name that does not match.
    """
    parts = re.split(r"{(\w+)}", pattern)
    expression = "".join(
        f"(?P<{part}>[^/]+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    matches = [re.fullmatch(expression, name.replace(os.sep, "/")) for name in names]
    wrong = [name for name, match in zip(names, matches, strict=True) if match is None]
    if wrong:
        raise ValueError(f"{len(wrong)} files do not match {pattern!r}, such as {wrong[:3]}")
    return [match.groupdict() for match in matches if match is not None]


def numbered(fields: list[dict[str, str]], name: str | None) -> tuple[Tensor | None, list[str]]:
    """A field's values as positions among those that occur, sorted."""
    if name is None:
        return None, []
    values = sorted({field[name] for field in fields})
    place = {value: i for i, value in enumerate(values)}
    return torch.tensor([place[field[name]] for field in fields]), values


def _some(root: Path) -> list[str]:
    paths = list_files(root, EXTENSIONS)
    if not paths:
        raise ValueError(f"{str(root)!r} must hold sound ({', '.join(EXTENSIONS)}), it has none")
    return paths


def _classes(folder: Path, what: str, classes: list[str] | None = None) -> AudioListing:
    found = list_classes(folder, what, classes, EXTENSIONS)
    return AudioListing(found.paths, found.labels, found.classes)


def _split(listing: AudioListing, fraction: float) -> tuple[AudioListing, AudioListing]:
    first, second = stratified_split(listing.labels, len(listing.paths), fraction)
    return listing.take(first), listing.take(second)
