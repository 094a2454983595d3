"""CPC's phones from alignments: the figures of the frames, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sslzoo.backbones import SequenceEncoder, WaveEncoder
from sslzoo.heads import Recurrent
from sslzoo.runs.protocols import Subject
from sslzoo.runs.protocols.features import Phones
from tests.data.audio.test_speech import libri, librispeech
from tests.ranks import Ranks


def subject(root: Path, **changes: Any) -> Subject:
    given = {"phones": str(root / "phones.txt"), "val_fraction": 1 / 3, "batch_size": 6}
    data = libri(root, **{**given, **changes})
    torch.manual_seed(0)
    encoder = SequenceEncoder(WaveEncoder(4), Recurrent(4, 5)).eval()
    return Subject(encoder, torch.device("cpu"), data)


def on_rank(rank: int, root: Path, eval_batch_size: int) -> dict[str, float]:
    protocol = Phones(epochs=30, lr=0.05, batch_size=16)
    return protocol(subject(root, eval_batch_size=eval_batch_size))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = librispeech(tmp_path_factory.mktemp("librispeech"))
    names = sorted(path.stem for path in root.rglob("*.flac"))
    lines = [f"{name} {' '.join(5 * str(i % 3))}\n" for i, name in enumerate(names)]
    (root / "phones.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("eval_batch_size", [2, 5])  # 5: a rank without sequences
def test_phones_are_the_same_on_any_number_of_ranks(
    root: Path, eval_batch_size: int, ranks: Ranks
) -> None:
    one = on_rank(0, root, eval_batch_size)
    assert one.keys() == {"top1", "per_class"}
    assert 0.2 < one["top1"] <= 1
    for world in (2, 3):
        for got in ranks(world, on_rank, root, eval_batch_size):
            assert got == one
