"""Linear segmentation: train DINOv2's linear head on frozen maps that were streamed to disk.

The encoder sees each image once; the head is trained on the stored maps. A step's gradient is that
of the global batch, added up per image in float64, so that the head is the same for any number of
ranks. Deviations from DINOv2, whose head configurations are not in its repository: AdamW with a
cosine schedule (its schedule is not known), one view per image without augmentation, and the loss
at 4 times the map's resolution (all pixels there; `loss_scale=None`).
Shapes: B images of the global batch, b of this rank, L = h w positions, D channels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.checks import check_at_least, check_positive
from sslzoo.distributed import gather_rows, sum_over_ranks
from sslzoo.eval.dense.linear_head import IGNORE, LinearHead, resize, whole_logits
from sslzoo.eval.dense.map_file import MapFile
from sslzoo.eval.dense.scores import SegmentationScores, confusion, scores_of
from sslzoo.random import run_keys

_LOGITS = 1 << 24  # resized logits at a time: 64 MiB


@dataclass(frozen=True)
class LinearOptions:
    """How the linear head is trained.

    Args:
        epochs: epochs over the training images.
        batch_size: images of the global batch.
        lr: largest learning rate of AdamW, which falls to 0 along a cosine.
        weight_decay: AdamW's weight decay.
        loss_scale: the loss is taken at that many times the map's resolution, at the masks' nearest
            pixels; None: at all pixels, as in mmsegmentation, which takes most of the time.
        seed: seed of the weights and of the order of the images.

    Raises:
        ValueError: a value is out of its bounds.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    loss_scale: int | None = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_at_least(name, getattr(self, name), 1)
        check_positive("lr", self.lr)
        check_at_least("weight_decay", self.weight_decay, 0)
        check_at_least("loss_scale", 1 if self.loss_scale is None else self.loss_scale, 1)


class _Trainer:
    """Trains a head on the maps of a file, one global batch at a time."""

    def __init__(
        self,
        head: LinearHead,
        maps: MapFile,
        options: LinearOptions,
        steps: int,
        ignore_index: int,
        patch: tuple[int, int],
    ) -> None:
        self.head, self.maps, self.options, self.ignore = head, maps, options, ignore_index
        self.patch = patch
        self.device = head.conv_seg.weight.device
        self.optimizer = torch.optim.AdamW(
            head.parameters(), options.lr, weight_decay=options.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def step(self, index: Tensor) -> float:
        """One step on a global batch of sample indices, (B,); the mean loss over its pixels."""
        x, labels = self.maps.read(self.maps.rows_of(index))
        x, labels = x.to(self.device), self._padded(labels.to(self.device))
        labels = self._subsampled(labels)
        x = standardized(self.head, x)
        loss = step_gradient(self.head, x, labels, self.maps.layout.grid, self.ignore)
        self.optimizer.step()
        self.schedule.step()
        return loss

    def _padded(self, labels: Tensor) -> Tensor:
        """Masks of the images that `center_pad` padded; the padding is ignored."""
        tall, wide = (-side % p for side, p in zip(labels.shape[1:], self.patch, strict=True))
        sides = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
        return F.pad(labels, sides, value=self.ignore)

    def _subsampled(self, labels: Tensor) -> Tensor:
        """Masks for the loss, by the nearest pixel."""
        scale, grid = self.options.loss_scale, self.maps.layout.grid
        small = [side * (scale or 0) for side in grid]
        if scale is None or max(small) >= max(labels.shape[1:]):
            return labels
        # Class numbers below 2^24 are exact in float32.
        resized = F.interpolate(labels[:, None].float(), small, mode="nearest-exact")
        return resized[:, 0].long()


def standardized(head: LinearHead, x: Tensor) -> Tensor:
    """Batch-norm a global batch without the affine part, and update the running statistics.

    Args:
        head: its `bn` has the statistics.
        x: (b, L, D), this rank's images of the batch, possibly none.

    Returns:
        (b, L, D).
    """
    bn = head.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    count = x.new_full((1, x.shape[2]), x.shape[0] * x.shape[1], dtype=torch.float64)
    both = torch.stack([x.sum(1), x.square().sum(1)]).double().sum(1)  # per image in float32
    sums, squares, counts = sum_over_ranks(torch.cat([both, count]))
    n = counts[0]
    mean = sums / n
    variance = (squares / n - mean.square()).clamp_min(0)
    momentum = 0.1 if bn.momentum is None else bn.momentum
    bn.running_mean.lerp_(mean.float(), momentum)
    bn.running_var.lerp_((variance * n / (n - 1).clamp_min(1)).float(), momentum)
    bn.num_batches_tracked += 1
    return (x - mean.float()) * (variance + bn.eps).rsqrt().float()


def step_gradient(
    head: LinearHead, x: Tensor, labels: Tensor, grid: tuple[int, int], ignore_index: int
) -> float:
    """Set the head's gradients of `segmentation_loss` on the global batch; collective.

    The head is linear in its map, so the gradient is a product of the logits' gradient and the map,
    which is added up per image in float64.

    Args:
        head: batch norm's affine part and the convolution.
        x: (b, L, D) from `standardized`.
        labels: (b, H, W) int64.
        grid: h and w.
        ignore_index: the label of pixels that do not count.

    Returns:
        The loss of the global batch.
    """
    weight = head.conv_seg.weight.flatten(1)  # (K, D)
    assert head.conv_seg.bias is not None
    matrix, offset = weight * head.bn.weight, head.conv_seg.bias + weight @ head.bn.bias
    pixels = sum_over_ranks(torch.tensor(float(labels.numel()), device=x.device))
    sums = x.new_zeros(len(matrix), x.shape[2] + 2, dtype=torch.float64)
    count = max(1, _LOGITS // (len(matrix) * labels.shape[1] * labels.shape[2]))
    for few, masks in zip(x.split(count), labels.split(count), strict=True):
        if not len(few):
            continue  # a rank without images of the batch
        logits = (few @ matrix.detach().T + offset.detach()).mT  # (b, K, L)
        logits = logits.unflatten(2, grid).requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(
                resize(logits, tuple(masks.shape[1:])),
                masks,
                ignore_index=ignore_index,
                reduction="none",
            )
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
        flat = gradient.flatten(2)
        sums[:, :-2] += (flat @ few).double().sum(0)
        sums[:, -2] += flat.sum(2).double().sum(0)
        sums[0, -1] += loss.detach().sum((1, 2)).double().sum()
    sums = sum_over_ranks(sums) / pixels
    head.zero_grad()
    torch.autograd.backward([matrix, offset], [sums[:, :-2].float(), sums[:, -2].float()])
    return sums[0, -1].item()


def train_head(
    maps: MapFile,
    num_classes: int,
    options: LinearOptions | None = None,
    ignore_index: int = IGNORE,
    device: torch.device | str = "cpu",
    patch: tuple[int, int] = (1, 1),
) -> LinearHead:
    """Train a linear head on the maps of all ranks; collective, the same head on every rank.

    Args:
        maps: this rank's maps and masks.
        num_classes: K.
        options: see `LinearOptions`.
        ignore_index: the label of pixels that do not count.
        device: device to train on.
        patch: height and width of a patch, which `center_pad` padded for.
    """
    options = options or LinearOptions()
    index = gather_rows(maps.index).sort().values
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = LinearHead(maps.layout.width, num_classes).to(device)
    per_epoch = -(-len(index) // options.batch_size)
    trainer = _Trainer(head, maps, options, options.epochs * per_epoch, ignore_index, patch)
    with torch.enable_grad(), torch.autocast(torch.device(device).type, enabled=False):
        for epoch in range(options.epochs):
            keys = run_keys(options.seed, "linear segmentation", epoch)
            order = index[keys.permutation("order", len(index))[0]]
            for batch in order.split(options.batch_size):
                trainer.step(batch)
    return head.eval()


@torch.no_grad()
def score_head(
    head: LinearHead,
    maps: MapFile,
    num_classes: int,
    patch: tuple[int, int] = (1, 1),
    ignore_index: int = IGNORE,
) -> SegmentationScores:
    """Score a head on the images of all ranks; collective.

    Args:
        head: the head, in eval mode.
        maps: this rank's maps and masks.
        num_classes: K.
        patch: see `whole_logits`.
        ignore_index: the label of pixels that do not count.
    """
    device = head.conv_seg.weight.device
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    size = maps.layout.size
    few = max(1, _LOGITS // (num_classes * size[0] * size[1]))
    for _, x, labels in maps.chunks(few):
        logits = head(x.to(device).mT.unflatten(2, maps.layout.grid))
        predicted = whole_logits(logits, size, patch).argmax(1)
        counts += confusion(predicted, labels.to(device), num_classes, ignore_index)
    return scores_of(counts)
