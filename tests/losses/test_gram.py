"""Gram anchoring against arrays of the authors' code, a slow reference, and several ranks."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import gram, resize_tokens
from sslzoo.optim import RiseAndCosine, RunLength
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, Largest, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

VARIANTS: dict[str, dict[str, Any]] = {
    "img": {},
    "batch": {"level": "batch"},
    "img_remove_neg": {"negatives": "remove"},
    "img_remove_teacher_neg": {"negatives": "remove_teacher"},
    "img_no_norm": {"normalize": False},
    "masked": {"level": "batch"},
    "unmasked": {"level": "batch"},
}


def reference(
    student: Tensor,
    teacher: Tensor,
    level: str = "image",
    negatives: str = "keep",
    mask: Tensor | None = None,
) -> Tensor:
    """Pair by pair of the selected patches."""
    if level == "batch":
        mask = torch.ones(student.shape[:2], dtype=torch.bool) if mask is None else mask
        groups = [(student[mask], teacher[mask])]
    else:
        groups = list(zip(student, teacher, strict=True))
    terms = []
    for ours, theirs in groups:
        x, t = ([row / row.norm() for row in rows] for rows in (ours, theirs))
        for i in range(len(x)):
            for j in range(len(x)):
                s, g = x[i] @ x[j], t[i] @ t[j]
                s = s.clamp(min=0) if negatives == "remove" else s
                g = g if negatives == "keep" else g.clamp(min=0)
                terms.append((s - g) ** 2)
    return torch.stack(terms).mean()


def _case(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    x, t = (torch.randn(n, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return [x, t, torch.rand(n, 4, generator=generator) < 0.5]


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_authors(name: str) -> None:
    z = load("gram/gram_loss.npz")
    mask = {"masked": z["mask"], "unmasked": ~z["mask"]}.get(name)
    options = VARIANTS[name] | ({} if mask is None else {"mask": torch.tensor(mask)})
    loss = partial(gram, teacher=torch.tensor(z["teacher"]), **options)
    value, (grad,) = value_and_gradients(loss, [torch.tensor(z["student"])], 1)
    assert_close_to_golden(value, z[f"loss_{name}"], 1e-6)
    assert_close_to_golden(grad, z[f"grad_{name}"], 1e-5)


@pytest.mark.parametrize("name", ["bicubic", "bicubic_antialias", "bilinear"])
def test_resized_features_equal_the_authors(name: str) -> None:
    z = load("gram/teacher_resize.npz")
    how, _, antialias = name.partition("_")
    got = resize_tokens(torch.tensor(z["teacher_tokens"]), (6, 6), (4, 4), how, bool(antialias))  # type: ignore[arg-type]
    assert_close_to_golden(got, z[f"resized_{name}"], 1e-6)


@pytest.mark.parametrize("name", ["gram_like", "warmup", "const"])
def test_the_weights_equal_the_authors(name: str) -> None:
    z = load("gram/weight_schedule.npz")
    start, peak, end, rise, total, *cosine = z["meta"]["hyper"][name]
    schedule = RiseAndCosine(start, peak, end, rise, *cosine)
    got = [schedule(step, RunLength(total, 1)) for step in range(total)]
    assert_close_to_golden(torch.tensor(got, dtype=torch.float64), z[name], 1e-12)
    assert schedule(total + 3, RunLength(total, 1)) == end


@pytest.mark.parametrize("negatives", ["keep", "remove", "remove_teacher"])
@pytest.mark.parametrize(("level", "masked"), [("image", False), ("batch", False), ("batch", True)])
def test_value_and_gradient_are_the_references(level: str, masked: bool, negatives: str) -> None:
    x, t, mask = _case(2)
    options: dict[str, Any] = {"level": level, "negatives": negatives}
    options["mask"] = mask if masked else None
    got, want = (
        value_and_gradients(partial(loss, teacher=t, **options), [x], 1)
        for loss in (gram, reference)
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_hand_worked_value() -> None:
    # Two patches at right angles for the student, parallel for the teacher: 2 of 4 entries are 1.
    student, teacher = torch.eye(2)[None], torch.ones(1, 2, 2)
    assert gram(student, teacher).item() == pytest.approx(0.5, abs=1e-6)
    assert gram(student, student).item() == 0


def _batch_level(x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return gram(x, t, "batch", "remove", mask=mask)


def _image_level(x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    return gram(x, t)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("loss", [_batch_level, _image_level])
def test_ranks_equal_one(ranks: Ranks, loss: Any, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, _case(), 1, counts)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, t, mask = _case()
    want = [value_and_gradients(partial(f, t=t, mask=mask), [x], 1) for f in BOTH]
    monkeypatch.setattr(sys.modules["sslzoo.losses.gram"], "_BLOCK", {"cpu": 9, "cuda": 9})
    got = [value_and_gradients(partial(f, t=t, mask=mask), [x], 1) for f in BOTH]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


BOTH = [_batch_level, _image_level]


def test_similarities_exist_in_blocks_alone() -> None:
    x = torch.randn(2, 1500, 8, requires_grad=True)
    with Largest() as largest:
        gram(x, x.detach().roll(1, 2), "batch").backward()
    assert largest.numel < 3000 * 3000 // 4


def test_half_features_are_computed_in_float32() -> None:
    x, t, _ = (part.bfloat16() for part in _case())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gram(x, t)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, gram(x.float(), t.float()), rtol=1e-5, atol=0)


def _on_fake_cuda() -> Tensor:
    x = torch.randn(2, 4, 3, device=DEVICE, requires_grad=True)
    return gram(x, x.detach(), "batch", mask=torch.ones(2, 4, device=DEVICE) > 0) + gram(x, x)


def test_a_step_has_no_sync() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_input_is_named() -> None:
    x, t, mask = _case()
    with pytest.raises(ValueError, match=r"\(n, P, D\), got \(6, 4, 3\) and \(6, 3, 3\)"):
        gram(x, t[:, :3])
    with pytest.raises(ValueError, match=r"mask must be None for level='image'.*got \(6, 4\)"):
        gram(x, t, mask=mask)
    with pytest.raises(ValueError, match="negatives must be one of"):
        gram(x, t, negatives="none")  # type: ignore[arg-type]
