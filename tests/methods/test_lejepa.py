"""LeJEPA's step equals the authors' MINIMAL script; its own rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.batch import Batch
from sslzoo.heads import MLP, lejepa_projector
from sslzoo.losses import random_directions
from sslzoo.methods import LeJEPA, lejepa
from tests.golden import assert_close_to_golden, load


class Given(nn.Identity):
    """Backbone or projector that returns its input: the arrays are projections."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = self.in_features = self.out_features = dim


def test_loss_equals_the_authors_minimal_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their directions, which come from torch's global generator."""
    z = load("lejepa/minimal_loss.npz")
    hyper = z["meta"]["hyper"]
    monkeypatch.setattr(lejepa, "random_directions", lambda *_: torch.tensor(z["A"]))
    method = LeJEPA(Given(hyper["K"]), Given(hyper["K"]), sigreg_weight=hyper["lamb"])
    views = [torch.tensor(view, requires_grad=True) for view in z["proj"]]
    terms = method.losses(Batch(list(views), torch.arange(hyper["N"])))
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert_close_to_golden(terms["invariance"], (1 - hyper["lamb"]) * z["inv"], 1e-6)
    assert_close_to_golden(terms["sigreg"], hyper["lamb"] * z["sigreg"], 1e-6)
    assert_close_to_golden(loss, z["loss"], 1e-6)
    grads = [view.grad for view in views if view.grad is not None]
    assert_close_to_golden(torch.stack(grads), z["grad"], 5e-6)


def small(**options: float) -> LeJEPA:
    torch.manual_seed(0)
    net = SmallResNet((4, 8))
    return LeJEPA(net, MLP([8, 16, 6], bias=False), **{"num_directions": 16, **options})


def crops(*sizes: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 3, size, size, generator=generator) for size in sizes]
    return Batch(views, torch.arange(6))


def test_the_center_is_of_all_views_or_of_the_global_ones() -> None:
    batch, terms = crops(8, 8, 4, 4), {}
    for num_global in (None, 2):
        method = small(num_global=num_global, sigreg_weight=0.0).eval()
        terms[num_global] = method.losses(batch)["invariance"]
        z = torch.stack([method.projector(method(view)) for view in batch.views])  # (V, B, D)
        torch.testing.assert_close(terms[num_global], (z - z[:num_global].mean(0)).square().mean())
    assert terms[None] < terms[2]


def test_every_step_has_directions_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def record(*args: object) -> Tensor:
        drawn.append(random_directions(*args))
        return drawn[-1]

    monkeypatch.setattr(lejepa, "random_directions", record)
    method, batch = small(), crops(8, 8)
    for step in (0, 0, 1):  # two micro-batches of one step, and the next step
        method.step = step
        method.losses(batch)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.isclose(drawn[0], drawn[2]).any()


def test_a_vision_transformer_takes_crops_of_two_sizes() -> None:
    vit = small_vit(8, 4, width=16, depth=1, num_heads=2, drop_path_rate=0.1)
    method = LeJEPA(vit, lejepa_projector(16, 12, 8, 5), num_directions=4, num_global=2)
    loss = torch.stack(list(method.losses(crops(8, 8, 4, 4, 4)).values())).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_the_projector_is_a_linear_and_an_mlp() -> None:
    head = lejepa_projector(384)
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["Linear", "Linear", *["GlobalBatchNorm", "ReLU", "Linear"] * 2]
    shapes = [tuple(p.shape) for p in head.parameters() if p.dim() == 2]
    assert shapes == [(512, 384), (2048, 512), (2048, 2048), (16, 2048)]
    assert (head.in_features, head.out_features) == (384, 16)


def test_all_parameters_are_decayed() -> None:
    method = small()
    (group,) = method._parameter_groups(method)
    assert len(group["params"]) == len(list(method.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigreg_weight": 1.5}, r"sigreg_weight must be in \[0, 1\], got 1.5"),
        ({"num_directions": 0}, r"num_directions must be at least 1, got 0"),
        ({"num_global": 0}, r"num_global must be at least 1, got 0"),
        ({"num_directions": 2.5}, r"num_directions must be a whole number, got 2.5"),
        ({"num_directions": [1]}, r"num_directions must be a whole number, got \[1\]"),
        ({"sigreg_weight": [0.1]}, r"sigreg_weight must be a number, got \[0.1\]"),
    ],
)
def test_bad_arguments_are_refused_before_a_step(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options).training_step(crops(8, 8), 0)


def test_small_views_among_the_global_ones_and_a_single_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="the first 2 views of LeJEPA must have one shape"):
        small(num_global=2).training_step(crops(4, 8, 8), 0)
    with pytest.raises(ValueError, match="the first views of LeJEPA must be the largest"):
        small(num_global=2).training_step(crops(4, 4, 8), 0)
    one = Batch([view[:1] for view in crops(8, 8).views], torch.arange(1))
    with pytest.raises(ValueError, match="global batch must have at least 2 samples, got 1"):
        small().training_step(one, 0)


def test_too_few_views_are_refused() -> None:
    for method, number in ((small(), 1), (small(num_global=3), 2)):
        with pytest.raises(ValueError, match=rf"must have at least \d views.*, got {number}"):
            method.training_step(crops(*[8] * number), 0)
