"""A run resumed from any checkpoint sees the batches and views that it would have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.data.toys import Recorder, ToyData

pytestmark = [
    # Lightning 2.6.6 flattens loaders with an old spelling of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # Lightning saves checkpoints here more often than anybody would want to be told.
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty"),
    # A resumed run here saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

EPOCHS = 3


def run(
    folder: Path, data: dict[str, Any], resume: Path | None = None, **options: Any
) -> tuple[Recorder, Trainer]:
    module = Recorder()
    saves = [
        ModelCheckpoint(folder, "step={step}", every_n_train_steps=1, save_top_k=-1,
                        auto_insert_metric_name=False),
        ModelCheckpoint(folder, "epoch={epoch}", every_n_epochs=1, save_top_k=-1,
                        save_on_train_epoch_end=True, auto_insert_metric_name=False),
    ]  # fmt: skip
    trainer = Trainer(
        **{"max_epochs": EPOCHS, **options},
        accelerator="cpu",
        logger=False,
        callbacks=[] if resume else saves,
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=ToyData(**data), ckpt_path=resume)
    return module, trainer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("limit", [None, 3])
def test_every_checkpoint_resumes_exactly(tmp_path: Path, accumulate: int, limit: int | None):
    options = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit}
    whole, _ = run(tmp_path, {}, **options)
    batches = limit or 5  # 23 samples, batches of 4
    assert len(whole.seen) == EPOCHS * batches
    assert len({tuple(x[2]) for x in whole.seen}) == len(whole.seen)  # each epoch is shuffled anew
    steps = -(-batches // accumulate)
    for path in sorted(tmp_path.glob("step=*.ckpt")):
        step = int(path.stem.split("=")[1])
        done = step // steps * batches + step % steps * accumulate
        assert run(tmp_path, {}, path, **options)[0].seen == whole.seen[done:], path.name
    for path in tmp_path.glob("epoch=*.ckpt"):
        done = (int(path.stem.split("=")[1]) + 1) * batches
        assert run(tmp_path, {}, path, **options)[0].seen == whole.seen[done:], path.name


@pytest.mark.parametrize("name", ["step=4", "step=5", "step=7", "epoch=0"])
def test_workers_resume_exactly(tmp_path: Path, name: str):
    whole, _ = run(tmp_path, {})
    done = 5 if name == "epoch=0" else int(name[5:])
    resumed, _ = run(tmp_path, {"num_workers": 2}, tmp_path / f"{name}.ckpt")
    assert resumed.seen == whole.seen[done:]
    saved, _ = run(tmp_path / "workers", {"num_workers": 2})
    assert saved.seen == whole.seen
    resumed, _ = run(tmp_path, {}, tmp_path / "workers" / f"{name}.ckpt")
    assert resumed.seen == whole.seen[done:]


@pytest.mark.parametrize("name", ["step=4", "step=5", "step=7", "epoch=0", "epoch=1"])
def test_runs_counted_in_steps_resume_exactly(tmp_path: Path, name: str):
    options = {"max_epochs": -1, "max_steps": 13}
    whole, _ = run(tmp_path, {}, **options)
    done = 5 * (int(name[6:]) + 1) if name.startswith("epoch") else int(name[5:])
    resumed, _ = run(tmp_path, {}, tmp_path / f"{name}.ckpt", **options)
    assert resumed.seen == whole.seen[done:]


def test_other_batches_are_refused_inside_an_epoch(tmp_path: Path):
    run(tmp_path, {})
    with pytest.raises(ValueError, match=r"batch_size must be 4 to resume .* got 2"):
        run(tmp_path, {"batch_size": 2}, tmp_path / "step=4.ckpt")


@pytest.mark.parametrize("limit", [None, 3])
def test_other_batches_follow_the_end_of_an_epoch(tmp_path: Path, limit: int | None):
    """Of one that was limited too, and of one with fewer batches than the next."""
    options = {"limit_train_batches": limit}
    run(tmp_path, {}, **options)
    for size in (2, 5):
        whole, _ = run(tmp_path / f"{size}", {"batch_size": size}, **options)
        resumed, _ = run(tmp_path, {"batch_size": size}, tmp_path / "epoch=0.ckpt", **options)
        assert resumed.seen == whole.seen[limit or 23 // size :], size


def test_run_that_max_steps_ended_within_an_epoch_is_not_at_its_end(tmp_path: Path):
    run(tmp_path, {}, max_epochs=-1, max_steps=7)
    with pytest.raises(ValueError, match=r"batch_size must be 4 to resume .* got 2"):
        run(tmp_path, {"batch_size": 2}, tmp_path / "epoch=1.ckpt", max_epochs=-1, max_steps=9)
