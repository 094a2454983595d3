"""SpeechCommands: spoken words of one second at 16 kHz, labeled by word.

P. Warden, Speech Commands: a dataset for limited-vocabulary speech recognition, 2018,
https://arxiv.org/abs/1804.03209. The layout is that of the official archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from sslzoo.checks import check_choice
from sslzoo.data.audio.datamodule import AudioDataModule, Batches, ShortFiles
from sslzoo.data.audio.fields import field_labels, parse_fields
from sslzoo.data.audio.waveforms import Decode
from sslzoo.data.datamodule import OnBroken, PredictOn
from sslzoo.data.inputs import AudioViews
from sslzoo.data.listing import Listing, check_folder, find_files
from sslzoo.text_file import read_text

PATTERN = "{word}/{speaker}_nohash_{n}.wav"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommands(AudioDataModule):
    """Files `<root>/<word>/<speaker>_nohash_<n>.wav` with the official splits, without noise.

    The official lists name the validation and the test files; all others are the training set.

    For the other arguments see `AudioDataModule`.

    Args:
        root: the folder with the words and the official lists.
        query: the list that evaluation scores, "validation" or "test".
        window: see `AudioDataModule`; the default is one second.
    """

    def __init__(
        self,
        root: str,
        transform: AudioViews,
        query: Literal["validation", "test"] = "test",
        window: int = 16000,
        batch_size: int = 64,
        rate: int = 16000,
        batches: Batches = "uniform",
        short: ShortFiles = "pad",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_window: int | None = None,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
        units: Sequence[str] = (),
        min_samples: int = 0,
    ) -> None:
        check_choice("query", query, LISTS)
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            *(drop_last, None, units, None, min_samples),
        )
        self.root, self.query = root, query

    def files(self) -> tuple[Listing, Listing]:
        root = check_folder(self.root, "root")
        missing = [name for name in LISTS.values() if not (root / name).is_file()]
        if missing:
            raise ValueError(f"root {self.root!r} must hold Speech Commands, but lacks {missing}")
        paths = [
            path
            for path in find_files(root, (".wav",)).paths
            if Path(path).parent.name != "_background_noise_"
        ]
        if not paths:
            raise ValueError(f"root {self.root!r} must hold <word>/*.wav, got none")
        names = [Path(path).relative_to(root).as_posix() for path in paths]
        fields = parse_fields(names, PATTERN)
        labels, words = field_labels(fields, "word")
        listing = Listing(paths, labels, words, field_labels(fields, "speaker")[0])
        listed = {key: set(read_text(root / name).split()) for key, name in LISTS.items()}
        held = listed["validation"] | listed["test"]
        train = torch.tensor([i for i, name in enumerate(names) if name not in held])
        query = torch.tensor([i for i, name in enumerate(names) if name in listed[self.query]])
        if not len(train) or not len(query):
            raise ValueError(
                f"root {self.root!r} must hold training files and files of "
                f"{LISTS[self.query]}, got {len(train)} and {len(query)}"
            )
        return listing.take(train), listing.take(query)
