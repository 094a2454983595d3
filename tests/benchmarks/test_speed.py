"""The driver: statistics, comparison of outputs, and a worker that really runs."""

from __future__ import annotations

import importlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks import speed
from benchmarks.driver import (
    SideError,
    Worker,
    bootstrap_bound,
    differences,
    interleave,
)
from benchmarks.rounds import CudaMeter, HostMeter, Rounds, meter_of
from benchmarks.rows import Peer, Row
from benchmarks.rows_cuda import CUDA_ROWS


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(sys.executable)
    yield made
    made.close()


def test_bound_of_equal_ratios_is_that_ratio() -> None:
    assert bootstrap_bound([2.0] * 9) == 2.0


def test_bounds_lie_on_the_unfavorable_side_of_the_median() -> None:
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


@pytest.mark.slow
def test_a_worker_stands_still_between_rounds(worker: Worker) -> None:
    worker.build("benchmarks.sides.ntxent:ours", 1, {"n": 64, "dim": 8, "calls": 1})
    assert worker.round()["facts"]["loss"] > 0
    deadline = time.monotonic() + 10  # the signal is delivered, not instantaneous
    stat = Path(f"/proc/{worker._process.pid}/stat")
    while (state := stat.read_text().rsplit(")", 1)[1].split()[0]) != "T":
        assert time.monotonic() < deadline, state
    assert worker.round()["facts"] == {}
    worker.leave()


@pytest.mark.slow
def test_a_side_that_fails_says_why_and_leaves_the_worker_usable(worker: Worker) -> None:
    with pytest.raises(SideError, match="no_such_side"):
        worker.build("benchmarks.sides.ntxent:no_such_side", 1, {})
    worker.build("benchmarks.sides.ntxent:ours", 1, {"n": 64, "dim": 8, "calls": 1})
    assert worker.round()["amount"] == 1


@pytest.mark.slow
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


CUDA = {row.name: row for row in CUDA_ROWS}


class FakeCuda:
    """torch.cuda of a GPU that works for `busy` seconds more, and holds `held` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy, self.held, self.peak = 0.0, 0, 0
        for name in ("synchronize", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: self.held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.peak)

    def synchronize(self) -> None:
        time.sleep(self.busy)
        self.busy = 0.0

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.held

    def allocate(self, size: int) -> None:
        self.held += size
        self.peak = max(self.peak, self.held)


def test_a_gpu_s_round_lasts_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda(monkeypatch)
    meter = meter_of("cuda")
    assert isinstance(meter, CudaMeter)
    gpu.allocate(5 << 20)
    gpu.busy = 0.5  # of what came before the round: not its own
    meter.start()
    gpu.allocate(3 << 20)
    gpu.allocate(-(3 << 20))
    gpu.busy = 0.05
    seconds, mib = meter.stop()
    assert 0.05 <= seconds < 0.5
    assert mib == 3.0


def test_rounds_send_what_their_meter_says() -> None:
    class Meter:
        def start(self) -> None: ...

        def stop(self) -> tuple[float, float]:
            return 2.0, 7.0

    orders = "".join(json.dumps({"do": order}) + "\n" for order in ("round", "leave"))
    replies = io.StringIO()
    rounds = Rounds(io.StringIO(orders), replies)
    assert isinstance(rounds.meter, HostMeter)
    rounds.meter = Meter()
    rounds.repeat(lambda: {"x": rounds.number}, 3)
    _, reply = map(json.loads, replies.getvalue().splitlines())
    assert reply == {"seconds": 2.0, "amount": 3, "peak_mib": 7.0, "facts": {"x": 0}}


class FakeWorker:
    """Answers at once; the class remembers what was asked."""

    asked: ClassVar[list[Any]] = []  # cleared by the fixture

    def __init__(self, python: str, longest: float) -> None:
        self.versions = {"torch": "2"}
        self.asked.append(("made", longest))

    def start(self, side: str, threads: int, options: dict[str, Any]) -> None:
        self.asked.append(("start", side.rpartition(":")[2], options))

    def wait(self) -> None:
        self.asked.append(("wait",))

    def round(self) -> dict[str, Any]:
        self.asked.append(("round",))
        facts = {"loss": 1.0, "gradient": 1.0, "parameters": 1}
        return {"seconds": 1.0, "amount": 1, "peak_mib": 8.0, "facts": facts}

    def leave(self) -> None:
        self.asked.append(("leave",))

    def close(self) -> None: ...


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    FakeWorker.asked.clear()
    monkeypatch.setattr(speed, "Worker", FakeWorker)
    monkeypatch.setattr(speed, "has_package", lambda python, package: True)
    monkeypatch.setattr(speed, "gpu", lambda: {"gpu": "a GPU", "cuda": "13.0"})
    monkeypatch.setattr(speed, "_has_cuda", lambda: True)
    return FakeWorker.asked


def test_on_a_gpu_memory_is_measured_in_processes_that_go_on(fakes: list[Any]) -> None:
    measurement = speed.Measurement(sys.executable, 9, False, "cuda")
    ((name, result),) = measurement.row(CUDA["dino_memory"])
    made, started = ([entry for entry in fakes if entry[0] == kind] for kind in ("made", "start"))
    assert made == [("made", speed.PATIENCE["cuda"])] * 2
    assert [entry[1] for entry in started] == ["ours", "lightly"]
    assert all(entry[2]["device"] == "cuda" for entry in started)
    kinds = [entry[0] for entry in fakes]
    both_start_first = ["start", "start", "wait", "wait"]
    assert kinds == ["made", "made", *both_start_first, *["round"] * 8, "leave", "leave"]
    assert name == "dino_memory/lightly"
    wanted = {"ratio": 1.0, "ours": 8.0, "rounds": 3, "warm_ups": 1, "gpu": "a GPU", "cuda": "13.0"}
    assert {key: result[key] for key in wanted} == wanted


def test_on_a_cpu_sides_are_told_no_device(fakes: list[Any]) -> None:
    measurement = speed.Measurement(sys.executable, 3, True)
    ((_, result),) = measurement.row(CUDA["ntxent128"])
    assert "device" not in result["options"]
    assert "gpu" not in result


def test_what_a_budget_leaves_out_says_so(tmp_path: Path, fakes: list[Any]) -> None:
    output = tmp_path / "speed_cuda.json"
    arguments = ["--device", "cuda", "--peers-python", sys.executable, "--output", str(output)]
    only = ["--only", "ntxent8192", "ema"]
    assert speed.main([*arguments, *only, "--budget", "-1"]) == 1
    found = json.loads(output.read_text())
    assert [result["not_run"] for result in found.values()] == ["the budget of -1 s was spent"] * 3
    assert next(iter(found)) == "ntxent8192/lightly"
    assert not fakes


def test_each_result_is_written_as_it_comes(
    tmp_path: Path, fakes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "speed_cuda.json"

    def result(measurement: speed.Measurement, row: Row, peer: Peer) -> dict[str, Any]:
        if row.name == "knn10":
            raise KeyboardInterrupt
        return {"not_run": "for a reason", "failed": True}

    monkeypatch.setattr(speed.Measurement, "_result", result)
    with pytest.raises(KeyboardInterrupt):
        speed.main(["--device", "cuda", "--only", "ntxent128", "knn10", "--output", str(output)])
    assert list(json.loads(output.read_text())) == ["ntxent128/lightly"]


def test_a_row_of_the_other_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--only", "ntxent16384"])
    assert "no row ['ntxent16384'] on cpu" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--device", "cuda"])
    assert "torch finds none" in capsys.readouterr().err


def test_a_copy_without_a_repository_has_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSLZOO_COMMIT", raising=False)
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    assert speed.provenance()["commit"] == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))  # not even git
    assert speed.provenance()["commit"] == "unknown"
    monkeypatch.setenv("SSLZOO_COMMIT", "abc")
    assert speed.provenance()["commit"] == "abc"


@pytest.mark.parametrize("name", ["ntxent8192", "dino", "dino_bf16", "knn10"])
def test_sides_take_a_device(name: str) -> None:
    row = CUDA[name]
    facts: list[dict[str, Any]] = []

    class First:
        number = 0

        def repeat(self, work: Callable[[], dict[str, Any]], amount: float) -> None:
            facts.append(work())

    module, _, function = row.ours.partition(":")
    side = getattr(importlib.import_module(f"benchmarks.sides.{module}"), function)
    side(First(), **{**row.options, **row.smoke, "device": "cpu"})
    assert set(row.tolerance) <= set(facts[0])
