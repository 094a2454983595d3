"""Figures of scores and rankings: by hand, and against independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    normalized_mutual_info_score,
)

from sslzoo.eval.features import Features
from sslzoo.eval.protocols.accuracy import (
    average_precision,
    class_precisions,
    classification,
    mean_average_precision,
    mean_per_class,
    top_k,
)
from sslzoo.eval.protocols.clustering import clustering, partition_agreement
from sslzoo.eval.protocols.ranking import (
    copy_detection,
    ranking_of,
    revisited,
    trapezoid_precision,
)


def test_accuracies_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0]])
    labels = torch.tensor([0, 2, 2, 1])  # right, second, right, tied with a lower class
    assert top_k(scores, labels) == 0.5
    assert top_k(scores, labels, 2) == 1.0
    assert mean_per_class(scores, labels) == pytest.approx((1 + 0.5 + 0) / 3)
    assert classification(scores, labels).keys() == {"top1", "per_class"}
    assert classification(torch.rand(9, 6), torch.arange(9) % 6).keys() >= {"top5"}


def test_average_precision_of_voc_by_hand() -> None:
    # In order of score: right, wrong, right, wrong. Precision 1 at recall 1/2, 2/3 at recall 1.
    scores = torch.tensor([0.9, 0.5, 0.8, 0.1])
    relevant = torch.tensor([True, True, False, False])
    assert average_precision(scores, relevant) == pytest.approx((1 + 2 / 3) / 2)
    # Recall 0, 0.1, ..., 0.5 have precision 1, the other five 2/3.
    eleven = average_precision(scores, relevant, "eleven_points")
    assert eleven == pytest.approx((6 + 5 * 2 / 3) / 11)
    # Interpolated: a later, higher precision counts at lower recall. wrong, right, right.
    assert average_precision(
        torch.tensor([0.9, 0.8, 0.7]), torch.tensor([False, True, True])
    ) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least one relevant sample"):
        average_precision(scores, torch.zeros(4, dtype=torch.bool))


def test_average_precision_bounds_scikit_learns_from_above() -> None:
    draw = torch.Generator().manual_seed(0)
    scores, relevant = torch.rand(60, generator=draw), torch.rand(60, generator=draw) < 0.3
    own = average_precision(scores, relevant)
    raw = average_precision_score(relevant.numpy(), scores.numpy())
    assert raw <= own < raw + 0.1  # interpolation alone differs


def test_difficult_objects_are_not_counted() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.9]])
    labels = torch.tensor([[-1, 0], [1, 0], [0, 0]])
    assert class_precisions(scores, labels) == {0: 1.0}  # no sample of class 1
    assert mean_average_precision(scores, labels) == 1.0
    with pytest.raises(ValueError, match="a class with at least one sample"):
        mean_average_precision(scores, torch.zeros(3, 2))


def test_trapezoids_by_hand() -> None:
    # Found at positions 1 and 3: (0/1 + 1/2) / 2 and (1/3 + 2/4) / 2, of three relevant.
    assert trapezoid_precision([1, 3], 3) == pytest.approx((0.25 + 5 / 12) / 3)
    assert trapezoid_precision([], 3) == 0


def official_map(ranks: np.ndarray, truth: list[dict[str, np.ndarray]], ks: list[int]) -> list:
    """mAP and mP@k with positions shifted by the junk before them, as the benchmark defines."""
    rows = []
    for column, known in zip(ranks.T, truth, strict=True):
        if not len(known["ok"]):
            continue
        position = {image: place for place, image in enumerate(column)}
        junk = sorted(position[i] for i in known["junk"])
        places = sorted(position[i] for i in known["ok"])
        places = [place - sum(j < place for j in junk) for place in places]
        each = []
        for n, place in enumerate(places):
            before = n / place if place else 1.0
            each.append((before + (n + 1) / (place + 1)) / 2)
        row = [sum(each) / len(places)]
        for k in ks:
            most = min(max(places) + 1, k)
            row.append(sum(place + 1 <= most for place in places) / most)
        rows.append(row)
    return np.mean(rows, axis=0).tolist()


def test_revisited_retrieval_takes_junk_out() -> None:
    draw = np.random.default_rng(0)
    truth, ranking = [], []
    for query in range(6):
        images = draw.permutation(40)
        own = {"easy": images[:4], "hard": images[4:9], "junk": images[9:14]}
        own = {key: ids[: len(ids) * (query > 0)].tolist() for key, ids in own.items()}
        truth.append(own)
        ranking.append(draw.permutation(40))
    order = torch.tensor(np.array(ranking))
    got = revisited(order, truth, ks=[1, 5])
    levels = {"medium": (["easy", "hard"], ["junk"]), "hard": (["hard"], ["junk", "easy"])}
    levels["easy"] = (["easy"], ["junk", "hard"])
    for level, (ok, junk) in levels.items():
        known = [
            {
                "ok": np.array([i for kind in ok for i in own[kind]]),
                "junk": np.array([i for kind in junk for i in own[kind]]),
            }
            for own in truth
        ]
        wanted = official_map(order.numpy().T, known, [1, 5])
        assert [got[f"{n}_{level}"] for n in ("map", "mp1", "mp5")] == pytest.approx(wanted)


def test_revisited_retrieval_by_hand() -> None:
    # Nearest first: junk 0, hard 1, easy 2. Easy: 0 and 1 are out, so 2 is first.
    truth = [{"easy": [2], "hard": [1], "junk": [0]}]
    got = revisited(torch.tensor([[0, 1, 2, 3]]), truth, ks=[1])
    assert got["map_easy"] == got["map_medium"] == got["map_hard"] == 1.0
    late = revisited(torch.tensor([[3, 0, 1, 2]]), truth, ks=[1])
    assert late["map_hard"] == pytest.approx((0 / 1 + 1 / 2) / 2)
    assert late["mp1_hard"] == 0
    with pytest.raises(ValueError, match="an easy or hard image"):
        revisited(torch.tensor([[0]]), [{"easy": [], "hard": [], "junk": [0]}])
    with pytest.raises(ValueError, match=r"one ground truth per query \(1\), got 2"):
        revisited(torch.tensor([[0]]), truth * 2)


def test_copy_detection_looks_at_the_nearest_alone() -> None:
    ranking = torch.tensor([[1, 0, 2], [2, 1, 0]])
    # At position 0: 1. At position 2: (0/2 + 1/3) / 2, outside of the two nearest: 0.
    assert copy_detection(ranking, [[1], [0]]) == pytest.approx((1 + 1 / 6) / 2)
    assert copy_detection(ranking, [[1], [0]], most=2) == pytest.approx(0.5)


def test_equal_images_keep_their_order() -> None:
    x = torch.randn(1, 5)
    database = torch.cat([-x, x, 2 * x * (1 + 1e-7), x])
    assert ranking_of(x, database).tolist() == [[1, 2, 3, 0]]


def test_hungarian_accuracy_by_hand() -> None:
    # Cluster 7 has two of class 0 and one of class 1, cluster 9 two of class 1: 4 of 5.
    found = partition_agreement(np.array([7, 7, 7, 9, 9]), np.array([0, 0, 1, 1, 1]))
    assert found["accuracy"] == 0.8
    more = partition_agreement(np.array([0, 1, 2]), np.array([0, 0, 0]))
    assert more["accuracy"] == pytest.approx(1 / 3)  # one cluster per class
    classes, clusters = np.array([0, 0, 1, 1, 2]), np.array([1, 1, 0, 2, 2])
    found = partition_agreement(clusters, classes)
    assert found["nmi"] == normalized_mutual_info_score(classes, clusters)
    assert found["ari"] == adjusted_rand_score(classes, clusters)


def test_separate_clusters_are_found() -> None:
    label = torch.arange(30) % 3
    draw = torch.Generator().manual_seed(0)
    features = torch.eye(3)[label] + 0.01 * torch.randn(30, 3, generator=draw)
    found = clustering(Features(features, label, torch.arange(30)), 3)
    assert found == {"nmi": 1.0, "ari": 1.0, "accuracy": 1.0}
    with pytest.raises(ValueError, match="to cluster must be at least 31, got 30"):
        clustering(Features(features, label, torch.arange(30)), 31)
