"""`sslzoo fit --start_from`: a new run from weights, whose row 0 is what `sslzoo eval` gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from sslzoo.run_folder import read_metrics
from tests.commands.command import arguments, run
from tests.commands.test_evaluate import SUITE, evaluated, finished, pytestmark  # noqa: F401

EVALUATIONS = [
    {"class_path": "sslzoo.callbacks.OnlineKNN", "init_args": {"k": 5, "temperature": 0.07}},
    {"class_path": "sslzoo.callbacks.OnlineLinear", "init_args": {"l2": [0.01]}},
    {"class_path": "sslzoo.callbacks.CompareWithStart"},
]


def continued(folder: Path, out: Path, *more: str, method: str = "simclr", check: bool = True):
    """A run of one epoch with row 0."""
    args = [*arguments(folder, out, method), "--trainer.max_epochs=1", *more]
    return run([*args, f"--trainer.callbacks={json.dumps(EVALUATIONS)}"], out, check)


def test_row_0_is_what_eval_gives_and_the_run_says_where_it_started(
    folder: Path,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    done = continued(folder, tmp_path, "--start_from", str(finished))
    row = {
        name: value
        for step, name, value in read_metrics(tmp_path / "version_0/metrics.csv")
        if step == "0"
    }
    (model,) = evaluated(str(finished), *SUITE, output=tmp_path / "eval.json")["models"]
    for name in ("knn_top1_k5_t0.07", "linear_top1"):
        assert row[f"val/{name}"] == model["metrics"][name]
    about = json.loads((tmp_path / "version_0/run.json").read_text())["start"]
    assert about["source"] == str(finished)
    assert about["heads"] == "new"
    assert f"start: {finished}, sha256 {about['sha256'][:12]}, heads new" in done.stdout
    assert "val/linear_top1: start weights" in done.stdout
    config = yaml.safe_load((tmp_path / "version_0/config.yaml").read_text())
    assert config["start_from"] == str(finished)
    last = torch.load(tmp_path / "version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == last["sslzoo"]["step"] == 5  # the clock began at 0


def test_a_resumed_run_keeps_its_start_and_reads_no_weights(
    folder: Path,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    source = tmp_path / "source.ckpt"
    source.write_bytes((finished / "checkpoints/last.ckpt").read_bytes())
    continued(folder, tmp_path, "--start_from", str(source), "--start_heads", "given")
    source.unlink()
    mine = tmp_path / "version_0"
    own = [f"--config={mine}/config.yaml", f"--ckpt_path={mine}/checkpoints/last.ckpt"]
    done = run(["fit", *own, "--trainer.max_epochs=2"], tmp_path)
    assert f"start: {source}" in done.stdout
    assert json.loads((mine / "run.json").read_text())["start"]["heads"] == "given"
    steps = [
        int(step)
        for step, name, _ in read_metrics(mine / "metrics.csv")
        if name == "val/linear_top1"
    ]
    assert steps == [0, 4, 9]
    both = run(["fit", *own, "--start_from", str(finished)], tmp_path, check=False)
    assert both.returncode == 1
    assert "one of them must be omitted, got both" in both.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--start_from=nowhere"], "nowhere"),
        (["--start_from={finished}", "--start_heads=given"], "heads must be 'new' with a run of"),
        (["--start_from={finished}", "--start_heads=old"], "start_heads"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_no_run(
    more: list[str],
    said: str,
    folder: Path,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    more = [text.format(finished=finished) for text in more]
    done = continued(folder, tmp_path, *more, method="byol", check=False)
    assert done.returncode in (1, 2)
    said_last = done.stderr.strip().splitlines()[-1]  # Lightning names the devices before
    assert said in said_last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("version_*"))
