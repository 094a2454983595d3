"""CLIP: contrastive language-image pre-training.

Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020.
Reference code: mlfoundations/open_clip at 89fb801.

Deviations:
    1. On W ranks, loss and gradients are those of one process, as with the code's local_loss and
       gather_with_grad; by its defaults, the towers' gradients are 1 / W of these.
    2. Texts are tokenized as they are by default; the code repairs and unescapes them before (ftfy,
       HTML), as `HFTokenizer(clean=True)` does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, Tokens, ViewSpec
from sslzoo.checks import check_num_features, check_positive
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import clip_loss
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_norm_and_positions
from sslzoo.sharding import local


class CLIP(SSLMethod):
    """Find the text of each image, and the image of each text, among those of the global batch.

    A batch has two views: images, and their texts as `Tokens`. `forward` gives the features of the
    image tower before the projection; `embed_image` and `embed_text` give the embeddings that are
    compared, also for retrieval and zero-shot classification (`sslzoo.eval.zero_shot`).

    Args:
        backbone: the image tower.
        text_backbone: the text tower, `backbones.TextTransformer` or another text backbone.
        projector: from the image tower to the embedding; a Linear without bias in the paper.
        text_projector: from the text tower to the embedding, likewise.
        temperature: the initial 1 / scale of the cosines, at most 1 and at least 1 / max_scale;
            0.07 in the paper. The scale is learned.
        max_scale: bound of the scale, to which it is clamped after each step; 100 in the paper. Its
            lower bound is 1.
        optimizer: see `SSLMethod`; AdamW with betas (0.9, 0.98) and eps 1e-6 for ViTs.
        schedule: see `SSLMethod`; 2,000 steps of warm-up, then cosine, reported of the paper.
        parameter_groups: see `SSLMethod`; no decay of biases, norms, positions and the scale.

    Example:
        >>> from sslzoo.backbones import SmallResNet, TextTransformer
        >>> method = CLIP(
        ...     SmallResNet((8, 16)),
        ...     TextTransformer(20, width=8, depth=1, heads=2, max_length=9),
        ...     nn.Linear(16, 6, bias=False),
        ...     nn.Linear(8, 6, bias=False),
        ... )
        >>> text = Tokens(torch.randint(20, (4, 9)), torch.tensor([9, 3, 7, 5]))
        >>> batch = Batch([torch.rand(4, 3, 8, 8), text], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['clip']
    """

    takes = ViewSpec(2, 2, kind="image and text")

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        projector: nn.Module,
        text_projector: nn.Module,
        temperature: float = 0.07,
        max_scale: float = 100.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_norm_and_positions,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        check_num_features(text_backbone, "text_backbone")
        dim, text_dim = output_dim(backbone, projector), output_dim(text_backbone, text_projector)
        if dim != text_dim:
            raise ValueError(
                f"text_projector must have out_features {dim}, as projector has, got {text_dim}"
            )
        check_positive("temperature", temperature)
        if not max_scale >= 1:
            raise ValueError(f"max_scale must be at least 1, got {max_scale}")
        if not 1 / max_scale <= temperature <= 1:
            raise ValueError(
                f"temperature must be in [1 / max_scale, 1] = [{1 / max_scale:g}, 1], to which the "
                f"learned one is clamped, got {temperature}"
            )
        self.text_backbone = text_backbone
        self.projector, self.text_projector = projector, text_projector
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        optimizer.register_step_post_hook(self._clamp)
        return made

    @torch.no_grad()
    def _clamp(self, *step: Any) -> None:
        local(self.log_scale).clamp_(0, math.log(self.max_scale))

    def embed_image(self, image: Tensor) -> Tensor:
        """L2-normalized embeddings. (B, C, H, W) -> (B, D)."""
        return l2_normalize(self.projector(self.backbone(image)))

    def embed_text(self, text: Tokens) -> Tensor:
        """L2-normalized embeddings. ids (B, L) -> (B, D)."""
        return l2_normalize(self.text_projector(self.text_backbone(text)))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, text = batch.views
        images, texts = self.embed_image(image), self.embed_text(text)
        return {"clip": clip_loss(images, texts, self.log_scale[0])}
