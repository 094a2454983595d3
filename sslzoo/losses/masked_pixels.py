"""Masked pixels: MAE's squared error over the masked patches.

He et al., CVPR 2022, https://arxiv.org/abs/2111.06377, section 3.
Reference code: facebookresearch/mae at efb2a80, models_mae.py.

Deviations: none.

Shapes: n local images, L patches of P x P pixels and C channels, R of them masked.
"""

from __future__ import annotations

from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import row_layout, world_size
from sslzoo.layers.precision import at_least_float32, no_autocast


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels of each patch, row by row, channels last. (n, C, H, W) -> (n, L, P * P * C)."""
    if images.shape[2] % patch_size or images.shape[3] % patch_size:
        raise ValueError(
            f"height and width must be multiples of the patch size {patch_size}, got "
            f"{tuple(images.shape[2:])}"
        )
    cut = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def masked_pixels(
    prediction: Tensor, images: Tensor, masked: Tensor, patch_size: int, normalize: bool = True
) -> Tensor:
    """Mean squared error over the pixels of the masked patches.

    Args:
        prediction: (n, L, P * P * C), as `patchify` orders it.
        images: (n, C, H, W).
        masked: (n, R) int64, indices of the masked patches; R is the same on every rank.
        patch_size: P.
        normalize: whether each patch of the target is normalized by its own mean and standard
            deviation (of the unbiased variance + 1e-6): `norm_pix_loss`, the paper's best.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for shapes that do not fit, or without masked patches.
    """
    target = patchify(at_least_float32(images), patch_size)
    if prediction.shape != target.shape:
        got = shapes(prediction, target)
        raise ValueError(f"prediction must have the shape of the patches, got {got}")
    if masked.dim() != 2 or len(masked) != len(target) or masked.shape[1] == 0:
        raise ValueError(f"masked must be ({len(target)}, R) with R above 0, got {shapes(masked)}")
    with no_autocast(prediction):
        index = masked[..., None].expand(-1, -1, target.shape[2])
        target = target.gather(1, index)
        if normalize:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6).sqrt()
        error = (at_least_float32(prediction.gather(1, index)) - target).square()
        per_image = error.mean(dim=(1, 2))
        return per_image.sum() * (world_size() / row_layout(len(per_image)).total)
