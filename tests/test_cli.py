"""The command: fit, resume after SIGKILL, validate, predict, load again, readable errors."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
COMMAND = [str(Path(sys.executable).parent / "sslzoo")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 60 + 20 small images in two classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for part, count in (("train", 30), ("val", 10)):
        for label, brightness in (("dark", 105), ("light", 145)):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                level = generator.normal(brightness, 30)
                pixels = generator.normal(level, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{i:02d}.png")
    return root


def arguments(folder: Path, out: Path, method: str = "byol") -> list[str]:
    sizes = {
        "byol": ["projector.init_args.hidden_dim=16", "predictor.init_args.hidden_dim=16"],
        "instdisc": ["bank_size=60", "num_negatives=8"],
        "simclr": [],
    }[method]
    return [
        *["fit", "--config", f"{method}/folder_small_10ep"],
        f"--data.root={folder}",
        "--data.batch_size=12",
        "--trainer.precision=32-true",
        f"--trainer.default_root_dir={out}",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        *[f"--model.init_args.{size}" for size in sizes],
    ]


def run(args: list[str], cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *args], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


SLOW_DOWN = """
import time
from lightning import Callback


class Slowly(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.3)
"""


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_killed_in_mid_epoch_and_resumed_ends_with_the_same_bits(
    folder: Path, tmp_path: Path
) -> None:
    saving = [
        "--trainer.max_epochs=3",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.save_last=true",
        "--trainer.callbacks.every_n_train_steps=1",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run([*arguments(folder, whole), *saving], tmp_path)

    (tmp_path / "slow_down.py").write_text(SLOW_DOWN)
    slow = [*arguments(folder, killed), *saving, "--trainer.callbacks+=slow_down.Slowly"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    last = killed / "version_0" / "checkpoints" / "last.ckpt"
    with subprocess.Popen(
        [*COMMAND, *slow], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        step = 0
        while step < 7 and time.monotonic() < deadline:  # 5 steps an epoch: epoch 1, step 2
            time.sleep(0.05)
            try:
                step = torch.load(last, weights_only=True)["global_step"]
            except Exception:  # not there yet, or half written
                step = 0
        process.send_signal(signal.SIGKILL)
    assert 7 <= step < 10, f"killed in the middle of the second epoch, got step {step}"

    run([*arguments(folder, killed), *saving, f"--ckpt_path={last}"], tmp_path)
    wanted = weights(whole / "version_0" / "checkpoints" / "last.ckpt")
    got = weights(killed / "version_1" / "checkpoints" / "last.ckpt")
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert torch.equal(value, got[name]), name


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


def checkpoint(finished: Path) -> Path:
    return next((finished / "checkpoints").glob("*.ckpt"))


def test_loads_again_by_its_class_alone_in_a_fresh_process(finished: Path) -> None:
    code = (
        "import sys, torch\n"
        "from sslzoo.methods import InstDisc\n"
        "method = InstDisc.load_from_checkpoint(sys.argv[1], weights_only=True)\n"
        "assert method.bank.rows.shape == (60, 128), method.bank.rows.shape\n"
        "assert method.step == 10, method.step\n"
        "saved = torch.load(sys.argv[1], weights_only=True)['state_dict']\n"
        "assert all(torch.equal(v, saved[k]) for k, v in method.state_dict().items())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint(finished))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


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


def failure(args: list[str], cwd: Path) -> str:
    done = run(args, cwd, check=False)
    assert done.returncode != 0
    return done.stderr + done.stdout


def test_errors_say_what_was_expected(folder: Path, tmp_path: Path) -> None:
    simclr = arguments(folder, tmp_path, "simclr")
    instdisc = [*arguments(folder, tmp_path, "instdisc"), "--trainer.max_epochs=1"]
    torchs = "--model.init_args.schedule=torch.optim.lr_scheduler.StepLR"
    cases = [
        (["fit", "--config", "simcl"], ["simclr/cifar10_resnet18_200ep"]),
        ([*simclr, "--model.init_args.temperatur=1"], ["temperatur"]),
        ([*simclr, "--model.init_args.temperature=warm"], ["temperature", "float"]),
        ([*simclr, "--model=sslzoo.methods.SimCLRR"], ["SimCLRR"]),
        ([*simclr, torchs], ["Schedule"]),
        ([*simclr, "--data.batch_size=100"], ["batch"]),
        ([*simclr, f"--data.root={tmp_path / 'nowhere'}"], ["nowhere"]),
        ([*instdisc, "--model.init_args.bank_size=61"], ["61 rows", "60"]),
    ]
    with ThreadPoolExecutor(2) as pool:  # each starts Python anew: two at a time
        texts = pool.map(lambda case: failure(case[0], tmp_path), cases)
        for (args, wanted), text in zip(cases, texts, strict=True):
            assert all(part in text for part in wanted), (args, text)
    assert not list(tmp_path.rglob("*.ckpt")), "nothing half written is left"


def test_no_labels_and_no_validation_set_still_have_metrics(folder: Path, tmp_path: Path) -> None:
    args = [*arguments(folder, tmp_path / "run", "simclr"), "--data.labels=false"]
    args += ["--data.val_dir=null", "--trainer.max_epochs=1"]
    text = failure(args, tmp_path)
    assert "OnlineSpectrum" in text
    assert not list(tmp_path.rglob("*.ckpt")), "refused before training"
    run([*args, "--trainer.callbacks=sslzoo.callbacks.OnlineSpectrum"], tmp_path)
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert "val/effective_rank" in metrics.read_text()


def test_version_is_printed(tmp_path: Path) -> None:
    assert run(["--version"], tmp_path).stdout.strip().count(".") == 2


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    ends = []
    for devices in (1, 2):
        out = tmp_path / str(devices)
        options = [f"--trainer.devices={devices}", "--trainer.accelerator=cpu"]
        # In float32 a rounding error that carries one activation over ReLU's kink grows a
        # hundredfold a step on images this few and this small, on one process as on two.
        options.append("--trainer.precision=64-true")
        if devices > 1:
            options.append("--trainer.strategy=ddp")
        run([*arguments(folder, out), *options, "--trainer.max_epochs=2"], tmp_path)
        with (out / "version_0" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
        knn = [row["val/knn_top1_k20_t0.07"] for row in rows if row["val/knn_top1_k20_t0.07"]]
        ends.append((losses, knn, weights(checkpoint(out / "version_0"))))
    (losses, knn, one), (losses2, knn2, two) = ends
    assert len(losses) == 10
    assert losses2 == pytest.approx(losses, rel=1e-9)
    assert knn == knn2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_quickstart_prints_its_table(tmp_path: Path) -> None:
    done = run(
        ["fit", "--config", "quickstart", "--trainer.max_epochs=1", "--trainer.precision=32-true"],
        tmp_path,
    )
    for row in ("trained encoder", "untrained encoder", "raw pixels"):
        assert row in done.stdout
    checkpoint_line = re.search(r"checkpoint: (\S+\.ckpt)", done.stdout)
    assert checkpoint_line
    assert (tmp_path / checkpoint_line[1]).exists()
    command = re.search(r"next: sslzoo (.*)", done.stdout)
    assert command
    run(command[1].split(), tmp_path)
    assert list(tmp_path.rglob("*.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_fine_tuning_and_distillation_start_from_runs_of_the_command(
    folder: Path, tmp_path: Path
) -> None:
    """Pre-train, fine-tune, distil: each starts from the last one's checkpoint."""
    common = [
        *[f"--data.root={folder}", "--data.batch_size=12", "--trainer.max_epochs=1"],
        *["--trainer.precision=32-true", "--trainer.enable_progress_bar=false"],
    ]

    def fit(config: str, *extra: str) -> Path:
        out = tmp_path / config
        args = ["fit", "--config", f"simclr/{config}", *common, *extra]
        run([*args, f"--trainer.default_root_dir={out}"], tmp_path)
        return out / "version_0" / "checkpoints" / "last.ckpt"

    pretrained = fit("folder_small_v2_10ep")
    tune = "folder_small_v2_fine_tune_10pct_30ep"
    two = "--model.model.init_args.num_classes=2"
    still = ["--data.train_fraction=0.5", "--model.optimizer.init_args.lr=0"]
    tuned = fit(tune, f"--model.weights={pretrained}", two, *still)
    before, after = weights(pretrained), weights(tuned)
    for name in ("backbone.stem.weight", "backbone.blocks.2.conv2.weight"):
        assert torch.equal(after[f"model.backbone.{name}"], before[name]), name
    head = "model.backbone.head.0.weight"
    assert torch.equal(after[head], before["projector.layers.0.weight"])
    assert after["model.classifier.weight"].shape == (2, 256)

    teaches = "--model.teacher.init_args.num_classes=2"
    distil = "folder_small_v2_distill_10ep"
    student = fit(distil, f"--model.teacher_weights={tuned}", two, teaches)
    taught = weights(student)
    for name, value in after.items():
        assert torch.equal(taught[name.replace("model.", "teacher.", 1)], value), name
    assert not torch.equal(taught[head], after[head])
