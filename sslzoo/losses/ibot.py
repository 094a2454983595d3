"""iBOT's loss on hidden patches: each predicts what the teacher, who sees it, says of it.

Zhou, Wei, Wang, Shen, Xie, Yuille and Kong, iBOT: Image BERT Pre-Training with Online Tokenizer,
ICLR 2022, https://arxiv.org/abs/2111.07832, equation 2. On class tokens the loss is `dino`.
Reference code: bytedance/ibot at da316d8, main_ibot.py, iBOTLoss.

Deviations: none.

Shapes: n crops of this rank, M patches of each, D width of the bottleneck, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sslzoo.losses.dino import distillation


def ibot_patches(
    z: Tensor, v: Tensor, g: Tensor, teacher: Tensor, hidden: Tensor, temperature: float
) -> Tensor:
    """Mean over crops of the mean over a crop's hidden patches of their cross entropy.

    A crop that hides nothing counts with a loss of 0.

    Args:
        z: (n, M, D) the student's bottleneck.
        v: (K, D) directions of the prototypes; a logit is z . g v / |v|.
        g: (K, 1) their lengths.
        teacher: (n, M, K) probabilities, a constant.
        hidden: (n, M) bool, the patches that count.
        temperature: of the student; 0.1 in the paper.

    Returns:
        Scalar whose mean over ranks is the loss of the global batch.

    Raises:
        ValueError: for other shapes, or a temperature that is not positive.
    """
    if z.dim() != 3 or hidden.shape != z.shape[:2] or teacher.shape[:2] != z.shape[:2]:
        shapes = f"{tuple(z.shape)}, {tuple(teacher.shape)} and {tuple(hidden.shape)}"
        raise ValueError(f"(n, M, D), (n, M, K) and (n, M) wanted, got {shapes}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    count = hidden.sum(dim=1, keepdim=True).clamp(min=1).to(dtype)
    weight = hidden * (hidden.shape[1] / count)  # `distillation` takes the mean over all n M
    rows, q = z.flatten(0, 1)[:, None], teacher.flatten(0, 1)[:, None]
    return distillation(rows, v, g, q, z.new_ones(1, 1), temperature, weight.view(-1, 1))
