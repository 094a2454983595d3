"""Runs that follow one another: quickstart and prediction, pre-training and its users."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.commands.command import run, weights


def test_quickstart_prints_its_table_and_writes_its_report(tmp_path: Path) -> None:
    done = run(
        ["fit", "--config", "quickstart", "--trainer.max_epochs=1", "--data.train_fraction=0.1"],
        tmp_path,
    )
    for row in ("trained encoder", "untrained encoder", "raw pixels"):
        assert row in done.stdout
    checkpoint_line = re.search(r"checkpoint: (\S+\.ckpt)", done.stdout)
    assert checkpoint_line
    assert (tmp_path / checkpoint_line[1]).exists()
    report = re.search(r"^report: (\S+/version_0/report\.html)$", done.stdout, re.MULTILINE)
    assert report
    page = (tmp_path / report[1]).read_text()
    assert "kNN accuracy, untrained encoder" in page
    assert "t-SNE" in page
    commands = re.findall(r"^sslzoo (.*)$", done.stdout.partition("\nnext:\n")[2], re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["eval", "report"]
    run(commands[0].split(), tmp_path)
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
