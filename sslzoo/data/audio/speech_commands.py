"""SpeechCommands: words of a second at 16 kHz, by word.

P. Warden, Speech Commands: a dataset for limited-vocabulary speech recognition, 2018,
https://arxiv.org/abs/1804.03209. Reads the official archive's layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from sslzoo.data.audio.datamodule import AudioDataModule, Batches, fields_of, numbered
from sslzoo.data.audio.waveforms import AudioListing, Decode
from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.images import OnBroken
from sslzoo.data.inputs import AudioViews
from sslzoo.data.listing import check_folder, list_files

PATTERN = "{word}/{speaker}_nohash_{n}.wav"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommands(AudioDataModule):
    """`<root>/<word>/<speaker>_nohash_<n>.wav`, with the official lists; no noise recordings.

    Training has what stands in neither list; evaluation scores one of them.

    Args:
        root: the folder that holds the words and the lists.
        transform: see `AudioDataModule`; as are all that are not named here.
        query: "validation" or "test".
        window: see there; a second.
        batch_size: see there.
        rate: see there.
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
        query: Literal["validation", "test"] = "test",
        window: int = 16000,
        batch_size: int = 64,
        rate: int = 16000,
        batches: Batches = "uniform",
        short: Literal["pad", "loop", "skip"] = "pad",
        decode: Decode = "auto",
        on_broken: OnBroken = "error",
        eval_window: int | None = None,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        if query not in LISTS:
            raise ValueError(f"query must be one of {list(LISTS)}, got {query!r}")
        super().__init__(
            *(transform, window, batch_size, rate, batches, short, decode, on_broken),
            *(eval_window, eval_batch_size, num_workers, seed, train_fraction, predict_on),
            drop_last,
        )
        self.root, self.query = root, query

    def files(self) -> tuple[AudioListing, AudioListing]:
        root = check_folder(self.root, "root")
        missing = [name for name in LISTS.values() if not (root / name).is_file()]
        if missing:
            raise ValueError(f"no Speech Commands in {self.root!r}: it lacks {missing}")
        paths = [
            path
            for path in list_files(root, (".wav",))
            if Path(path).parent.name != "_background_noise_"
        ]
        if not paths:
            raise ValueError(f"{self.root!r} must hold <word>/*.wav, it has none")
        names = [Path(path).relative_to(root).as_posix() for path in paths]
        fields = fields_of(names, PATTERN)
        labels, words = numbered(fields, "word")
        listing = AudioListing(paths, labels, words, numbered(fields, "speaker")[0])
        listed = {key: set((root / name).read_text().split()) for key, name in LISTS.items()}
        held = listed["validation"] | listed["test"]
        train = torch.tensor([i for i, name in enumerate(names) if name not in held])
        query = torch.tensor([i for i, name in enumerate(names) if name in listed[self.query]])
        if not len(train) or not len(query):
            raise ValueError(
                f"{self.root!r} has {len(train)} files to train on and {len(query)} of "
                f"{LISTS[self.query]}: both wanted"
            )
        return listing.take(train), listing.take(query)
