"""BYOL-A: BYOL for audio.

Niizumi et al., IJCNN 2021, https://arxiv.org/abs/2103.06695; the second version is TASLP 2023,
https://arxiv.org/abs/2204.07402.
Reference code: nttcslab/byol-a at 3e65c92, with lucidrains/byol-pytorch at 2aa84ee.

Deviations:
    1. The memory has the clips of the last steps of all ranks, once each, and is updated after the
       optimizer step. The code's are one per worker of the loader, have every clip twice (once per
       view), and a second view may be mixed with its own clip.
    2. Mean and deviation of the batch of views are those of the global batch; the code's are of
       one device.
    3. The momentum network moves after the optimizer step. In the code it does so with Lightning
       up to 1.1; with later ones it moves before the step and lags behind by one.
    4. The networks start from their initial weights; the code runs one batch of noise through them,
       which changes the running statistics of batch norm.
    5. Input is normalized by fixed numbers, see `transforms.LogMelImage`.
    6. A clip shorter than the window lies at a random place in it; the code centers it (first
       version) or puts it first (second).
"""

from __future__ import annotations

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_at_least, check_interval
from sslzoo.distributed import row_layout, sum_over_ranks
from sslzoo.memory import Queue
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, step_keys
from sslzoo.methods.byol import BYOL
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys
from sslzoo.transforms.audio.log_mel_image import EPS


def log_mixup_exp(xa: Tensor, xb: Tensor, alpha: Tensor | float) -> Tensor:
    """log(alpha exp(xa) + (1 - alpha) exp(xb) + eps): a mixture of energies, in logarithms."""
    return (alpha * xa.exp() + (1 - alpha) * xb.exp() + EPS).log()


def crop_boxes(
    u: Tensor,
    v: Tensor,
    bands: int,
    frames: int,
    canvas: tuple[float, float] = (1.0, 1.5),
    freq_scale: tuple[float, float] = (0.6, 1.5),
    time_scale: tuple[float, float] = (0.6, 1.5),
) -> Tensor:
    """Boxes of random resized crops: top, left, height and width on the canvas. (B, 4) int64.

    Args:
        u: (B, 2) uniform in [0, 1), of the sizes in frequency and time.
        v: (B, 2) likewise, of top and left.
        bands: F.
        frames: T.
        canvas: size of the canvas, as a multiple of F and T.
        freq_scale: range of a box's height as a multiple of F, cut at the canvas.
        time_scale: range of its width as a multiple of T, likewise.
    """
    parts = []
    for axis, (size, scale) in enumerate(((bands, freq_scale), (frames, time_scale))):
        room = int(size * canvas[axis])
        length = ((scale[0] + (scale[1] - scale[0]) * u[:, axis]) * size).long().clamp(1, room)
        parts.append(((v[:, axis] * (room - length + 1)).long(), length))
    (top, height), (left, width) = parts
    return torch.stack([top, left, height, width], dim=1)


def resize_crops(x: Tensor, boxes: Tensor, canvas: tuple[float, float] = (1.0, 1.5)) -> Tensor:
    """Crop a canvas of zeros with the input in its center, and resize bicubically.

    Corners are aligned, there is no antialiasing, and beyond a box its edge is repeated.

    Args:
        x: (B, 1, F, T).
        boxes: (B, 4) int64, see `crop_boxes`.
        canvas: see there.

    Returns:
        (B, 1, F, T).
    """
    size = x.shape[2:]
    room = [int(side * scale) for side, scale in zip(size, canvas, strict=True)]
    start = [(wide - side) // 2 for wide, side in zip(room, size, strict=True)]
    rows = _cubic(size[0], boxes[:, 0], boxes[:, 2], room[0], x)
    columns = _cubic(size[1], boxes[:, 1], boxes[:, 3], room[1], x)
    # The canvas is zero outside of the input: its weights there do not count.
    rows = rows[:, :, start[0] : start[0] + size[0]]
    columns = columns[:, :, start[1] : start[1] + size[1]]
    return (rows @ x[:, 0] @ columns.mT)[:, None]


def _cubic(count: int, start: Tensor, length: Tensor, room: int, like: Tensor) -> Tensor:
    """Weights of `count` samples of the intervals at positions of the canvas. (B, count, room)."""
    steps = torch.arange(count, device=like.device, dtype=torch.float64)
    at = steps * (length[:, None] - 1) / max(1, count - 1)  # (B, count), from the interval's start
    whole = at.floor()
    weights = at.new_zeros(len(start), count, room)
    for tap in range(-1, 3):
        distance = (at - whole - tap).abs()
        near = (1.25 * distance - 2.25) * distance.square() + 1  # a = -0.75
        far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
        position = (whole.long() + tap).clamp_min(0).minimum(length[:, None] - 1) + start[:, None]
        weight = torch.where(distance <= 1, near, far)
        weights.scatter_add_(2, position[..., None], weight[..., None])
    return weights.to(like.dtype)


def linear_fader(x: Tensor, u: Tensor, gain: float = 1.0) -> Tensor:
    """Add a ramp over time from gain (2 u_1 - 1) to gain (2 u_2 - 1). x (B, 1, F, T), u (B, 2)."""
    head, tail = (gain * (2 * u - 1)).to(x.dtype).unbind(1)
    ramp = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype, device=x.device)
    return x + (head[:, None] + (tail - head)[:, None] * ramp)[:, None, None]


@torch.no_grad()
def standardize(views: list[Tensor]) -> list[Tensor]:
    """All views less their common mean, by their unbiased deviation over the global batch."""
    values = torch.stack(views).double()
    total = row_layout(len(views[0])).total * values[:, 0].numel()
    mean = sum_over_ranks(values.sum()) / total
    variance = sum_over_ranks((values - mean).square().sum()) / max(1, total - 1)
    scale = variance.clamp_min(1e-12).rsqrt()  # silence alone gives 0 / 0 in the code
    return [((view - mean) * scale).to(view.dtype) for view in views]


class BYOLA(BYOL):
    """BYOL on two views of one clip, each mixed with an earlier clip and cropped in time and pitch.

    A batch has one view: normalized log-mel spectrograms (B, 1, F, T) (`transforms.LogMelImage`).
    The two views are made here, since the clips to mix in come from a memory.

    Args:
        backbone: (B, 1, F, T) -> (B, num_features); `backbones.AudioNTT`.
        projector: see `BYOL`; Linear to 4096, batch norm, ReLU, Linear to 256 in the code.
        predictor: see `BYOL`; likewise.
        shape: (F, T) of the clips, which the memory holds.
        mix: largest share of the earlier clip's energy; 0.4, 0.2 in the second version.
        memory_size: clips in the memory; 2048 in the code.
        fade: largest gain of a linear fade over time, in the second version 1; 0: none.
        momentum: see `BYOL`; None: 0.99, constant.
        optimizer: see `SSLMethod`; Adam at 3e-4, in the second version 1e-4.
        schedule: see `SSLMethod`; none in the code.
        parameter_groups: see `SSLMethod`; no decay in the code.

    Example:
        >>> from sslzoo.backbones import AudioNTT
        >>> from sslzoo.heads import byol_mlp
        >>> net = AudioNTT(8, 12, blocks=2, dropout=0.0)
        >>> method = BYOLA(net, byol_mlp(12, 32, 8), byol_mlp(8, 32, 8), (8, 12), memory_size=7)
        >>> batch = Batch([torch.rand(4, 1, 8, 12)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['regression']
    """

    takes = ViewSpec(1, 1, kind="images")

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        shape: tuple[int, int] = (64, 96),
        mix: float = 0.4,
        memory_size: int = 2048,
        fade: float = 0.0,
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        momentum = 0.99 if momentum is None else momentum
        super().__init__(
            *(backbone, projector, predictor, momentum, optimizer, schedule, parameter_groups)
        )
        check_interval("mix", mix, 0, 1, "[)")
        check_at_least("fade", fade, 0)
        F, T = shape
        self.takes = ViewSpec(1, 1, kind="images", size=(F, T))
        self.mix, self.fade = mix, fade
        self.memory = Queue(memory_size, F * T, empty=True)

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), CommitMemory()]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        clips = batch.views[0]
        with torch.no_grad():
            keys = step_keys(self, batch)
            views = [self.augment(clips, keys.fold("view", number)) for number in range(2)]
            self.memory.stage(clips.flatten(1))
        return super().losses(batch._replace(views=standardize(views)))

    def augment(self, clips: Tensor, keys: Keys) -> Tensor:
        """One view of each clip. (B, 1, F, T) -> (B, 1, F, T)."""
        x = self.mixed(clips, keys.unit("share"), keys.unit("clip"))
        boxes = crop_boxes(keys.unit("size", 2), keys.unit("place", 2), *x.shape[2:])
        x = resize_crops(x, boxes)
        return linear_fader(x, keys.unit("fade", 2), self.fade) if self.fade else x

    def mixed(self, clips: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Mix each clip with one of the memory; an empty memory changes nothing.

        Args:
            clips: (B, 1, F, T).
            u: (B,) uniform in [0, 1): the memory's share is mix u.
            v: (B,) likewise: which clip, the oldest first.
        """
        rows = self.memory.read()
        full = self.memory.full
        count = torch.where(full, len(rows), self.memory.pointer)
        place = (v * count).long().minimum(count - 1).clamp_min(0)
        oldest = torch.where(full, self.memory.pointer, 0)
        other = rows[(oldest + place) % len(rows)].view_as(clips).to(clips.dtype)
        share = (self.mix * u)[:, None, None, None].to(clips.dtype)
        return torch.where(count > 0, log_mixup_exp(other, clips, share), clips)
