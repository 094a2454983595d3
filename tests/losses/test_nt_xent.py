"""NT-Xent against a slow float64 reference, the official arrays, and itself on several ranks."""

from __future__ import annotations

import math
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sslzoo.losses import nt_xent
from sslzoo.losses.nt_xent import pair_cross_entropy
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

module = import_module("sslzoo.losses.nt_xent")  # the package's name of it is the function


def reference(z1: Tensor, z2: Tensor, temperature: float, normalize: bool = True) -> Tensor:
    """Anchor by anchor, in the words of the paper's equation 1; float64."""
    rows = torch.cat([z1, z2]).double()
    if normalize:
        rows = rows / rows.norm(dim=1, keepdim=True)
    n, terms = len(z1), []
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        partner = (i + n) % (2 * n)
        logits = torch.stack([rows[i] @ rows[k] / temperature for k in others])
        terms.append(logits.logsumexp(0) - rows[i] @ rows[partner] / temperature)
    return torch.stack(terms).mean()


def _views(n: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, dim, generator=generator, dtype=dtype) * 3 for _ in range(2)]


def _general(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The path that ranks take, on one process."""
    keys = F.normalize(torch.stack([z1, z2], dim=1), dim=-1).flatten(0, 1)
    return pair_cross_entropy(keys, (0, len(keys)), temperature, 1 / len(keys))


@pytest.mark.parametrize("loss", [nt_xent, _general])
@pytest.mark.parametrize("side", [1024, 4])
@pytest.mark.parametrize("n", [1, 2, 7, 10])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
def test_value_and_gradient_are_the_references(
    monkeypatch: pytest.MonkeyPatch, loss: Any, side: int, n: int, temperature: float
) -> None:
    monkeypatch.setitem(module._SIDE, "cpu", side)
    monkeypatch.setitem(module._BLOCK, "cpu", side * 15)
    views = _views(n)
    got, grads = value_and_gradients(partial(loss, temperature=temperature), views, 2)
    want, wanted = value_and_gradients(partial(reference, temperature=temperature), views, 2)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-11)


def test_hand_worked_value() -> None:
    # Two pairs, each of one direction, at right angles to the other pair; T = 0.5: the partner's
    # logit is 2, the two others' are 0.
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert nt_xent(z, z, 0.5).item() == pytest.approx(math.log(math.exp(2) + 2) - 2, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 100.0])
def test_extreme_temperatures_in_float32(temperature: float) -> None:
    views = _views(20)
    got, grads = value_and_gradients(
        partial(nt_xent, temperature=temperature), [x.float() for x in views], 2
    )
    want, wanted = value_and_gradients(partial(reference, temperature=temperature), views, 2)
    assert_close_to_golden(got, want, 1e-5)
    for grad, right in zip(grads, wanted, strict=True):
        assert_close_to_golden(grad, right, 2e-3 if temperature < 0.01 else 1e-4)


def test_zero_rows_stay_finite() -> None:
    value, grads = value_and_gradients(
        partial(nt_xent, temperature=0.1), [torch.zeros(3, 4)] * 2, 2
    )
    assert value.item() == pytest.approx(math.log(5), rel=1e-6)
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    views = [x.to(dtype) for x in _views(9)]
    loss = partial(nt_xent, temperature=0.05)
    want, wanted = value_and_gradients(loss, [x.float() for x in views], 2)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            got, grads = value_and_gradients(loss, views, 2)
        assert got.dtype == torch.float32
        assert torch.equal(got, want)
        assert [grad.dtype for grad in grads] == [dtype] * 2
        for grad, right in zip(grads, wanted, strict=True):
            assert torch.equal(grad, right.to(dtype))


def test_autocast_leaves_float32_alone() -> None:
    views = _views(9, dtype=torch.float32)
    want = nt_xent(*views, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nt_xent(*views, 0.05), want)


@pytest.mark.parametrize("temperature", [0.3, 0.001])
@pytest.mark.parametrize("loss", [nt_xent, _general])
def test_gradcheck(loss: Any, temperature: float) -> None:
    views = [x.requires_grad_() for x in _views(3, 4)]
    assert torch.autograd.gradcheck(
        partial(loss, temperature=temperature), views, eps=1e-7, atol=1e-4
    )


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("temperature", [0.1, 0.001])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...], temperature: float) -> None:
    loss = partial(nt_xent, temperature=temperature)
    assert_ranks_equal_one(ranks, loss, _views(6), 2, counts)


def test_without_gradient_the_value_is_the_same() -> None:
    views = _views(6)
    with torch.no_grad():
        value = nt_xent(*views, 0.1)
    assert not value.requires_grad
    assert torch.equal(value, value_and_gradients(partial(nt_xent, temperature=0.1), views, 2)[0])


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("loss", [nt_xent, _general])
def test_the_whole_similarity_matrix_is_never_formed(loss: Any) -> None:
    n = 2000
    with _Largest() as largest:
        value_and_gradients(partial(loss, temperature=0.1), _views(n, 2, torch.float32), 2)
    assert largest.numel <= 1 << 21 < (2 * n) ** 2 / 7


def _on_fake_cuda(temperature: float) -> Tensor:
    views = [torch.randn(5000, 8, device=DEVICE, requires_grad=True) for _ in range(2)]
    return nt_xent(*views, temperature)


@pytest.mark.parametrize("temperature", [0.1, 0.001])
def test_no_host_synchronization(temperature: float) -> None:
    assert syncs(_on_fake_cuda, temperature) == []


@pytest.mark.parametrize("temperature", [0.1, 0.001])
def test_compiles_without_graph_break(temperature: float) -> None:
    loss = partial(nt_xent, temperature=temperature)
    assert_compiles(loss, _views(6), 2)


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((3, 2), (4, 2)), 0.1, r"\(3, 2\) and \(4, 2\)"),
        (((3,), (3,)), 0.1, r"\(3,\) and \(3,\)"),
        (((3, 2), (3, 2)), 0.0, "above 0, got 0.0"),
    ],
)
def test_wrong_input_is_named(shapes: Any, temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nt_xent(torch.ones(shapes[0]), torch.ones(shapes[1]), temperature)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_rows_of_any_norm_are_the_references(ranks: Ranks, temperature: float) -> None:
    views = _views(6)
    loss = partial(nt_xent, temperature=temperature, normalize=False)
    slow = partial(reference, temperature=temperature, normalize=False)
    got, want = value_and_gradients(loss, views, 2), value_and_gradients(slow, views, 2)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    assert_ranks_equal_one(ranks, loss, views, 2, (4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(*(view.bfloat16() for view in views))
    assert half.dtype == torch.float32
    rounded = slow(*(view.bfloat16().double() for view in views))
    torch.testing.assert_close(half.double(), rounded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_golden_one_process(number: int) -> None:
    golden = load(f"simclr/ntxent_{number}.npz")
    n, temperature = golden["meta"]["hyper"]["N"], golden["meta"]["hyper"]["temperature"]
    hidden = torch.from_numpy(golden["hidden"]).requires_grad_()
    normalize = golden["meta"]["hyper"]["hidden_norm"]
    value = nt_xent(hidden[:n], hidden[n:], temperature, normalize)
    similarity = hidden[:n] @ hidden[n:].T
    if normalize:
        similarity = F.normalize(hidden[:n]) @ F.normalize(hidden[n:]).T
    value.backward()
    assert_close_to_golden(2 * value, golden["loss"])
    assert_close_to_golden(2 * hidden.grad, golden["grad_hidden"])
    assert_close_to_golden(similarity / temperature, golden["logits_ab"])
    assert_close_to_golden(torch.eye(n, 2 * n), golden["labels"], 0)


def _replica(rank: int, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    mine = hidden[rank].clone().requires_grad_()
    value = nt_xent(*mine.chunk(2), temperature)
    value.backward()
    assert mine.grad is not None
    return value.detach(), mine.grad


def test_golden_two_replicas(ranks: Ranks) -> None:
    golden = load("simclr/ntxent_2replica.npz")
    hidden, hyper = torch.from_numpy(golden["hidden"]), golden["meta"]["hyper"]
    results = ranks(2, _replica, hidden, hyper["temperature"])
    n = hyper["N_per_replica"]
    for rank, (value, grad) in enumerate(results):
        assert_close_to_golden(2 * value, golden["loss"][rank])
        assert_close_to_golden(2 * grad, golden["grad_hidden"][rank])
        keys = F.normalize(torch.cat([hidden[0, n:], hidden[1, n:]]))
        logits = F.normalize(hidden[rank, :n]) @ keys.T / hyper["temperature"]
        assert_close_to_golden(logits, golden["logits_ab"][rank])
        labels = torch.eye(2 * n, 4 * n)[rank * n : (rank + 1) * n]
        assert_close_to_golden(labels, golden["labels"][rank], 0)
