"""DINO's loss against a slow reference, torch's own, the authors' arrays, and on ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import dino, distillation, teacher_probabilities
from sslzoo.memory import Center
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import (
    COUNTS,
    Largest,
    assert_compiles,
    assert_ranks_equal_one,
    value_and_gradients,
)
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

module = import_module("sslzoo.losses.dino")  # the package's name of it is the function


def reference(z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Pair by pair and row by row, the weight norm written out; float64."""
    weight = g.double() * v.double() / v.double().norm(dim=1, keepdim=True)
    terms = []
    for t, of_teacher in enumerate(teacher.double().unbind(1)):
        for s, of_student in enumerate(z.double().unbind(1)):
            if s != t:
                for q, row in zip(of_teacher, of_student, strict=True):
                    logits = weight @ row / temperature
                    terms.append((q * (logits.logsumexp(0) - logits)).sum())
    return torch.stack(terms).mean() if terms else z.sum() * 0


def _case(n: int = 6, views: int = 4, prototypes: int = 11) -> list[Tensor]:
    """z (n, S, D), v, g, teacher (n, 2, K)."""
    generator = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = F.normalize(draw(n, views, 5), dim=-1)
    v, g = draw(prototypes, 5), draw(prototypes, 1).exp()
    return [z, v, g, (3 * draw(n, 2, prototypes)).softmax(dim=-1)]


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_value_and_gradients_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, temperature: float
) -> None:
    monkeypatch.setitem(module._LOGITS_BLOCK, "cpu", block)
    case = _case(prototypes=700)
    got = value_and_gradients(partial(dino, temperature=temperature), case, 3)
    want = value_and_gradients(partial(reference, temperature=temperature), case, 3)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(dino(*case, temperature), want[0], rtol=1e-9, atol=0)


def test_equals_torchs_linear_cross_entropy() -> None:
    """Of one pair of views: probabilities as targets, prototypes of length 1."""
    z, v, _, teacher = _case()
    pairs = torch.ones(1, 1)

    def ours(z: Tensor, v: Tensor) -> Tensor:
        return distillation(z[:, None], v, torch.ones(len(v), 1), teacher[:, :1], pairs, 0.1)

    def theirs(z: Tensor, v: Tensor) -> Tensor:
        weight = F.normalize(v, dim=1) / 0.1
        return F.linear_cross_entropy(z, weight, teacher[:, 0])

    got, want = (value_and_gradients(loss, [z[:, 0], v], 2) for loss in (ours, theirs))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_weights_of_rows_and_pairs() -> None:
    z, v, g, teacher = _case(n=3, views=2)
    pairs = torch.tensor([[0.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.25], [2.0, 3.0]], dtype=torch.float64)

    def slow(z: Tensor, v: Tensor, g: Tensor) -> Tensor:
        logits = z @ (g * F.normalize(v, dim=1)).T / 0.2
        cross = -torch.einsum("ntk,nsk->nst", teacher, logits.log_softmax(dim=-1))
        return (pairs * weight[..., None] * cross).sum() / 3

    def ours(z: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return distillation(z, v, g, teacher, pairs, 0.2, weight)

    got, want = (value_and_gradients(loss, [z, v, g], 3) for loss in (ours, slow))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_hand_worked_value() -> None:
    # Prototypes along the axes, two views of one image; logits at T = 0.5: (2, 0) and (0, 2).
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]])
    v, g = torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.ones(2, 1)
    lse = math.log(math.exp(2) + 1)
    # view 0 with the teacher's view 1, view 1 with its view 0
    want = ((lse - 0.8 * 2) + (lse - 0.1 * 2)) / 2
    assert dino(z, v, g, teacher, 0.5).item() == pytest.approx(want, rel=1e-6)


def test_a_large_crop_is_not_compared_with_itself() -> None:
    z, v, g, teacher = _case(views=2)
    changed = teacher.clone()
    changed[:, 0] = changed[:, 0].roll(1, dims=-1)
    first, second = (
        value_and_gradients(partial(dino, temperature=0.1), [z, v, g, q], 1)[1][0]
        for q in (teacher, changed)
    )
    assert torch.equal(first[:, 0], second[:, 0])  # sees the teacher's other view alone
    assert not torch.allclose(first[:, 1], second[:, 1])


@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    case = _case()
    got, grads = value_and_gradients(
        partial(dino, temperature=temperature), [x.float() for x in case], 3
    )
    want, wanted = value_and_gradients(partial(reference, temperature=temperature), case, 3)
    assert_close_to_golden(got, want)
    for grad, by_reference in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, by_reference, 2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_computed_in_float32(dtype: torch.dtype) -> None:
    z, v, g, teacher = (x.to(dtype) for x in _case())
    teacher = teacher.float()
    want, wanted = value_and_gradients(
        partial(dino, temperature=0.1), [z.float(), v.float(), g.float(), teacher], 3
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(partial(dino, temperature=0.1), [z, v, g, teacher], 3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(grads, [grad.to(dtype) for grad in wanted])


def test_a_second_backward_is_refused_and_not_wrong() -> None:
    z, v, g, teacher = _case()
    loss = dino(z.requires_grad_(), v, g, teacher, 0.1) * 2
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_students_logits_never_exist_as_a_whole() -> None:
    z, v, g, teacher = (x.float() for x in _case(n=64, views=10, prototypes=20_000))
    with Largest() as largest:
        dino(z.requires_grad_(), v.requires_grad_(), g, teacher[..., :20_000], 0.1).backward()
    assert largest.numel <= teacher.numel()
    assert largest.numel < 64 * 10 * 20_000 / 4


def _of_samples(z: Tensor, teacher: Tensor, v: Tensor, g: Tensor) -> Tensor:
    return dino(z, v, g, teacher, 0.1)


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    z, v, g, teacher = _case()
    loss = partial(_of_samples, v=v, g=g)
    assert_ranks_equal_one(ranks, loss, [z, teacher], 1, counts)


def _on_fake_cuda() -> Tensor:
    z = torch.randn(6, 4, 8, device=DEVICE, requires_grad=True)
    v = torch.randn(300, 8, device=DEVICE, requires_grad=True)
    logits = torch.randn(6, 2, 300, device=DEVICE)
    q = teacher_probabilities(logits, torch.zeros(300, device=DEVICE), 0.04)
    return dino(z, v, torch.ones(300, 1, device=DEVICE), q, 0.1)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    case = _case()
    loss = partial(dino, temperature=0.1)
    assert_compiles(loss, case, 3)


def test_wrong_input_is_named() -> None:
    z, v, g, teacher = _case()
    with pytest.raises(ValueError, match=r"\(6, 4, 5\), \(11, 4\) and \(11, 1\)"):
        dino(z, v[:, :4], g, teacher, 0.1)
    with pytest.raises(ValueError, match=r"teacher must be \(6, T, 11\), got \(5, 2, 11\)"):
        dino(z, v, g, teacher[:5], 0.1)
    with pytest.raises(ValueError, match="above 0, got 0"):
        dino(z, v, g, teacher, 0)
    with pytest.raises(ValueError, match="at least two views, got one"):
        dino(z[:, :1], v, g, teacher[:, :1], 0.1)
    with pytest.raises(ValueError, match=r"pairs must be \(4, 2\), got \(2, 4\)"):
        distillation(z, v, g, teacher, torch.ones(2, 4), 0.1)
    with pytest.raises(ValueError, match=r"weight must be \(6, 4\), got \(6,\)"):
        distillation(z, v, g, teacher, torch.ones(4, 2), 0.1, torch.ones(6))
    with pytest.raises(ValueError, match="above 0, got -1"):
        teacher_probabilities(teacher, torch.zeros(11), -1)


def _golden_epoch(rank: int, z: dict, epoch: int, world: int) -> dict[str, Tensor]:
    """Their logits as a bottleneck of width K, with the axes as prototypes."""
    hyper = z["meta"]["hyper"]
    temperature = float(z["teacher_temp_schedule"][epoch])
    student = torch.tensor(z[f"student_ep{epoch}"]).view(world, hyper["ncrops"], hyper["B"], -1)
    logits = (
        torch.tensor(z[f"teacher_ep{epoch}"]).view(world, 2, hyper["B"], -1)[rank].transpose(0, 1)
    )
    rows = student[rank].transpose(0, 1).clone().requires_grad_()
    center = Center(hyper["out_dim"], hyper["center_momentum"])
    center.rows.copy_(torch.tensor(z[f"center_before_ep{epoch}"]))
    q = teacher_probabilities(logits, center.read(), temperature)
    axes = torch.eye(hyper["out_dim"])
    loss = dino(rows, axes, torch.ones(len(axes), 1), q, hyper["student_temp"])
    loss.backward()
    center.stage(logits.mean(dim=(0, 1)), 2 * hyper["B"])
    center.commit()
    return {
        "loss": loss.detach(),
        "grad": rows.grad.transpose(0, 1).flatten(0, 1),
        "center": center.rows,
    }


@pytest.mark.parametrize("epoch", [0, 2, 5])
@pytest.mark.parametrize("world", [1, 2])
def test_golden_loss_gradient_and_center(ranks: Ranks, world: int, epoch: int) -> None:
    z = load(f"dino/loss_{world}rank.npz")
    for r, result in enumerate(ranks(world, _golden_epoch, z, epoch, world)):
        assert_close_to_golden(result["loss"], z[f"loss_ep{epoch}"][r], 1e-5)
        assert_close_to_golden(result["grad"], z[f"grad_student_ep{epoch}"][r], 1e-5)
        assert_close_to_golden(result["center"], z[f"center_after_ep{epoch}"], 1e-5)
