"""AudioList: the sound files of a CSV, Parquet or text file of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sslzoo.checks import check_interval
from sslzoo.data.audio.datamodule import AudioDataModule, Batches, ShortFiles
from sslzoo.data.audio.waveforms import Decode
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.image.file_list import read_list, train_and_query
from sslzoo.data.inputs import AudioViews
from sslzoo.data.listing import Listing


class AudioList(AudioDataModule):
    """Sound files of a list: a CSV, TSV or Parquet table, or a text file with one path per line.

    For the list see `ImageList`, for the other arguments `AudioDataModule`.

    Args:
        file: the list: .csv, .tsv, .parquet (which needs pyarrow), .txt or .lst.
        window: see `AudioDataModule`; 20480 in CPC's paper.
        root: folder of relative paths, units and alignments; None: that of the list.
        path_column: the column of paths.
        label_column: the column of classes; None: no labels. A table without it has no labels if it
            is "label".
        split_column: the column of splits; None: all rows are for training. A table without it has
            one split if it is "split".
        group_column: the column of groups, such as speakers, for `batches`; None: no groups.
        train_split: name of the training rows.
        val_split: name of the validation rows; None: no validation.
        val_fraction: fraction of each class to hold out for validation, instead of `val_split`.
    """

    def __init__(
        self,
        file: str,
        transform: AudioViews,
        window: int = 20480,
        batch_size: int = 64,
        rate: int = 16000,
        root: str | None = None,
        path_column: str = "path",
        label_column: str | None = "label",
        split_column: str | None = "split",
        group_column: str | None = None,
        train_split: str = "train",
        val_split: str | None = "val",
        val_fraction: float | None = None,
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
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            *(drop_last, value_range, units, alignments, min_samples),
        )
        self.file = file
        self.root = str(Path(file).expanduser().parent) if root is None else root
        self.columns = path_column, label_column, split_column, group_column
        self.splits = train_split, val_split
        self.val_fraction = val_fraction

    def files(self) -> tuple[Listing, Listing | None]:
        parts = read_list(self.file, self.root, *self.columns, skip=self.on_broken == "skip")
        return train_and_query(parts, self.file, *self.splits, self.val_fraction)
