"""Dense protocols of an encoder on a data module with masks: linear and retrieval mIoU.

The maps of both sets are computed once and streamed to disk as float16; both protocols read them
from there, so memory does not grow with the number of images.
Metric names: `linear_miou`, `linear_pixel_accuracy`, `knn_miou_k<k>_t<T>` and, with `per_class`,
`linear_iou_<class>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from sslzoo.checks import check_at_least
from sslzoo.eval.dense.linear import LinearOptions, score_head, train_head
from sslzoo.eval.dense.linear_head import IGNORE
from sslzoo.eval.dense.map_file import MapFile, scratch, write_maps
from sslzoo.eval.dense.maps import Mapper, map_of, patch_of
from sslzoo.eval.dense.retrieval import RetrievalOptions, build_memory, score_memory
from sslzoo.eval.dense.scores import SegmentationScores
from sslzoo.eval.loaders import EvalLoaders

DenseProtocol = Literal["linear_segmentation", "knn_segmentation"]
DENSE: tuple[DenseProtocol, ...] = get_args(DenseProtocol)


@dataclass(frozen=True)
class DenseOptions:
    """Settings of the dense protocols.

    Args:
        linear: how the linear head is trained.
        knn: the memory of patches and the vote.
        blocks: number of a ViT's last blocks whose tokens are concatenated.
        ignore_index: the label of pixels that do not count.
        per_class: whether to give the linear head's IoU of each class, too.

    Raises:
        ValueError: a setting is out of its bounds.
    """

    linear: LinearOptions = field(default_factory=LinearOptions)
    knn: RetrievalOptions = field(default_factory=RetrievalOptions)
    blocks: int = 1
    ignore_index: int = IGNORE
    per_class: bool = False

    def __post_init__(self) -> None:
        check_at_least("blocks", self.blocks, 1)

    def names(self, protocols: Sequence[str]) -> list[str]:
        """Names of the metrics of some protocols, without those of classes."""
        known = {
            "linear_segmentation": ["linear_miou", "linear_pixel_accuracy"],
            "knn_segmentation": [f"knn_miou_k{self.knn.k}_t{self.knn.temperature:g}"],
        }
        return [name for protocol in protocols for name in known[protocol]]


def dense_metrics(
    encoder: nn.Module,
    loaders: EvalLoaders,
    protocols: Sequence[str] = DENSE,
    options: DenseOptions | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    mapper: Mapper | None = None,
    class_names: Sequence[str] = (),
    patch: tuple[int, int] | None = None,
) -> dict[str, float]:
    """Evaluate an encoder by dense protocols; collective, with the same result on every rank.

    Args:
        encoder: the encoder; see `feature_map` for what it must have.
        loaders: bank to train on, query set to score, whose labels are masks (B, H, W).
        protocols: some of "linear_segmentation" and "knn_segmentation".
        options: see `DenseOptions`.
        device: device to compute on.
        folder: where the maps are stored until the end; None: the folder of temporary files.
        mapper: (B, C, H, W) -> (B, D, h, w) to use instead of `feature_map`.
        class_names: names for `per_class`; by default the classes' numbers.
        patch: height and width of a patch, if the mapper pads as `center_pad` does; None: the
            encoder's without a mapper, otherwise (1, 1).

    Raises:
        ValueError: the encoder has no map, or the data no masks or query set.
    """
    options = options or DenseOptions()
    if loaders.query is None or loaders.num_classes is None:
        got = "no query set" if loaders.query is None else "no classes"
        raise ValueError(f"the data must have masks and a query set for segmentation, got {got}")
    maps = mapper or map_of(encoder, options.blocks)
    patch = patch or (patch_of(encoder) if mapper is None else (1, 1))
    at = "cpu" if torch.device(device).type == "mps" else device  # it has no float64
    with scratch(folder) as own:
        files: list[MapFile] = []
        try:
            for name, loader in (("bank", loaders.bank), ("query", loaders.query)):
                files.append(
                    write_maps(
                        *(encoder, maps, loader, loaders, own, name, device),
                        options.ignore_index,
                    )
                )
            if files[0].layout.width != files[1].layout.width:
                raise ValueError(
                    "the maps of bank and query must have one width, got "
                    f"{files[0].layout.width} and {files[1].layout.width}"
                )
            bank, query = files
            return _metrics(
                *(bank, query, protocols, options, loaders.num_classes, patch, at, class_names)
            )
        finally:
            for file in files:
                file.close()


def _metrics(
    bank: MapFile,
    query: MapFile,
    protocols: Sequence[str],
    options: DenseOptions,
    num_classes: int,
    patch: tuple[int, int],
    device: torch.device | str,
    class_names: Sequence[str],
) -> dict[str, float]:
    found: dict[str, float] = {}
    ignore = options.ignore_index
    if "linear_segmentation" in protocols:
        head = train_head(bank, num_classes, options.linear, ignore, device, patch)
        scores = score_head(head, query, num_classes, patch, ignore)
        names = options.names(["linear_segmentation"])
        found |= dict(zip(names, (scores.miou, scores.pixel_accuracy), strict=True))
        found |= _by_class(scores, class_names) if options.per_class else {}
    if "knn_segmentation" in protocols:
        memory = build_memory(bank, num_classes, options.knn, patch, ignore, device)
        scores = score_memory(memory, query, options.knn, patch, ignore)
        found[options.names(["knn_segmentation"])[0]] = scores.miou
    return found


def _by_class(scores: SegmentationScores, names: Sequence[str]) -> dict[str, float]:
    names = names or [str(number) for number in range(len(scores.iou))]
    return {
        f"linear_iou_{name}": value
        for name, value in zip(names, scores.iou.tolist(), strict=True)
        if value == value  # absent classes are NaN
    }
