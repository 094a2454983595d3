"""iBOT's masked image modeling loss: masked patches predict the teacher's probabilities.

Zhou, Wei, Wang, Shen, Xie, Yuille and Kong, iBOT: Image BERT Pre-Training with Online Tokenizer,
ICLR 2022, https://arxiv.org/abs/2111.07832, equation 2. On class tokens the loss is `dino`.
Reference code: bytedance/ibot at da316d8, main_ibot.py, iBOTLoss.

Deviations: none.

Shapes: n local crops, L patches of each, R scored patches, D width of the bottleneck, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.checks import shapes
from sslzoo.distributed import row_layout
from sslzoo.losses.dino import distillation


def ibot_patches(
    z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """Mean over crops of the mean cross entropy over a crop's masked patches.

    A crop without masked patches counts with a loss of 0.

    Args:
        z: (n, L, D) the student's bottleneck.
        v: (K, D) directions of the prototypes; a logit is z . g v / |v|.
        g: (K, 1) their lengths.
        teacher: (n, L, K) probabilities, a constant.
        mask: (n, L) bool, m: True for the masked patches.
        temperature: tau_s of the student; 0.1 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    if z.dim() != 3 or mask.shape != z.shape[:2] or teacher.shape[:2] != z.shape[:2]:
        got = shapes(z, teacher, mask)
        raise ValueError(f"z must be (n, L, D), teacher (n, L, K) and mask (n, L), got {got}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1).to(dtype)
    weight = mask * (mask.shape[1] / count)  # `distillation` takes the mean over all n L
    rows, q = z.flatten(0, 1)[:, None], teacher.flatten(0, 1)[:, None]
    return distillation(rows, v, g, q, z.new_ones(1, 1), temperature, weight.view(-1, 1))


def ibot_selected(
    z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, weight: Tensor, n: int, temperature: float
) -> Tensor:
    """The same mean over crops, from rows that were selected from all crops' patches.

    Args:
        z: (R, D) the student's bottleneck.
        v: (K, D) directions of the prototypes; a logit is z . g v / |v|.
        g: (K, 1) their lengths.
        teacher: (R, K) probabilities, a constant.
        weight: (R,) 1 / number of the masked patches of the row's crop; 0 excludes a row.
        n: local crops, also those of which no row was selected.
        temperature: tau_s of the student.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    if z.dim() != 2 or teacher.shape[:1] != z.shape[:1] or weight.shape != z.shape[:1]:
        got = shapes(z, teacher, weight)
        raise ValueError(f"z must be (R, D), teacher (R, K) and weight (R,), got {got}")
    weight = weight * (row_layout(len(z)).total / row_layout(n).total)  # of the mean over rows
    ones = z.new_ones(1, 1)
    return distillation(z[:, None], v, g, teacher[:, None], ones, temperature, weight[:, None])
