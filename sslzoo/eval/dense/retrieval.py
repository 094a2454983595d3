"""Segmentation by retrieval: each patch takes the labels of its nearest training patches.

Balazevic et al., Towards In-Context Scene Understanding (Hummingbird), NeurIPS 2023,
https://arxiv.org/abs/2306.01667. No parameter is trained: the memory holds patches of the training
images with the fraction of their pixels in each class; a query patch takes the mean of its k
nearest patches' fractions, weighted by softmax(cosine / T), and these are resized to the pixels.
Reference code: vpariza/open-hummingbird-eval at 0fd976f (the authors' is not public).

Deviations: the neighbors are exact (ScaNN or faiss there); pixels without a label count nowhere
(class 0 in the memory there); one view per training image, without augmentation.
Shapes: L = h w positions, D channels, H x W pixels, K classes, M rows of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sslzoo.checks import check_at_least
from sslzoo.distributed import gather_objects, gather_rows, row_layout, sum_over_ranks
from sslzoo.eval.dense.linear_head import IGNORE, whole_logits
from sslzoo.eval.dense.map_file import MapFile
from sslzoo.eval.dense.scores import SegmentationScores, confusion, scores_of
from sslzoo.eval.knn.classify import SLACK, SMALL, check_settings
from sslzoo.eval.knn.search import Bank, Neighbors, on_grid, rescore, search, similarity_of
from sslzoo.random import sample_keys

_QUERIES = 4096  # patches per search
_READ = 64  # images that are read at a time


@dataclass(frozen=True)
class RetrievalOptions:
    """The memory of patches and the vote.

    Args:
        k: number of neighbors; 30 in the reference code.
        temperature: T of the weights softmax(cosine / T); 0.02 there.
        memory_size: most rows of the memory, equally many per training image. The paper has up to
            10 million; a search costs `memory_size` times D multiply-adds per query patch.
        seed: seed of the patches that are kept.

    Raises:
        ValueError: a value is out of its bounds.
    """

    k: int = 30
    temperature: float = 0.02
    memory_size: int = 51_200
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings([(self.k, self.temperature)])
        check_at_least("memory_size", self.memory_size, self.k)


class Memory(NamedTuple):
    """The memory: features of this rank's rows, and the class fractions of all ranks' rows.

    Args:
        bank: this rank's rows; their label is the row of `fractions`.
        fractions: (M, K) float32, which add up to 1.
    """

    bank: Bank
    fractions: Tensor


def patch_fractions(
    labels: Tensor,
    grid: tuple[int, int],
    num_classes: int,
    patch: tuple[int, int] = (1, 1),
    ignore_index: int = IGNORE,
) -> Tensor:
    """Count the pixels of each class at each position of a map.

    A pixel belongs to the position that it lies in; with `patch`, of the image that `center_pad`
    padded. Pixels with the ignored label are not counted.

    Args:
        labels: (B, H, W) int64.
        grid: h and w.
        num_classes: K.
        patch: height and width of a patch in pixels.
        ignore_index: the label of pixels that do not count.

    Returns:
        (B, L, K) float32 counts.
    """
    sides = []
    for length, p, cells in zip(labels.shape[1:], patch, grid, strict=True):
        padded = length + -length % p
        pixel = torch.arange(length, device=labels.device) + (padded - length) // 2
        sides.append(pixel * cells // padded)
    position = sides[0][:, None] * grid[1] + sides[1]  # (H, W)
    image = torch.arange(len(labels), device=labels.device)[:, None, None]
    cells = grid[0] * grid[1]
    cell = (image * cells + position) * num_classes + labels
    count = cell[labels != ignore_index].bincount(minlength=len(labels) * cells * num_classes)
    return count.float().view(len(labels), cells, num_classes)


def chosen_patches(counts: Tensor, index: Tensor, per_image: int, seed: int) -> Tensor:
    """Mask (B, L) of the patches that a memory keeps, with rare classes first.

    A patch's score is a uniform draw times the number of the image's patches that have one of its
    classes, summed over its classes; the lowest scores are kept, as in the reference code. Draws
    are keyed by the image, so that the memory is the same for any number of ranks.

    Args:
        counts: (B, L, K) of `patch_fractions`.
        index: (B,) sample indices.
        per_image: most patches of an image.
        seed: seed of the draws.
    """
    has = (counts > 0).double()
    score = (has * has.sum(1, keepdim=True)).sum(2)  # (B, L)
    draws = sample_keys(seed, 0, index).unit("memory of patches", counts.shape[1])
    score = (score * draws.to(score)).masked_fill(score == 0, torch.inf)
    kept = score.argsort(dim=1, stable=True)[:, :per_image]
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, kept, True)
    return chosen & score.isfinite()


@torch.no_grad()
def build_memory(
    maps: MapFile,
    num_classes: int,
    options: RetrievalOptions,
    patch: tuple[int, int] = (1, 1),
    ignore_index: int = IGNORE,
    device: torch.device | str = "cpu",
) -> Memory:
    """Build the memory from the training images of all ranks; collective.

    Args:
        maps: this rank's maps and masks.
        num_classes: K.
        options: see `RetrievalOptions`.
        patch: see `patch_fractions`.
        ignore_index: the label of pixels that do not count.
        device: where the memory lies.

    Raises:
        ValueError: the memory has fewer than k rows.
    """
    total = sum(gather_objects(len(maps)))
    cells = maps.layout.grid[0] * maps.layout.grid[1]
    per_image = min(cells, max(1, options.memory_size // total))
    features = [torch.empty(0, maps.layout.width)]
    fractions, number = [torch.empty(0, num_classes)], [torch.empty(0, dtype=torch.int64)]
    for index, x, labels in maps.chunks(_READ):
        counts = patch_fractions(labels, maps.layout.grid, num_classes, patch, ignore_index)
        chosen = chosen_patches(counts, index, per_image, options.seed)
        features.append(x[chosen])
        kept = counts[chosen]
        fractions.append(kept / kept.sum(1, keepdim=True))
        number.append((index[:, None] * cells + torch.arange(cells))[chosen])
    own, every = torch.cat(number), torch.cat(fractions)
    layout = row_layout(len(own))
    if layout.total < options.k:
        raise ValueError(f"k must be at most {layout.total} (the labeled patches), got {options.k}")
    row = torch.arange(layout.start, layout.start + len(own))
    rows = on_grid(torch.cat(features).to(device))
    bank = Bank(rows, row.to(device), own.to(device))
    return Memory(bank, gather_rows(every, layout).to(device))


def _nearest(query: Tensor, bank: Bank, k: int, total: int) -> Neighbors:
    """The exact k nearest rows of all ranks' banks; see `sslzoo.eval.knn`."""
    queries = int(sum_over_ranks(torch.tensor(len(query), device=query.device)))
    if queries * total * query.shape[1] <= SMALL:
        return search(query, bank, k, exact=True)
    near = search(query, bank, min(k + SLACK, total), exact=False)
    found, sure = rescore(query, bank, near, k)
    again = (~sure).nonzero().squeeze(1)
    exact = search(query[again], bank, k, exact=True)
    found.key[again], found.label[again] = exact.key, exact.label
    return found


@torch.no_grad()
def retrieve(memory: Memory, features: Tensor, options: RetrievalOptions) -> Tensor:
    """Class fractions of patches from their nearest ones in the memory; collective.

    Args:
        memory: of `build_memory`.
        features: (n, D) patches of this rank, any number.
        options: k and the temperature.

    Returns:
        (n, K) float32, which add up to 1.
    """
    total = len(memory.fractions)
    found = _nearest(on_grid(features), memory.bank, options.k, total)
    weight = (similarity_of(found.key).double() / options.temperature).softmax(1)
    values = memory.fractions[found.label].double()  # (n, k, K)
    return (weight[:, None] @ values).squeeze(1).float()


@torch.no_grad()
def score_memory(
    memory: Memory,
    maps: MapFile,
    options: RetrievalOptions,
    patch: tuple[int, int] = (1, 1),
    ignore_index: int = IGNORE,
) -> SegmentationScores:
    """Score segmentation by retrieval on the images of all ranks; collective.

    Args:
        memory: of `build_memory`.
        maps: this rank's maps and masks of the images to segment.
        options: k and the temperature.
        patch: see `patch_fractions`.
        ignore_index: the label of pixels that do not count.
    """
    device, num_classes = memory.fractions.device, memory.fractions.shape[1]
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    cells = maps.layout.grid[0] * maps.layout.grid[1]
    few = max(1, _QUERIES // cells)
    ordered = maps.index.sort().values
    for start in range(0, max(gather_objects(len(maps))), few):  # equally often on every rank
        x, labels = maps.read(ordered[start : start + few])
        found = retrieve(memory, x.to(device).flatten(0, 1), options)
        logits = found.view(len(x), cells, num_classes).mT.unflatten(2, maps.layout.grid)
        predicted = whole_logits(logits, maps.layout.size, patch).argmax(1)
        counts += confusion(predicted, labels.to(device), num_classes, ignore_index)
    return scores_of(counts)
