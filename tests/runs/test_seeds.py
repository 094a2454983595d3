"""Runs in a table: their last validation, mean and deviation over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import stdev

import pytest
import yaml

from sslzoo.commands import evaluate
from sslzoo.runs.seeds import results_of_runs


def made(folder: Path, seed: int, rate: float, values: list[float]) -> Path:
    """A run's folder as fine-tuning leaves it."""
    folder.mkdir(parents=True)
    trainer = {"max_epochs": len(values), "default_root_dir": str(folder)}
    config = {"seed_everything": seed, "trainer": trainer, "model": {"lr": rate}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [f"{epoch},,{value}" for epoch, value in enumerate(values)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train/loss,val/top1", *lines, "9,1.5,"]))
    (folder / "run.json").write_text(json.dumps({"commit": "a" * 40, "versions": {"torch": "2"}}))
    return folder


def test_seeds_of_one_config_are_one_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tops = [0.5, 0.6, 0.55]
    runs = [made(tmp_path / f"{i}", i, 0.1, [0.1, top]) for i, top in enumerate(tops)]
    other = made(tmp_path / "other", 0, 0.2, [0.1, 0.7])
    (result, alone) = results_of_runs([runs[0], other, runs[1], runs[2]])
    (row,) = result["models"]
    assert row["metrics"]["val/top1"] == pytest.approx(0.55)
    assert row["std"]["val/top1"] == pytest.approx(stdev(tops))
    assert [seed["seed"] for seed in row["seeds"]] == result["seeds"] == [0, 1, 2]
    assert row["config"]["model"] == {"lr": 0.1}
    assert (result["commit"], result["versions"]) == ("a" * 40, {"torch": "2"})
    assert alone["models"][0]["metrics"] == {"val/top1": 0.7}
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"models": [{"model": "mine", "metrics": {"val/top1": 0.25}}]}))
    evaluate.main(["--table", *map(str, runs), str(file)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| mine | 0.2500 |",
        f"| {runs[0]} and 2 more seeds | 0.5500 ± 0.0500 |",
    ]


def test_what_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(tmp_path / "first", 3, 0.1, [0.5])
    again = made(tmp_path / "again", 3, 0.1, [0.6])
    with pytest.raises(ValueError, match=r"must have distinct seeds, got \[3, 3\]"):
        results_of_runs([first, again])
    silent = made(tmp_path / "silent", 4, 0.1, [])
    with pytest.raises(ValueError, match="must have validation metrics"):
        results_of_runs([silent])
    with pytest.raises(SystemExit):
        evaluate.main(["--table", str(tmp_path)])
    assert "a run directory must have config.yaml" in capsys.readouterr().err
