"""The driver: statistics, comparison of outputs, and a worker that really runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.driver import (
    SideError,
    Worker,
    bootstrap_bound,
    differences,
    interleave,
)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(sys.executable)
    yield made
    made.close()


def test_bound_of_equal_ratios_is_that_ratio() -> None:
    assert bootstrap_bound([2.0] * 9) == 2.0


def test_bounds_lie_on_the_unfavourable_side_of_the_median() -> None:
    ratios = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    assert 1.0 < bootstrap_bound(ratios) < 1.4 < bootstrap_bound(ratios, upper=True) < 1.8


def test_rounds_alternate_and_warm_ups_are_left_out() -> None:
    order: list[str] = []

    def side(name: str) -> dict[str, object]:
        order.append(name)
        return {"value": len(order), "facts": {"first": len(order)}}

    a, b = interleave(
        [lambda: side("a"), lambda: side("b")], lambda reply: reply["value"], 2, 1, 1e9
    )
    assert order == ["a", "b"] * 3
    assert (a.cost, b.cost) == ([3, 5], [4, 6])
    assert (a.first, b.first) == ({"first": 1}, {"first": 2})


def test_a_spent_budget_ends_a_row_after_three_rounds() -> None:
    reply = {"value": 1.0, "facts": {}}
    (samples,) = interleave([lambda: reply], lambda r: r["value"], 9, 2, budget=-1.0)
    assert len(samples.cost) == 3


@pytest.mark.parametrize(
    ("ours", "theirs", "agree"),
    [
        ({"x": 1.0}, {"x": 1.0005}, True),
        ({"x": 1.0}, {"x": 1.01}, False),
        ({"x": float("nan")}, {"x": 1.0}, False),
        ({"x": [1] * 1000}, {"x": [1] * 999 + [2]}, True),
        ({"x": [1] * 1000}, {"x": [1] * 990 + [2] * 10}, False),
        ({"x": [1] * 1000}, {"x": [1] * 900}, False),
        ({"x": 1.0}, {}, False),
    ],
)
def test_outputs_that_differ_are_named(ours: dict, theirs: dict, agree: bool) -> None:
    found = differences(ours, theirs, {"x": 1e-3})
    assert (not found) == agree
    assert all(text.startswith("x:") for text in found)


def test_a_worker_stands_still_between_rounds(worker: Worker) -> None:
    worker.build("benchmarks.sides.ntxent:ours", 1, {"n": 64, "dim": 8, "calls": 1})
    assert worker.round()["facts"]["loss"] > 0
    deadline = time.monotonic() + 10  # the signal is delivered, not instantaneous
    stat = Path(f"/proc/{worker._process.pid}/stat")
    while (state := stat.read_text().rsplit(")", 1)[1].split()[0]) != "T":
        assert time.monotonic() < deadline, state
    assert worker.round()["facts"] == {}
    worker.leave()


def test_a_side_that_fails_says_why_and_leaves_the_worker_usable(worker: Worker) -> None:
    with pytest.raises(SideError, match="no_such_side"):
        worker.build("benchmarks.sides.ntxent:no_such_side", 1, {})
    worker.build("benchmarks.sides.ntxent:ours", 1, {"n": 64, "dim": 8, "calls": 1})
    assert worker.round()["amount"] == 1


def test_a_round_reports_the_rise_of_its_peak_memory(worker: Worker) -> None:
    worker.build("benchmarks.sides.ntxent:ours", 1, {"n": 2048, "dim": 512, "calls": 1})
    assert worker.round()["peak_mib"] > 2048 * 512 * 4 * 2 / 2**20  # at least both gradients


def test_missing_peers_do_not_erase_results(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    kept = {"ratio": 2.0}
    output.write_text(json.dumps({"ema/lightly": kept}))
    speed.merge(output, {"ema/lightly": {"not_run": "no environment"}})
    speed.merge(output, {"import/lightning + torchvision + timm": {"ratio": 1.0}})
    found = json.loads(output.read_text())
    assert found["ema/lightly"] == kept
    assert len(found) == 2


def test_a_row_that_fails_now_loses_its_old_result(tmp_path: Path) -> None:
    output = tmp_path / "speed.json"
    output.write_text(json.dumps({"ema/lightly": {"ratio": 2.0}}))
    speed.merge(output, {"ema/lightly": {"not_run": "outputs differ", "failed": True}})
    assert "ratio" not in json.loads(output.read_text())["ema/lightly"]


def test_a_run_without_peers_says_so_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    arguments = ["--only", "ntxent128", "--smoke", "--rounds", "1", "--output", str(output)]
    assert speed.main(arguments) == 1
    assert "no environment of peers given" in capsys.readouterr().out
    assert "not_run" in json.loads(output.read_text())["ntxent128/lightly"]
