"""What only a device can prove: every method there is the method on the CPU, and never waits.

Skipped where there is no CUDA device. Toys in float64 unless the test says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.eval.knn import classify, knn_top1, search
from sslzoo.losses import info_nce, nt_xent, sinkhorn
from sslzoo.random import sample_keys
from sslzoo.trainable import Trainable
from tests.test_every_method import (
    BATCH,
    assert_same,
    batches,
    battery,
    fit,
    state,
    toy,
    train,
    trainer,
)
from tests.toys import every_trainable
from tests.transforms.image.test_views import RECIPES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
TRAINABLES = every_trainable()


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """float32 as such: convolutions would round their factors to 10 bits (TF32)."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_host(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in named.items()}


def assert_same_run(actual: dict[str, Any], wanted: dict[str, Any]) -> None:
    for part in ("gradients", "state"):
        assert_same(on_host(actual[part]), on_host(wanted[part]))
    loss = actual["loss"].cpu()
    torch.testing.assert_close(loss, wanted["loss"].cpu(), rtol=1e-6, atol=0)  # a float32 log


@battery(TRAINABLES)
def test_a_run_equals_the_cpu_s(cls: type[Trainable]) -> None:
    assert_same_run(train(0, cls, 1, 1, accelerator="gpu"), train(0, cls, 1, 1))


class NoWaiting(Callback):
    """From the third step on, an operation that waits for the device is an error."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        torch.cuda.set_sync_debug_mode("error" if trainer.global_step >= 2 else "default")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        torch.cuda.set_sync_debug_mode("default")


def _single(cls: type[Trainable]) -> tuple[Any, Batch]:
    """The toy in float32, with the optimizer of the recipes."""
    method, data = toy(cls)
    method._optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=True)

    def narrow(view: Any) -> Any:
        if isinstance(view, Tensor):
            return view.float() if view.is_floating_point() else view
        return type(view)(*map(narrow, view))

    return method.float(), data._replace(views=[narrow(view) for view in data.views])


@battery(TRAINABLES)
def test_no_step_waits_for_the_device(cls: type[Trainable]) -> None:
    torch.manual_seed(0)
    method, data = _single(cls)
    run = trainer(accelerator="gpu", devices=1, callbacks=[NoWaiting()])
    fit(run, method, batches(data, BATCH, 0, 1))
    assert method.step == 6


@battery(TRAINABLES)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_stays_near_float32(cls: type[Trainable], precision: str) -> None:
    float16 = precision == "16-mixed"

    def go(precision: str) -> Tensor:
        torch.manual_seed(0)
        method, data = _single(cls)
        run = trainer(1, accelerator="gpu", devices=1, precision=precision)
        few = 1 if float16 else None  # its scaler may leave out the first steps
        fit(run, method, batches(data, BATCH, 0, 1)[:few])
        assert all(value.isfinite().all() for value in state(method).values())
        return run.callback_metrics["train/loss"]

    loss, wanted = go(precision), go("32-true")
    torch.testing.assert_close(loss, wanted, rtol=0.1, atol=0.1)


class StopAfter(Callback):
    """Ends a run early, with the horizon of the whole."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@battery(TRAINABLES)
def test_resume_equals_going_on(cls: type[Trainable], tmp_path: Path) -> None:
    def go(epochs: int, resume: str | None = None) -> tuple[Trainer, Trainable]:
        torch.manual_seed(0)
        method, data = toy(cls)
        options = {"accelerator": "gpu", "devices": 1}
        run = trainer(4, callbacks=[StopAfter(epochs)], **options)
        fit(run, method, batches(data, BATCH, 0, 1), resume)
        return run, method

    _, whole = go(4)
    half, _ = go(2)
    path = str(tmp_path / "half.ckpt")
    half.save_checkpoint(path)
    _, resumed = go(4, path)
    assert_same(on_host(state(resumed)), on_host(state(whole)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_views_are_the_cpu_s(recipe: str) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 40, 50), dtype=torch.uint8, generator=draw)
    index = torch.arange(16)
    views = RECIPES[recipe]()
    wanted = views(images, sample_keys(0, 2, index))
    for epoch in range(3):  # from the second batch on draws come from a table
        got = views(images.cuda(), sample_keys(0, epoch, index.cuda()))
    for one, other in zip(got, wanted, strict=True):
        # Hue and posterising have steps: a pixel at one may fall to its other side.
        far = (one.cpu() - other).abs() > 1e-3
        assert far.float().mean() < 1e-3
        torch.testing.assert_close(one.cpu()[~far], other[~far], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [100, 5000])
def test_losses_of_many_blocks_are_the_cpu_s(n: int) -> None:
    draw = torch.Generator().manual_seed(n)
    x, y, queue = (
        F.normalize(torch.randn(rows, 64, generator=draw, dtype=torch.float64))
        for rows in (n, n, 3 * n)
    )
    losses = {
        "nt_xent": lambda x, y, queue: nt_xent(x, y, 0.1),
        "info_nce": lambda x, y, queue: info_nce(x, y, queue, 0.1),
    }
    for name, loss in losses.items():
        found = []
        for device in ("cpu", "cuda"):
            leaves = [t.to(device).requires_grad_() for t in (x, y)]
            value = loss(*leaves, queue.to(device))
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
            found.append([value, *(g for g in grads if g is not None)])
        for got, want in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=1e-9, atol=1e-12, msg=name)
    scores = x @ queue[:50].T
    got = sinkhorn(scores.cuda().float(), 0.05, 3)
    torch.testing.assert_close(got.cpu(), sinkhorn(scores.float(), 0.05, 3), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tile", [7, 768])
def test_knn_is_the_cpu_s(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "SMALL", 0)  # float32 first, as for large sets
    monkeypatch.setattr(search, "QUERY_TILE", tile)
    draw = torch.Generator().manual_seed(0)
    bank, query = (F.normalize(torch.randn(n, 32, generator=draw)) for n in (3000, 700))
    known, asked = (torch.randint(0, 10, (n,), generator=draw) for n in (3000, 700))
    protocols = [(20, 0.07), (200, 0.1)]
    wanted = knn_top1(query, asked, bank, known, 10, protocols)
    got = knn_top1(*(x.cuda() for x in (query, asked, bank, known)), 10, protocols)
    assert got == wanted
