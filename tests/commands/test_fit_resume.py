"""A run that is killed and resumed."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import torch

from tests.commands.command import COMMAND, ENVIRONMENT, arguments, run, weights

SLOW_DOWN = """
import time
from lightning import Callback


class Slowly(Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.3)
"""


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


def test_a_checkpoint_cannot_name_what_a_resumed_run_removes(folder: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    (victim / "letter.txt").touch()
    given = [*arguments(folder, out, "simclr"), "--trainer.max_epochs=1"]
    run(given, tmp_path)
    last = out / "version_0" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    (state,) = (s for k, s in saved["callbacks"].items() if k.startswith("ModelCheckpoint"))
    state["best_model_path"] = f"local://{victim}"
    torch.save(saved, tmp_path / "from_elsewhere.ckpt")

    resumed = [*given, "--trainer.max_epochs=2", f"--ckpt_path={tmp_path / 'from_elsewhere.ckpt'}"]
    run(resumed, tmp_path)
    assert (victim / "letter.txt").is_file()
    assert (out / "version_1" / "checkpoints" / "last.ckpt").is_file()
