"""Video object segmentation by label propagation: follow the first frame's masks by features.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294, table 5; the protocol of Jabri et al.,
NeurIPS 2020. Reference code: facebookresearch/dino at 7c446df, eval_video_segmentation.py.

Deviations: frames are resized by torch (OpenCV there) and normalized as the encoder expects (by a
standard deviation of 0.228 for red there); without neighbors of any weight a position is background
(NaN there).
Shapes: C channels, H x W pixels, a map of h x w positions, D features, O classes: the background
and the objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least, check_positive

BACKGROUND, VOID = 0, 255


@dataclass(frozen=True)
class PropagationOptions:
    """How labels are propagated; the defaults are DINO's.

    Args:
        last_frames: number of preceding frames that are sources, besides the first.
        radius: sources are at most that many positions away, in each direction; 0: anywhere.
        k: number of sources whose labels a position takes.
        temperature: T of the weights exp(cosine / T).
        side: shorter side of the frames in pixels.

    Raises:
        ValueError: a value is out of its bounds.
    """

    last_frames: int = 7
    radius: int = 12
    k: int = 5
    temperature: float = 0.1
    side: int = 480

    def __post_init__(self) -> None:
        for name, least in (("last_frames", 0), ("radius", 0), ("k", 1), ("side", 1)):
            check_at_least(name, getattr(self, name), least)
        check_positive("temperature", self.temperature)


def neighborhood(grid: tuple[int, int], radius: int, device: torch.device | str) -> Tensor:
    """Mask (L, L) of positions that are at most `radius` apart in each direction."""
    rows = torch.arange(grid[0], device=device).repeat_interleave(grid[1])
    columns = torch.arange(grid[1], device=device).repeat(grid[0])
    near = (rows[:, None] - rows).abs() <= radius
    return near & ((columns[:, None] - columns).abs() <= radius)


def propagate(
    target: Tensor,
    sources: Sequence[Tensor],
    labels: Sequence[Tensor],
    options: PropagationOptions,
) -> Tensor:
    """Labels of a frame from those of other frames, (O, h, w).

    Args:
        target: (D, h, w) features of the frame.
        sources: S maps (D, h, w).
        labels: S soft labels (O, h, w).
        options: see `PropagationOptions`.
    """
    grid = (target.shape[1], target.shape[2])
    query = F.normalize(target.flatten(1), dim=0)  # (D, L)
    keys = F.normalize(torch.stack([x.flatten(1) for x in sources]), dim=1)  # (S, D, L)
    affinity = (torch.matmul(keys.mT, query) / options.temperature).exp()  # (S, L, L)
    if options.radius:
        affinity = affinity * neighborhood(grid, options.radius, target.device)
    affinity = affinity.flatten(0, 1)  # (S L, L)
    least = affinity.topk(min(options.k, len(affinity)), dim=0).values[-1]
    affinity = affinity.masked_fill(affinity < least, 0)
    affinity = affinity / affinity.sum(0).clamp_min(1e-30)
    known = torch.cat([x.flatten(1) for x in labels], dim=1)  # (O, S L)
    return (known @ affinity).unflatten(1, grid)


def _normalized(labels: Tensor) -> Tensor:
    """Scale each class to [0, 1] over the frame, unless it is nowhere. (O, H, W)."""
    flat = labels.flatten(1)
    low = flat.amin(1)[:, None, None]
    high = (labels - low).flatten(1).amax(1)[:, None, None]
    scaled = (labels - low) / high.clamp_min(1e-30)
    return torch.where(flat.amax(1)[:, None, None] > 0, scaled, labels)


@torch.no_grad()
def segment_video(
    frames: Sequence[Callable[[], Tensor]],
    first: Tensor,
    mapper: Callable[[Tensor], Tensor],
    options: PropagationOptions | None = None,
) -> list[Tensor]:
    """Segment the frames of a video from the mask of its first.

    Args:
        frames: one function per frame that gives its image (1, C, H', W'), preprocessed.
        first: (H, W) int64 mask of the first frame: 0 is the background, 255 counts as such.
        mapper: (1, C, H', W') -> (1, D, h, w).
        options: see `PropagationOptions`.

    Returns:
        One mask (H, W) int64 per frame, on the CPU; the first is the given one.
    """
    options = options or PropagationOptions()
    image = frames[0]()
    features = mapper(image)[0].float()
    grid, size = features.shape[1:], image.shape[2:]
    clean = torch.where(first == VOID, BACKGROUND, first).to(features.device)
    small = F.interpolate(clean[None, None].double(), grid, mode="nearest-exact")[0, 0].long()
    start = F.one_hot(small, int(clean.max()) + 1).permute(2, 0, 1).float()
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=options.last_frames)
    found = [first.cpu()]
    for frame in frames[1:]:
        target = mapper(frame())[0].float()
        sources = [features, *(x for x, _ in recent)]
        labels = propagate(target, sources, [start, *(x for _, x in recent)], options)
        recent.append((target, labels))
        resized = F.interpolate(labels[None], size, mode="bilinear", align_corners=False)[0]
        mask = _normalized(resized).argmax(0)[None, None].double()
        mask = F.interpolate(mask, tuple(first.shape), mode="nearest-exact")
        found.append(mask[0, 0].long().cpu())
    return found
