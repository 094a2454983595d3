"""SigLIP: sigmoid loss for language-image pre-training.

Zhai et al., ICCV 2023, https://arxiv.org/abs/2303.15343.
Reference code: mlfoundations/open_clip at 89fb801; the authors' google-research/big_vision was not
compared.

Deviations:
    1. On ranks, texts go around in one direction, see `losses.siglip_loss`; the values are equal.
    2. In evaluation, images are resized by their shorter side and cropped as CLIP's by default; the
       code resizes them to a square, as `clip_views(resize="squash")` does.
    3. The tokenizer of captions is the user's: `HFTokenizer(clean=True, canonical=True)` repairs
       and unescapes texts (ftfy, HTML) and removes case and punctuation, as the code does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.losses import siglip_loss
from sslzoo.methods.base import GroupsFactory, OptimizerFactory
from sslzoo.methods.clip import CLIP
from sslzoo.optim import Schedule, exempt_bias_norm_and_positions


class SigLIP(CLIP):
    """Decide for every pair of an image and a text of the global batch whether it belongs together.

    See `CLIP` for the views and the other arguments.

    Args:
        backbone: see `CLIP`; attention pooling in the released weights.
        text_backbone: see `CLIP`; without causal mask, pooled at its last position.
        projector: see `CLIP`; none (`torch.nn.Identity`) in the released weights.
        text_projector: see `CLIP`; a Linear with bias.
        temperature: the initial 1 / scale of the cosines; 0.1 in the paper.
        bias: initially added to each logit, and learned; -10 in the paper, the share of pairs that
            belong together in a large batch.
        max_scale: see `CLIP`.
        optimizer: see `SSLMethod`.
        schedule: see `SSLMethod`.
        parameter_groups: see `SSLMethod`; no decay of biases, norms, positions and the scale.

    Example:
        >>> from sslzoo.backbones import SmallResNet, TextTransformer
        >>> from sslzoo.batch import Tokens
        >>> method = SigLIP(
        ...     SmallResNet((8, 16)),
        ...     TextTransformer(20, 16, depth=1, heads=2, max_length=9, pool="last", causal=False),
        ...     nn.Identity(),
        ...     nn.Linear(16, 16),
        ... )
        >>> text = Tokens(torch.randint(20, (4, 9)), torch.tensor([9, 3, 7, 5]))
        >>> batch = Batch([torch.rand(4, 3, 8, 8), text], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['siglip']
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        projector: nn.Module,
        text_projector: nn.Module,
        temperature: float = 0.1,
        bias: float = -10.0,
        max_scale: float = 100.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_norm_and_positions,
    ):
        super().__init__(
            *(backbone, text_backbone, projector, text_projector, temperature, max_scale),
            *(optimizer, schedule, parameter_groups),
        )
        if not math.isfinite(bias):
            raise ValueError(f"bias must be a finite number, got {bias}")
        self.bias = nn.Parameter(torch.tensor([float(bias)]))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, text = batch.views
        images, texts = self.embed_image(image), self.embed_text(text)
        return {"siglip": siglip_loss(images, texts, self.log_scale[0], self.bias[0])}
