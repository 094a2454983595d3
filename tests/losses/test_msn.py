"""MSN's targets and terms against a slow reference, the authors' arrays, and on ranks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslzoo.losses import MSNTerms, msn, msn_targets
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_compiles, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

D, K, V = 4, 5, 2


def weighted(terms: MSNTerms) -> Tensor:
    return terms.cross_entropy + 1.5 * terms.mean_entropy + 0.5 * terms.entropy


def total(z: Tensor, targets: Tensor, prototypes: Tensor, smoothing: float = 0.0) -> Tensor:
    return weighted(msn(z, prototypes, targets, 0.1, smoothing))


def reference(z: Tensor, targets: Tensor, prototypes: Tensor, smoothing: float = 0.0) -> Tensor:
    """Anchor by anchor, in probabilities."""
    value, every = torch.zeros((), dtype=z.dtype), []
    for i in range(len(z)):
        for v in range(z.shape[1]):
            cosines = torch.stack([F.cosine_similarity(z[i, v], c, dim=0) for c in prototypes])
            p = (cosines / 0.1).exp() / (cosines / 0.1).exp().sum()
            p = (1 - smoothing) * p + smoothing / len(prototypes)
            every.append(p)
            for t, q in zip(targets[i], p, strict=True):
                value = value - (t + 0.5 * q) * q.log()
    mean = torch.stack(every).mean(dim=0)
    most = math.log(len(prototypes)) + (mean * mean.log()).sum()
    return value / len(every) + 1.5 * most


def inputs(n: int = 6) -> list[Tensor]:
    """Anchors, targets and prototypes in float64."""
    draw = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"generator": draw, "dtype": torch.float64}
    z, targets = torch.randn(n, V, D, **options), torch.rand(n, K, **options)
    return [z, targets / targets.sum(dim=1, keepdim=True), torch.randn(K, D, **options)]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_value_and_gradient_are_the_references(smoothing: float) -> None:
    z, targets, prototypes = inputs()
    tensors = [z, prototypes, targets]
    for loss in (total, reference):

        def of(z: Tensor, c: Tensor, t: Tensor, loss: Any = loss) -> Tensor:
            return loss(z, t, c, smoothing)

        got = value_and_gradients(of, tensors, 2)
        if loss is total:
            first = got
    torch.testing.assert_close(first, got)


def test_hand_worked_values() -> None:
    prototypes = torch.eye(2)
    z = torch.tensor([[[3.0, 3.0]], [[0.0, 5.0]]])  # the lengths do not count
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    terms = msn(z, prototypes, targets, temperature=1.0)
    q = 1 / (1 + math.e)  # of prototype 0 for the second anchor
    assert terms.cross_entropy.item() == pytest.approx((math.log(2) - math.log(1 - q)) / 2)
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    assert terms.entropy.item() == pytest.approx((math.log(2) + entropy) / 2)
    mean = (0.5 + q) / 2
    wanted = math.log(2) + mean * math.log(mean) + (1 - mean) * math.log(1 - mean)
    assert terms.mean_entropy.item() == pytest.approx(wanted)


def test_targets_worked_by_hand() -> None:
    """Odds of e at T = 1 are odds of e^4 at T = 1/4; Sinkhorn then balances the prototypes."""
    z, prototypes = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    sharp = msn_targets(z, prototypes, 1.0, 0.25, sinkhorn_iterations=0)
    assert (sharp[:, 0] / sharp[:, 1]).tolist() == pytest.approx([math.e**4] * 2, rel=1e-5)
    balanced = msn_targets(z, prototypes, 1.0, 0.25)
    torch.testing.assert_close(balanced, torch.full((2, 2), 0.5))


@pytest.mark.parametrize("sharpening", [1.0, 1e-3])
def test_tiny_temperatures_stay_finite(sharpening: float) -> None:
    z, targets, prototypes = (x.float() for x in inputs())
    t = msn_targets(z[:, 0], prototypes, 1e-3, sharpening)
    torch.testing.assert_close(t.sum(dim=1), torch.ones(len(z)))
    loss = partial(msn, temperature=1e-3)
    got = value_and_gradients(lambda z, c: weighted(loss(z, c, targets)), [z, prototypes], 2)
    assert got[0].isfinite()
    assert all(grad.isfinite().all() for grad in got[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, targets, prototypes = (x.float() for x in inputs())
    leaf = z.to(dtype).requires_grad_()
    want, (wanted,) = value_and_gradients(total, [leaf.detach().float(), targets, prototypes], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = total(leaf, targets, prototypes)
        t = msn_targets(leaf[:, 0], prototypes, 0.1, 0.25)
    got.backward()  # outside, as a Trainer does: products in it follow autocast
    assert got.dtype == t.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(leaf.grad, wanted.to(dtype))


@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    z, targets, prototypes = inputs()
    assert_ranks_equal_one(ranks, partial(total, prototypes=prototypes), [z, targets], 1, counts)


def _own_targets(rank: int, z: Tensor, prototypes: Tensor, counts: tuple[int, ...]) -> Tensor:
    return msn_targets(z.split(counts)[rank], prototypes, 0.1, 0.25)


@pytest.mark.parametrize("counts", [(4, 2), (1, 5)])
def test_targets_are_balanced_over_the_global_batch(ranks: Ranks, counts: tuple[int, ...]) -> None:
    z, _, prototypes = inputs()
    one = msn_targets(z[:, 0], prototypes, 0.1, 0.25)
    found = ranks(len(counts), _own_targets, z[:, 0], prototypes, counts)
    torch.testing.assert_close(torch.cat(found), one, rtol=1e-9, atol=1e-12)


def _on_fake_cuda() -> Tensor:
    z = torch.randn(4, V, D, device=DEVICE, requires_grad=True)
    prototypes = torch.randn(K, D, device=DEVICE)
    return total(z, msn_targets(z[:, 0].detach(), prototypes, 0.1, 0.25), prototypes)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


@pytest.mark.slow
def test_compiles_without_graph_break() -> None:
    assert_compiles(total, inputs(), 1)


def test_wrong_input_is_named() -> None:
    z, targets, prototypes = inputs()
    with pytest.raises(ValueError, match=r"z must be \(n, V, D\) and prototypes \(K, D\), got"):
        total(z[:, 0], targets, prototypes)
    with pytest.raises(ValueError, match=r"targets must be \(6, 5\), .* got \(6, 4\)"):
        total(z, targets[:, :4], prototypes)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1"):
        total(z, targets, prototypes, 1.0)
    with pytest.raises(ValueError, match="sharpening must be above 0, got 0"):
        msn_targets(z[:, 0], prototypes, 0.1, 0)


# -- arrays of the authors' code

CASES = {"sharpen": (0, "plain"), "sinkhorn": (3, "plain"), "sinkhorn_smooth": (3, "smooth")}


def _official(rank: int, z: dict[str, Any], case: str) -> dict[str, Any]:
    hyper = z["meta"]["hyper"]
    iterations, labels = CASES[case]
    smoothing = 1 - float(z[f"labels_{labels}"][0, 0] - z[f"labels_{labels}"][0, 1])
    anchor = torch.tensor(z["anchor"][rank]).requires_grad_()
    prototypes = torch.tensor(z["prototypes"]).requires_grad_()
    given = torch.tensor(z["target"][rank])
    tau, views = hyper["tau"], hyper["V"]
    targets = msn_targets(given, prototypes, tau, hyper["T"], iterations, smoothing)
    by_sample = anchor.view(views, len(given), -1).transpose(0, 1)
    terms = msn(by_sample, prototypes, targets, tau, smoothing)
    weights = 1.0, hyper["memax_weight"], hyper["ent_weight"]
    loss = sum(w * term for w, term in zip(weights, terms, strict=True))
    leaves = {"anchor": anchor, "prototypes": prototypes}
    found: dict[str, Any] = {
        "terms": torch.stack([*terms, loss]).detach(),
        "targets": targets.repeat(views, 1),
        "np": targets.argmax(dim=1).unique().numel(),
        "max_t": targets.amax(dim=1).mean(),
        "min_t": targets.amin(dim=1).mean(),
    }
    for name, value in (("", loss), ("memax_", terms[1]), ("ent_", terms[2])):
        grads = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
        found[f"grad_anchor_{name}"] = grads[0]
        if not name:
            found["grad_proto_local_"] = grads[1]
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [1, 2])
def test_equals_the_authors(ranks: Ranks, world: int, case: str) -> None:
    z = load(f"msn/loss_{world}rank.npz")
    results = ranks(world, _official, z, case)
    for rank, found in enumerate(results):
        for name, value in found.items():
            wanted = z[f"{name.removesuffix('_')}_{case}"][rank]
            assert_close_to_golden(value, wanted, 0 if name == "np" else 5e-6)
        # The code sums the prototypes' gradient over ranks; DDP's mean, ours, is 1 / W of it.
        summed = torch.stack([each["grad_proto_local_"] for each in results]).sum(dim=0)
        assert_close_to_golden(summed, z[f"grad_proto_allreduced_{case}"][rank], 2e-6)


def test_the_labels_are_smoothed_as_the_authors() -> None:
    z = load("msn/loss_1rank.npz")
    uniform = torch.full((8, 8), 1 / 8)
    assert_close_to_golden(torch.eye(8), z["labels_plain"], 0)
    assert_close_to_golden(0.9 * torch.eye(8) + 0.1 * uniform, z["labels_smooth"], 1e-7)
