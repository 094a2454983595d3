"""data2vec: a general framework for self-supervised learning in speech, vision and language.

Baevski, Hsu, Xu, Babu, Gu and Auli, ICML 2022, https://arxiv.org/abs/2202.03555. Reference code:
facebookresearch/fairseq at 3d262bb, examples/data2vec/models/data2vec_audio.py (speech) and
data2vec_text.py (text, at 5185ccb), and facebookresearch/data2vec_vision at af9a363,
beit/engine_for_cyclical.py (images).

Deviations:
    1. Masks are keyed by (seed, step, sample); the codes draw them from the process's generators.
    2. The loss is the mean over the masked positions of the global batch, as in the code for
       speech; the code for images averages the GPUs' means.
    3. Padded frames are in no statistic of the targets; in the code they are.
    4. The teacher's positions, for text also its embeddings, are the student's own; the code copies
       them after each step.
    5. A collapse is a warning at the end of an epoch; the code for speech stops the run, that for
       text does not look.
    6. For text, a sample is a line, of which [CLS], [SEP] and the last token are never masked; the
       code packs lines to 512 tokens and masks any of them. Attention weights have no dropout, and
       queries, keys and values no bias.
    7. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the codes.
    8. A waveform is normalized (`normalize`) as the window that it is; the code normalizes the
       whole recording before it cuts the window.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import SpeechEncoder, ViT, check_pooling, without_dropout
from sslzoo.batch import Batch, Tokens, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.watch import Watch
from sslzoo.checks import check_at_least, check_choice, check_interval, check_sides, check_whole
from sslzoo.losses import average_targets, masked_regression, spread
from sslzoo.losses.data2vec import TargetNorm
from sslzoo.masks import BlockMasks, SpanMasks, TokenMasks
from sslzoo.masks.token import mask_spans, mask_tokens
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, frozen_copy, step_keys
from sslzoo.optim import LinearBySteps, Schedule, all_alike, as_schedule
from sslzoo.transforms.text.special import Special

MASKS: dict[str, tuple[type, ...]] = {
    "speech": (SpanMasks,),
    "text": (SpanMasks, TokenMasks),
    "images": (BlockMasks,),
}


class Data2Vec(SSLMethod):
    """Predict, for masked positions, the mean of a teacher's top layers on the unmasked input.

    For speech and text the teacher is a momentum copy of the Transformer's layers, and the targets
    are their feed-forward outputs before the residual; for images it is one of the whole net, and
    they are the outputs of its blocks.

    Args:
        backbone: a `SpeechEncoder`; or a text backbone with `forward_fed` (`SmallTransformer`); or
            a ViT with a mask token (`timm_vit`, `small_vit`).
        masks: of frames, SpanMasks() in the paper; or of tokens, SpanMasks(0.35, 4, 0, False) in
            the code and `TokenMasks` in the paper; or of patches, `BlockMasks`, with a fraction of
            120 / 196 in the paper. None: the SpanMasks named for speech or text.
        top_layers: K, the teacher's last layers that are averaged; 8 for speech, 10 for text, 6 for
            images.
        layer_norm: norm of each layer, see `losses.average_targets`; "instance" for speech, "layer"
            for text and images.
        target_norm: norm of the average; "none" for speech and text, "layer" for images.
        beta: 0: squared distance (speech); else smooth L1, quadratic below beta: 4 for text, 2 for
            images.
        reduction: the distance's "sum" over the D channels (text), or "sqrt": the sum divided by
            sqrt(D) (speech), or their "mean" (images).
        momentum: momentum of the teacher at each optimizer step; None: 0.999 rising to 0.9999 over
            30,000 steps, the paper's for speech. Over 300,000 for text; 0.9998 for images.
        head_layers: linear layers that predict the targets, with GELU between them and 2 D inner
            channels; 2 for text, 1 for speech and images.
        transposed: see `losses.average_targets`; False in all recipes.
        mask_id: id of [MASK] for text; the default is that of our tokenizers.
        optimizer: see `SSLMethod`; AdamW with betas 0.9 and 0.98.
        schedule: see `SSLMethod`; TriStage for speech, a cosine for text and images.
        parameter_groups: see `SSLMethod`; everything is decayed in the code for speech and text.

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
        masks: SpanMasks | BlockMasks | TokenMasks | None = None,
        top_layers: int = 8,
        layer_norm: TargetNorm = "instance",
        target_norm: TargetNorm = "none",
        beta: float = 0.0,
        reduction: Literal["sum", "sqrt", "mean"] = "sqrt",
        momentum: Schedule | float | None = None,
        head_layers: int = 1,
        transposed: bool = False,
        mask_id: int = Special().mask,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        self.kind = _kind(backbone)
        if masks is None and self.kind != "images":
            masks = SpanMasks() if self.kind == "speech" else SpanMasks(0.35, 4, 0, False)
        self.masks = masks
        if not isinstance(masks, MASKS[self.kind]):
            wanted = " or ".join(cls.__name__ for cls in MASKS[self.kind])
            raise ValueError(
                f"masks must be {wanted} for {self.kind}, got {type(self.masks).__name__}"
            )
        student = cast(Any, backbone)
        if self.kind == "speech":
            copied, layers = student.transformer, student.transformer.layers
        else:
            copied, layers = student.blocks if self.kind == "text" else student, student.blocks
        check_whole("top_layers", top_layers, 1)
        check_interval("top_layers", top_layers, 1, len(layers))
        check_whole("head_layers", head_layers, 1)
        check_choice("reduction", reduction, ("sum", "sqrt", "mean"))
        check_at_least("beta", beta, 0)
        width = cast(int, backbone.num_features)
        norms = layer_norm, target_norm, None, transposed
        average_targets([torch.zeros(1, 2, 2)], *norms)  # refuses unknown norms
        self.transposed, self.mask_id = transposed, mask_id
        self.top_layers, self.layer_norm, self.target_norm = top_layers, layer_norm, target_norm
        self.beta = beta
        self.scale = {"sum": 1.0, "sqrt": width**-0.5, "mean": 1 / width}[reduction]
        if momentum is None:
            momentum = LinearBySteps(0.999, 0.9999, 30_000, first_step=1)
        self.momentum = as_schedule(momentum)
        self.final_proj = _head(width, head_layers)
        self.teacher = without_dropout(frozen_copy(cast(nn.Module, copied)))
        if self.kind == "text":
            self.takes = ViewSpec(1, 1, kind="tokens")
        elif self.kind == "speech":
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
        if self.kind == "text":
            return [(cast(Any, self.backbone).blocks, self.teacher)]
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
        parts: dict[str, Any] = {"speech": self._speech, "text": self._text, "images": self._images}
        predictions, targets, masked = parts[self.kind](batch, view)
        predictions = self.final_proj(predictions)
        self.watched = {
            "target_spread": spread(targets, masked),
            "prediction_spread": spread(predictions.detach(), masked),
        }
        loss = masked_regression(predictions, targets, masked, self.scale, self.beta)
        return {"masked_regression": loss}

    @property
    def least_samples(self) -> int:
        """Samples of the shortest recording of which frames are masked; 0 without sound."""
        if self.kind != "speech":
            return 0
        length = cast(SpanMasks, self.masks).length
        return cast(SpeechEncoder, self.backbone).samples(length + 1)

    def _speech(self, batch: Batch, view: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Contexts and targets (B, T, D), and the masked frames (B, T)."""
        encoder, masks = cast(SpeechEncoder, self.backbone), cast(SpanMasks, self.masks)
        frames = encoder.embed(view)
        masks.check_size(frames.conv.shape[1])
        mask = masks(step_keys(self, batch), frames.num_frames, frames.conv.shape[1])
        with torch.no_grad():
            h = encoder.transformer.add_positions(frames.projected, frames.lengths)
            _, fed = cast(Any, self.teacher).run(h, frames.lengths, with_fed=True)
            real = None if frames.lengths is None else frames.real
            targets = self._average(fed[-self.top_layers :], real)
        return encoder.forward_masked(frames, mask), targets, mask

    def _text(self, batch: Batch, text: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Token features and targets (B, L, D), and the tokens that are [MASK] (B, L)."""
        encoder, keys = cast(Any, self.backbone), step_keys(self, batch)
        if isinstance(self.masks, TokenMasks):
            fraction = self.masks.fraction
            masked = mask_tokens(text, keys, self.mask_id, encoder.num_ids, fraction).tokens
        else:
            masks, words = cast(SpanMasks, self.masks), text.ids.shape[1] - 2
            if words <= masks.length:
                raise ValueError(
                    f"a batch must have a text of more than {masks.length} tokens (the length of a "
                    f"masked span), got at most {words}; give longer lines or shorter spans"
                )
            masked = mask_spans(text, keys, self.mask_id, masks)
        with torch.no_grad():
            fed = encoder.forward_fed(text, self.teacher)
            targets = self._average(fed[-self.top_layers :], text.mask)
        predictions = encoder.forward_tokens(masked, keys.fold("dropout"))
        return predictions, targets, (masked.ids == self.mask_id) & text.mask

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
        return average_targets(layers, self.layer_norm, self.target_norm, real, self.transposed)


def _kind(backbone: nn.Module) -> Literal["speech", "text", "images"]:
    if isinstance(backbone, SpeechEncoder):
        return "speech"
    if hasattr(backbone, "forward_fed"):
        return "text"
    if getattr(backbone, "mask_token", None) is None:
        raise ValueError(
            "backbone must be a SpeechEncoder, a text backbone with forward_fed (SmallTransformer) "
            f"or a ViT with mask_token=True, got {type(backbone).__name__}"
        )
    check_pooling(backbone)
    return "images"


def _head(width: int, num_layers: int) -> nn.Module:
    """Linear layers with GELU between them: D to 2 D, and so on, to D."""
    if num_layers == 1:
        return nn.Linear(width, width)
    inner: list[nn.Module] = [nn.Linear(width, 2 * width), nn.GELU()]
    for _ in range(num_layers - 2):
        inner += [nn.Linear(2 * width, 2 * width), nn.GELU()]
    return nn.Sequential(*inner, nn.Linear(2 * width, width))
