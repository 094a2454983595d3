"""Equal time: the clock, the schedules, the sides' orders, our side's runs, and the table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import equal_time, table
from benchmarks.equal_time import METHODS, minutes_to, order_of, parse, recipe_of, setting_of
from benchmarks.sides import equal_ours
from benchmarks.sides.equal_time import Clock, check_steps
from sslzoo.optim import RunLength, WarmupCosine

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def test_a_pause_does_not_count() -> None:
    clock = Clock("wall")
    time.sleep(0.01)
    with clock.pause():
        time.sleep(0.2)
    assert 0.01 <= clock.seconds < 0.2


def test_cpu_time_does_not_run_while_the_process_sleeps() -> None:
    clock = Clock("cpu")
    time.sleep(0.2)
    assert clock.seconds < 0.1


def test_cpu_time_counts_processes_that_have_ended() -> None:
    clock = Clock("cpu")
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert clock.seconds > 0.4


@pytest.mark.parametrize(
    ("steps", "checks", "expected"),
    [(10, 0, [10]), (10, 1, [10]), (10, 4, [2, 5, 8, 10]), (2, 5, [1, 2])],
)
def test_the_last_step_is_checked(steps: int, checks: int, expected: list[int]) -> None:
    assert check_steps(steps, checks) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_warms_up_for_its_fraction_of_any_run(method: str) -> None:
    recipe = recipe_of(method)
    schedule = recipe["model"]["init_args"]["schedule"]["init_args"]
    assert schedule["warmup_fraction"] == 0.1
    assert "warmup_epochs" not in schedule
    named = [callback["class_path"] for callback in recipe["trainer"]["callbacks"]]
    assert all(".Online" in name for name in named)  # none that training would lack


def test_the_goal_is_reached_between_two_checks() -> None:
    curve = [{"seconds": 60.0 * n, "knn_top1": 0.1 * n} for n in range(1, 8)]
    assert minutes_to(0.55, curve) == pytest.approx(5.5)
    assert minutes_to(0.05, curve) == 1.0
    assert minutes_to(0.9, curve) is None


@pytest.fixture(autouse=True)
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trials are kept, without those of the repository."""
    monkeypatch.setattr(equal_time, "TRIALS", tmp_path / "trials.json")
    return tmp_path / "trials.json"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that name an environment as if it had lightly."""
    monkeypatch.setattr(equal_time, "has_package", lambda python, package: package == "lightly")
    return ["--peers-python", "p"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--peers-python must be the executable"),
        (["--peers-python", sys.executable], "--peers-python must be the executable"),
        (["--workers", "2"], "--workers must be 0 with the CPU clock"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--val-dir", "val"], "--data must be a folder with val/"),
        (["--methods", "amdim"], "invalid choice"),
    ],
    ids=["no_peers", "peers", "workers", "threads", "minutes", "val_dir", "methods"],
)
def test_wrong_arguments_are_refused(
    images: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(equal_time, "has_package", lambda python, package: False)
    with pytest.raises(SystemExit):
        parse(["--data", str(images), *arguments])
    assert message in capsys.readouterr().err


def test_runs_with_other_clocks_are_other_settings(images: Path, peers: list[str]) -> None:
    options = [[], ["--minutes", "2"], ["--threads", "1"], ["--clock", "wall"]]
    given = [parse(["--data", str(images), *peers, *more]) for more in options]
    assert len({setting_of(one) for one in given}) == len(options)


def small(order: dict[str, Any]) -> dict[str, Any]:
    """With a batch of four and a net of eight channels."""
    order["recipe"]["data"]["init_args"]["batch_size"] = 4
    model = order["recipe"]["model"]["init_args"]
    model["backbone"]["init_args"] = {"widths": [8, 8]}
    model["projector"]["init_args"] |= {"in_dim": 8, "out_dim": 4}
    return order


def arguments(images: Path, *more: str) -> argparse.Namespace:
    return parse(["--data", str(images), "--sides", "ours", "--threads", "1", *more])


def test_our_side_trains_for_its_steps_and_leaves_features(images: Path, tmp_path: Path) -> None:
    given = arguments(images, "--steps", "4", "--checks", "2")
    outcome = equal_ours.side(small(order_of(given, "simclr", "ours", 0, str(tmp_path))))
    assert outcome["steps"] == 4
    assert [check["step"] for check in outcome["checks"]] == [2, 4]
    first, second = (check["seconds"] for check in outcome["checks"])
    tick = 0.01  # of the clock of child processes
    assert 0 < first < second + tick
    parts = [torch.load(tmp_path / check["file"]) for check in outcome["checks"]]
    bank, labels, query, _ = parts[-1]
    assert bank.shape == query.shape == (12, 8)
    assert sorted(labels.tolist()) == [0] * 6 + [1] * 6
    assert not torch.equal(parts[0][0], bank)  # it learned in between
    assert 0 <= equal_time.score(parts[-1]) <= 1


def test_the_time_says_how_many_steps_and_where_schedules_end(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def step(self: Any, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return plain(self, closure)

    plain = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    given = arguments(images, "--minutes", "0.005")
    outcome = equal_ours.side(small(order_of(given, "simclr", "ours", 0, str(tmp_path))))
    wanted = (0.3 - outcome["set_up_seconds"]) / outcome["trial_seconds_per_step"]
    assert outcome["steps"] == max(1, int(wanted))
    assert len(rates) == 13 + outcome["steps"]
    length = RunLength(outcome["steps"], 3)  # of 12 images in batches of 4
    factors = [WarmupCosine(warmup_fraction=0.1)(t, length) for t in range(outcome["steps"])]
    assert rates[13:] == pytest.approx([0.003 * factor for factor in factors])


def test_a_trial_made_before_says_how_many_steps(
    images: Path, tmp_path: Path, trials: Path
) -> None:
    given = arguments(images, "--minutes", "1")
    times = {"set_up_seconds": 20.0, "trial_seconds_per_step": 8.0}
    trials.write_text(json.dumps({"CPU minutes, 1 thread": {"simclr": {"ours": times}}}))
    outcome = equal_ours.side(small(order_of(given, "simclr", "ours", 0, str(tmp_path))))
    assert outcome["steps"] == 5
    assert outcome["trial_seconds_per_step"] == 8.0


def test_trials_alone_are_kept_side_by_side(
    images: Path, trials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides are ours here, in processes of their own."""
    order_of = equal_time.order_of
    monkeypatch.setattr(equal_time, "order_of", lambda *a: {**small(order_of(*a)), "side": "ours"})
    options = ["--data", str(images), "--threads", "1", "--sides", "ours"]
    equal_time.main([*options, "--methods", "simclr", "--trials"])
    kept = json.loads(trials.read_text())["CPU minutes, 1 thread"]["simclr"]["ours"]
    assert 0 < kept["trial_seconds_per_step"] < 10
    assert kept["set_up_seconds"] > 0
    assert "steps" not in kept


def test_a_run_that_stands_in_the_results_is_not_made_again(
    images: Path, peers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict.fromkeys(equal_time.SHOWN, 1.0)
    made: list[tuple[str, int]] = []

    def run(order: dict[str, Any], python: str) -> dict[str, Any]:
        made.append((order["side"], order["seed"]))
        return found

    monkeypatch.setattr(equal_time, "run", run)
    output = tmp_path / "results.json"
    command = ["--data", str(images), *peers, "--methods", "simclr", "--output", str(output)]
    command += ["--seeds", "0"]
    equal_time.main(command)
    equal_time.main([*command, "1"])
    assert made == [("ours", 0), ("lightly", 0), ("ours", 1), ("lightly", 1)]
    kept = json.loads(output.read_text())["20 CPU minutes, 2 threads"]["simclr"]
    assert {side: list(seeds) for side, seeds in kept.items()} == {
        "ours": ["0", "1"],
        "lightly": ["0", "1"],
    }
    equal_time.main([*command, "--steps", "3"])
    assert made[4:] == [("ours", 0), ("lightly", 0)]
    assert json.loads(output.read_text())["20 CPU minutes, 2 threads"]["simclr"] == kept


def test_the_table_has_means_ranges_and_times() -> None:
    def run(knn: float, minutes: float | None) -> dict[str, Any]:
        about: dict[str, Any] = {"cpu": "CPU", "cores": 2, "commit": "abc", "goal": 0.6}
        about["versions"] = {"lightly": "1.6.0"}
        return {
            "knn_top1": knn,
            "linear_top1": 0.7,
            "epochs": 2,
            "minutes_to_goal": minutes,
            **about,
        }

    rows = {"simclr": {"ours": {"0": run(0.5, 9.0), "1": run(0.6, None)}}}
    rows["simclr"]["lightly"] = {"0": run(0.55, None)}
    text = table.equal_time_table({"20 CPU minutes, 2 threads": rows})
    expected = "| simclr | 0.550 (0.500 to 0.600) | 0.550 | 0.700 | 0.700 | 2.0 | 2.0 | 0, 1 |"
    assert expected in text
    assert "- simclr, sslzoo: time to kNN 0.60: 9.0 minutes in 1 of 2 runs" in text
    assert "- simclr, lightly: time to kNN 0.60: not reached" in text
    assert "- 20 CPU minutes, 2 threads against lightly 1.6.0; CPU, 2 cores, commit abc" in text
    assert table.equal_time_table(None) == table.NOT_RUN
    rows["dcl"] = {"ours": rows["simclr"]["ours"]}  # without its peer
    head, _, *lines = table.equal_time_summary({"5 minutes": {}, "4 minutes": rows}).split("\n")
    assert head.startswith("| 4 minutes | kNN, sslzoo | kNN, lightly | linear probe, sslzoo |")
    assert lines == ["| simclr | 0.550 | 0.550 | 0.700 | 0.700 | 1 |"]
    rows["simclr"]["lightly"] = {"0": run(0.5, None)}
    assert "| simclr | **0.550** | 0.500 |" in table.equal_time_summary({"4 minutes": rows})
    assert table.equal_time_summary(None) == table.NOT_RUN


@pytest.mark.parametrize(
    ("method", "name", "frozen"),
    [("swav", "freeze_prototypes_steps", 50), ("dino", "freeze_last_layer_epochs", 0.5)],
)
def test_prototypes_are_frozen_for_the_recipes_part_of_the_run(
    images: Path, tmp_path: Path, method: str, name: str, frozen: float
) -> None:
    order = order_of(arguments(images), method, "ours", 0, str(tmp_path))
    order["recipe"]["data"]["init_args"]["batch_size"] = 4  # 3 steps an epoch, 30 of the recipe
    assert getattr(equal_ours.model_of(order, 15), name) == frozen
