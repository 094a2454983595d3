"""AudioFolder: a folder of sound files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sslzoo.checks import check_interval
from sslzoo.data.audio.datamodule import AudioDataModule, Batches, ShortFiles
from sslzoo.data.audio.fields import field_labels, parse_fields
from sslzoo.data.audio.sound_files import SOUND_EXTENSIONS
from sslzoo.data.audio.waveforms import Decode
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.inputs import AudioViews
from sslzoo.data.listing import Listing, check_folder, list_folders, list_unlabeled


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
