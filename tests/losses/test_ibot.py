"""iBOT's patch loss, and with DINO's of class tokens the authors' arrays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import dino, ibot_patches, teacher_probabilities
from sslzoo.memory import Center
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.ranks import Ranks


def _case(n: int = 6) -> list[Tensor]:
    """z (n, 4, 5), teacher (n, 4, 11), hidden (n, 4), v and g."""
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = draw(n, 4) > 0
    hidden[0] = False  # a crop without a mask
    return [draw(n, 4, 5), (3 * draw(n, 4, 11)).softmax(-1), hidden, draw(11, 5), draw(11, 1).exp()]


def _loss(z: Tensor, teacher: Tensor, hidden: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return ibot_patches(z, v, g, teacher, hidden, 0.1)


def reference(z: Tensor, teacher: Tensor, hidden: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Crop by crop and patch by patch."""
    weight = g * v / v.norm(dim=1, keepdim=True)
    crops = []
    for rows, q, mask in zip(z, teacher, hidden, strict=True):
        terms = [
            -(p * (weight @ row / 0.1).log_softmax(0)).sum()
            for row, p, here in zip(rows, q, mask, strict=True)
            if here
        ]
        crops.append(torch.stack(terms).mean() if terms else z.sum() * 0)
    return torch.stack(crops).mean()


def test_value_and_gradient_are_the_references() -> None:
    z, teacher, hidden, v, g = _case()
    got, want = (
        value_and_gradients(lambda z, v, g, loss=loss: loss(z, teacher, hidden, v, g), [z, v, g], 3)
        for loss in (_loss, reference)
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_hand_worked_value() -> None:
    # Two crops of two patches, the first hides one of them, the second both; T = 1, axes.
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])
    teacher = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    hidden = torch.tensor([[False, True], [True, True]])
    lse = math.log(math.e + 1)
    want = (lse + ((lse - 1) + lse) / 2) / 2
    got = ibot_patches(z, torch.eye(2), torch.ones(2, 1), teacher, hidden, 1.0)
    assert got.item() == pytest.approx(want, rel=1e-6)


def test_what_is_not_hidden_gets_no_gradient_and_nothing_hidden_is_no_loss() -> None:
    z, teacher, hidden, v, g = _case()
    _, (grad,) = value_and_gradients(lambda z: _loss(z, teacher, hidden, v, g), [z], 1)
    assert torch.equal(grad.abs().sum(dim=-1) > 0, hidden)
    none = torch.zeros_like(hidden)
    value, (grad,) = value_and_gradients(lambda z: _loss(z, teacher, none, v, g), [z], 1)
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    z, teacher, hidden, v, g = _case()
    prototypes = [v.expand(6, -1, -1), g.expand(6, -1, -1)]  # a row a sample, all alike
    assert_ranks_equal_one(ranks, _with_rows, [z, teacher, hidden, *prototypes], 1, counts)


def _with_rows(z: Tensor, teacher: Tensor, hidden: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return _loss(z, teacher, hidden, v[0], g[0])


def test_half_rows_are_computed_in_float32() -> None:
    z, teacher, hidden, v, g = _case()
    half = [x.bfloat16() for x in (z, v, g)]
    want = ibot_patches(half[0].float(), half[1].float(), half[2].float(), teacher, hidden, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ibot_patches(*half, teacher, hidden, 0.1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=0)


def test_wrong_input_is_named() -> None:
    z, teacher, hidden, v, g = _case()
    with pytest.raises(ValueError, match=r"\(6, 4, 5\), \(6, 4, 11\) and \(6, 3\)"):
        _loss(z, teacher, hidden[:, :3], v, g)
    with pytest.raises(ValueError, match="above 0, got 0"):
        ibot_patches(z, v, g, teacher, hidden, 0)


def _golden(rank: int, z: dict[str, Any]) -> dict[str, Tensor]:
    """Their logits as bottlenecks of width K, with the axes as prototypes. Samples first."""
    hyper = z["meta"]["hyper"]
    epoch, T = hyper["epoch"], hyper["student_temp"]
    scls, spat, sloc, tcls, tpat = (
        torch.tensor(z[name][rank]).requires_grad_(name[0] == "s")
        for name in ("scls", "spat", "sloc", "tcls", "tpat")
    )
    centers = Center(7, hyper["center_momentum"]), Center(5, hyper["center_momentum2"])
    centers[0].rows.copy_(torch.tensor(z["c1"]))
    centers[1].rows.copy_(torch.tensor(z["c2"])[0])

    def samples(x: Tensor, views: int) -> Tensor:
        return x.unflatten(0, (views, -1)).transpose(0, 1)

    q = teacher_probabilities(samples(tcls, 2), centers[0].read(), float(z["temp_schedule"][epoch]))
    rows = torch.cat([samples(scls, 2), samples(sloc, hyper["nlcrops"])], dim=1)
    cls = hyper["lambda1"] * dino(rows, torch.eye(7), torch.ones(7, 1), q, T)
    q = teacher_probabilities(tpat, centers[1].read(), float(z["temp2_schedule"][epoch]))
    hidden = torch.tensor(z["mask"][rank]).flatten(1)
    patch = ibot_patches(spat, torch.eye(5), torch.ones(5, 1), q, hidden, T) * hyper["lambda2"]
    (cls + patch).backward()
    centers[0].stage(tcls.mean(0), len(tcls))
    centers[1].stage(tpat.mean((0, 1)), len(tpat))
    for center in centers:
        center.commit()
    return {
        "out_cls": cls.detach(),
        "out_patch": patch.detach(),
        "out_loss": (cls + patch).detach(),
        "out_ga": scls.grad,
        "out_gb": spat.grad,
        "out_gl": sloc.grad,
        "center": centers[0].rows,
        "center2": centers[1].rows,
    }


@pytest.mark.parametrize("world", [1, 2])
def test_golden_losses_gradients_and_centers(ranks: Ranks, world: int) -> None:
    z = load(f"ibot/loss_{world}rank.npz")
    for r, result in enumerate(ranks(world, _golden, z)):
        for name in ("out_cls", "out_patch", "out_loss", "out_ga", "out_gb", "out_gl"):
            assert_close_to_golden(result[name], z[name][r], 1e-5)
        assert_close_to_golden(result["center"], z["center_after"], 1e-5)
        assert_close_to_golden(result["center2"], z["center2_after"][0], 1e-5)
