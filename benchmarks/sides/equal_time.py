"""Equal time: training under a clock, the part that is common to both sides.

The clock starts before the data are read. The number of steps comes from a short trial whose time
does not count: `WARM_UPS` steps, then `TIMED` steps of the same model on the same data, or one that
was made before, in a quiet moment. The model is then built anew, from the seed, and trained for as
many steps as the rest of the time gives, so that schedules end where the time ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.worker import versions

WARM_UPS, TIMED = 3, 10


def cpu_seconds() -> float:
    """Of all threads, and of the processes that have ended: those that decode images."""
    return sum(os.times()[:4])


CLOCKS = {"cpu": cpu_seconds, "wall": time.perf_counter}
OUTCOME = "outcome.json"
LAST = 20  # steps whose mean loss is reported
Order = dict[str, Any]
Features = tuple[Tensor, Tensor, Tensor, Tensor]  # bank, its labels, queries, their labels


class Clock:
    """Seconds of CPU time or of wall time, without pauses."""

    def __init__(self, kind: str) -> None:
        self._now = CLOCKS[kind]
        self._start = self._now()

    @property
    def seconds(self) -> float:
        return self._now() - self._start

    @contextmanager
    def pause(self) -> Iterator[None]:
        before = self._now()
        yield
        self._start += self._now() - before


def recipe_steps(order: Order) -> int:
    """Steps of the recipe in its own length."""
    batch = order["recipe"]["data"]["init_args"]["batch_size"]
    images = sum(1 for path in (Path(order["data"]) / "train").glob("*/*") if path.is_file())
    return int(order["recipe"]["trainer"]["max_epochs"]) * max(1, images // batch)


def check_steps(steps: int, checks: int) -> list[int]:
    """Steps after which features are extracted: `checks` equal parts of the run, or its end."""
    parts = max(1, checks)
    return sorted({max(1, round(steps * (part + 1) / parts)) for part in range(parts)})


def watch(lightning: Any, clock: Clock, after: Callable[[Any, int], None]) -> Any:
    """A callback of either Lightning that keeps each step's loss and time, and calls `after`."""

    class Watch(lightning.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.losses: list[float] = []
            self.ends: list[float] = []

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            self.losses.append(float(outputs["loss"]))
            self.ends.append(clock.seconds)
            with clock.pause():
                after(pl_module, len(self.losses))

    return Watch()


def train(
    order: Order,
    lightning: Any,
    make_data: Callable[[Order], Any],
    make_model: Callable[[Order, int], Any],
    features: Callable[[Any, Any], Features],
) -> dict[str, Any]:
    """Train for the time of the order, and write features and an outcome into its folder.

    Args:
        order: see `benchmarks.equal_time.order_of`.
        lightning: `lightning` or `pytorch_lightning`.
        make_data: reads what training reads, and returns what `Trainer.fit` takes.
        make_model: the LightningModule for a run of that many steps.
        features: of the module and the data.
    """
    torch.set_num_threads(order["threads"])
    folder = Path(order["folder"])

    def fit(steps: int, after: Callable[[Any, int], None]) -> Any:
        lightning.seed_everything(order["seed"], verbose=False)
        watched = watch(lightning, clock, after)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            callbacks=[watched],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(make_model(order, steps), data)
        return watched

    lightning.seed_everything(order["seed"], verbose=False)
    clock = Clock(order["clock"])
    data = make_data(order)
    steps, trial = order["steps"], order["trial"]
    if steps is None:
        if trial is None:
            trial = {"set_up_seconds": clock.seconds}
            with clock.pause():
                ends = fit(WARM_UPS + TIMED, lambda *_: None).ends
            trial["trial_seconds_per_step"] = (ends[-1] - ends[WARM_UPS - 1]) / TIMED
        if order["only_trial"]:
            return {**trial, "versions": versions()}
        left = 60 * order["minutes"] - trial["set_up_seconds"]
        steps = max(1, int(left / trial["trial_seconds_per_step"]))
    wanted, checks = check_steps(steps, order["checks"]), []

    def check(module: Any, step: int) -> None:
        if step in wanted:
            name = f"features_{step}.pt"
            torch.save(features(module, data), folder / name)
            checks.append({"step": step, "seconds": clock.seconds, "file": name})

    watched = fit(steps, check)
    last = watched.losses[-LAST:]
    return {
        "steps": steps,
        "seconds": watched.ends[-1],
        **(trial or {}),
        "loss": sum(last) / len(last),
        "checks": checks,
        "versions": versions(),
    }


def main(side: Callable[[Order], dict[str, Any]]) -> None:
    """Carry out the order that stands on stdin."""
    order = json.load(sys.stdin)
    (Path(order["folder"]) / OUTCOME).write_text(json.dumps(side(order)))
