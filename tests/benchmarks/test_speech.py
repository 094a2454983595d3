"""Probes of spoken digits are scored on speakers and recordings that they have not seen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import speech
from benchmarks.speech import CONFIGS, Recordings, by_layers, by_linear, configured, scores
from tests.data.audio.test_datamodule import ramp, write

pytest.importorskip("soundfile")


def test_each_speaker_in_turn_is_left_out_of_training() -> None:
    speaker, digit = torch.arange(12) % 3, torch.arange(12) // 3
    fields = [{"digit": digit, "speaker": speaker}] * 2
    seen: list[tuple[set[int], set[int]]] = []

    def probe(x: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
        seen.append((set(x[:, 0].tolist()), set(asked[:, 0].tolist())))
        return float(len(seen))

    x = torch.stack([speaker, digit], dim=1).float()
    found = scores(SimpleNamespace(fields=fields), (x, x), probe)  # type: ignore[arg-type]
    assert seen[:3] == [({1, 2}, {0}), ({0, 2}, {1}), ({0, 1}, {2})]
    assert found == {"digit": 2.0, "speaker": 4.0}


@pytest.mark.parametrize("layers", [False, True])
def test_both_probes_find_what_is_there(layers: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    x = torch.eye(3)[labels] + 0.05 * torch.randn(60, 3, generator=draw)
    given: Any = (x, labels, x, labels)
    if layers:
        given = (x[:, None].repeat(1, 2, 1), labels, x[:, None].repeat(1, 2, 1), labels)
    assert (by_layers if layers else by_linear)(*given) == 1.0


def test_recordings_have_the_fields_of_their_names(tmp_path: Path) -> None:
    for digit in range(2):
        for speaker in ("ann", "bob"):
            for n in (0, 7):
                write(tmp_path / f"{digit}_{speaker}_{n}.wav", ramp(6000))
    config = configured("cpc", tmp_path, 0, tmp_path / "units.npz")
    config["data"]["init_args"]["batch_size"] = 2
    train, query = Recordings(config).fields
    assert train["digit"].tolist() == query["digit"].tolist() == [0, 0, 1, 1]
    assert train["speaker"].tolist() == query["speaker"].tolist() == [0, 1, 0, 1]
    assert len(CONFIGS) == 5


def test_other_seeds_take_as_many_steps_as_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[int] = []

    def fit(config: Any, steps: int, seed: int) -> tuple[Any, Any]:
        fits.append(steps)
        return None, SimpleNamespace(losses=[1.0] * steps, seconds=6.0)

    config = {"data": {"init_args": {"batch_size": 2}}}
    recordings = SimpleNamespace(data=SimpleNamespace(num_samples=10))
    monkeypatch.setattr(speech, "fit", fit)
    monkeypatch.setattr(speech, "configured", lambda *given: config)
    monkeypatch.setattr(speech, "build", lambda *given: None)
    monkeypatch.setattr(speech, "Recordings", lambda config: recordings)
    monkeypatch.setattr(speech, "evaluate", lambda *given: {})
    output = tmp_path / "speech.json"
    output.write_text(json.dumps({"rows": {"cpc 4 minutes seed 0": {"steps": 37}}}))
    given: Any = SimpleNamespace(minutes=4.0, units=tmp_path, output=output, weights=None)
    assert speech.run("cpc", tmp_path, 1, given)["steps"] == 37
    assert fits == [37]
    given.minutes = 40.0
    assert speech.run("cpc", tmp_path, 1, given)["steps"] == 60 * 40 * speech.TIMED / 6
    assert fits[1:] == [speech.TIMED + 1, 60 * 40 * speech.TIMED / 6]
