"""NCE and the bank softmax against slow float64 references, official arrays, and on ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import bank_softmax, nce, nce_constant, proximal, sampled_softmax
from sslzoo.memory import MemoryBank
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

module = import_module("sslzoo.losses.nce")  # the package's name of it is the function

_SIZE = 30


def reference(
    f: Tensor, bank: Tensor, index: Tensor, z: float, temperature: float, eps: float = 1e-7
) -> Tensor:
    """Element by element, as the recipe writes it; float64."""
    noise = (index.shape[1] - 1) / len(bank)
    terms = []
    for row, places in zip(f.double(), index.tolist(), strict=True):
        p = [(row @ bank[j].double() / temperature).exp() / z for j in places]
        terms.append(-(p[0] / (p[0] + noise + eps)).log())
        terms.extend(-(noise / (other + noise + eps)).log() for other in p[1:])
    return torch.stack(terms).sum() / len(f)


def softmax_reference(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(f.double() @ bank.double().T / temperature, index)


def _case(n: int = 6, num_negatives: int = 4, size: int = _SIZE) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    f = F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64))
    bank = F.normalize(torch.randn(size, 5, generator=generator, dtype=torch.float64))
    index = torch.randint(size, (n, num_negatives + 1), generator=generator)
    index[0, 2] = index[0, 1]  # draws are with replacement
    return f, bank, index


def _nce(f: Tensor, index: Tensor, bank: Tensor, z: float, temperature: float) -> Tensor:
    return nce(f, bank, index, z, temperature)


def sampled_reference(f: Tensor, bank: Tensor, index: Tensor, temperature: float) -> Tensor:
    logits = (bank.double()[index] * f.double()[:, None]).sum(2) / temperature
    return (logits.exp().sum(1) / logits[:, 0].exp()).log().mean()


def _sampled_softmax(f: Tensor, index: Tensor, bank: Tensor, temperature: float) -> Tensor:
    return sampled_softmax(f, bank, index, temperature)


def _softmax(f: Tensor, index: Tensor, bank: Tensor, temperature: float) -> Tensor:
    return bank_softmax(f, bank, index, temperature)


@pytest.mark.parametrize("dense", [0, 1000])
@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0, 100.0])
def test_nce_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, dense: int, block: int, temperature: float
) -> None:
    monkeypatch.setattr(module, "_DENSE", dense)
    monkeypatch.setitem(module._ROWS_BLOCK, "cpu", block)
    monkeypatch.setitem(module._LOGITS_BLOCK, "cpu", block)
    f, bank, index = _case()
    got, grads = value_and_gradients(lambda f: nce(f, bank, index, 50.0, temperature), [f], 1)
    want, wanted = value_and_gradients(
        lambda f: reference(f, bank, index, 50.0, temperature), [f], 1
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dense", [0, 1000])
@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0, 100.0])
def test_sampled_softmax_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, dense: int, block: int, temperature: float
) -> None:
    monkeypatch.setattr(module, "_DENSE", dense)
    monkeypatch.setitem(module._ROWS_BLOCK, "cpu", block)
    monkeypatch.setitem(module._LOGITS_BLOCK, "cpu", block)
    f, bank, index = _case()
    got, grads = value_and_gradients(lambda f: sampled_softmax(f, bank, index, temperature), [f], 1)
    want, wanted = value_and_gradients(
        lambda f: sampled_reference(f, bank, index, temperature), [f], 1
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("block", [256 * 6, 1 << 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0, 100.0])
def test_bank_softmax_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, temperature: float
) -> None:
    monkeypatch.setitem(module._LOGITS_BLOCK, "cpu", block)
    f, bank, index = _case(size=700)
    own = index[:, 0]
    got, grads = value_and_gradients(lambda f: bank_softmax(f, bank, own, temperature), [f], 1)
    want, wanted = value_and_gradients(
        lambda f: softmax_reference(f, bank, own, temperature), [f], 1
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)


def test_hand_worked_values() -> None:
    f, bank = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    # The own dot is 1 and the negative's 0; Z = e and K / M = 1 / 2: P is 1 and 1 / e.
    want = math.log(1 + 0.5) + math.log((math.exp(-1) + 0.5) / 0.5)
    got = nce(f, bank, torch.tensor([[0, 1]]), math.e, 1.0, eps=0.0)
    assert got.item() == pytest.approx(want, rel=1e-6)
    assert bank_softmax(f, bank, torch.tensor([0]), 0.5).item() == pytest.approx(
        math.log(1 + math.exp(-2)), rel=1e-6
    )
    sampled = sampled_softmax(f, bank, torch.tensor([[0, 1, 1]]), 0.5)
    assert sampled.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-6)
    constant = nce_constant(f, bank, torch.tensor([[0, 1]]), 1.0)
    assert constant.item() == pytest.approx((math.e + 1) / 2 * 2, rel=1e-6)
    assert proximal(f, torch.tensor([[0.0, 2.0]])).item() == pytest.approx(5.0)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    f, bank, index = _case()
    small = [f.float(), bank.float()]
    got, grads = value_and_gradients(
        lambda f: nce(f, small[1], index, 9.0, temperature), small[:1], 1
    )
    if temperature > 0.01:  # the reference forms exp(1 / T)
        want, wanted = value_and_gradients(
            lambda f: reference(f, bank, index, 9.0, temperature), [f], 1
        )
        assert_close_to_golden(got, want, 1e-5)
        assert_close_to_golden(grads[0], wanted[0], 1e-4)
    assert got.isfinite()
    assert grads[0].isfinite().all()
    hot, its_grads = value_and_gradients(
        lambda f: sampled_softmax(f, small[1], index, temperature), small[:1], 1
    )
    logits = (bank[index] * f[:, None]).sum(2) / temperature
    assert_close_to_golden(hot, (logits.logsumexp(1) - logits[:, 0]).mean(), 1e-4)
    assert its_grads[0].isfinite().all()
    got, grads = value_and_gradients(
        lambda f: bank_softmax(f, small[1], index[:, 0], temperature), small[:1], 1
    )
    want, wanted = value_and_gradients(
        lambda f: softmax_reference(f, bank, index[:, 0], temperature), [f], 1
    )
    assert_close_to_golden(got, want, 1e-4)
    assert_close_to_golden(grads[0], wanted[0], 2e-3)


@pytest.mark.parametrize("dense", [0, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_and_bank_are_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, dense: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "_DENSE", dense)
    f, bank, index = _case()
    f, bank = f.to(dtype), bank.to(dtype)
    for loss in (
        lambda f, bank: nce(f, bank, index, 50.0, 0.07),
        lambda f, bank: bank_softmax(f, bank, index[:, 0], 0.07),
        lambda f, bank: sampled_softmax(f, bank, index, 0.07),
        lambda f, bank: proximal(f, bank[: len(f)]),
    ):
        want, wanted = value_and_gradients(lambda f, run=loss: run(f, bank.float()), [f.float()], 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, grads = value_and_gradients(lambda f, run=loss: run(f, bank), [f], 1)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
        torch.testing.assert_close(grads[0], wanted[0].to(dtype))


def test_gradcheck() -> None:
    f, bank, index = _case(3)
    f.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: nce(f, bank, index, 50.0, 0.2), [f])
    assert torch.autograd.gradcheck(lambda f: bank_softmax(f, bank, index[:, 0], 0.2), [f])
    assert torch.autograd.gradcheck(lambda f: sampled_softmax(f, bank, index, 0.2), [f])


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    f, bank, index = _case()
    rest: dict[str, Any] = {"bank": bank, "temperature": 0.07}
    assert_ranks_equal_one(ranks, partial(_nce, z=50.0, **rest), [f, index], 1, counts)
    assert_ranks_equal_one(ranks, partial(_softmax, **rest), [f, index[:, 0]], 1, counts)
    assert_ranks_equal_one(ranks, partial(_sampled_softmax, **rest), [f, index], 1, counts)
    assert_ranks_equal_one(ranks, proximal, [f, bank[: len(f)]], 1, counts)
    constants = ranks(len(counts), _constant_on_rank, f, bank, index, counts)
    want = nce_constant(f, bank, index, 0.07)
    torch.testing.assert_close(constants, [want] * len(counts), rtol=1e-9, atol=0)


def _constant_on_rank(
    rank: int, f: Tensor, bank: Tensor, index: Tensor, counts: tuple[int, ...]
) -> Tensor:
    return nce_constant(f.split(counts)[rank], bank, index.split(counts)[rank], 0.07)


def _on_fake_cuda(loss: str, size: int) -> Tensor:
    f = torch.randn(6, 8, device=DEVICE, requires_grad=True)
    bank = torch.randn(size, 8, device=DEVICE, dtype=torch.bfloat16)
    index = torch.randint(size, (6, 5), device=DEVICE)
    if loss == "softmax":
        return bank_softmax(f, bank, index[:, 0], 0.07) + sampled_softmax(f, bank, index, 0.07)
    z = nce_constant(f, bank, index, 0.07)
    return nce(f, bank, index, z, 0.07) + nce(f, bank, index, 3.0, 0.07)


@pytest.mark.parametrize("size", [30, 3000])
@pytest.mark.parametrize("loss", ["nce", "softmax"])
def test_no_host_synchronization(loss: str, size: int) -> None:
    assert syncs(_on_fake_cuda, loss, size) == []


@pytest.mark.parametrize("size", [300])
def test_compiles_without_graph_break(size: int) -> None:
    f, bank, index = _case(size=size)
    z = torch.tensor(50.0, dtype=torch.float64)

    def both(f: Tensor) -> Tensor:
        sampled = sampled_softmax(f, bank, index, 0.07)
        return nce(f, bank, index, z, 0.07) + bank_softmax(f, bank, index[:, 0], 0.07) + sampled

    assert_compiles(both, [f], 1)


def test_wrong_input_is_named() -> None:
    f, bank, index = _case()
    with pytest.raises(ValueError, match=r"\(6, 5\) and \(30, 4\)"):
        nce(f, bank[:, :4], index, 1.0, 0.1)
    with pytest.raises(ValueError, match=r"6 rows of bank positions, got \(5, 5\)"):
        nce(f, bank, index[:5], 1.0, 0.1)
    with pytest.raises(ValueError, match=r"index must have .* got 1"):
        nce(f, bank, index[:, :1], 1.0, 0.1)
    with pytest.raises(ValueError, match="above 0, got 0"):
        bank_softmax(f, bank, index[:, 0], 0)
    with pytest.raises(ValueError, match=r"\(6, 5\) and \(30, 5\)"):
        proximal(f, bank)


def test_golden_nce() -> None:
    golden = load("instdisc/nce.npz")
    hyper = golden["meta"]["hyper"]
    memory = MemoryBank(hyper["n_data"], hyper["D"], momentum=hyper["momentum"], seed=0)
    start = torch.from_numpy(golden["memory_before"])
    memory.overwrite(torch.arange(len(start)), start)
    _, temperature, z, momentum = golden["params_before"].tolist()
    assert (z, momentum) == (-1, memory.momentum)
    constant = torch.tensor(z)
    for step in range(3):
        raw = torch.from_numpy(golden[f"x_raw{step}"]).requires_grad_()
        index = torch.from_numpy(golden[f"idx{step}"])
        own = torch.from_numpy(golden[f"y{step}"])
        assert torch.equal(index[:, 0], own)
        f = F.normalize(raw)
        f.retain_grad()
        if step == 0:
            constant = nce_constant(f, memory.rows, index, temperature)
        loss = nce(f, memory.rows, index, constant, temperature, hyper["eps"])
        loss.backward()
        scores = (f[:, None] * memory.read(index)).sum(-1)
        assert_close_to_golden((scores / temperature).exp() / constant, golden[f"out{step}"])
        memory.stage(own, f)
        memory.commit()
        assert_close_to_golden(constant, golden[f"Z{step}"])
        assert_close_to_golden(loss[None], golden[f"loss{step}"])
        assert_close_to_golden(f.grad, golden[f"grad_x{step}"])
        assert_close_to_golden(raw.grad, golden[f"grad_raw{step}"])
        assert_close_to_golden(memory.rows, golden[f"memory_after{step}"])


@pytest.mark.parametrize("name", ["cmc/insdis.npz", "cmc/insdis_softmax.npz"])
def test_golden_of_cmcs_own_instance_discrimination(name: str) -> None:
    golden = load(name)
    hyper = golden["meta"]["hyper"]
    start = torch.from_numpy(golden["memory_before"])
    memory = MemoryBank(*start.shape, momentum=hyper["momentum"], seed=0)
    memory.overwrite(torch.arange(len(start)), start)
    f = torch.from_numpy(golden["x"]).requires_grad_()
    index, own = torch.from_numpy(golden["idx"]), torch.from_numpy(golden["y"])
    scores = (f[:, None] * memory.read(index)).sum(-1) / hyper["T"]
    if hyper["use_softmax"]:
        loss = sampled_softmax(f, memory.rows, index, hyper["T"])
    else:
        z = nce_constant(f, memory.rows, index, hyper["T"])
        assert_close_to_golden(z, golden["params"][2])
        scores = scores.exp() / z
        loss = nce(f, memory.rows, index, z, hyper["T"])
    loss.backward()
    assert_close_to_golden(scores, golden["out"])
    assert_close_to_golden(loss.flatten(), golden["loss"].reshape(1))
    assert_close_to_golden(f.grad, golden["grad_x"])
    memory.stage(own, f)
    memory.commit()
    assert_close_to_golden(memory.rows, golden["memory_after"])


def test_golden_bank_softmax() -> None:
    golden = load("instdisc/linear_softmax.npz")
    hyper = golden["meta"]["hyper"]
    start = torch.from_numpy(golden["memory_before"])
    memory = MemoryBank(*start.shape, momentum=hyper["momentum"], seed=0)
    memory.overwrite(torch.arange(len(start)), start)
    raw = torch.from_numpy(golden["x_raw"]).requires_grad_()
    own = torch.from_numpy(golden["y"])
    f = F.normalize(raw)
    f.retain_grad()
    loss = bank_softmax(f, memory.rows, own, hyper["T"])
    loss.backward()
    assert_close_to_golden(f @ memory.rows.T / hyper["T"], golden["logits"])
    memory.stage(own, f)
    memory.commit()
    assert_close_to_golden(loss, golden["loss"])
    assert_close_to_golden(f.grad, golden["grad_x"])
    assert_close_to_golden(raw.grad, golden["grad_raw"])
    assert_close_to_golden(memory.rows, golden["memory_after"])
