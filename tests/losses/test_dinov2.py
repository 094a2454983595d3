"""DINOv2's losses of class tokens and masked patches equal the authors' arrays, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import ibot_patches, ibot_selected, sinkhorn, teacher_probabilities
from sslzoo.losses.dino import distillation
from sslzoo.memory import Center
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.ranks import Ranks

AXES = torch.eye(10), torch.ones(10, 1)  # their logits are bottlenecks of width K


def _samples(x: Any, views: int) -> Tensor:
    """Rows crop by crop -> (B, views, K)."""
    return torch.as_tensor(x).unflatten(0, (views, -1)).transpose(0, 1)


def _crops(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _class_tokens(rank: int, z: dict[str, Any]) -> dict[str, Tensor]:
    hyper, center, found = z["meta"]["hyper"], Center(10), {}
    center.rows.copy_(torch.tensor(z["center_init"]))
    local = hyper["n_local"]
    for step, tau in enumerate(hyper["teacher_temps"]):
        logits = torch.tensor(z[f"teacher_step{step}"][rank])
        found[f"center_used_step{step}"] = center.rows.clone()
        targets = {
            "center": teacher_probabilities(logits, center.read(), tau),
            "sk": sinkhorn(logits, tau),
        }
        for kind, q in targets.items():
            small, large = (
                torch.tensor(z[f"student_{size}_step{step}"][rank], requires_grad=True)
                for size in ("local", "global")
            )
            t, T = _samples(q, 2), hyper["student_temp"]
            of_small = distillation(_samples(small, local), *AXES, t, torch.ones(local, 2), T)
            # The teacher's rows are already in the order of the student's: A meets B.
            of_large = distillation(_samples(large, 2), *AXES, t, torch.eye(2) / 2, T)
            (of_small + of_large).backward()
            end = f"{kind}_step{step}"
            found |= {f"q_{end}": _crops(t), f"local_{end}": of_small, f"global_{end}": of_large}
            found |= {f"grad_local_{end}": small.grad, f"grad_global_{end}": large.grad}
        center.stage(logits.mean(0), len(logits))
        center.commit()
    return {name: x.detach() for name, x in {**found, "center_final": center.rows}.items()}


@pytest.mark.parametrize("world", [1, 2])
def test_golden_class_tokens(ranks: Ranks, world: int) -> None:
    z = load(f"dinov2/dino_loss_{world}rank.npz")
    computed = {name for name in z if name.startswith(("q_", "local_", "global_", "grad_", "cen"))}
    for rank, found in enumerate(ranks(world, _class_tokens, z)):
        assert found.keys() == computed - {"center_init"}
        for name, value in found.items():
            assert_close_to_golden(value, z[name][rank], 1e-5)


def _patches(rank: int, z: dict[str, Any]) -> dict[str, Tensor]:
    """With a center that is the unweighted mean of the ranks' means, as the authors' is."""
    hyper, found = z["meta"]["hyper"], {}
    masks = torch.tensor(z[f"masks_rank{rank}"])
    counts = masks.sum(dim=1)
    weight = (1 / counts.clamp(min=1)).repeat_interleave(counts)
    center, T = Center(10), hyper["student_temp"]
    center.rows.copy_(torch.tensor(z["center_init"])[0])
    for step, tau in enumerate(hyper["teacher_temps"]):
        logits = torch.tensor(z[f"teacher_rank{rank}_step{step}"])
        found[f"pcenter_used_rank{rank}_step{step}"] = center.rows[None].clone()
        targets = {
            "center": teacher_probabilities(logits, center.read(), tau),
            "sk": sinkhorn(logits, tau),
        }
        for kind, q in targets.items():
            rows = torch.tensor(z[f"student_rank{rank}_step{step}"], requires_grad=True)
            loss = ibot_selected(rows, *AXES, q, weight, len(masks), T)
            loss.backward()
            end = f"{kind}_rank{rank}_step{step}"
            found |= {f"pq_{end}": q, f"patch_{end}": loss, f"grad_patch_{end}": rows.grad}
        center.stage(logits.mean(0), 1)
        center.commit()
    found |= {f"pcenter_final_rank{rank}": center.rows[None], f"masks_weight_rank{rank}": weight}
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize("world", [1, 2])
def test_golden_masked_patches(ranks: Ranks, world: int) -> None:
    z, compared = load(f"dinov2/ibot_loss_{world}rank.npz"), set()
    counted = 0
    for rank, found in enumerate(ranks(world, _patches, z)):
        for name, value in found.items():
            assert_close_to_golden(value, z[name], 1e-5)
        compared |= found.keys()
        counted += int(z[f"masks_rank{rank}"].sum())
    given = ("student", "teacher", "masks_rank", "center_init", "meta")
    n_masked = {f"n_masked_tensor_after_rank{rank}" for rank in range(world)}
    assert compared == {name for name in z if not name.startswith(given)} - n_masked
    assert all(z[name] == counted for name in n_masked)  # the rows of their Sinkhorn's sums


def test_selected_rows_have_the_loss_of_whole_crops() -> None:
    generator = torch.Generator().manual_seed(0)
    z, g = torch.randn(4, 5, 6, generator=generator), torch.rand(7, 1, generator=generator)
    v, teacher = torch.randn(7, 6, generator=generator), torch.randn(4, 5, 7).softmax(-1)
    mask = torch.rand(4, 5, generator=generator) < 0.5
    mask[1] = False
    weight = (mask / mask.sum(1, keepdim=True).clamp(min=1)).flatten()
    chosen = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[: mask.sum() + 2]

    def selected(z: Tensor, v: Tensor, g: Tensor) -> Tensor:
        rows, q = (x.flatten(0, 1)[chosen] for x in (z, teacher))
        return ibot_selected(rows, v, g, q, weight[chosen], 4, 0.1)

    def whole(z: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return ibot_patches(z, v, g, teacher, mask, 0.1)

    got, want = (value_and_gradients(loss, [z, v, g], 3) for loss in (selected, whole))
    torch.testing.assert_close(got, want)


def _two_rows_a_crop(z: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    rows = (x.flatten(0, 1) for x in (z, teacher, weight))
    z, teacher, weight = rows
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return ibot_selected(z, v, torch.ones(7, 1).double(), teacher, weight, len(z) // 2, 0.1)


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    z, t = (torch.randn(6, 2, d, generator=generator, dtype=torch.float64) for d in (5, 7))
    weight = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    weight[0] = 0
    assert_ranks_equal_one(ranks, _two_rows_a_crop, [z, t.softmax(-1), weight], 1, counts)


def test_wrong_input_is_named() -> None:
    z, q = torch.zeros(3, 10), torch.zeros(3, 10)
    with pytest.raises(ValueError, match=r"weight \(R,\), got \(3, 10\), \(3, 10\) and \(2,\)"):
        ibot_selected(z, *AXES, q, torch.zeros(2), 4, 0.1)
