"""Linear segmentation head of DINOv2: batch norm over the map, then a 1 x 1 convolution.

Oquab et al., DINOv2, TMLR 2024, https://arxiv.org/abs/2304.07193, section 7.4.
Reference code: facebookresearch/dinov2 at b8931f7, eval/segmentation/models/decode_heads/
linear_head.py (BNHead), on mmsegmentation 0.27.0 (losses, whole and sliding inference).

Deviations: none.
Shapes: B images, H x W pixels, D channels, a map of h x w positions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.checks import check_at_least
from sslzoo.layers import GlobalBatchNorm

IGNORE = 255  # the customary label of pixels that do not count


class LinearHead(nn.Module):
    """Batch norm and a 1 x 1 convolution. Shapes: (B, D, h, w) -> (B, K, h, w).

    Args:
        width: D.
        num_classes: K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.bn = GlobalBatchNorm(width)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        return self.conv_seg(self.bn(features))


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy of logits that are resized to the labels, averaged over all pixels.

    Ignored pixels add nothing to the sum, but count in the mean, as in mmsegmentation
    (`avg_non_ignore=False`): where half of the pixels are ignored, the loss is half of torch's.

    Args:
        logits: (B, K, h, w).
        labels: (B, H, W) int64.
        ignore_index: the label of pixels that do not count.

    Returns:
        Scalar.

    Example:
        >>> segmentation_loss(torch.zeros(1, 2, 1, 1), torch.tensor([[[0, 255]]]))
        tensor(0.3466)
    """
    resized = resize(logits, tuple(labels.shape[1:]))
    total = F.cross_entropy(resized, labels, ignore_index=ignore_index, reduction="sum")
    return total / labels.numel()


def resize(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize bilinearly without aligned corners. Shapes: (B, K, h, w) -> (B, K, H, W)."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def whole_logits(
    logits: Tensor,
    size: tuple[int, int],
    patch: tuple[int, int] = (1, 1),
    original: tuple[int, int] | None = None,
) -> Tensor:
    """Logits of whole images: to the padded input, without its padding, then to the original.

    The class of a pixel is the argmax of these, never resized itself.

    Args:
        logits: (B, K, h, w).
        size: H and W of the encoder's input before `center_pad`.
        patch: height and width of a patch, which `center_pad` padded for.
        original: size of the labels; None: `size`.

    Returns:
        (B, K, H, W), or of the original size.
    """
    padded = tuple(side + -side % p for side, p in zip(size, patch, strict=True))
    top, left = ((p - side) // 2 for p, side in zip(padded, size, strict=True))
    found = resize(logits, padded)[:, :, top : top + size[0], left : left + size[1]]
    return found if original is None else resize(found, original)


def slide_logits(
    predict: Callable[[Tensor], Tensor], images: Tensor, crop: int, stride: int
) -> Tensor:
    """Logits of large images from overlapping crops, averaged where they overlap.

    The last crop of a row or column is shifted back inside, as in mmsegmentation.

    Args:
        predict: (B, C, crop, crop) -> (B, K, crop, crop); smaller where an image is.
        images: (B, C, H, W).
        crop: side of a crop in pixels.
        stride: distance between crops in pixels, at most `crop`.

    Returns:
        (B, K, H, W).

    Raises:
        ValueError: `stride` is not in 1..crop.
    """
    check_at_least("stride", stride, 1)
    if stride > crop:
        raise ValueError(f"stride must be at most {crop} (the crop's side), got {stride}")
    height, width = images.shape[2:]
    total: Tensor | None = None
    count = images.new_zeros(1, 1, height, width)
    for top in _starts(height, crop, stride):
        for left in _starts(width, crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            part = predict(images[:, :, rows, columns])
            if total is None:
                total = part.new_zeros(len(images), part.shape[1], height, width)
            total[:, :, rows, columns] += part
            count[:, :, rows, columns] += 1
    assert total is not None
    return total / count


def _starts(side: int, crop: int, stride: int) -> list[int]:
    steps = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - crop), 0) for i in range(steps)]
