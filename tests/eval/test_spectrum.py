"""Spectrum figures: hand-worked values and plain references."""

from __future__ import annotations

import math

import pytest
import torch

from sslzoo.eval import spectrum
from sslzoo.eval.spectrum import alignment, effective_rank, feature_std, uniformity


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_effective_rank_equals_the_papers_formula(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(x.double())
    p = singular / singular.sum() + 1e-7
    wanted = math.exp(-(p * p.log()).sum().item())
    assert effective_rank(x).item() == pytest.approx(wanted, rel=1e-6)


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6, rel=1e-4)
    assert effective_rank(torch.ones(9, 4)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0]))).item() == pytest.approx(
        2, abs=1e-3
    )


def test_feature_std_is_zero_after_a_collapse_and_one_over_root_d_on_the_sphere():
    assert feature_std(torch.ones(9, 4) * torch.arange(1, 10)[:, None]).max() < 1e-6
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(x).mean().item() == pytest.approx(0.25, abs=0.005)


def test_alignment_by_hand():
    x, y = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    assert alignment(x, y).item() == pytest.approx(1.0)  # squared distances 2 and 0
    assert alignment(x, y, alpha=1).item() == pytest.approx(math.sqrt(2) / 2)
    with pytest.raises(ValueError, match="same shape"):
        alignment(x, y[:1])


def test_uniformity_equals_all_pairs(monkeypatch):
    monkeypatch.setattr(spectrum, "ROW_BLOCK", 7)
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    normal = torch.nn.functional.normalize(x.double(), dim=1)
    wanted = torch.pdist(normal).square().mul(-2).exp().mean().log().item()
    assert uniformity(x).item() == pytest.approx(wanted, rel=1e-5)
    assert uniformity(torch.ones(22, 3)).item() == pytest.approx(0, abs=1e-5)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="n at least 2"):
        feature_std(torch.ones(1, 4))
