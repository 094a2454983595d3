"""The benchmarks of going on from given weights: their measure, split, arguments and table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import table
from benchmarks.continue_images import STEPS, changes, subset
from benchmarks.continue_runs import keep, rows_of
from benchmarks.continue_text import RUNS, chapters, neighbor_recall
from sslzoo.commands.configs import find_config


def test_a_neighbor_is_of_the_same_chapter() -> None:
    angles = torch.tensor([0.0, 0.1, 0.15, 0.16, 1.0, 3.0, 3.1, 2.0, 2.2, 4.0, 5.0])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = neighbor_recall(rows, [3, 1, 7])
    # Row 2 finds row 3, of another chapter, and so do rows 3 and 4; row 9 finds row 6.
    assert found["neighbor_at_1"] == pytest.approx(7 / 11)
    assert found["neighbor_at_10"] == pytest.approx(10 / 11)  # all but the chapter of one row


def test_chapters_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "verses.txt").write_text("Ge1:1 In the\nGe1:2 And\nGe2:1 Thus\n1Sm1:1 Now\n")
    assert chapters(tmp_path / "verses.txt") == [["In the", "And"], ["Thus"], ["Now"]]


def test_configs_exist_and_images_are_linked(tmp_path: Path) -> None:
    for name in [run.config for run in RUNS.values()] + [
        f"{m}/continue_resnet50_10ep" for m in STEPS
    ]:
        assert find_config(name)
    assert "--seed_everything=1" in changes("byol", Path("w.pth"), 1)
    for part in ("train", "test"):
        (tmp_path / "data" / part / "cat").mkdir(parents=True)
        (tmp_path / "data" / part / "cat" / "0.jpg").write_text("x")
    subset(tmp_path / "data", tmp_path / "few")
    assert (tmp_path / "few/train/cat/0.jpg").read_text() == "x"


def test_runs_become_a_table(tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "results.json"
    run.mkdir()
    lines = ["step,val/linear_top1,val/linear_top1_change", "0,0.5,", "9,,", "9,0.25,-0.25"]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert rows_of(run) == ({"linear_top1": 0.5}, {"linear_top1": 0.25})
    timing = {"minutes": 2, "cpu_minutes": 1, "load_before": 1, "date": "", "commit": "0"}
    (run / "fit.json").write_text(json.dumps({**timing, "cpu": "a processor", "cores": 2}))
    for seed in (0, 1):
        keep(output, f"simclr {seed}", {"start": "a net", "data": "images"}, run,
             {"config": "a.yaml", "steps": 9})  # fmt: skip
    made = table.continue_table(json.loads(output.read_text()), {"linear_top1": "linear"})
    assert "| start weights (row 0) | 0.500 |" in made
    assert "| simclr | 0.250 (-0.250) | 9 | 2 | 1.0 | `a.yaml` |" in made
