"""The suite's numbers are those of the functions, on one rank and on two."""

from __future__ import annotations

import pytest
import torch

from sslzoo.eval.features import Features
from sslzoo.eval.knn import knn_top1
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.retrieval import retrieval
from sslzoo.eval.spectrum import effective_rank, feature_std, uniformity
from sslzoo.eval.suite import KNN, PROTOCOLS, Suite
from tests.ranks import Ranks


def features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    centre = torch.randn(3, 5, generator=torch.Generator().manual_seed(7))
    x = centre[label] + torch.randn(n, 5, generator=generator)
    return Features(x, label, torch.arange(n))


def test_each_metric_is_its_functions() -> None:
    bank, query = features(120, 0), features(40, 1)
    k, temperature = KNN["dino"]
    suite = Suite(k=k[:2], temperature=temperature, recall=(1, 4), rank_samples=100)
    got = suite(bank, query, 3)
    both = (query.features, query.label, bank.features, bank.label)
    assert got["knn_top1_k20_t0.07"] == knn_top1(*both, 3, [(20, 0.07)])[0]
    probe = (bank.features, bank.label, query.features, query.label)
    assert got["linear_top1"] == linear_probe(*probe, 3, suite.l2)
    found = retrieval(query.features, query.label, ks=(1, 4))
    assert got["retrieval_map"] == found.mean_average_precision
    assert got["recall_at_4"] == found.recall[4]
    assert got["purity"] == found.purity
    first = bank.features[:100]
    assert got["effective_rank"] == effective_rank(first).item()
    assert got["feature_std"] == feature_std(first).mean().item()
    assert got["uniformity"] == uniformity(first).item()
    assert "knn_top1_k10_t0.07" in got


def test_label_free_wants_no_labels() -> None:
    bank = features(30, 0)._replace(label=None)
    assert set(Suite(["label_free"])(bank, None, None)) == {
        "effective_rank",
        "feature_std",
        "uniformity",
    }
    with pytest.raises(ValueError, match="want a query set with labels, got none"):
        Suite(["knn"])(bank, None, None)
    with pytest.raises(ValueError, match="want a training set with labels, got none"):
        Suite(["knn"])(bank, features(5, 1), 3)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match=r"some of knn, .*, got \['knm'\]"):
        Suite(["knm"])  # type: ignore[list-item]


def on_rank(rank: int) -> dict[str, float]:
    def mine(x: Features, cut: int) -> Features:
        own = slice(None, cut) if rank == 0 else slice(cut, None)
        return Features(x.features[own], x.label[own], x.index[own])

    return Suite()(mine(features(120, 0), 70), mine(features(40, 1), 9), 3)


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    one = Suite()(features(120, 0), features(40, 1), 3)
    for got in ranks(2, on_rank):
        assert got.keys() == one.keys()
        assert got == pytest.approx(one, rel=1e-6)
    assert len(PROTOCOLS) == 4
