"""A finished run: what it wrote, load again, validate, predict."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands.command import arguments, checkpoint, run


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished InstDisc run."""
    out = tmp_path_factory.mktemp("run")
    args = arguments(folder, out, "instdisc")
    run([*args, "--trainer.max_epochs=2"], out)
    return out / "version_0"


def test_everything_is_written_under_the_run_folder(finished: Path) -> None:
    left = {path.name for path in finished.parent.iterdir()}
    assert left == {"version_0"}
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {p.name for p in finished.iterdir()}
    assert any(p.name.startswith("events.out.tfevents") for p in finished.iterdir())
    with (finished / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["train/nce"] for row in rows)
    assert any(row.get("val/knn_top1_k20_t0.07") for row in rows)


def test_validate_gives_the_number_of_the_fit(finished: Path, tmp_path: Path) -> None:
    with (finished / "metrics.csv").open() as file:
        values = [row.get("val/knn_top1_k20_t0.07") for row in csv.DictReader(file)]
    wanted = [value for value in values if value][-1]
    args = [f"--config={finished / 'config.yaml'}", f"--ckpt_path={checkpoint(finished)}"]
    done = run(["validate", *args, f"--trainer.default_root_dir={tmp_path}"], tmp_path)
    printed = re.search(r"knn_top1_k20_t0\.07\D+(\d\.\d+)", done.stdout)
    assert printed, done.stdout
    assert float(printed[1]) == pytest.approx(float(wanted), abs=1e-6)


def test_predict_writes_features_labels_and_indices(finished: Path, tmp_path: Path) -> None:
    args = [f"--config={finished / 'config.yaml'}", f"--ckpt_path={checkpoint(finished)}"]
    run(["predict", *args, f"--trainer.default_root_dir={tmp_path}"], tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    content = load_file(file)
    assert content["features"].shape == (20, 256)
    assert content["index"].tolist() == list(range(20))
    assert content["label"].tolist() == [0] * 10 + [1] * 10


def test_an_evaluation_of_a_run_is_written_beside_it(
    finished: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = str(checkpoint(finished))
    for verb in ("validate", "predict", "predict"):
        run([verb, "--ckpt_path", path], tmp_path, warn="always")
    assert not [w for w in recwarn if "dirpath" in str(w.message)]
    assert not list(tmp_path.iterdir())
    assert [folder.name for folder in finished.parent.iterdir()] == ["version_0"]
    assert "val/knn_top1_k20_t0.07" in (finished / "validate" / "metrics.csv").read_text()
    assert load_file(finished / "predict" / "features.safetensors")["features"].shape == (20, 256)
    before = sorted(finished.rglob("*"))
    done = run(["test", "--ckpt_path", path, "--data.root=nowhere"], tmp_path, check=False)
    assert done.returncode == 1
    assert sorted(finished.rglob("*")) == before, "a failed start leaves nothing"


def test_a_finished_fit_names_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    args = arguments(folder, tmp_path / "out", "simclr")
    done = run([*args, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1000"], tmp_path)
    run_folder = tmp_path / "out" / "version_0"
    lines = done.stdout.splitlines()
    at = lines.index(f"run: {run_folder}")
    assert lines[at + 1] == f"checkpoint: {run_folder}/checkpoints/last.ckpt"
    assert lines[at + 2].startswith("metrics: train/loss ")
    assert lines[at + 3 : at + 5] == ["next:", f"sslzoo eval {run_folder}"]
    assert "train/lr" in (run_folder / "metrics.csv").read_text()
