"""HuBERT: self-supervised speech representation learning by masked prediction of hidden units.

Hsu, Bolte, Tsai, Lakhotia, Salakhutdinov and Mohamed, IEEE/ACM TASLP 2021,
https://arxiv.org/abs/2106.07447. Reference code: facebookresearch/fairseq at 3d262bb,
models/hubert/hubert.py.

Deviations:
    1. Masks are keyed by (seed, step, sample); the code draws them from numpy's unseeded generator.
    2. The penalty and the smallest number of masked frames are those of the global batch; the
       code's are one GPU's.
    3. Padded frames are neither in the penalty nor in the group norm; in the code they are.
    4. Frames behind a recording's last unit are not predicted (in the penalty they count); the code
       cuts the whole batch there.
    5. Units with equal embeddings are all in the softmax; the code leaves out those that equal the
       true one.
    6. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
    7. As in wav2vec 2.0, a batch has recordings of any length, and each its own count of masked
       frames in the recipes for LibriSpeech.
"""

from __future__ import annotations

from typing import cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import SpeechEncoder, check_speech
from sslzoo.batch import Batch, UnitSequence, ViewSpec, describe_views
from sslzoo.callbacks.watch import Watch
from sslzoo.checks import check_positive
from sslzoo.distributed import sum_over_ranks
from sslzoo.heads import UnitHead
from sslzoo.losses import feature_penalty, masked_units, perplexity
from sslzoo.masks import SpanMasks
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import Schedule, all_alike


class HuBERT(SSLMethod):
    """Predict the unit of each masked frame: the cluster of its features, found beforehand.

    The views are `UnitSequence`, as `AudioFolder(units=...)` and `LibriSpeech(units=...)` make them
    of what `sslzoo units` writes.

    Args:
        backbone: a `SpeechEncoder`.
        head: scores of the units; 100 units in the first iteration of the paper, 500 in the second.
        masks: spans of masked frames; None: SpanMasks(0.8), the paper's.
        unit_rate: units per second; 100 for MFCC, 50 for features of an earlier model.
        masked_weight: weight of the masked frames; 1 in the paper's recipes.
        unmasked_weight: weight of the other frames; 0 in the paper's recipes.
        penalty_weight: weight of the features' mean square; 10 in the code's recipes.
        optimizer: see `SSLMethod`; Adam with betas 0.9 and 0.98 in the paper.
        schedule: see `SSLMethod`; WarmupPolynomial in the paper.
        parameter_groups: see `SSLMethod`; everything is decayed in the code.

    The accuracy of the masked frames (`train/masked_accuracy`) and the effective number of units
    that are predicted (`train/unit_perplexity`) are logged; a warning says when it is nearly 1.

    Example:
        >>> from sslzoo.backbones import ConvFrames, SpeechEncoder, SpeechTransformer
        >>> transformer = SpeechTransformer(8, 2, 2, 8, False, 4, 2, 1, 0.0, 0.0, 0.0, 0.0)
        >>> encoder = SpeechEncoder(ConvFrames((4, 6), (4, 3), (2, 2)), transformer, rate=400)
        >>> method = HuBERT(encoder, UnitHead(8, [5], 4), SpanMasks(0.6, 3), unit_rate=100)
        >>> units = torch.arange(64).view(4, 1, 16) % 5
        >>> view = UnitSequence(torch.randn(4, 64), torch.full((4,), 64), units)
        >>> batch = Batch([view], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['masked_units', 'penalty']
    """

    takes = ViewSpec(1, 1)

    def __init__(
        self,
        backbone: nn.Module,
        head: UnitHead,
        masks: SpanMasks | None = None,
        unit_rate: float = 50.0,
        masked_weight: float = 1.0,
        unmasked_weight: float = 0.0,
        penalty_weight: float = 10.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        width = check_speech(backbone).num_features
        if head.in_features != width:
            raise ValueError(
                f"head must have in_features {width}, the width of the backbone, got "
                f"{head.in_features}"
            )
        check_positive("unit_rate", unit_rate)
        self.head, self.masks = head, SpanMasks(0.8) if masks is None else masks
        self.unit_rate = unit_rate
        self.masked_weight, self.unmasked_weight = masked_weight, unmasked_weight
        self.penalty_weight = penalty_weight
        self.watched: dict[str, Tensor] = {}

    def configure_callbacks(self) -> list[Callback]:
        advice = "every frame is predicted to be the same unit, train longer or lower the rate"
        return [Watch({"unit_perplexity": 1.05}, advice, after_steps=1000)]

    @property
    def least_samples(self) -> int:
        """Samples of the shortest recording of which frames are masked."""
        return self.speech.samples(self.masks.length + 1)

    @property
    def speech(self) -> SpeechEncoder:
        """The backbone."""
        return cast(SpeechEncoder, self.backbone)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        (view,) = batch.views
        self._check(view)
        encoder = self.speech
        frames = encoder.embed(view)
        size = frames.conv.shape[1]
        self.masks.check_size(size)
        mask = self.masks(step_keys(self, batch), frames.num_frames, size)  # (B, T)
        logits = self.head(encoder.forward_masked(frames, mask))  # S times (B, T, C)
        units = self.units(view, size)  # (B, S, T)
        unmasked = frames.real & ~mask
        weights = self.unmasked_weight, self.masked_weight
        terms = {"masked_units": masked_units(logits, units, mask, unmasked, *weights)}
        if self.penalty_weight:
            terms["penalty"] = self.penalty_weight * feature_penalty(frames.conv, frames.real)
        self._watch(logits[0].detach(), units[:, 0], mask)
        return terms

    def units(self, view: UnitSequence, size: int) -> Tensor:
        """The units at each frame, -1 behind the last; (B, S, T) int64."""
        step = self.unit_rate * self.speech.frames.stride / self.speech.rate
        at = (torch.arange(size, device=view.units.device, dtype=torch.float64) * step).long()
        number = view.units.shape[2]
        return view.units[:, :, at.clamp_max(number - 1)].masked_fill(at >= number, -1)

    def _check(self, view: object) -> None:
        sets = len(self.head.num_units)
        if not isinstance(view, UnitSequence) or view.units.dim() != 3:
            raise ValueError(
                "the views of HuBERT must be UnitSequence(values, lengths, units (B, S, U)), got "
                f"{describe_views([view])}; run sslzoo units, and set units in the data module"
            )
        if view.units.shape[1] != sets or view.units.shape[2] < 1:
            raise ValueError(
                f"the views of HuBERT must have {sets} sets of units, as head.num_units says, got "
                f"units {tuple(view.units.shape)}"
            )

    @torch.no_grad()
    def _watch(self, logits: Tensor, units: Tensor, mask: Tensor) -> None:
        real = mask & (units >= 0)
        predicted = logits.argmax(2)
        right = sum_over_ranks(torch.stack([((predicted == units) & real).sum(), real.sum()]))
        chosen = nn.functional.one_hot(predicted, logits.shape[2]).to(logits.dtype)
        self.watched = {
            "masked_accuracy": right[0] / right[1].clamp_min(1),
            "unit_perplexity": perplexity(chosen[:, :, None], real),
        }
