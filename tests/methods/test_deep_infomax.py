"""Deep InfoMax: who moves whom, the terms' weights, and what it asks of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.heads import MapEncoder, MI1x1ConvNet, PriorDiscriminator
from sslzoo.losses import dim_donsker_varadhan, dim_fenchel_dual, dim_info_nce
from sslzoo.methods import DeepInfoMax
from tests.toys import Pooled


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "backbone": SmallResNet((8, 16), map_block=1),
        "projector": nn.Linear(16, 6),
        "summary_head": MI1x1ConvNet(6, 8),
        "local_head": MI1x1ConvNet(16, 8),
        "global_head": MapEncoder(16, 4, 8),
        "discriminator": PriorDiscriminator(6, (16, 8)),
        "global_weight": 0.5,
    }


def batch() -> Batch:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch([x], index=torch.arange(4))


def moved(method: DeepInfoMax, loss: Tensor) -> set[str]:
    method.zero_grad()
    loss.backward()
    return {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}


def test_each_side_of_the_prior_is_blind_to_the_other() -> None:
    method = DeepInfoMax(**parts())
    assert moved(method, method.losses(batch())["discriminator"]) == {"discriminator"}
    assert moved(method, method.losses(batch())["prior"]) == {"backbone", "projector"}


def test_local_and_global_terms_move_their_own_heads() -> None:
    method = DeepInfoMax(**parts())
    both = {"backbone", "projector", "summary_head"}
    assert moved(method, method.losses(batch())["local"]) == {*both, "local_head"}
    assert moved(method, method.losses(batch())["global"]) == {*both, "global_head"}


def test_terms_are_weighted_and_the_discriminators_is_not() -> None:
    one = DeepInfoMax(**parts()).losses(batch())
    given = {"local_weight": 3.0, "global_weight": 1.0, "prior_weight": 0.3}
    other = DeepInfoMax(**{**parts(), **given}).losses(batch())
    for name, factor in {"local": 3, "global": 2, "prior": 3, "discriminator": 1}.items():
        torch.testing.assert_close(other[name], factor * one[name])


@pytest.mark.parametrize("bound", [dim_fenchel_dual, dim_info_nce, dim_donsker_varadhan])
def test_local_term_is_the_bound_of_the_encodings(bound: Any) -> None:
    method = DeepInfoMax(**parts(), bound=bound)
    m = method.backbone.forward_map(batch().views[0])
    psi = method.summary_head(method.projector(method.backbone.forward_from_map(m)))
    torch.testing.assert_close(method.losses(batch())["local"], bound(method.local_head(m), psi))


def test_local_dim_alone() -> None:
    given = {**parts(), "global_head": None, "global_weight": 0.0}
    assert list(DeepInfoMax(**given).losses(batch())) == ["local", "prior", "discriminator"]
    given |= {"discriminator": None, "prior_weight": 0.0}
    assert list(DeepInfoMax(**given).losses(batch())) == ["local"]


def test_prior_draws_follow_the_sample_and_the_step() -> None:
    method = DeepInfoMax(**parts()).eval()
    here = batch()
    value = method.losses(here)["discriminator"]
    turned = Batch([here.views[0].flip(0)], here.index.flip(0))
    torch.testing.assert_close(method.losses(turned)["discriminator"], value)
    no_index = Batch(here.views, here.index[:0])  # a foreign loader's
    torch.testing.assert_close(method.losses(no_index)["discriminator"], value)
    method.step = 1
    assert method.losses(here)["discriminator"] != value


def test_steps_lower_the_loss() -> None:
    given = {**parts(), "global_head": None, "global_weight": 0.0}
    method = DeepInfoMax(**given, bound=dim_info_nce, optimizer=lambda p: torch.optim.Adam(p, 1e-2))
    optimizer = method.configure_optimizers()
    values = []
    for _ in range(20):
        loss = torch.stack(list(method.losses(batch()).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.7 * values[0]


def test_required_parts_alone_are_the_local_form() -> None:
    given = parts()
    method = DeepInfoMax(given["backbone"], given["projector"], given["summary_head"])
    assert list(method.losses(batch())) == ["local", "prior", "discriminator"]
    assert (method.local_weight, method.prior_weight) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": Pooled(16)}, "got Pooled without map_features"),
        ({"local_head": MI1x1ConvNet(8, 8)}, "local_head must have in_features 16, .* got 8"),
        ({"local_head": MI1x1ConvNet(16, 4)}, "must have out_features 8, .* got 4"),
        (
            {"discriminator": PriorDiscriminator(5)},
            "must have in_features 6, .* got 5",
        ),
        ({"discriminator": None}, "prior_weight above 0, or neither, got None and 0.1"),
        ({"global_weight": 0.0}, "global_weight above 0, or neither, got MapEncoder and 0.0"),
        ({"projector": nn.Linear(8, 6)}, "Linear must have in_features 16"),
        (
            {
                "local_head": None,
                "local_weight": 0.0,
                "global_head": None,
                "global_weight": 0.0,
            },
            "nothing to maximize",
        ),
    ],
)
def test_wrong_parts_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepInfoMax(**{**parts(), **change})
