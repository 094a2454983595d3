"""data2vec: a general framework for self-supervised learning in speech, vision and language.

Baevski, Hsu, Xu, Babu, Gu and Auli, ICML 2022, https://arxiv.org/abs/2202.03555. Reference code:
facebookresearch/fairseq at 3d262bb, examples/data2vec/models/data2vec_audio.py (speech), and
facebookresearch/data2vec_vision at af9a363, beit/engine_for_cyclical.py (images).

Deviations:
    1. Masks are keyed by (seed, step, sample); the codes draw them from the process's generators.
    2. The loss is the mean over the masked positions of the global batch, as in the code for
       speech; the code for images averages the GPUs' means.
    3. Padded frames are in no statistic of the targets; in the code they are.
    4. The teacher's positions are the student's own; the code copies them after each step.
    5. A collapse is a warning at the end of an epoch; the code for speech stops the run.
    6. Text is not trained.
    7. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the codes.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import SpeechEncoder, ViT, without_dropout
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.watch import Watch
from sslzoo.checks import check_at_least, check_choice, check_interval, check_sides, check_whole
from sslzoo.losses import average_targets, masked_regression, spread
from sslzoo.losses.data2vec import TargetNorm
from sslzoo.masks import BlockMasks, SpanMasks
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    step_keys,
)
from sslzoo.optim import LinearBySteps, Schedule, all_alike, as_schedule


class Data2Vec(SSLMethod):
    """Predict, for masked positions, the mean of a teacher's top layers on the unmasked input.

    For speech the teacher is a momentum copy of the Transformer's layers, and the targets are their
    feed-forward outputs before the residual; for images it is one of the whole net, and they are
    the outputs of its blocks.

    Args:
        backbone: a `SpeechEncoder`, or a ViT with a mask token (`timm_vit`, `small_vit`).
        masks: of frames, SpanMasks() in the paper; or of patches, `BlockMasks`, with a fraction of
            120 / 196 in the paper. None: SpanMasks() for speech.
        top_layers: K, the teacher's last layers that are averaged; 8 for speech, 6 for images.
        layer_norm: norm of each layer, see `losses.average_targets`; "instance" for speech, "layer"
            for images.
        target_norm: norm of the average; "none" for speech, "layer" for images.
        beta: 0: squared distance (speech); else smooth L1, quadratic below beta: 2 for images.
        reduction: the distance's "sum" over the D channels, or "sqrt": the sum divided by sqrt(D)
            (speech), or their "mean" (images).
        momentum: momentum of the teacher at each optimizer step; None: 0.999 rising to 0.9999 over
            30,000 steps, the paper's for speech. 0.9998 for images.
        optimizer: see `SSLMethod`; Adam with betas 0.9 and 0.98 for speech, AdamW for images.
        schedule: see `SSLMethod`; TriStage for speech, a cosine for images.
        parameter_groups: see `SSLMethod`; everything is decayed in the code for speech.

    The spread of targets and predictions (`train/target_spread`, `train/prediction_spread`) is
    logged; a warning says when it vanishes.

    Example:
        >>> from sslzoo.backbones import ConvFrames, SpeechEncoder, SpeechTransformer
        >>> transformer = SpeechTransformer(8, 2, 2, 8, False, 4, 2, 1, 0.0, 0.0, 0.0, 0.0)
        >>> encoder = SpeechEncoder(ConvFrames((4, 6), (4, 3), (2, 2), "layer"), transformer)
        >>> method = Data2Vec(encoder, SpanMasks(0.6, 3), top_layers=2)
        >>> batch = Batch([torch.randn(4, 64)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['masked_regression']
    """

    takes = ViewSpec(1, 1)

    def __init__(
        self,
        backbone: nn.Module,
        masks: SpanMasks | BlockMasks | None = None,
        top_layers: int = 8,
        layer_norm: TargetNorm = "instance",
        target_norm: TargetNorm = "none",
        beta: float = 0.0,
        reduction: Literal["sum", "sqrt", "mean"] = "sqrt",
        momentum: Schedule | float | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        speech = isinstance(backbone, SpeechEncoder)
        if not speech and getattr(backbone, "mask_token", None) is None:
            raise ValueError(
                "backbone must be a SpeechEncoder or a ViT with mask_token=True, got "
                f"{type(backbone).__name__}"
            )
        self.masks = SpanMasks() if masks is None and speech else masks
        if not isinstance(self.masks, SpanMasks if speech else BlockMasks):
            wanted = "SpanMasks for speech" if speech else "BlockMasks for images"
            raise ValueError(f"masks must be {wanted}, got {type(self.masks).__name__}")
        copied: Any = cast(Any, backbone).transformer if speech else backbone
        layers = copied.layers if speech else copied.blocks
        check_whole("top_layers", top_layers, 1)
        check_interval("top_layers", top_layers, 1, len(layers))
        check_choice("reduction", reduction, ("sum", "sqrt", "mean"))
        check_at_least("beta", beta, 0)
        width = cast(int, backbone.num_features)
        average_targets([torch.zeros(1, 2, 2)], layer_norm, target_norm)  # refuses unknown norms
        self.top_layers, self.layer_norm, self.target_norm = top_layers, layer_norm, target_norm
        self.beta = beta
        self.scale = {"sum": 1.0, "sqrt": width**-0.5, "mean": 1 / width}[reduction]
        if momentum is None:
            momentum = LinearBySteps(0.999, 0.9999, 30_000, first_step=1)
        self.momentum = as_schedule(momentum)
        self.final_proj = nn.Linear(width, width)
        self.teacher = without_dropout(frozen_copy(cast(nn.Module, copied)))
        if speech:
            cast(Any, self.teacher).positions = nn.Identity()  # the student's are used
        else:
            rows, columns = check_sides("grid", cast(Any, backbone).grid)
            patch = cast(Any, backbone).patch_size
            self.takes = ViewSpec(1, 1, kind="images", size=(rows * patch, columns * patch))
        self.watched: dict[str, Tensor] = {}

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        if isinstance(self.backbone, SpeechEncoder):
            student, teacher = self.backbone.transformer, cast(Any, self.teacher)
            return [(student.layers, teacher.layers), (student.norm, teacher.norm)]
        return [(self.backbone, self.teacher)]

    def configure_callbacks(self) -> list[Callback]:
        least = {"target_spread": 0.1, "prediction_spread": 0.01}  # those of the code for speech
        advice = "targets or predictions have collapsed, lower the learning rate or raise momentum"
        return [
            EMA(self.momentum, when="after_step", copy_buffers=True),
            Watch(least, advice, after_steps=5000),
        ]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        (view,) = batch.views
        speech = isinstance(self.backbone, SpeechEncoder)
        predictions, targets, masked = (self._speech if speech else self._images)(batch, view)
        predictions = self.final_proj(predictions)
        self.watched = {
            "target_spread": spread(targets, masked),
            "prediction_spread": spread(predictions.detach(), masked),
        }
        loss = masked_regression(predictions, targets, masked, self.scale, self.beta)
        return {"masked_regression": loss}

    def _speech(self, batch: Batch, view: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Contexts and targets (B, T, D), and the masked frames (B, T)."""
        encoder, masks = cast(SpeechEncoder, self.backbone), cast(SpanMasks, self.masks)
        frames = encoder.embed(view)
        masks.check_size(frames.conv.shape[1])
        mask = masks(step_keys(self, batch), frames.num_frames, frames.conv.shape[1])
        with torch.no_grad():
            h = encoder.transformer.add_positions(frames.projected, frames.lengths)
            _, fed = cast(Any, self.teacher).run(h, frames.lengths)
            real = None if frames.lengths is None else frames.real
            targets = self._average(fed[-self.top_layers :], real)
        return encoder.forward_masked(frames, mask), targets, mask

    def _images(self, batch: Batch, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patch tokens and targets (B, L, D), and the masked patches (B, L)."""
        vit = cast(ViT, self.backbone)
        height, width = (side // vit.patch_size for side in view.shape[2:])
        mask = cast(BlockMasks, self.masks)(step_keys(self, batch), height, width)
        with torch.no_grad():
            blocks = cast(ViT, self.teacher).forward_blocks(view, self.top_layers, norm=False)
            targets = self._average([tokens[:, vit.num_prefix :] for tokens in blocks])
        return vit.forward_tokens(view, mask)[:, vit.num_prefix :], targets, mask

    def _average(self, layers: list[Tensor], real: Tensor | None = None) -> Tensor:
        return average_targets(layers, self.layer_norm, self.target_norm, real)
