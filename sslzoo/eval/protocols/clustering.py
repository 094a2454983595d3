"""Clustering: k-means on features, compared with the classes by NMI, ARI and Hungarian accuracy.

Kuhn, The Hungarian Method for the Assignment Problem, 1955; Hubert and Arabie, Comparing
Partitions, 1985. k-means, NMI and ARI are scikit-learn's, the assignment is scipy's.
Shapes: n samples of this rank, N of all ranks, D width.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least, check_classes
from sslzoo.distributed import gather_objects, rank
from sslzoo.eval.features import Features, gather_features


def partition_agreement(clusters: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """`nmi`, `ari` and `accuracy` under the best one-to-one assignment of clusters to classes.

    Args:
        clusters: (N,) integers.
        classes: (N,) integers.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    except ImportError as error:
        raise ImportError(
            f"clustering needs packages that are not installed ({error}); run: "
            "pip install 'sslzoo[report]'"
        ) from None
    _, column = np.unique(clusters, return_inverse=True)
    _, row = np.unique(classes, return_inverse=True)
    table = np.zeros((row.max() + 1, column.max() + 1), dtype=np.int64)
    np.add.at(table, (row, column), 1)
    chosen = linear_sum_assignment(table, maximize=True)
    return {
        "nmi": float(normalized_mutual_info_score(classes, clusters)),
        "ari": float(adjusted_rand_score(classes, clusters)),
        "accuracy": float(table[chosen].sum() / len(classes)),
    }


def clustering(
    own: Features, num_clusters: int, seed: int = 0, restarts: int = 10
) -> dict[str, float]:
    """Cluster L2-normalized features of all ranks and compare the clusters with the classes.

    Collective; computed on the first rank, so the result is the same on every rank.

    Args:
        own: this rank's features, with labels (n,).
        num_clusters: k, mostly the number of classes.
        seed: seed of the initial centers.
        restarts: number of initializations; the one with the least inertia is used.

    Returns:
        See `partition_agreement`.

    Raises:
        ValueError: there are fewer samples than clusters, or no labels.
        ImportError: scikit-learn is not installed.
    """
    label = check_classes("clustering", own.label)
    every = gather_features(own._replace(label=label))
    check_at_least("the number of samples to cluster", len(every.features), num_clusters)
    found: dict[str, float] | str = {}
    if rank() == 0:
        try:
            found = _cluster(every.features, every.label, num_clusters, seed, restarts)
        except ImportError as error:
            found = str(error)  # raised on every rank, so that none waits for another
    result = gather_objects(found)[0]
    if isinstance(result, str):
        raise ImportError(result)
    return result  # type: ignore[no-any-return]


def _cluster(
    features: Tensor, label: Tensor | None, num_clusters: int, seed: int, restarts: int
) -> dict[str, float]:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            f"clustering needs packages that are not installed ({error}); run: "
            "pip install 'sslzoo[report]'"
        ) from None
    assert label is not None
    rows = F.normalize(features.double(), dim=1).cpu().numpy()
    clusters = KMeans(num_clusters, n_init=restarts, random_state=seed).fit_predict(rows)
    return partition_agreement(clusters, label.cpu().numpy())
