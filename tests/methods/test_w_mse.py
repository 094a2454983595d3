"""W-MSE's step through its head equals the authors' code; its own rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.heads import MLP
from sslzoo.methods import WMSE
from tests.golden import FOLDER, assert_close_to_golden, load

LOSSES = sorted(path.name for path in (FOLDER / "wmse").glob("loss_*.npz"))
NO_GRADIENT = {"0.bias", "3.bias"}  # batch norm and whitening subtract the mean


class Given(nn.Identity):
    """Backbone that returns its input: the arrays are features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def official_head(z: dict[str, Any]) -> MLP:
    """The authors' head with the weights that it had."""
    hidden, wide = z["head:0.weight"].shape
    head = MLP([wide, hidden, z["head:3.weight"].shape[0]])
    weights = {name[5:]: torch.tensor(x) for name, x in z.items() if name.startswith("head:")}
    head.layers.load_state_dict(weights)
    return head


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_the_authors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z = load(f"wmse/{name}")
    hyper, head = z["meta"]["hyper"], official_head(z)
    settings = [hyper[key] for key in ("w_size", "w_iter", "w_eps", "norm")]
    method = WMSE(Given(head.in_features), head, *settings)
    monkeypatch.setattr(method, "permutations", lambda *_: torch.tensor(z["perm"]))
    embeddings: list[torch.Tensor] = []
    head.register_forward_hook(lambda *args: embeddings.append(args[2]) or args[2].retain_grad())
    batch = Batch(list(torch.tensor(z["views"])), torch.arange(hyper["bs"]))
    loss = method.losses(batch)["w_mse"]
    loss.backward()
    assert_close_to_golden(loss, z["loss"], 1e-6)
    (embedding,) = embeddings  # (B V, D), sample by sample; theirs is view by view
    for got, want in ((embedding, "embedding"), (embedding.grad, "grad_embedding")):
        assert got is not None
        by_view = got.unflatten(0, (hyper["bs"], -1)).transpose(0, 1).flatten(0, 1)
        assert_close_to_golden(by_view, z[want], 1e-5)
    for path, parameter in head.layers.named_parameters():
        assert parameter.grad is not None
        if path in NO_GRADIENT:
            largest = torch.tensor(z[f"grad:{path.replace('bias', 'weight')}"]).abs().max()
            assert parameter.grad.abs().max() < 1e-5 * largest
            assert abs(z[f"grad:{path}"]).max() < 1e-5 * largest
        else:
            assert_close_to_golden(parameter.grad, z[f"grad:{path}"], 3e-5)  # float32's own


def small(out_dim: int = 6, **options: Any) -> WMSE:
    torch.manual_seed(0)
    return WMSE(SmallResNet((4, 8)), MLP([8, 16, out_dim], bias=False), **options)


def images(n: int, *sizes: int) -> Batch:
    return Batch([torch.randn(n, 3, size, size) for size in sizes], torch.arange(n))


def test_every_iteration_and_step_has_a_permutation_of_its_own() -> None:
    method = small(sub_batch_size=12, num_iterations=3)
    first = method.permutations(24, torch.device("cpu"))
    assert torch.equal(first.sort(dim=1).values, torch.arange(24).expand(3, 24))
    assert len(first.unique(dim=0)) == 3
    assert torch.equal(first, method.permutations(24, torch.device("cpu")))
    method.step = 1
    assert not torch.equal(first, method.permutations(24, torch.device("cpu")))


@pytest.mark.parametrize("views", [2, 4])
def test_it_trains_on_more_views(views: int) -> None:
    loss = small(sub_batch_size=12).losses(images(24, *[8] * views))["w_mse"]
    loss.backward()
    assert 0 < loss < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sub_batch_size": 6}, r"sub_batch_size must be above 6, the dimensions .*, got 6"),
        ({"sub_batch_size": 1, "eps": 0.1}, r"sub_batch_size must be at least 2, .*, got 1"),
        ({"num_iterations": 0}, r"num_iterations must be at least 1, got 0"),
        ({"eps": -0.1}, r"eps must be in \[0, 1\), got -0.1"),
        ({"eps": 1.0}, r"eps must be in \[0, 1\), got 1.0"),
        ({"sub_batch_size": [8]}, r"sub_batch_size must be a whole number, got \[8\]"),
        ({"num_iterations": 1.5}, r"num_iterations must be a whole number, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    method = small(sub_batch_size=8)
    with pytest.raises(ValueError, match=r"multiple of sub_batch_size 8, got 12"):
        method.training_step(images(12, 8, 8), 0)
    with pytest.raises(ValueError, match=r"must have at least 2 views per sample, got 1"):
        method.training_step(images(8, 8), 0)


@pytest.mark.filterwarnings("ignore:.*(LeafSpec|val_dataloader|many workers|logging interval)")
def test_an_incomplete_last_batch_is_refused_before_the_first_step() -> None:
    """Instead of after a whole epoch."""
    method = small(sub_batch_size=8, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    views = torch.rand(44, 2, 3, 8, 8)

    def fit(drop_last: bool, **options: Any) -> None:
        data = TensorDataset(views.unbind(1)[0], views.unbind(1)[1], torch.arange(44))
        loader = DataLoader(data, 16, drop_last=drop_last, collate_fn=together)
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
        trainer.fit(method, loader)

    with pytest.raises(ValueError, match=r"WMSE must be a multiple of 8, .* got 12 .* drop_last"):
        fit(drop_last=False)
    assert method.step == 0
    fit(drop_last=False, limit_train_batches=2)
    assert method.step == 2
    fit(drop_last=True)


def together(rows: list[Any]) -> Batch:
    first, second, index = (torch.stack(part) for part in zip(*rows, strict=True))
    return Batch([first, second], index)
