"""Readable errors, and what needs no labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from sslzoo.backbones import SmallResNet
from sslzoo.commands import fit
from sslzoo.methods import SimCLR
from tests.commands.command import arguments, run


def failure(args: list[str], cwd: Path) -> str:
    done = run(args, cwd, check=False)
    assert done.returncode != 0
    return done.stderr + done.stdout


def test_a_bank_of_another_size_is_told(folder: Path, tmp_path: Path) -> None:
    args = [*arguments(folder, tmp_path, "instdisc"), "--trainer.max_epochs=1"]
    text = failure([*args, "--model.init_args.bank_size=61"], tmp_path)
    assert "bank_size must be 60" in text
    assert "got 61" in text
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


class Unannotated(SimCLR):
    def __init__(self, backbone: nn.Module, projector: nn.Module, optimizer=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(backbone, projector, optimizer=optimizer)


@pytest.mark.filterwarnings("ignore")  # of Lightning's command
def test_an_optimizer_without_annotation_is_named(folder: Path, tmp_path: Path) -> None:
    args = [*arguments(folder, tmp_path, "simclr"), f"--model={__name__}.Unannotated"]
    with pytest.raises(ValueError, match=r"annotate the .* `optimizer: OptimizerFactory \| None`"):
        fit.run(args)
    for name in ("optimizer", "schedule", "parameter_groups"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            SimCLR(SmallResNet((8, 16)), nn.Linear(16, 4), **{name: {"class_path": "x"}})  # type: ignore[arg-type]


def test_version_is_printed(tmp_path: Path) -> None:
    assert run(["--version"], tmp_path).stdout.strip().count(".") == 2
