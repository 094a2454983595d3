"""LibriSpeech: read English at 16 kHz, by speaker and chapter.

V. Panayotov, G. Chen, D. Povey and S. Khudanpur, LibriSpeech: an ASR corpus based on public domain
audio books, ICASSP 2015, https://www.openslr.org/12. Splits and aligned phones are those of CPC
(van den Oord et al., 2018) in the files that facebookresearch/CPC_audio names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from sslzoo.data.audio.datamodule import AudioDataModule, Batches, fields_of, numbered
from sslzoo.data.audio.waveforms import AudioListing, Decode
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.images import OnBroken
from sslzoo.data.inputs import AudioViews
from sslzoo.data.listing import check_folder, list_files
from sslzoo.random import stratified_split

PATTERN = "{speaker}/{chapter}/{utterance}.flac"


class LibriSpeech(AudioDataModule):
    """`<root>/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<n>.flac`.

    Labels are speakers, or, with `phones`, the phone of every 10 ms. Training reads neither; all
    files train, unless `train_split` and `test_split` list those of each (CPC's own split is by
    utterance, and so is a `val_fraction`).

    Args:
        root: the folder that holds the subset, such as `LibriSpeech`.
        transform: see `AudioDataModule`; as are all that are not named here.
        subset: such as train-clean-100.
        train_split: a file of utterances (`103-1240-0000`, one a line) to train and probe on.
        test_split: those that are the query set.
        val_fraction: of each speaker's utterances that are the query set, without split files.
        phones: a file with an utterance and its phones' numbers in each line
            (`converted_aligned_phones.txt`); utterances that it lacks are left out.
        window: see there; 20480, 1.28 s, in the paper.
        batch_size: see there.
        rate: see there.
        batches: "same_group" are batches of one speaker (CPC_audio).
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
        subset: str = "train-clean-100",
        train_split: str | None = None,
        test_split: str | None = None,
        val_fraction: float | None = None,
        phones: str | None = None,
        window: int = 20480,
        batch_size: int = 64,
        rate: int = 16000,
        batches: Batches = "uniform",
        short: Literal["pad", "loop", "skip"] = "skip",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_window: int | None = None,
        eval_batch_size: int = 16,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        if test_split is not None and val_fraction is not None:
            raise ValueError(
                f"test_split or val_fraction, not both, got {test_split!r} and {val_fraction}"
            )
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            drop_last,
        )
        self.root, self.subset, self.phones = root, subset, phones
        self.train_split, self.test_split = train_split, test_split
        self.val_fraction = val_fraction

    def files(self) -> tuple[AudioListing, AudioListing | None]:
        folder = check_folder(Path(self.root).expanduser() / self.subset, "root with the subset")
        paths = list_files(folder, (".flac",))
        if not paths:
            raise ValueError(f"{folder} must hold <speaker>/<chapter>/*.flac, it has none")
        fields = fields_of([str(Path(path).relative_to(folder)) for path in paths], PATTERN)
        speakers, names = numbered(fields, "speaker")
        utterances = [field["utterance"] for field in fields]
        listing = AudioListing(paths, speakers, names, speakers)
        if self.phones is not None:
            listing, utterances = _with_phones(listing, utterances, self.phones)
        train, query = listing, None
        if self.train_split is not None:
            train = listing.take(_rows(utterances, self.train_split))
        if self.test_split is not None:
            query = listing.take(_rows(utterances, self.test_split))
        elif self.val_fraction is not None:
            rows = stratified_split(train.groups, len(train.paths), self.val_fraction)
            train, query = (train.take(part) for part in rows)
        return train, query


def _lines(path: str) -> list[str]:
    if not Path(path).expanduser().is_file():
        raise ValueError(f"no file at {path!r}")
    return Path(path).expanduser().read_text().split("\n")


def _rows(utterances: list[str], split: str) -> torch.Tensor:
    wanted = {line.strip() for line in _lines(split)} - {""}
    rows = [i for i, utterance in enumerate(utterances) if utterance in wanted]
    if len(rows) < len(wanted):
        lacking = sorted(wanted - set(utterances))
        raise ValueError(f"{len(lacking)} utterances of {split!r} are not there: {lacking[:3]}")
    return torch.tensor(rows)


def _with_phones(
    listing: AudioListing, utterances: list[str], phones: str
) -> tuple[AudioListing, list[str]]:
    known = {}
    for line in _lines(phones):
        if line.strip():
            name, *numbers = line.split()
            known[name] = np.array(numbers, dtype=np.int16)
    rows = [i for i, utterance in enumerate(utterances) if utterance in known]
    if not rows:
        raise ValueError(f"{phones!r} has none of the {len(utterances)} utterances")
    kept = [utterances[i] for i in rows]
    aligned = [known[utterance] for utterance in kept]
    classes = [str(i) for i in range(1 + max(int(labels.max()) for labels in aligned))]
    listing = listing.take(torch.tensor(rows))
    return listing._replace(labels=None, classes=classes, frame_labels=aligned), kept
