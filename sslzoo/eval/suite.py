"""Suite: all metrics of an encoder on a data module, from features extracted once.

Metric names: `knn_top1_k<k>_t<T>` and, if asked, `knn_top5_k<k>_t<T>`, `linear_top1`,
`retrieval_map`, `recall_at_<K>`, `purity`, `effective_rank`, `feature_std`, `uniformity`,
`spearman_<name>`; of masks and videos those of `sslzoo.eval.dense`;
with 1 % of the labels `linear_top1_1pct` and `knn_top1_k<k>_t<T>_1pct`.

Shapes: n samples of this rank, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from torch import Tensor

from sslzoo.checks import check_classes
from sslzoo.eval.dense.propagation import PropagationOptions
from sslzoo.eval.dense.protocols import DENSE, DenseOptions
from sslzoo.eval.features import Features, gather_features, take_fraction
from sslzoo.eval.knn import knn_accuracies
from sslzoo.eval.linear import linear_probe
from sslzoo.eval.retrieval import retrieval
from sslzoo.eval.similarity import scored_spearman
from sslzoo.eval.spectrum import effective_rank, feature_std, uniformity

Protocol = Literal[
    "knn",
    "linear",
    "retrieval",
    "label_free",
    "similarity",
    "linear_segmentation",
    "knn_segmentation",
    "davis",
]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
OF_LABELS: tuple[Protocol, ...] = ("knn", "linear", "retrieval")
OF_MAPS: tuple[Protocol, ...] = (*DENSE, "davis")  # they read feature maps, not features
OF_BANK_LABELS: tuple[Protocol, ...] = ("knn", "linear")  # they use `train_fraction`

# The number of neighbors and the temperature that the papers report with.
KNN = {
    "instdisc": ((200,), (0.07,)),  # lemniscate.pytorch, test.py
    "dino": ((10, 20, 100, 200), (0.07,)),  # dino, eval_knn.py
}


@dataclass(frozen=True)
class Suite:
    """The evaluation protocols to run, and their settings.

    Args:
        protocols: some of "knn", "linear", "retrieval" (which read labels), "label_free",
            "similarity" (which reads scored pairs), "linear_segmentation" and "knn_segmentation"
            (which read masks) and "davis" (which reads videos); None: all that the data allows.
        k: numbers of neighbors of kNN, each combined with each temperature; `KNN` has the
            papers' values.
        temperature: temperatures of kNN's vote.
        l2: L2 weights; the linear probe chooses the best on held-out training samples.
        recall: values of K for recall@K.
        rank_samples: number of bank samples for effective rank and uniformity, the first by index.
        top5: whether kNN gives its top-5 accuracy, too.
        dense: settings of "linear_segmentation" and "knn_segmentation".
        davis: settings of "davis".
        train_fraction: fraction of the bank's labels that kNN and the linear probe use, the same
            in each class; 0.01 and 0.1 are the semi-supervised settings.

    Raises:
        ValueError: for an unknown protocol, or none; a fraction outside (0, 1], or one below 1
            without a protocol that reads the bank's labels.
    """

    protocols: Sequence[Protocol] | None = None
    k: Sequence[int] = (20,)
    temperature: Sequence[float] = (0.07,)
    l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)
    recall: Sequence[int] = (1, 5, 10)
    rank_samples: int = 25_600  # the value in RankMe
    train_fraction: float = 1.0
    top5: bool = False
    dense: DenseOptions = field(default_factory=DenseOptions)
    davis: PropagationOptions = field(default_factory=PropagationOptions)

    def __post_init__(self) -> None:
        asked = PROTOCOLS if self.protocols is None else self.protocols
        if not asked or set(asked) - set(PROTOCOLS):
            raise ValueError(f"protocols must be among {list(PROTOCOLS)}, got {self.protocols}")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must be in (0, 1], got {self.train_fraction}")
        if self.train_fraction < 1 and not set(asked) & set(OF_BANK_LABELS):
            raise ValueError(
                "protocols must include 'knn' or 'linear' with a train_fraction below 1 "
                f"({self.train_fraction}), got {self.protocols}"
            )

    def fitting(
        self,
        bank: Features,
        query: Features | None,
        num_classes: int | None,
        pairs: Mapping[str, Features] | None = None,
        maps: Sequence[str] = (),
    ) -> Suite:
        """The suite with explicit protocols: those given, or else all that this data allows.

        Args:
            bank: see `__call__`.
            query: see there.
            num_classes: see there.
            pairs: see there.
            maps: the protocols of feature maps that the data allows.

        Raises:
            ValueError: `train_fraction` needs labels, and the data has none.
        """
        if self.protocols is not None:
            return self
        fits = {"label_free": True, "similarity": bool(pairs)}
        fits |= {name: name in maps for name in OF_MAPS}
        known = num_classes is not None and bank.label is not None
        labeled = known and query is not None and query.label is not None
        return replace(self, protocols=[x for x in PROTOCOLS if fits.get(x, labeled)])

    def __call__(
        self,
        bank: Features,
        query: Features | None,
        num_classes: int | None,
        seed: int = 0,
        pairs: Mapping[str, Features] | None = None,
    ) -> dict[str, float]:
        """Compute all metrics by name; collective, with the same result on every rank.

        The protocols of feature maps are not among them: they read the encoder, not its features.

        Args:
            bank: the training set's features of this rank.
            query: the test set's; None only if no protocol reads labels.
            num_classes: C; None under the same condition as `query`.
            seed: determines the samples that `train_fraction` keeps.
            pairs: sets of scored pairs by name, each in the form that `scored_spearman` takes.

        Raises:
            ValueError: a protocol needs labels, a query set or pairs that are missing.
        """
        protocols = self.fitting(bank, query, num_classes, pairs).protocols
        assert protocols is not None
        values: dict[str, float] = {}
        if "label_free" in protocols:
            values |= self._label_free(bank)
        if "similarity" in protocols:
            if not pairs:
                raise ValueError("the data must have scored pairs for 'similarity', got none")
            values |= {f"spearman_{name}": scored_spearman(own) for name, own in pairs.items()}
        if not set(protocols) & set(OF_LABELS):
            return values
        asked, labels = _labeled(query, "query set")
        known, _ = _labeled(bank, "training set")
        if num_classes is None:
            raise ValueError(
                "the data must have labels for kNN, linear probe and retrieval, got none"
            )
        few = ""
        if self.train_fraction < 1:
            few = f"_{100 * self.train_fraction:g}pct"
            known = take_fraction(known, self.train_fraction, seed)
        if "knn" in protocols:
            settings = [(k, t) for k in self.k for t in self.temperature]
            bank_labels = cast(Tensor, known.label)
            tops = (1, 5) if self.top5 else (1,)
            accuracies = knn_accuracies(
                *(asked.features, labels, known.features, bank_labels, num_classes, settings),
                *(tops, known.index),
            )
            values |= {
                f"knn_top{top}_k{k}_t{t:g}{few}": value
                for (k, t), row in zip(settings, accuracies, strict=True)
                for top, value in zip(tops, row, strict=True)
            }
        if "linear" in protocols:
            train, test = gather_features(known), gather_features(asked)
            values[f"linear_top1{few}"] = linear_probe(
                *(train.features, cast(Tensor, train.label), test.features),
                *(cast(Tensor, test.label), num_classes, self.l2),
            )
        if "retrieval" in protocols:
            found = retrieval(asked.features, labels, ks=self.recall, index=asked.index)
            values["retrieval_map"] = found.mean_average_precision
            values |= {f"recall_at_{k}": value for k, value in found.recall.items()}
            values["purity"] = found.purity
        return values

    def _label_free(self, bank: Features) -> dict[str, float]:
        features = gather_features(bank).features[: self.rank_samples]
        return {
            "effective_rank": effective_rank(features).item(),
            "feature_std": feature_std(features).mean().item(),
            "uniformity": uniformity(features).item(),
        }


def _labeled(features: Features | None, name: str) -> tuple[Features, Tensor]:
    who = f"kNN, linear probe and retrieval (the {name})"
    label = check_classes(who, None if features is None else features.label)
    assert features is not None
    return features._replace(label=label), label
