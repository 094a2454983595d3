"""Protocols on feature maps: linear segmentation, retrieval of patches, and DAVIS."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from sslzoo.data.image.davis import Davis, read_videos
from sslzoo.eval.dense.linear import LinearOptions
from sslzoo.eval.dense.linear_head import IGNORE
from sslzoo.eval.dense.propagation import PropagationOptions
from sslzoo.eval.dense.protocols import DenseOptions, dense_metrics
from sslzoo.eval.dense.retrieval import RetrievalOptions
from sslzoo.runs.evaluation import follow_videos
from sslzoo.runs.protocols.base import Protocol, Subject
from sslzoo.runs.protocols.images import view_of
from sslzoo.runs.results import Metrics
from sslzoo.transforms.image.views import Views


@dataclass(frozen=True)
class LinearSegmentation(Protocol):
    """Linear head on frozen maps: mIoU.

    Args:
        training: how the head is trained.
        blocks: number of a ViT's last blocks whose tokens are concatenated.
        ignore_index: the label of pixels that do not count.
        per_class: whether to give the IoU of each class, too.
    """

    training: LinearOptions = field(default_factory=LinearOptions)
    blocks: int = 1
    ignore_index: int = IGNORE
    per_class: bool = False

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        options = DenseOptions(
            linear=replace(self.training, seed=seed),
            blocks=self.blocks,
            ignore_index=self.ignore_index,
            per_class=self.per_class,
        )
        return _dense(subject, "linear_segmentation", options, "linear_")


@dataclass(frozen=True)
class RetrievalSegmentation(Protocol):
    """Segmentation by the nearest patches of the training images: mIoU.

    Args:
        memory: the memory of patches and the vote.
        ignore_index: the label of pixels that do not count.
    """

    memory: RetrievalOptions = field(default_factory=RetrievalOptions)
    ignore_index: int = IGNORE

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        options = DenseOptions(knn=replace(self.memory, seed=seed), ignore_index=self.ignore_index)
        return _dense(subject, "knn_segmentation", options, "knn_")


@dataclass(frozen=True)
class VideoSegmentation(Protocol):
    """Label propagation through the videos of DAVIS: J & F.

    Args:
        root: the folder DAVIS, with JPEGImages, Annotations and ImageSets.
        split: name of the list of videos.
        propagation: how labels are propagated.
    """

    root: str = ""
    split: str = "val"
    propagation: PropagationOptions = field(default_factory=PropagationOptions)
    needs_data = False

    def check(self) -> None:
        read_videos(Path(self.root), self.split)

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        data = Davis(self.root, Views([]), self.split, eval_view=view_of(subject))
        data.setup("validate")
        found = follow_videos(subject.encoder, data, self.propagation, subject.device)
        return {name.removeprefix("davis_"): value for name, value in found.items()}


def _dense(subject: Subject, name: str, options: DenseOptions, prefix: str) -> Metrics:
    names = getattr(subject.data, "classes", ())
    found = dense_metrics(
        *(subject.encoder, subject.loaders(), [name], options, subject.device), class_names=names
    )
    return {key.removeprefix(prefix): value for key, value in found.items()}
