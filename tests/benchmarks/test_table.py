"""The README's tables are what the result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.rows import ROWS, Row
from benchmarks.rows_cuda import CUDA_ROWS

TEXT = (
    "a\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nb\n"
    "<!-- quality:begin -->\n<!-- quality:end -->\nc\n"
)


def measured(**changes: Any) -> dict[str, Any]:
    result = {
        "work": "NT-Xent",
        "against": "lightly",
        "kind": "speed",
        "unit": "call",
        "at_least": 4.0,
        "aim": 6.7,
        "ratio": 5.0,
        "bound": 4.5,
        "ours": 0.002,
        "theirs": 0.01,
        "rounds": 9,
        "cpu": "a processor",
        "cores": 2,
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.14.1"},
        "peer_versions": {"torch": "2.14.1", "lightly": "1.6.0"},
    }
    return {**result, **changes}


def scored() -> dict[str, Any]:
    return {
        "name": "simclr",
        "data": "pictures",
        "epochs": 10,
        "minutes": 7.25,
        "peak_memory_mb": 1500.0,
        "knn_top1": 0.6,
        "knn_top1_float16": 0.5999,
        "untrained_knn_top1": 0.31,
        "raw_pixels_knn_top1": 0.35,
        "normalized_pixels_knn_top1": 0.45,
        "seeds": [0],
        "config": "configs/simclr.yaml",
        "commit": "0123456789abcdef-dirty",
        "protocol": "kNN",
        "cpu": "a processor",
        "cores": 2,
    }


def write(folder: Path, speed: dict[str, Any], quality: list[dict[str, Any]]) -> list[str]:
    """Results and a README in `folder`; the arguments that name them."""
    (folder / "quality").mkdir()
    (folder / "speed.json").write_text(json.dumps(speed))
    for result in quality:
        (folder / "quality" / f"{result['name']}.json").write_text(json.dumps(result))
    (folder / "README.md").write_text(TEXT)
    return ["--readme", str(folder / "README.md"), "--results", str(folder)]


def test_readme_equals_the_results() -> None:
    assert table.main(["--check"]) == 0


def test_check_fails_on_a_number_typed_by_hand(tmp_path: Path) -> None:
    args = write(tmp_path, {"ntxent/lightly": measured()}, [scored()])
    assert table.main([*args, "--check"]) == 1
    assert table.main(args) == 0
    assert table.main([*args, "--check"]) == 0
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("**5x**", "**6x**"))
    assert table.main([*args, "--check"]) == 1


def test_text_around_the_tables_stays(tmp_path: Path) -> None:
    args = write(tmp_path, {}, [])
    table.main(args)
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("c\n")
    assert text.count(table.NOT_RUN) == 2


def test_speed_lines_say_ratio_bound_and_target() -> None:
    line = table.speed_table({"x": measured()}).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    wanted = ["NT-Xent", "lightly", "2 ms", "10 ms", "**5x** (≥ 4.5)", "≥ 4x", "6.7x", "9"]
    assert cells == wanted


def test_an_overhead_has_a_ceiling() -> None:
    overhead = measured(kind="overhead", ratio=1.02, bound=1.03, at_least=1.05, aim=1.02)
    assert "**1.02x** (≤ 1.03) | ≤ 1.05x" in table.speed_table({"x": overhead})


def test_a_row_that_was_not_run_says_why() -> None:
    row = measured(not_run="no such package")
    del row["ratio"]
    assert "not run: no such package" in table.speed_table({"x": row})


def test_quality_lines_name_the_dirty_commit() -> None:
    text = table.quality_table([scored()])
    assert "0123456789ab-dirty" in text
    assert "**0.6000** | 0.5999 | - | 0.3100 | 0.3500" in text


def test_a_lost_marker_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quality:begin"):
        table.render(TEXT.replace("<!-- quality:begin -->", ""), tmp_path)


@pytest.mark.parametrize("rows", [ROWS, CUDA_ROWS], ids=["cpu", "cuda"])
def test_row_names_are_unique(rows: tuple[Row, ...]) -> None:
    assert len({row.name for row in rows}) == len(rows)
    names = [f"{row.name}/{peer.name}" for row in rows for peer in row.peers]
    assert len(set(names)) == len(names)


def test_a_gpu_has_a_table_of_its_own(tmp_path: Path) -> None:
    text = "<!-- speed-cuda:begin -->\n<!-- speed-cuda:end -->\n"
    assert table.NOT_RUN in table.render(text, tmp_path)
    row = measured(at_least=None, aim=None, gpu="a GPU", cuda="13.0")
    (tmp_path / "speed_cuda.json").write_text(json.dumps({"x": row}))
    rendered = table.render(text, tmp_path)
    assert "| **5x** (≥ 4.5) | - | - | 9 |" in rendered
    assert "a GPU, CUDA 13.0, a processor, 2 cores" in rendered


def test_sound_lines_set_the_loader_beside_training() -> None:
    scores = {task: {"linear": 0.5, "hidden": 0.75} for task in ("digit", "speaker")}
    rows = ("trained", "untrained", "log_mel_mean", "log_mel_mean_and_deviation")
    result = {
        **scored(),
        "accuracy": dict.fromkeys(rows, scores),
        "cpu_minutes": 12.5,
        "train": 2700,
        "test": 300,
        "loader_windows_per_cpu_second": 20000.0,
        "training_windows_per_cpu_second": 100.0,
    }
    text = table.audio_table(result)
    assert "| trained encoder | 0.500 | 0.750 | 0.500 | 0.750 |" in text
    assert "20,000 windows a second of CPU time, training takes 100: 0.5 %" in text
    assert table.audio_table(None) == table.NOT_RUN


def test_trajectory_lines_say_what_was_probed() -> None:
    accuracy = {"trained": 0.9, "untrained": 0.5, "raw": 0.4}
    text = table.trajectories_table({"accuracy": accuracy, "data": "pendulum"})
    assert text.splitlines()[0] == "| features | gravity, linear probe (pendulum) |"
    assert "| trained encoder | 0.900 |" in text


def test_the_table_of_steps_has_shares_and_bounds() -> None:
    row = {"samples_per_second": 200.0, "step_seconds": 1.28, "product_bound_seconds": 0.5}
    row |= {"convolutions_alone_seconds": 0.8, "product_gflops": 145.2, "threads": 2}
    row |= {"page_faults": 3.0, "memory_returned": {"step_seconds": 1.5, "page_faults": 9000.0}}
    place = {"cpu": "a processor", "cores": 2, "commit": "0123456789abcdef"}
    nets = {
        "small_net": {**row, "shares": {"convolutions": 0.75, "views": 0.25}, **place},
        "resnet18": {**row, "shares": {"convolutions": 1.0}, **place},
    }
    text = table.steps_table({**nets, "versions": {}})
    titles = "| net | samples/s | step | memory returned | page faults | arithmetic |"
    assert f"{titles} convolutions alone | convolutions | views |" in text
    assert (
        "| small net | 200 | 1,280 ms | 1,500 ms | 3, were 9,000 | 500 ms | 800 ms | 75 % |" in text
    )
    assert "| 500 ms | 800 ms | 100 % | 0 % |" in text
    assert "- a matrix product reaches 145 GFLOPS on 2 threads; a processor, 2 cores" in text
    assert table.steps_table(None) == table.NOT_RUN


def test_the_table_of_speech_has_means_over_seeds_and_floors() -> None:
    place = {"cpu": "a processor", "cores": 2, "commit": "0123456789abcdef"}

    def row(digit: float, minutes: float = 4.0) -> dict[str, Any]:
        part = {"last": {"digit": digit, "speaker": 0.9}}
        return {"untrained": part, "trained": part, "steps": 1000, "minutes": minutes, **place}

    both = row(0.5)
    both["trained"] = {**both["trained"], "layers": {"digit": 0.75, "speaker": 1.0}}
    floor = {"digit": 0.25, "speaker": 0.5}
    rows = {f"cpc 4 minutes seed {seed}": row(0.25 + seed / 2) for seed in range(2)}
    rows |= {"cpc 15 minutes seed 0": row(1.0, 15.0), "hubert 4 minutes seed 0": both}
    rows["log_mel"] = {"mean": floor, "mean_and_deviation": floor, **place}
    text = table.speech_table({"rows": rows})
    assert "| log-mel, mean over time | 25.0 | - | 50.0 | - | - | - |" in text
    spread = "50.0 (25.0 to 75.0) | - | 90.0 (90.0 to 90.0) | - | 1,000 | 2 |"
    assert f"| CPC, 4 min | {spread}" in text
    assert f"| CPC, untrained | {spread.replace('1,000', '-')}" in text
    assert "| CPC, 15 min | 100.0 | - | 90.0 | - | 1,000 | 1 |" in text
    assert "| HuBERT, 4 min | 50.0 | 75.0 | 90.0 | 100.0 | 1,000 | 1 |" in text
    assert "BYOL-A" not in text
    assert table.speech_table(None) == table.NOT_RUN
