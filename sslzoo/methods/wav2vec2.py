"""wav2vec 2.0: a framework for self-supervised learning of speech representations.

Baevski, Zhou, Mohamed and Auli, NeurIPS 2020, https://arxiv.org/abs/2006.11477.
Reference code: facebookresearch/fairseq at 3d262bb, models/wav2vec/wav2vec2.py.

Deviations:
    1. Masks, negatives and Gumbel noise are keyed by (seed, step, sample); the code draws them from
       the process's generators.
    2. Negatives with the code of the target are left out; the code compares projected floats, which
       misses some by rounding.
    3. A negative of another utterance is never the own target; the code excludes another frame, and
       its reshaping mixes the negatives of neighboring frames.
    4. The mean use of the codebook, the penalty and the smallest number of masked frames are those
       of the global batch; the code's are one GPU's.
    5. Padded frames are neither in the penalty nor in the group norm; in the code they are.
    6. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code.
    7. A batch has recordings of any length, so that the recipe for LibriSpeech has a count of
       masked frames for each (`same_count: false`); the code's batches are of one length, cut to
       their shortest, with one count. A recording of at most one span has no masked frame.
    8. A waveform is normalized (`normalize`, large models) as the window that it is; the code
       normalizes the whole recording.
"""

from __future__ import annotations

from typing import cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import SpeechEncoder, check_speech
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.watch import Watch
from sslzoo.checks import check_positive, check_whole
from sslzoo.distributed import gather, gather_rows, row_layout
from sslzoo.heads import GumbelQuantizer
from sslzoo.losses import (
    codebook_diversity,
    feature_penalty,
    group_perplexities,
    masked_contrastive,
)
from sslzoo.masks import SpanMasks, masked_first
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import ExponentialSchedule, Schedule, all_alike, as_schedule
from sslzoo.random import Keys


class Wav2Vec2(SSLMethod):
    """Identify the quantized features of each masked frame among those of other masked frames.

    Args:
        backbone: a `SpeechEncoder`.
        quantizer: of the convolutions' features; 2 groups of 320 entries in the paper.
        masks: spans of masked frames; None: SpanMasks(), the paper's.
        dim: width in which predictions and targets are compared; 256 in base models, 768 in large.
        num_negatives: negatives among the other masked frames of the utterance; 100 in the paper.
        cross_negatives: further ones among the masked frames of the global batch; 0.
        codebook_negatives: further ones among all combinations of entries; 0.
        temperature: divides the cosines; 0.1 in the paper.
        quantizer_temperature: of the Gumbel softmax at each optimizer step; None:
            ExponentialSchedule(2, 0.5, 0.999995), the base model's.
        diversity_weight: weight of the codebook's diversity; 0.1 in the paper.
        penalty_weight: weight of the features' mean square; 10 in the code's base model, 0 in the
            large one.
        quantizer_dropout: dropout of the quantizer's input (the code's dropout_features); 0.1 in
            the base model.
        optimizer: see `SSLMethod`; Adam with betas 0.9 and 0.98 in the paper.
        schedule: see `SSLMethod`; WarmupPolynomial in the paper.
        parameter_groups: see `SSLMethod`; everything is decayed in the code.

    The entries in use of all groups (`train/code_perplexity`) and of the group that has fewest
    (`train/group_perplexity`) are logged, and a warning says when they are few.

    Example:
        >>> from sslzoo.backbones import ConvFrames, SpeechEncoder, SpeechTransformer
        >>> transformer = SpeechTransformer(8, 2, 2, 8, False, 4, 2, 1, 0.0, 0.0, 0.0, 0.0)
        >>> encoder = SpeechEncoder(ConvFrames((4, 6), (4, 3), (2, 2)), transformer)
        >>> quantizer = GumbelQuantizer(6, num_entries=5, out_features=4)
        >>> masks = SpanMasks(0.6, 3)
        >>> method = Wav2Vec2(encoder, quantizer, masks, 4, 3, quantizer_dropout=0.0)
        >>> batch = Batch([torch.randn(4, 64)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['contrastive', 'diversity', 'penalty']
    """

    takes = ViewSpec(1, 1)

    def __init__(
        self,
        backbone: nn.Module,
        quantizer: GumbelQuantizer,
        masks: SpanMasks | None = None,
        dim: int = 256,
        num_negatives: int = 100,
        cross_negatives: int = 0,
        codebook_negatives: int = 0,
        temperature: float = 0.1,
        quantizer_temperature: Schedule | float | None = None,
        diversity_weight: float = 0.1,
        penalty_weight: float = 10.0,
        quantizer_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        width = check_speech(backbone).frame_features
        if quantizer.in_features != width:
            raise ValueError(
                f"quantizer must have in_features {width}, the width of the convolutions, got "
                f"{quantizer.in_features}"
            )
        for name, number in (
            ("num_negatives", num_negatives),
            ("cross_negatives", cross_negatives),
            ("codebook_negatives", codebook_negatives),
        ):
            check_whole(name, number, 0)
        if num_negatives + cross_negatives + codebook_negatives < 1:
            raise ValueError("num_negatives must be at least 1 without other negatives, got 0")
        self.num_codes = quantizer.num_entries**quantizer.groups
        if codebook_negatives and self.num_codes > 1 << 31:
            raise ValueError(
                "codebook_negatives must be 0 for a codebook of more than 2**31 combinations, got "
                f"{codebook_negatives} of {self.num_codes}"
            )
        check_positive("temperature", temperature)
        self.quantizer, self.masks = quantizer, SpanMasks() if masks is None else masks
        self.num_negatives, self.cross_negatives = num_negatives, cross_negatives
        self.codebook_negatives, self.temperature = codebook_negatives, temperature
        if quantizer_temperature is None:
            quantizer_temperature = ExponentialSchedule(2.0, 0.5, 0.999995)
        self.quantizer_temperature = as_schedule(quantizer_temperature)
        self.diversity_weight, self.penalty_weight = diversity_weight, penalty_weight
        self.quantizer_dropout = nn.Dropout(quantizer_dropout)
        self.project_q = nn.Linear(quantizer.out_features, dim)
        self.final_proj = nn.Linear(check_speech(backbone).num_features, dim)
        self.watched: dict[str, Tensor] = {}

    def configure_callbacks(self) -> list[Callback]:
        least = 1 + 0.01 * (self.quantizer.num_entries - 1)
        advice = (
            "the codebook has collapsed to a few entries, raise diversity_weight or "
            "quantizer_temperature, or lower the learning rate"
        )
        whole = self.quantizer.groups * least
        return [Watch({"code_perplexity": whole, "group_perplexity": least}, advice)]

    @property
    def least_samples(self) -> int:
        """Samples of the shortest recording of which frames are masked."""
        return cast(SpeechEncoder, self.backbone).samples(self.masks.length + 1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        encoder = cast(SpeechEncoder, self.backbone)
        frames = encoder.embed(batch.views[0])
        size = frames.conv.shape[1]
        self.masks.check_size(size)
        keys = step_keys(self, batch)
        mask = self.masks(keys, frames.num_frames, size)  # (B, T)
        where, real = masked_first(mask, self.masks.most(size))  # (B, M)
        contexts = encoder.forward_masked(frames, mask)
        p = self.final_proj(_select(contexts, where))  # (B, M, D)
        q = self.quantizer(
            self.quantizer_dropout(_select(frames.normalized, where)),
            self.at_step(self.quantizer_temperature),
            self._noise(keys, where.shape[1]),
        )
        y = self.project_q(q.values)  # (B, M, D)
        negatives, same = self._negatives(keys, real, q.codes)
        others, more = self._others(keys, real, y, q.codes)
        duplicates = torch.cat([same, more], dim=2)
        loss = masked_contrastive(p, y, negatives, real, duplicates, self.temperature, others)
        chosen = nn.functional.one_hot(q.chosen, self.quantizer.num_entries)
        used = group_perplexities(chosen.to(p.dtype).detach(), real)
        self.watched = {"code_perplexity": used.sum(), "group_perplexity": used.min()}
        diversity = codebook_diversity(q.probabilities, real)
        terms = {"contrastive": loss, "diversity": self.diversity_weight * diversity}
        if self.penalty_weight:
            terms["penalty"] = self.penalty_weight * feature_penalty(frames.conv, frames.real)
        return terms

    def _noise(self, keys: Keys, frames: int) -> Tensor | None:
        """Standard exponential draws (B, M, G, V) above 0; None in evaluation."""
        if not self.training:
            return None
        quantizer = self.quantizer
        unit = keys.unit("quantizer", frames, quantizer.groups, quantizer.num_entries)
        return -torch.log1p(-(unit + 2.0**-26))

    def _negatives(self, keys: Keys, real: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Other masked frames of the same utterance, and which are left out; (B, M, K) each."""
        most = real.shape[1]
        count = real.sum(1)[:, None, None]
        drawn = keys.integers("negatives", 1 << 31, most, self.num_negatives)
        drawn = drawn * (count - 1).clamp_min(1) >> 31
        own = torch.arange(most, device=real.device)[:, None]
        drawn = (drawn + (drawn >= own)).clamp_max(most - 1)
        sequence = torch.arange(len(real), device=real.device)[:, None, None]
        same = (codes[sequence, drawn] == codes[:, :, None]).all(3)
        return drawn, same | (count < 2)

    def _others(
        self, keys: Keys, real: Tensor, y: Tensor, codes: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Further candidates (B, M, E, D), and which are left out (B, M, E)."""
        others, same, most = [], [], real.shape[1]
        if self.cross_negatives:
            rows = row_layout(real.numel())
            every = gather(y.flatten(0, 1), rows)  # (N M, D)
            known = gather_rows(real.flatten(), rows)
            order = known.sort(descending=True, stable=True).indices
            rank = (known.cumsum(0) - 1)[rows.own].unflatten(0, real.shape)[..., None]
            drawn = keys.integers("cross negatives", 1 << 31, most, self.cross_negatives)
            drawn = drawn * (known.sum() - 1).clamp_min(1) >> 31
            drawn = order[(drawn + (drawn >= rank)).clamp_max(len(order) - 1)]
            others.append(every[drawn])
            theirs = gather_rows(codes.flatten(0, 1), rows)[drawn]
            same.append((theirs == codes[:, :, None]).all(3) | (known.sum() < 2))
        if self.codebook_negatives:
            shape = most, self.codebook_negatives
            drawn = self.quantizer.codes_of(keys.integers("codebook", self.num_codes, *shape))
            others.append(self.project_q(self.quantizer.pick(drawn)))
            same.append((drawn == codes[:, :, None]).all(3))
        if not others:
            return None, real.new_zeros(*real.shape, 0)
        return torch.cat(others, dim=2), torch.cat(same, dim=2)


def _select(frames: Tensor, where: Tensor) -> Tensor:
    """Frames at positions of each sequence. (B, T, F), (B, M) -> (B, M, F)."""
    return frames.gather(1, where[..., None].expand(-1, -1, frames.shape[2]))
