"""Samples: features of test samples, and the training views.

Shapes: n samples, D width of the features, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import seed_everything
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor, nn

from sslzoo.data.datamodule import SampleDataModule
from sslzoo.data.image.datamodule import ImageDataModule
from sslzoo.eval.features import eval_mode
from sslzoo.eval.spectrum import effective_rank, feature_std, uniformity


class Samples(NamedTuple):
    """Test samples, spaced evenly over their set, with their features.

    Args:
        features: (n, D) float32.
        labels: (n,) int64, or None.
        images: (n, C, H, W) uint8 raw images, or None if the samples are not images.
        inputs: (m, C, H, W) preprocessed inputs of m samples, or None.
        classes: names of the labels; empty if they have none.
    """

    features: Tensor
    labels: Tensor | None
    images: Tensor | None
    inputs: Tensor | None
    classes: list[str]

    def name(self, sample: int) -> str:
        """Name of the sample's class."""
        if self.labels is None:
            return ""
        label = int(self.labels[sample])
        return self.classes[label] if label < len(self.classes) else str(label)


def seen(encoder: nn.Module, data: SampleDataModule, count: int, num_inputs: int) -> Samples:
    """Encode `count` samples of the query set (otherwise the training set).

    Raises:
        ValueError: the data has neither set, or the features are not (n, D) or not finite.
    """
    sets = data.sets
    whole = getattr(sets, "query", None)
    whole = getattr(sets, "train", None) if whole is None else whole
    if whole is None or not hasattr(whole, "subset"):
        raise ValueError(f"{type(data).__name__} must have a query or training set, got neither")
    rows = torch.linspace(0, len(whole) - 1, min(count, len(whole))).round().long()
    features: list[Tensor] = []
    labels: list[Tensor] = []
    images: list[Tensor] = []
    inputs: list[Tensor] = []
    wanted = set(
        torch.linspace(0, len(rows) - 1, min(num_inputs, len(rows))).round().int().tolist()
    )
    done = 0
    with torch.no_grad(), eval_mode(encoder):
        for raw in data.eval_loader(whole.subset(rows)):
            batch = data.eval_views(raw)
            output = encoder(batch.views[0])
            if not isinstance(output, Tensor) or output.ndim != 2:
                raise ValueError(f"the features of {type(encoder).__name__} must be (n, D)")
            features.append(output.float())
            if raw.label is not None:
                labels.append(raw.label)
            if isinstance(data, ImageDataModule):
                images.append(raw.views[0])
                here = batch.views[0]
                inputs += [here[i] for i in range(len(here)) if done + i in wanted]
            done += len(output)
    found = torch.cat(labels) if labels else None
    whole_features = torch.cat(features)
    if not whole_features.isfinite().all():
        raise ValueError("the features must be finite, got NaN or infinity")
    return Samples(
        whole_features,
        found.long() if found is not None and found.ndim == 1 else None,
        torch.cat(images) if images and len({x.shape[1:] for x in images}) == 1 else None,
        torch.stack(inputs) if inputs else None,
        list(getattr(data, "classes", [])),
    )


def training_views(data: ImageDataModule, count: int, epoch: int = 0) -> list[Tensor]:
    """Draw the views of `count` training samples: one (count, C, S, S) tensor per view.

    Args:
        data: the data module, set up with the run's seed.
        count: number of samples, spaced evenly over the training set.
        epoch: the epoch whose random draws are used.
    """
    total = data.num_samples
    rows = torch.linspace(0, total - 1, min(count, total)).round().long().tolist()
    return [view for view in data.preview(rows, epoch).views if isinstance(view, Tensor)]


def statistics(samples: Samples) -> dict[str, float]:
    """Effective rank, standard deviation, spread and uniformity of the features."""
    std = feature_std(samples.features).mean().item()
    return {
        "effective rank": effective_rank(samples.features).item(),
        "feature std": std,
        "spread": std * samples.features.shape[1] ** 0.5,
        "uniformity": uniformity(samples.features).item(),
    }


def spectrum(features: Tensor) -> list[float]:
    """Eigenvalues of the features' covariance, descending, as fractions of their sum."""
    x = features.double()
    x = x - x.mean(0)
    values = torch.linalg.eigvalsh(x.T @ x).flip(0).clamp_min(0)
    return (values / values.sum().clamp_min(1e-300)).tolist()


def plane(features: Tensor, kind: str) -> np.ndarray:
    """Project features to the plane, (n, D) -> (n, 2).

    Args:
        features: scaled to length 1 first.
        kind: "pca", "tsne" (both scikit-learn's), or "umap" (umap-learn's).

    Raises:
        ValueError: the kind is unknown, or there are fewer than 3 samples.
        ImportError: umap-learn is not installed.
    """
    if len(features) < 3:
        raise ValueError(f"features must have at least 3 rows for a map, got {len(features)}")
    x = torch.nn.functional.normalize(features, dim=1).numpy()
    few = min(50, *x.shape)
    if kind == "pca":
        return PCA(2, random_state=0).fit_transform(x)
    if kind == "tsne":
        reduced = PCA(few, random_state=0).fit_transform(x)
        perplexity = min(30.0, (len(x) - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    if kind == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError(
                "the map 'umap' needs the package umap-learn, which is not installed; run: "
                "pip install umap-learn"
            ) from error
        return UMAP(n_components=2, metric="cosine", n_jobs=1, random_state=0).fit_transform(x)
    raise ValueError(f"maps must be among ['pca', 'tsne', 'umap'], got {kind!r}")


def set_seed(config: dict[str, Any]) -> None:
    """Set the run's seed, which determines its views."""
    seed = config.get("seed_everything")
    seed_everything(
        seed if isinstance(seed, int) and not isinstance(seed, bool) else 0, verbose=False
    )
