"""wav2vec 2.0's losses equal fairseq's, a slow reference, and themselves on ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.heads import GumbelQuantizer
from sslzoo.losses import codebook_diversity, feature_penalty, masked_contrastive, perplexity
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks


def linear(z: dict[str, Any], name: str) -> torch.nn.Linear:
    weight, bias = (torch.from_numpy(z[f"{name}{part}"]) for part in ("weight", "bias"))
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer


@pytest.mark.parametrize("name", ["loss", "loss_codebook_cross"])
def test_equals_fairseq(name: str) -> None:
    """Loss, its terms and gradients, for the authors' draws."""
    z = load(f"wav2vec2/{name}.npz")
    how = z["meta"]["hyper"]
    quantizer_of = how["quantizer"]
    B, M, K = how["B"], how["masked_per_row"], how["num_negatives"]
    cross, coded = how["cross_sample_negatives"], how["codebook_negatives"]
    quantizer = GumbelQuantizer(
        how["D"], quantizer_of["num_vars"], quantizer_of["groups"], quantizer_of["vq_dim"]
    )
    entries = torch.from_numpy(z["quantizer:vars"]).reshape(quantizer.entries.shape)
    quantizer.entries.data.copy_(entries)
    quantizer.logits = linear(z, "quantizer:weight_proj.")
    project, final = linear(z, "project_q:"), linear(z, "final_proj:")
    encoder = linear(z, "encoder:lin.")
    features = torch.from_numpy(z["features"]).requires_grad_()
    mask = torch.from_numpy(z["mask"])
    x = features.mT  # (B, T, D)
    masked = torch.where(mask[..., None], torch.from_numpy(z["mask_emb"]), x)
    predictions = final(torch.tanh(encoder(masked))[mask]).unflatten(0, (B, M))
    draws = torch.from_numpy(z["exponential"]).reshape(B, M, quantizer.groups, -1)
    quantized = quantizer(x[mask].unflatten(0, (B, M)), quantizer_of["temperature"], draws)
    targets = project(quantized.values)
    drawn = torch.from_numpy(z["neg_idxs"]).reshape(B, M, K + cross)
    every = targets.flatten(0, 1)
    others = every[drawn]  # the released view mixes own and cross draws: all as further candidates
    if coded:
        codes = quantizer.codes_of(torch.from_numpy(z["codebook_idxs"]))
        picked = project(quantizer.pick(codes)).reshape(coded, B, M, -1)  # the released view
        others = torch.cat([others, picked.permute(1, 2, 0, 3)], dim=2)
    real = torch.ones(B, M, dtype=torch.bool)
    duplicates = torch.from_numpy(z["neg_is_pos"]).permute(1, 2, 0)
    none = drawn[..., :0]
    given = (real, duplicates, how["logit_temp"])
    contrastive = masked_contrastive(predictions, targets, none, *given, others)
    if not cross and not coded:  # negatives of the own sequence are picked from all scores
        own = drawn - M * torch.arange(B)[:, None, None]
        torch.testing.assert_close(
            masked_contrastive(predictions, targets, own, *given), contrastive
        )
    size = int(z["sample_size"])
    diversity, penalty = how["loss_weights"]
    terms = [
        size * contrastive,
        size * diversity * codebook_diversity(quantized.probabilities, real),
        size * penalty * feature_penalty(x, torch.ones_like(mask)),
    ]
    for got, want in zip(terms, z["loss_terms"], strict=True):
        assert got.item() == pytest.approx(float(want), rel=1e-4)
    assert_close_to_golden(perplexity(quantized.probabilities, real), z["prob_perplexity"])
    loss = torch.stack(terms).sum()
    assert_close_to_golden(loss, z["loss"])
    loss.backward()
    assert_close_to_golden(features.grad, z["grad_features"])
    assert_close_to_golden(final.weight.grad, z["grad_final_proj:weight"])
    entries_grad = quantizer.entries.grad.reshape(z["grad_quantizer:vars"].shape)
    assert_close_to_golden(entries_grad, z["grad_quantizer:vars"])
    assert_close_to_golden(quantizer.logits.weight.grad, z["grad_quantizer:weight_proj.weight"])


def reference(
    p: Tensor, t: Tensor, others: Tensor, negatives: Tensor, real: Tensor, duplicates: Tensor
) -> Tensor:
    """One masked frame after the other."""
    terms = []
    for b, m in real.nonzero().tolist():
        candidates = [t[b, m], *t[b, negatives[b, m]], *others[b, m]]
        kept = [True, *(~duplicates[b, m]).tolist()]
        scores = [
            torch.dot(p[b, m], c) / p[b, m].norm() / c.norm() / 0.1
            for c, keep in zip(candidates, kept, strict=True)
            if keep
        ]
        terms.append(-torch.stack(scores).log_softmax(0)[0])
    return torch.stack(terms).mean()


def loss(
    p: Tensor, t: Tensor, others: Tensor, negatives: Tensor, real: Tensor, duplicates: Tensor
) -> Tensor:
    return masked_contrastive(p, t, negatives, real, duplicates, 0.1, others)


def data(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, t = (torch.randn(n, 5, 4, generator=generator).double() for _ in range(2))
    others = torch.randn(n, 5, 2, 4, generator=generator).double()
    negatives = torch.randint(0, 5, (n, 5, 3), generator=generator)
    real = torch.rand(n, 5, generator=generator) < 0.7
    real[1] = False
    duplicates = torch.rand(n, 5, 5, generator=generator) < 0.3
    return [p, t, others, negatives, real, duplicates]


def test_value_and_gradients_are_the_references() -> None:
    got = value_and_gradients(loss, data(), 3)
    torch.testing.assert_close(got, value_and_gradients(reference, data(), 3))


@pytest.mark.parametrize("counts", COUNTS[1:])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, data(), 3, counts)


@pytest.mark.parametrize("term", [perplexity, codebook_diversity, feature_penalty])
def test_terms_on_ranks_equal_one(ranks: Ranks, term: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 5, 4) if term is feature_penalty else (6, 5, 2, 3)
    x = torch.randn(shape, generator=generator).double()
    x = x if term is feature_penalty else x.softmax(-1)
    assert_ranks_equal_one(ranks, term, [x, data()[4]], 1, (4, 2))


def test_use_of_the_codebook() -> None:
    real = torch.ones(2, 3, dtype=torch.bool)
    uniform = torch.full((2, 3, 2, 5), 0.2)
    assert codebook_diversity(uniform, real).item() == pytest.approx(0, abs=1e-5)
    collapsed = torch.nn.functional.one_hot(torch.zeros(2, 3, 2).long(), 5).float()
    assert perplexity(collapsed, real).item() == pytest.approx(2, abs=1e-4)
    assert codebook_diversity(collapsed, real).item() == pytest.approx(0.8, abs=1e-4)


def test_no_masked_frame_and_only_duplicates_stay_finite() -> None:
    p, t, others, negatives, real, duplicates = data()
    nothing = value_and_gradients(
        partial(
            loss,
            negatives=negatives,
            real=torch.zeros_like(real),
            duplicates=duplicates,
        ),
        [p, t, others],
        3,
    )
    assert nothing[0] == 0
    value, gradients = value_and_gradients(
        partial(
            loss,
            negatives=negatives,
            real=real,
            duplicates=torch.ones_like(duplicates),
        ),
        [p, 0 * t, others],
        3,
    )
    assert value == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_half_precision_is_computed_in_float32() -> None:
    half = [x.bfloat16() if x.is_floating_point() else x for x in data()]
    full = [x.float() if x.is_floating_point() else x for x in half]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = value_and_gradients(loss, half, 3)
    assert torch.equal(got, value_and_gradients(loss, full, 3)[0])


def _on_fake_cuda() -> Tensor:
    p = torch.randn(2, 5, 4, device=DEVICE, requires_grad=True)
    real = torch.ones(2, 5, dtype=torch.bool, device=DEVICE)
    negatives = torch.zeros(2, 5, 3, dtype=torch.long, device=DEVICE)
    value = masked_contrastive(p, p, negatives, real, negatives > 0)
    return value + codebook_diversity(p.unflatten(2, (2, 2)), real) + feature_penalty(p, real)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_shapes_are_named() -> None:
    p, t, others, negatives, real, duplicates = data()
    with pytest.raises(ValueError, match=r"\(6, 5, 4\), \(6, 4, 4\)"):
        loss(p, t[:, :4], others, negatives, real, duplicates)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        masked_contrastive(p, t, negatives, real, duplicates, 0, others)
