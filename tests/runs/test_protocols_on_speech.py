"""Weighted layer sums of clips and frames, and the phone error rate, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslzoo.data import AudioFolder
from sslzoo.eval.protocols.layer_sum import LayerSumTraining
from sslzoo.runs.evaluation import protocols_of_maps
from sslzoo.runs.protocols import Subject
from sslzoo.runs.protocols.features import Phones
from sslzoo.runs.protocols.speech import LayerSumOfClips, LayerSumOfFrames, phone_error_rate
from sslzoo.transforms import Waveform
from tests.data.audio.test_alignments import encoder
from tests.data.audio.test_datamodule import tone, write
from tests.ranks import Ranks

pytest.importorskip("soundfile")

TRAINING = LayerSumTraining(epochs=8, lr=0.02, batch_size=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of two tones each, and a table that says when which one sounds."""
    root = tmp_path_factory.mktemp("tones")
    rows = ["clip,start,end,phone"]
    for n in range(12):
        first, second = (400, 1500) if n % 2 else (1500, 400)
        half = 400 + 20 * n
        wave = np.concatenate([tone(half, hertz=first), tone(half // 2, hertz=second)])
        write(root / f"{first}_{n}.wav", wave)
        time = half / 8000
        rows.append(f"{first}_{n},0,{time},{first}")
        rows.append(f"{first}_{n},{time + 0.005},{1.5 * time},{second}")  # a gap of 5 ms
    (root / "phones.alignments.csv").write_text("\n".join(rows))
    return root


def subject(root: Path, alignments: str | None, eval_batch_size: int = 4) -> Subject:
    given: Any = {"window": 400, "batch_size": 6, "rate": 8000, "pattern": "{tone}_{n}.wav"}
    given |= {"label": "tone", "query": {"n": [0, 1, 2, 3]}, "alignments": alignments}
    data = AudioFolder(str(root), Waveform(), eval_batch_size=eval_batch_size, **given)
    data.setup("fit")
    return Subject(encoder(), torch.device("cpu"), data)


def on_rank(rank: int, root: Path, eval_batch_size: int) -> dict[str, float]:
    aligned = subject(root, "phones.alignments.csv", eval_batch_size)
    found = {
        "clips": LayerSumOfClips(TRAINING)(subject(root, None, eval_batch_size)),
        "frames": LayerSumOfFrames(TRAINING)(aligned),
        "phones": Phones(epochs=5, lr=0.05, batch_size=16)(aligned),
    }
    return {f"{name}/{k}": v for name, metrics in found.items() for k, v in metrics.items()}


@pytest.mark.parametrize("eval_batch_size", [3, 8])  # 8: a rank without recordings
def test_figures_are_the_same_on_any_number_of_ranks(
    root: Path, eval_batch_size: int, ranks: Ranks
) -> None:
    one = on_rank(0, root, eval_batch_size)
    for kind in ("clips", "frames"):
        assert sum(one[f"{kind}/layer{i}_weight"] for i in range(3)) == pytest.approx(1)
        assert one[f"{kind}/top1"] > 0.9
        assert f"{kind}/layer3_weight" not in one
    assert one["frames/phone_error_rate"] < 0.5
    assert one["phones/top1"] > 0.6
    for world in (2, 3):
        for got in ranks(world, on_rank, root, eval_batch_size):
            assert got == one


def test_batches_and_their_padding_change_no_figure(root: Path) -> None:
    one, other = (on_rank(0, root, size) for size in (1, 8))
    assert one == pytest.approx(other, abs=1e-3)


def test_alignments_are_no_masks(root: Path) -> None:
    data = subject(root, "phones.alignments.csv").data
    assert data is not None
    assert protocols_of_maps(data) == ()
    with pytest.raises(ValueError, match=r"labels must be \(B,\), one class per sample"):
        LayerSumOfClips(TRAINING)(subject(root, "phones.alignments.csv"))
    with pytest.raises(ValueError, match=r"labels must be \(B, T\), one per frame, or segments"):
        LayerSumOfFrames(TRAINING)(subject(root, None))


def edits(told: list[int], known: list[int]) -> int:
    """Levenshtein's distance by its recursion."""
    if not told or not known:
        return len(told) + len(known)
    cost = int(told[-1] != known[-1])
    return min(
        edits(told[:-1], known) + 1,
        edits(told, known[:-1]) + 1,
        edits(told[:-1], known[:-1]) + cost,
    )


def runs(frames: list[int]) -> list[int]:
    return [x for i, x in enumerate(frames) if x >= 0 and (i == 0 or frames[i - 1] != x)]


def test_phone_error_rate_is_edits_per_reference_phone() -> None:
    draw = torch.Generator().manual_seed(0)
    clip = torch.tensor([0] * 5 + [1] * 7 + [2] * 4)
    for _ in range(5):
        truth = torch.randint(-1, 3, (16,), generator=draw)
        predicted = torch.randint(0, 3, (16,), generator=draw)
        distance, phones = 0, 0
        for number in range(3):
            known = truth[clip == number].tolist()
            told = predicted[clip == number].tolist()
            told = [-1 if a < 0 else b for a, b in zip(known, told, strict=True)]
            distance += edits(runs(told), runs(known))
            phones += len(runs(known))
        assert phone_error_rate(predicted, truth, clip) == pytest.approx(distance / phones)
    with pytest.raises(ValueError, match="at least one frame must have a label, got none"):
        phone_error_rate(predicted, torch.full((16,), -1), clip)
