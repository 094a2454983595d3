"""DeepCluster-v2: its epochs, from the first filling on, and what a resume finds.

The authors' clusterings: tests/memory/test_clusters.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch, as_batch
from sslzoo.heads import MLP
from sslzoo.methods import DeepClusterV2
from tests.data.toys import ToyData
from tests.ranks import Ranks, assert_same_step

pytestmark = [
    # Lightning 2.6.6 flattens loaders with an old spelling of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty"),
    # A resumed run here saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def method(**options: Any) -> DeepClusterV2:
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    sizes = {"bank_size": 23, "num_prototypes": [5, 4, 3], "optimizer": sgd}
    head = MLP([8, 12, 6], bias=False)
    return DeepClusterV2(SmallResNet((4, 8)), head, **{**sizes, **options})


class Record(Callback):
    """The memory at the start of each epoch, and the loss of each batch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []
        self.losses: list[float] = []
        self.steps: list[int] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            memory = pl_module.clusters.state_dict()
            self.epochs.append({name: value.clone() for name, value in memory.items()})
            self.steps.append(pl_module.step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def run(net: DeepClusterV2, *more: Callback, resume: Path | None = None, epochs: int = 3) -> Record:
    record = Record()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[record, *more],
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in more),
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(net, datamodule=ToyData(), ckpt_path=resume)
    return record


def test_the_memory_is_filled_and_clustered_before_the_first_step() -> None:
    record = run(method())
    first = record.epochs[0]
    assert record.steps == [0, 5, 10]
    seen = first["rows"].flatten(1).any(dim=1)
    assert int(seen.sum()) == 20  # five batches of 4 of the 23 samples
    assert ((first["assignments"] >= 0).all(dim=1) == seen).all()
    torch.testing.assert_close(first["rows"].norm(dim=-1)[seen], torch.ones(20, 2))
    assert [int(epoch["epoch"]) for epoch in record.epochs] == [0, 1, 2]
    assert all(loss > 0 for loss in record.losses)


def test_each_epoch_clusters_what_the_last_one_saw() -> None:
    record = run(method())
    for before, now in zip(record.epochs, record.epochs[1:], strict=False):
        assert not torch.equal(before["rows"], now["rows"])
        for h in range(3):
            rows, centroids = now["rows"][:, h % 2], now[f"centroids_{h}"]
            known = now["assignments"][:, h] >= 0
            nearest = (rows @ centroids.T).argmax(dim=1)
            assert torch.equal(nearest[known], now["assignments"][known, h])


def test_the_filling_trains_nothing_and_uses_the_views_of_the_first_epoch() -> None:
    net, trainerless = method(), method()
    weights = [p.clone() for p in net.parameters()]

    class Compare(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                assert all(map(torch.equal, pl_module.parameters(), weights))
                z = trainerless.embed_crops(batch.views)
                torch.testing.assert_close(pl_module.clusters.rows[batch.index], z.detach())

    run(net, Compare(), epochs=1)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, step: int) -> None:
    """Inside the first epoch, at an epoch's end, inside a later epoch."""
    save = ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )
    whole = method()
    wanted = run(whole, save)
    resumed = method()
    got = run(resumed, resume=tmp_path / f"{step}.ckpt")
    assert got.losses == wanted.losses[step:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def _clustered(counts: tuple[int, ...], rank: int) -> tuple[DeepClusterV2, Batch]:
    net = method(bank_size=20).double()
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(14, 2, 6, generator=generator).double()
    net.clusters.rows[:14] = F.normalize(rows, dim=-1)
    net.clusters.cluster(0, 0)
    views = [torch.randn(8, 3, s, s, generator=generator).double() for s in (8, 8, 6)]
    index = torch.tensor([3, 19, 0, 7, 15, 12, 1, 9])  # two of them are in no cluster
    parts = [view.split(counts)[rank] for view in views]
    return net, Batch(parts, index.split(counts)[rank])


def _step(rank: int, counts: tuple[int, ...]) -> dict[str, Any]:
    net, batch = _clustered(counts, rank)
    loss = net.losses(batch)["cluster_cross_entropy"]
    loss.backward()
    net.clusters.commit()
    net.clusters.cluster(1, 0)
    grads = {name: p.grad for name, p in net.named_parameters()}
    return {"loss": loss.detach(), "grads": grads, "state": dict(net.state_dict())}


@pytest.mark.parametrize("counts", [(4, 4), (5, 3), (1, 4, 3)])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    one = _step(0, (8,))
    results = ranks(len(counts), _step, counts)
    assert_same_step(results, one)


def test_value_is_the_authors_formula() -> None:
    """Their torch calls: repeated targets, one mean a clustering, the mean of those."""
    net, batch = _clustered((8,), 0)
    loss = net.losses(batch)["cluster_cross_entropy"]
    again, _ = _clustered((8,), 0)
    z = again.embed_crops(batch.views).transpose(0, 1).flatten(0, 1)  # crop after crop
    wanted = torch.zeros((), dtype=torch.float64)
    for h, centroids in enumerate(again.clusters.centroids):
        targets = again.clusters.assignments[batch.index, h].repeat(3)
        wanted = wanted + F.cross_entropy(z @ centroids.T / 0.1, targets, ignore_index=-100)
    torch.testing.assert_close(loss, wanted / 3)


def test_a_bank_of_another_size_than_the_data_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"bank_size must be 23, .*, got 24"):
        run(method(bank_size=24))


def test_more_clusters_than_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 20, the number of samples seen, got 21"):
        run(method(num_prototypes=[21]))


def test_a_batch_without_indices_says_how_to_get_them() -> None:
    with pytest.raises(ValueError, match="with_views"):
        method().losses(as_batch([torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]))
