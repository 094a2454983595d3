"""InfoNCE against slow float64 references, the authors' arrays, and on ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import batch_info_nce, info_nce, nce, nce_constant
from sslzoo.memory import Queue
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

module = import_module("sslzoo.losses.info_nce")  # the package's name of it is the function


def reference(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Row by row, with the positive in column 0; float64."""
    terms = []
    for row, own in zip(q.double(), k.double(), strict=True):
        logits = torch.stack([row @ own, *(row @ other for other in queue.double())]) / temperature
        terms.append(logits.logsumexp(0) - logits[0])
    return torch.stack(terms).mean()


def batch_reference(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Row by row; float64."""
    terms = []
    for i, row in enumerate(q.double()):
        logits = torch.stack([row @ other for other in k.double()]) / temperature
        terms.append(logits.logsumexp(0) - logits[i])
    return torch.stack(terms).mean()


def _case(n: int = 6, size: int = 30) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    rows = [torch.randn(m, 5, generator=generator, dtype=torch.float64) for m in (n, n, size)]
    return [F.normalize(x) for x in rows]


def _with_queue(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    return info_nce(q, k, queue, temperature)


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0, 100.0])
def test_value_and_gradients_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, temperature: float
) -> None:
    monkeypatch.setitem(module._LOGITS_BLOCK, "cpu", block)
    q, k, queue = _case(size=700)
    got = value_and_gradients(lambda q, k: info_nce(q, k, queue, temperature), [q, k], 2)
    want = value_and_gradients(lambda q, k: reference(q, k, queue, temperature), [q, k], 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    got = value_and_gradients(partial(batch_info_nce, temperature=temperature), [q, k], 2)
    want = value_and_gradients(partial(batch_reference, temperature=temperature), [q, k], 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_hand_worked_values() -> None:
    q, k = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    # At T = 0.2 the logits are 3, 0 and -5.
    want = math.log(math.exp(3) + 1 + math.exp(-5)) - 3
    assert info_nce(q, k, queue, 0.2).item() == pytest.approx(want, rel=1e-5)
    # Two queries whose keys are each other's opposite at T = 0.5: logits 2 and -2.
    both = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    want = math.log(1 + math.exp(-4))
    assert batch_info_nce(both, both, 0.5).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    case = _case()
    q, k, queue = (x.float() for x in case)
    got, grads = value_and_gradients(lambda q, k: info_nce(q, k, queue, temperature), [q, k], 2)
    want, wanted = value_and_gradients(lambda *x: reference(*x, temperature), case, 2)
    assert_close_to_golden(got, want)
    for grad, by_reference in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, by_reference, 2e-3)
    got, grads = value_and_gradients(lambda *x: batch_info_nce(*x, temperature), [q, k], 2)
    want, wanted = value_and_gradients(lambda *x: batch_reference(*x, temperature), case[:2], 2)
    assert_close_to_golden(got, want)
    for grad, by_reference in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, by_reference, 2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_computed_in_float32(dtype: torch.dtype) -> None:
    case = [x.to(dtype) for x in _case()]
    losses = (lambda *x: info_nce(*x, 0.07), lambda q, k, queue: batch_info_nce(q, k, 0.07))
    for loss in losses:
        want, wanted = value_and_gradients(loss, [x.float() for x in case], 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, grads = value_and_gradients(loss, case, 2)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
        torch.testing.assert_close(grads, [grad.to(dtype) for grad in wanted])


def test_gradcheck() -> None:
    q, k, queue = _case(3)
    leaves = [q.requires_grad_(), k.requires_grad_()]
    assert torch.autograd.gradcheck(lambda q, k: info_nce(q, k, queue, 0.2), leaves)
    assert torch.autograd.gradcheck(lambda q, k: batch_info_nce(q, k, 0.2), leaves)


@pytest.mark.parametrize("num_leaves", [1, 2])
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], num_leaves: int) -> None:
    q, k, queue = _case()
    with_queue = partial(_with_queue, queue=queue, temperature=0.07)
    assert_ranks_equal_one(ranks, with_queue, [q, k], num_leaves, counts)
    in_batch = partial(batch_info_nce, temperature=0.07)
    assert_ranks_equal_one(ranks, in_batch, [q, k], num_leaves, counts)


def _swapped(k: Tensor, q: Tensor) -> Tensor:
    return batch_info_nce(q, k, 0.07)


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one_where_the_keys_alone_have_gradient(
    ranks: Ranks, counts: tuple[int, ...]
) -> None:
    q, k, _ = _case()
    assert_ranks_equal_one(ranks, _swapped, [k, q], 1, counts)


def _on_fake_cuda() -> Tensor:
    q, k = (torch.randn(6, 8, device=DEVICE, requires_grad=True) for _ in range(2))
    queue = torch.randn(300, 8, device=DEVICE)
    return info_nce(q, k, queue, 0.07) + batch_info_nce(q, k, 0.07)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_compiles_without_graph_break() -> None:
    q, k, queue = _case()

    def both(q: Tensor, k: Tensor) -> Tensor:
        return info_nce(q, k, queue, 0.07) + batch_info_nce(q, k, 0.07)

    assert_compiles(both, [q, k], 2)


def test_wrong_input_is_named() -> None:
    q, k, queue = _case()
    with pytest.raises(ValueError, match=r"\(6, 5\) and \(5, 5\)"):
        info_nce(q, k[:5], queue, 0.1)
    with pytest.raises(ValueError, match=r"queue must be \(K, 5\), got \(30, 4\)"):
        info_nce(q, k, queue[:, :4], 0.1)
    with pytest.raises(ValueError, match="above 0, got 0"):
        batch_info_nce(q, k, 0)


def test_golden_moco_step() -> None:
    z = load("moco/logits_loss_queue.npz")
    T = z["meta"]["hyper"]["T"]
    queue = Queue(*z["queue_before"].T.shape)
    queue.rows.copy_(torch.from_numpy(z["queue_before"]).T)
    assert int(queue.pointer) == z["ptr_before"]
    raw = torch.from_numpy(z["q_raw"]).requires_grad_()
    q, k = F.normalize(raw), F.normalize(torch.from_numpy(z["k_raw"]))
    loss = info_nce(q, k, queue.read(), T)
    loss.backward()
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.rows.T], dim=1) / T
    assert_close_to_golden(logits, z["logits"])
    assert not z["labels"].any()  # the positive is column 0, as in the reference above
    assert_close_to_golden(F.cross_entropy(logits, torch.from_numpy(z["labels"])), z["loss"])
    assert_close_to_golden(loss, z["loss"])
    assert_close_to_golden(raw.grad, z["grad_q_raw"])
    queue.stage(k)
    queue.commit()
    assert_close_to_golden(queue.rows.T, z["queue_after"])
    assert queue.pointer[None].tolist() == z["ptr_after"].tolist()


@pytest.mark.parametrize("kind", ["softmax", "nce"])
def test_golden_four_steps_of_cmcs_queue(kind: str) -> None:
    """CMC's MemoryMoCo, K = 11 and batches of 4: with a softmax, and with NCE by `losses.nce`."""
    z = load(f"cmc/moco_queue_{kind}.npz")
    hyper = z["meta"]["hyper"]
    T, size = hyper["T"], hyper["n_data"]
    queue = Queue(hyper["K"], z["queue_before"].shape[1])
    queue.rows.copy_(torch.from_numpy(z["queue_before"]))
    for step in range(4):
        q = torch.from_numpy(z[f"q{step}"]).requires_grad_()
        k = torch.from_numpy(z[f"k{step}"])
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.rows.T], dim=1) / T
        if kind == "softmax":
            assert_close_to_golden(logits, z[f"out{step}"])
            loss = info_nce(q, k, queue.read(), T)
            assert_close_to_golden(loss, z[f"loss{step}"])
            assert z[f"Z{step}"] == -1  # a softmax needs none
        else:
            # NCE's bank: the keys, the queue, and empty rows up to the n_data of its noise.
            rows = torch.cat([k, queue.read()])
            bank = F.pad(rows, (0, 0, 0, size - len(rows)))
            negatives = torch.arange(len(k), len(rows)).expand(len(k), -1)
            index = torch.cat([torch.arange(len(k))[:, None], negatives], dim=1)
            if step == 0:
                constant = nce_constant(q.detach(), bank, index, T)
            # Deviation of theirs: Z stands in an int64 tensor, which cuts off its fraction.
            assert constant.trunc() == z[f"Z{step}"].item()
            theirs = constant.trunc()
            assert_close_to_golden(logits.exp() / theirs, z[f"out{step}"])
            loss = nce(q, bank, index, theirs, T)
            assert_close_to_golden(loss[None], z[f"loss{step}"])
        loss.backward()
        assert_close_to_golden(q.grad, z[f"grad_q{step}"])
        queue.stage(k)
        queue.commit()
        assert_close_to_golden(queue.rows, z[f"queue_after{step}"])
