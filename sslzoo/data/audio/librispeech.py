"""LibriSpeech: read English speech at 16 kHz, by speaker and chapter.

V. Panayotov, G. Chen, D. Povey and S. Khudanpur, LibriSpeech: an ASR corpus based on public domain
audio books, ICASSP 2015, https://www.openslr.org/12. The splits and aligned phones are those of CPC
(van den Oord et al., 2018), from the files that facebookresearch/CPC_audio links to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.data.audio.datamodule import AudioDataModule, Batches, ShortFiles
from sslzoo.data.audio.fields import field_labels, parse_fields
from sslzoo.data.audio.waveforms import Decode
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.inputs import AudioViews
from sslzoo.data.listing import Listing, check_folder, find_files
from sslzoo.random import stratified_split
from sslzoo.text_file import read_text

_MOST = 32767  # a phone's number
PATTERN = "{speaker}/{chapter}/{utterance}.flac"


class LibriSpeech(AudioDataModule):
    """Files `<root>/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<n>.flac`.

    Labels are speakers or, with `phones`, one phone per 10 ms; training reads neither. The training
    set is all files, unless `train_split` and `test_split` list the utterances. CPC's split is by
    utterance, as is `val_fraction`.

    For the other arguments see `AudioDataModule`.

    Args:
        root: the folder that holds the subset, such as `LibriSpeech`.
        subset: name of the subset, such as train-clean-100.
        train_split: file with the training utterances (`103-1240-0000`), one per line.
        test_split: file with the query set's utterances, likewise.
        val_fraction: fraction of each speaker's utterances for the query set, without split files.
        phones: file with an utterance and its phone numbers per line
            (`converted_aligned_phones.txt`); utterances that it lacks are excluded with a warning,
            and phones of another duration than the utterance's are refused (`on_broken`).
        window: see `AudioDataModule`; 20480, 1.28 s, in the paper.
        batches: see `AudioDataModule`; groups are speakers, and CPC_audio uses "same_group".
    """

    label_seconds = 0.01

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
        short: ShortFiles = "skip",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_window: int | None = None,
        eval_batch_size: int = 16,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        units: Sequence[str] = (),
        alignments: str | None = None,
        min_samples: int = 0,
    ) -> None:
        if phones is not None and alignments is not None:
            raise ValueError(f"phones must be None with alignments, got {phones!r}")
        if phones is not None and eval_window is not None:
            raise ValueError(
                "eval_window must be None with phones, which are those of whole files, got "
                f"{eval_window}"
            )
        if test_split is not None and val_fraction is not None:
            raise ValueError(f"val_fraction must be None with test_split, got {val_fraction}")
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            *(drop_last, None, units, alignments, min_samples),
        )
        self.root, self.subset, self.phones = root, subset, phones
        self.train_split, self.test_split = train_split, test_split
        if phones is not None:
            self.timed_labels = True
            self._check_timed(transform)
        self.val_fraction = val_fraction

    def files(self) -> tuple[Listing, Listing | None]:
        folder = check_folder(Path(self.root).expanduser() / self.subset, "root with the subset")
        paths = find_files(folder, (".flac",)).paths
        if not paths:
            raise ValueError(f"{folder} must hold <speaker>/<chapter>/*.flac, got none")
        fields = parse_fields([str(Path(path).relative_to(folder)) for path in paths], PATTERN)
        speakers, names = field_labels(fields, "speaker")
        utterances = [field["utterance"] for field in fields]
        listing = Listing(paths, speakers, names, speakers)
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
        raise ValueError(f"a split or phone file must exist, got {path!r}")
    return read_text(path).splitlines()


def _rows(utterances: list[str], split: str) -> torch.Tensor:
    wanted = {line.strip() for line in _lines(split)} - {""}
    rows = [i for i, utterance in enumerate(utterances) if utterance in wanted]
    if len(rows) < len(wanted):
        lacking = sorted(wanted - set(utterances))
        raise ValueError(
            f"the subset must have all utterances of {split!r}, but lacks {len(lacking)}: "
            f"{lacking[:3]}"
        )
    return torch.tensor(rows)


def _with_phones(listing: Listing, utterances: list[str], phones: str) -> tuple[Listing, list[str]]:
    known = _read_phones(phones)
    rows = [i for i, utterance in enumerate(utterances) if utterance in known]
    if not rows:
        raise ValueError(
            f"{phones!r} must have phones of the subset's {len(utterances)} utterances, got none"
        )
    kept = [utterances[i] for i in rows]
    lacking, strange = sorted(set(utterances) - known.keys()), sorted(known.keys() - set(kept))
    if lacking or strange:
        told = [
            f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
            for names, what in ((lacking, "without phones"), (strange, "that the subset lacks"))
            if names
        ]
        rank_zero_warn(
            f"{phones!r} should have the subset's {len(utterances)} utterances, got "
            f"{' and '.join(told)}; they are left out"
        )
    aligned = [known[utterance] for utterance in kept]
    classes = [str(i) for i in range(1 + max(int(labels.max()) for labels in aligned))]
    listing = listing.take(torch.tensor(rows))
    return listing._replace(labels=None, classes=classes, frame_labels=aligned), kept


def _read_phones(phones: str) -> dict[str, np.ndarray]:
    """The phone numbers of each utterance.

    Raises:
        ValueError: a line has an utterance for the second time, or no numbers.
    """
    known: dict[str, np.ndarray] = {}
    for number, line in enumerate(_lines(phones), 1):
        if not line.strip():
            continue
        (name, *words), where = line.split(), f"line {number} of {phones}"
        if name in known:
            raise ValueError(f"every utterance must have one line, got {name!r} again ({where})")
        if not words or not all(word.isdecimal() and int(word) <= _MOST for word in words):
            raise ValueError(
                f"a line must have an utterance and its phones, numbers from 0 to {_MOST}, got "
                f"{line.strip()[:40]!r} ({where})"
            )
        known[name] = np.array(words, dtype=np.int16)
    return known
