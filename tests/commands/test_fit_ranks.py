"""Two processes and one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sslzoo.trust import assemble
from tests.commands.command import arguments, checkpoint, run, run_process, torchrun, weights
from tests.commands.test_fit_interrupted import SMALL

Ends = tuple[list[float], list[str], dict[str, torch.Tensor]]


def options(folder: Path, out: Path, devices: int) -> list[str]:
    more = [f"--trainer.devices={devices}", "--trainer.accelerator=cpu", "--trainer.max_epochs=2"]
    # In float32 a rounding error that carries one activation over ReLU's kink grows a
    # hundredfold a step on images this few and this small, on one process as on two.
    more.append("--trainer.precision=64-true")
    return [*arguments(folder, out), *more, *["--trainer.strategy=ddp"] * (devices > 1)]


def ends(out: Path) -> Ends:
    """Losses, kNN and the last weights of a run."""
    with (out / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    knn = [row["val/knn_top1_k20_t0.07"] for row in rows if row["val/knn_top1_k20_t0.07"]]
    return losses, knn, weights(checkpoint(out / "version_0"))


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    out = tmp_path_factory.mktemp("alone")
    run(options(folder, out, 1), out)
    return ends(out)


@pytest.mark.parametrize("starter", ["torchrun", pytest.param("Lightning", marks=pytest.mark.slow)])
def test_two_processes_equal_one(starter: str, alone: Ends, folder: Path, tmp_path: Path) -> None:
    args = options(folder, tmp_path, 2)
    if starter == "torchrun":
        torchrun(args, tmp_path, tmp_path / "said")
    else:
        run_process(args, tmp_path)
    assert [path.name for path in tmp_path.glob("version_*")] == ["version_0"]
    losses, knn, one = alone
    losses2, knn2, two = ends(tmp_path)
    assert len(losses) == 10
    assert losses2 == pytest.approx(losses, rel=1e-9)
    assert knn == knn2
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_run_of_shards_goes_on_in_one_process_and_in_shards_again(
    folder: Path, tmp_path: Path
) -> None:
    short = [*SMALL[:4], "--trainer.accelerator=cpu", "--trainer.max_epochs"]
    args = [*arguments(folder, tmp_path, "simclr"), *short]
    shards = ["--trainer.strategy=sslzoo.sharding.FullyShard", "--trainer.devices=2"]
    shards += ["--trainer.strategy.save_distributed_checkpoint=true"]
    path = tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    last = f"--ckpt_path={path}"
    torchrun([*args, "1", *shards], tmp_path, tmp_path / "said")
    assert assemble(path)["global_step"] == 2
    path.rename(f"{path}.aside")  # as where the process was killed between two renames
    run([*args, "2", last], tmp_path)
    assert torch.load(path)["global_step"] == 4
    torchrun([*args, "3", last, *shards], tmp_path, tmp_path / "said")
    assert assemble(path)["global_step"] == 6
    assert {each.suffix for each in path.parent.iterdir()} == {".ckpt"}
