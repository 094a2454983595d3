"""VICRegL's forward equals the authors'; its options, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, cifar_resnet, small_vit, timm_backbone
from sslzoo.batch import Batch
from sslzoo.heads import MLP
from sslzoo.losses import crop_centers
from sslzoo.losses.vicregl import nearest
from sslzoo.methods import VICRegL
from sslzoo.optim import RunLength, WarmupCosine
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks

HEADS = {"projector": "projector.", "map_projector": "maps_projector."}


class Stored(nn.Module):
    """A backbone whose view is its feature map (B, L, R) and its features (B, R)."""

    num_features = map_features = 9

    def forward_map(self, view: tuple[Tensor, Tensor]) -> Tensor:
        m, self.features = view
        side = round(m.shape[1] ** 0.5)
        return m.transpose(1, 2).unflatten(2, (side, side))

    def forward_from_map(self, m: Tensor) -> Tensor:
        return self.features


def boxes() -> Tensor:
    """The authors' crops, (8, 4, 5)."""
    z = load("vicregl/matching.npz")
    each = [np.concatenate([z[f"box{v}"][:, :4], z[f"flip{v}"][:, None]], 1) for v in range(4)]
    return torch.tensor(np.stack(each, axis=1))


def head(z: dict[str, Any], prefix: str, *sizes: int, groups: int) -> MLP:
    mlp = MLP(sizes, last_bias=False, bn_groups=groups)
    own = {key.removeprefix(f"param:{prefix}"): value for key, value in z.items()}
    mlp.layers.load_state_dict({key: torch.tensor(own[key]) for key in mlp.layers.state_dict()})
    return mlp


def _official(rank: int, z: dict[str, Any], every: bool) -> dict[str, Any]:
    world = z["meta"]["hyper"]["world"]
    method = VICRegL(
        Stored(),  # its batch norms are per rank
        head(z, "projector.", 9, 8, 7, 6, groups=world),
        head(z, "maps_projector.", 9, 7, 6, 5, groups=world),
        alpha=z["meta"]["hyper"]["alpha"],
        num_matches=tuple(z["meta"]["hyper"]["num_matches"]),
        match_all_features=every,
        flip_grid=True,
    )
    views = [
        tuple(torch.tensor(z[f"{kind}{v}"][rank]).requires_grad_() for kind in ("bmaps", "rep"))
        for v in range(4)
    ]
    own = boxes().chunk(world)[rank]
    terms = method.losses(Batch(views, torch.arange(len(own)), None, own))
    torch.stack(list(terms.values())).sum().backward()
    grads = {
        f"{name}{v}": x.grad
        for v, view in enumerate(views)
        for name, x in zip(("bmaps", "rep"), view, strict=True)
    }
    for name, parameter in method.named_parameters():
        part, _, rest = name.partition(".layers.")
        grads[f"param:{HEADS[part]}{rest}"] = parameter.grad
    # The authors' classifier of the first view, which is no part of our method.
    weight, bias = (torch.tensor(z[f"param:classifier.{k}"]) for k in ("weight", "bias"))
    classifier = [weight.requires_grad_(), bias.requires_grad_()]
    labels = torch.tensor(z["labels"][rank])
    logits = nn.functional.linear(views[0][1].detach(), *classifier)
    scored = nn.functional.cross_entropy(logits, labels)
    scored.backward()
    grads["param:classifier.weight"], grads["param:classifier.bias"] = (x.grad for x in classifier)
    return {"terms": [x.item() for x in terms.values()], "scored": scored.item(), "grads": grads}


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("world", [1, 2])
def test_equals_the_authors(ranks: Ranks, world: int, every: bool) -> None:
    z = load(f"vicregl/loss_{world}rank.npz")
    name = f"l2all{int(every)}"
    compared = 0
    for rank, found in enumerate(ranks(world, _official, z, every)):
        wanted = z[f"forward_terms_{name}"][rank]  # without alpha
        alpha = z["meta"]["hyper"]["alpha"]
        got = np.array(found["terms"]) / np.repeat([alpha, 1 - alpha], 3)
        assert_close_to_golden([*got, found["scored"]], wanted, 1e-6)
        total = sum(found["terms"]) + found["scored"]
        assert_close_to_golden(total, z[f"forward_loss_{name}"][rank], 1e-6)
        for key, grad in found["grads"].items():
            if not every or f"forward_grad_{key}" not in z:
                continue
            want, compared = z[f"forward_grad_{key}"][rank], compared + 1
            if key.endswith(("0.bias", "3.bias")):  # removed by batch norm: rounding noise
                assert abs(want).max() < 1e-5
                assert abs(grad).max() < 1e-5
            else:
                assert_close_to_golden(grad, want, 5e-6)
    assert compared == every * world * (8 + 18 + 2)


@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
def test_the_expander_is_the_authors(norm: str) -> None:
    z = load(f"vicregl/projector_{norm}.npz")
    mlp = MLP([9, 8, 7, 6], last_bias=False, norm="layer" if norm == "layer_norm" else True)
    given = {
        key.removeprefix("param:"): torch.tensor(value)
        for key, value in z.items()
        if key.startswith("param:")
    }
    mlp.layers.load_state_dict(given)
    assert_close_to_golden(mlp(torch.tensor(z["x"])), z["out"], 1e-6)


def test_the_rates_are_the_authors() -> None:
    z = load("vicregl/schedule.npz")
    hyper = z["meta"]["hyper"]
    base = hyper["base_lr"] * hyper["batch_size"] / 256
    schedule = WarmupCosine(warmup_epochs=hyper["warmup_steps"], end_factor=hyper["end_lr_ratio"])
    length = RunLength(hyper["total_steps"], 1)
    rates = [base * schedule(int(step), length) for step in z["step"]]
    assert_close_to_golden(rates, z["lr"], 1e-7)


def small(**options: Any) -> VICRegL:
    torch.manual_seed(0)
    heads = [MLP([8, 16, dim], bias=False, last_bias=False) for dim in (6, 5)]
    return VICRegL(SmallResNet((4, 8)), *heads, **{"num_matches": (3, 2), **options}).double()


def batch(flip: int = 1) -> Batch:
    draw = torch.Generator().manual_seed(0)
    views = [
        torch.randn(6, 3, side, side, generator=draw, dtype=torch.float64) for side in (8, 8, 4)
    ]
    crops = torch.tensor([[0, 3, 20, 17, 0], [5, 0, 15, 21, flip], [8, 9, 6, 7, 0]])
    return Batch(views, torch.arange(6), None, crops.expand(6, 3, 5))


def test_the_terms_have_their_weights() -> None:
    one, data = small(), batch()
    plain = one.losses(data)
    other = small(
        alpha=0.5, invariance_weight=5.0, variance_weight=50.0, covariance_weight=3.0
    ).losses(data)
    factors = [0.5 / 0.75 / 5, 0.5 / 0.75 * 2, 0.5 / 0.75 * 3, 2 / 5, 4, 6]
    for name, factor in zip(plain, factors, strict=True):
        torch.testing.assert_close(other[name], factor * plain[name])


def test_a_flip_counts_only_with_flip_grid() -> None:
    def local(flip_grid: bool, flip: int) -> Tensor:
        return small(flip_grid=flip_grid).losses(batch(flip))["local_invariance"]

    assert torch.equal(local(False, 0), local(False, 1))  # the code's default
    assert torch.equal(local(False, 0), local(True, 0))
    assert not torch.equal(local(True, 0), local(True, 1))


def test_pictures_that_show_the_same_match_by_position() -> None:
    """The second crop is the right half of the first, at twice the scale: its cells lie there."""
    first, second = torch.tensor([[0, 0, 8, 8, 0]]), torch.tensor([[0, 4, 4, 4, 1]])
    found = nearest(crop_centers(second, (2, 2)), crop_centers(first, (4, 4)))
    assert found.others.tolist() == [[3, 2, 7, 6]]  # mirrored
    unflipped = nearest(crop_centers(second, (2, 2), flip=False), crop_centers(first, (4, 4)))
    assert unflipped.others.tolist() == [[2, 3, 6, 7]]


@pytest.mark.parametrize(
    "net",
    [
        lambda: SmallResNet((4, 8)),
        lambda: cifar_resnet("resnet18"),
        lambda: timm_backbone("resnet18"),
        lambda: timm_backbone("convnext_atto"),
    ],
    ids=["small", "cifar", "resnet", "convnext"],
)
def test_features_are_those_of_the_map(net: Any) -> None:
    backbone = net().eval()
    x = torch.rand(2, 3, 64, 64)
    m = backbone.forward_map(x)
    assert m.shape[1] == backbone.map_features
    torch.testing.assert_close(backbone.forward_from_map(m), backbone(x))


@pytest.mark.parametrize("side", [2, 3])
def test_a_crop_of_no_area_is_refused_at_every_step(side: int) -> None:
    method, data = small(), batch()
    method.training_step(data, 0)
    assert data.boxes is not None
    boxes = data.boxes.clone()
    boxes[4, 1, side] = 0
    with pytest.raises(ValueError, match=r"at least 1, got \[.*\] in view 1 of row 4, the first"):
        method.training_step(data._replace(boxes=boxes), 1)


def test_bad_input_is_refused_in_one_sentence() -> None:
    method, data = small(), batch()
    for boxes, match in (
        (None, r"batch of VICRegL must have the boxes of its crops, got none; set boxes: true"),
        (torch.zeros(6, 2, 5).long(), r"must be integers \(6, 3, 5\).*got \(6, 2, 5\) int64"),
        (torch.zeros(6, 3, 5), r"must be integers .*got \(6, 3, 5\) float32"),
    ):
        with pytest.raises(ValueError, match=match):
            method.takes.check(data._replace(boxes=boxes), "VICRegL")
    with pytest.raises(ValueError, match=r"num_matches must be in 1\.\.16, .*, got 20"):
        small(num_matches=(20, 4)).losses(data)
    mlp = MLP([8, 4])
    with pytest.raises(ValueError, match=r"each of num_matches must be at least 1, got 0"):
        small(num_matches=(3, 0))
    with pytest.raises(ValueError, match="num_matches must be two numbers from 1, got 5"):
        small(num_matches=5)
    for name in ("invariance_weight", "variance_weight", "covariance_weight"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, inf\), got -1"):
            small(**{name: -1})
    large, _, small_crop = data.views
    with pytest.raises(ValueError, match="the first views of VICRegL must be the largest"):
        method.takes.check(data._replace(views=[small_crop, small_crop, large]), "VICRegL")
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.5"):
        small(alpha=1.5)
    with pytest.raises(ValueError, match=r"map_projector must have in_features 8, .* got 7"):
        VICRegL(SmallResNet((4, 8)), mlp, MLP([7, 4]))
    vit = small_vit(8, 4, width=8, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=r"forward_from_map .*, got ViT without forward_from_map"):
        VICRegL(vit, mlp, mlp)
