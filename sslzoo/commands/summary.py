"""Summary: the end of a finished `fit`: where the results are and what to run next."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from sslzoo.callbacks.compare_with_start import CHANGE, start_of
from sslzoo.methods import SSLMethod
from sslzoo.trust import is_folder_of_shards


def summary(
    trainer: Trainer, model: LightningModule, folder: Path, start: dict[str, Any] | None = None
) -> str:
    """Run directory, checkpoint, start weights, metrics, report, and the next two commands.

    Args:
        trainer: it has finished.
        model: its module.
        folder: the run directory.
        start: what `start_from` returned; None: no weights were given.
    """
    lines = [f"run: {folder}"]
    if start is not None:
        digest = f", sha256 {start['sha256'][:12]}" if start.get("sha256") else ""
        lines.append(f"start: {start['source']}{digest}, heads {start['heads']}")
    if checkpoint := _checkpoint(trainer):
        lines.append(f"checkpoint: {checkpoint}")
    logged: dict[str, Any] = dict(trainer.callback_metrics)
    row_0 = start_of(trainer)
    known = [name for name in logged if not name.endswith(CHANGE)]
    shown = [name for name in known if name == "train/loss" or name.startswith("val/")]
    if shown:
        values = (f"{name} {float(logged[name]):.4g}" for name in shown)
        lines.append(f"metrics: {', '.join(values)}")
    lines += [] if row_0 is None else row_0.summary()
    for report in sorted(folder.glob("*.html")):
        lines.append(f"report: {report}")
    if checkpoint:
        lines += ["next:", *_commands(folder, checkpoint, model, trainer.max_epochs or 0)]
    return "\n".join(lines)


def _checkpoint(trainer: Trainer) -> str:
    """The last checkpoint, otherwise the best; empty if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return callback.last_model_path or callback.best_model_path
    return ""


def _commands(folder: Path, checkpoint: str, model: LightningModule, epochs: int) -> list[str]:
    """The first two commands that can run on this module."""
    run = shlex.quote(str(folder))
    if is_folder_of_shards(Path(checkpoint)):
        whole, config = (shlex.quote(str(folder / name)) for name in ("whole.ckpt", "config.yaml"))
        return [
            f"sslzoo consolidate {run} --to {whole}",
            f"sslzoo eval {whole} --on {config}",
        ]
    given = f"--config {shlex.quote(f'{folder}/config.yaml')} --ckpt_path {shlex.quote(checkpoint)}"
    pages = importlib.util.find_spec("jinja2") and importlib.util.find_spec("matplotlib")
    validates = is_overridden("validation_step", model) and not isinstance(model, SSLMethod)
    known = [
        (callable(getattr(model, "encoder", None)), f"sslzoo eval {run}"),
        (validates, f"sslzoo validate {given}"),
        (bool(pages), f"sslzoo report {run}"),
        (epochs > 0, f"sslzoo fit {given} --trainer.max_epochs={2 * epochs}"),
    ]
    return [command for can, command in known if can][:2]
