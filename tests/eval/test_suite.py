"""The suite's numbers are those of the functions, on one rank and on two."""

from __future__ import annotations

import pytest
import torch

from sslzoo.eval.features import Features, take_fraction
from sslzoo.eval.knn import knn_accuracies, knn_top1
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.retrieval import retrieval
from sslzoo.eval.similarity import pair_spearman
from sslzoo.eval.spectrum import effective_rank, feature_std, uniformity
from sslzoo.eval.suite import KNN, PROTOCOLS, Suite
from sslzoo.random import stratified_split
from tests.ranks import Ranks


def features(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    center = torch.randn(3, 5, generator=torch.Generator().manual_seed(7))
    x = center[label] + torch.randn(n, 5, generator=generator)
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
    assert not any(name.startswith("knn_top5") for name in got)
    asked = Suite(["knn"], k=(20, 3), top5=True)(bank, query, 3)
    tops = knn_accuracies(*both, 3, [(20, 0.07), (3, 0.07)])
    names = [f"knn_top{top}_k{k}_t0.07" for k in (20, 3) for top in (1, 5)]
    assert asked == dict(zip(names, [*tops[0], *tops[1]], strict=True))


def test_label_free_wants_no_labels() -> None:
    bank = features(30, 0)._replace(label=None)
    assert set(Suite(["label_free"])(bank, None, None)) == {
        "effective_rank",
        "feature_std",
        "uniformity",
    }
    with pytest.raises(ValueError, match=r"labels must be .* query set.*, got None"):
        Suite(["knn"])(bank, None, None)
    with pytest.raises(ValueError, match=r"labels must be .* training set.*, got None"):
        Suite(["knn"])(bank, features(5, 1), 3)


def test_by_default_all_that_the_data_allows() -> None:
    bank, query = features(30, 0), features(10, 1)
    scores = torch.arange(5.0).repeat_interleave(2)
    pairs = {"dev": features(10, 2)._replace(label=scores)}
    every = ["knn", "linear", "retrieval", "label_free"]
    assert Suite().fitting(bank, query, 3).protocols == every
    assert Suite().fitting(bank, query, 3, pairs).protocols == [*every, "similarity"]
    for lacking in (
        (bank, None, 3),
        (bank, query, None),
        (bank._replace(label=None), query, 3),
        (bank, query._replace(label=None), 3),
    ):
        assert Suite().fitting(*lacking).protocols == ["label_free"]
        assert "effective_rank" in Suite()(*lacking)
    asked = Suite(["knn"])
    assert asked.fitting(bank, None, None) is asked
    got = Suite(["similarity"])(bank, None, None, pairs=pairs)
    assert got == {"spearman_dev": pair_spearman(pairs["dev"].features, scores)}
    with pytest.raises(ValueError, match="scored pairs for 'similarity', got none"):
        Suite(["similarity"])(bank, query, 3)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match=r"must be among \['knn', .*\], got \['knm'\]"):
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
    assert len(PROTOCOLS) == 8


FEW = Suite(k=(5,), l2=(0.01,), train_fraction=0.1)


def test_few_labels_are_of_the_bank_and_of_knn_and_linear_probe() -> None:
    bank, query = features(120, 0), features(40, 1)
    got, whole = FEW(bank, query, 3, seed=7), Suite(k=(5,), l2=(0.01,))(bank, query, 3)
    few = stratified_split(bank.label, 120, 0.1, 7)[1]
    assert bank.label[few].bincount().tolist() == (0.1 * bank.label.bincount()).round().tolist()
    both = (query.features, query.label, bank.features[few], bank.label[few])
    assert got["knn_top1_k5_t0.07_10pct"] == knn_top1(*both, 3, [(5, 0.07)])[0]
    probe = (bank.features[few], bank.label[few], query.features, query.label)
    assert got["linear_top1_10pct"] == linear_probe(*probe, 3, (0.01,))
    same = {"retrieval_map", "purity", "effective_rank", "feature_std", "uniformity"}
    assert {name: got[name] for name in same} == {name: whole[name] for name in same}
    assert not {"linear_top1", "knn_top1_k5_t0.07"} & got.keys()


def test_the_seed_draws_the_labels() -> None:
    bank = features(120, 0)
    drawn = [take_fraction(bank, 0.1, seed).index.tolist() for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def mine_of(rank: int, x: Features) -> Features:
    """Rows that the ranks have in no order."""
    own = torch.randperm(len(x.index), generator=torch.Generator().manual_seed(3))[rank::2]
    assert x.label is not None
    return Features(x.features[own], x.label[own], x.index[own])


def few_on_rank(rank: int) -> tuple[dict[str, float], list[int]]:
    bank, query = mine_of(rank, features(120, 0)), mine_of(rank, features(40, 1))
    return FEW(bank, query, 3, seed=2), take_fraction(bank, 0.1, 2).index.tolist()


def test_few_labels_are_the_same_on_two_ranks(ranks: Ranks) -> None:
    bank = features(120, 0)
    one, rows = FEW(bank, features(40, 1), 3, seed=2), take_fraction(bank, 0.1, 2).index.tolist()
    got = ranks(2, few_on_rank)
    assert sorted(got[0][1] + got[1][1]) == rows
    for metrics, _ in got:
        assert metrics == pytest.approx(one, rel=1e-6)


def test_a_fraction_that_changes_nothing_is_refused() -> None:
    for fraction in (0.0, 1.5):
        with pytest.raises(
            ValueError, match=rf"train_fraction must be in \(0, 1\], got {fraction}"
        ):
            Suite(train_fraction=fraction)
    with pytest.raises(ValueError, match=r"\(0.1\), got \['retrieval'\]"):
        Suite(["retrieval"], train_fraction=0.1)
