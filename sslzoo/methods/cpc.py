"""CPC: representation learning with contrastive predictive coding, for audio and any sequence.

Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, section 3.1 (no code by its
authors); Riviere et al., Unsupervised Pretraining Transfers Well Across Languages, ICASSP 2020,
https://arxiv.org/abs/2002.02848: a config. Reference code: loeweX/Greedy_InfoMax at 22d17e4 (with
one module, it is version 1) and facebookresearch/CPC_audio at b98a1bd.

Deviations:
    1. Negatives are keyed draws of (seed, step, sample) from the global batch, one by one; the
       codes' come from the process's generator and from one GPU's batch, and Greedy InfoMax's are
       permutations, so that there each frame is a negative equally often.
    2. The steps of a context share its negatives, as in CPC_audio; in Greedy InfoMax the contexts
       that predict one frame share them.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.distributed import Rows, row_layout
from sslzoo.losses import cpc_info_nce
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    step_keys,
)
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys

Negatives = Literal["batch", "not_target", "other_frames", "other_sequences", "same_sequence"]


class CPC(SSLMethod):
    """From what a sequence has shown so far, each of its next K frames is told from others.

    Args:
        backbone: with `forward_parts`, x -> frames (B, T, D) and contexts (B, T, D')
            (`backbones.SequenceEncoder`).
        predictor: W_k, (B, P, D') -> (B, P, K, D), with `num_steps` (`heads.LinearSteps`).
        num_negatives: of each context: 10 in Greedy InfoMax, 128 in CPC_audio.
        negatives: what they are drawn from: any frame of the "batch" (Greedy InfoMax's method 1,
            "mixed speaker" in the paper); any frame but the target, anew for each step
            ("not_target", its method 0); of any sequence, a frame other than that of the context
            ("other_frames", CPC_audio); "other_sequences" ("excl." in the paper); the
            "same_sequence" (method 2). Batches of one speaker are the data module's affair.
        score: "dot" product (paper, Greedy InfoMax) or its "mean" over dimensions (CPC_audio).
        whole_steps: only contexts that all K steps follow predict (CPC_audio); otherwise each one
            that a step follows (Greedy InfoMax).
        sum_steps: the steps' losses are summed (CPC_audio) and not averaged.
        optimizer: see `SSLMethod`; Adam at 2e-4.
        schedule: see `SSLMethod`; none.
        parameter_groups: see `SSLMethod`; nothing is decayed.

    Example:
        >>> from sslzoo.backbones import SequenceEncoder, WaveEncoder
        >>> from sslzoo.heads import CausalTransformer, LinearSteps
        >>> context = CausalTransformer(6, heads=2, hidden=8, dropout=0.0)
        >>> encoder = WaveEncoder(6, (4, 4), (2, 2), (1, 1), norm="channel")
        >>> method = CPC(SequenceEncoder(encoder, context), LinearSteps(6, 6, 3), 4)
        >>> batch = Batch([torch.rand(4, 32)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['info_nce']
    """

    def __init__(
        self,
        backbone: nn.Module,
        predictor: nn.Module,
        num_negatives: int = 10,
        negatives: Negatives = "batch",
        score: Literal["dot", "mean"] = "dot",
        whole_steps: bool = False,
        sum_steps: bool = False,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        frame, width = getattr(backbone, "frame_features", None), backbone.num_features
        ends = [getattr(predictor, f"{side}_features", None) for side in ("in", "out")]
        if not isinstance(frame, int) or ends != [width, frame]:
            raise ValueError(
                "CPC wants a backbone with forward_parts and frame_features (SequenceEncoder), and "
                f"a predictor from {width} to {frame}; {type(backbone).__name__} has "
                f"frame_features {frame!r} and {type(predictor).__name__} goes from {ends[0]!r} to "
                f"{ends[1]!r}"
            )
        if negatives not in get_args(Negatives) or score not in ("dot", "mean"):
            raise ValueError(
                f'negatives one of {list(get_args(Negatives))} and score "dot" or "mean" wanted, '
                f"got {negatives!r} and {score!r}"
            )
        if num_negatives < 1:
            raise ValueError(f"num_negatives of at least 1 wanted, got {num_negatives}")
        self.predictor = predictor
        self.num_steps = int(cast(Any, predictor).num_steps)
        self.num_negatives, self.negatives = num_negatives, negatives
        self.scale = 1.0 if score == "dot" else 1.0 / frame
        self.whole_steps, self.sum_steps = whole_steps, sum_steps

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        z, c = backbone.forward_parts(batch.views[0])  # (B, T, D), (B, T, D')
        frames, steps = z.shape[1], self.num_steps
        if frames <= steps:
            raise ValueError(f"more frames than the {steps} steps predicted wanted, got {frames}")
        places = frames - (steps if self.whole_steps else 1)
        t = torch.arange(places, device=z.device)[:, None]
        ahead = t + torch.arange(1, steps + 1, device=z.device)  # (P, K): the frame predicted
        inside = (ahead < frames).to(torch.float32)
        weights = inside / inside.sum(0)
        positives = ahead.clamp_max(frames - 1)
        predictions = self.predictor(c[:, :places])  # (B, P, K, D)
        rows = row_layout(len(z))
        keys = step_keys(self, batch)
        if self.negatives == "not_target":  # a set for each step: K places of one prediction each
            predictions = predictions.flatten(1, 2)
            positives, weights = positives.flatten(), weights.flatten()
            drawn = self._draw(keys, rows, positives[:, None], frames)
        else:
            drawn = self._draw(keys, rows, t, frames)
        loss = cpc_info_nce(predictions, z, positives, drawn, self.scale, rows, weights)
        return {"info_nce": loss if self.sum_steps else loss / steps}

    def _draw(self, keys: Keys, rows: Rows, frame: Tensor, frames: int) -> Tensor:
        """Negatives (B, P, num_negatives) among the N T frames of the global batch.

        Args:
            keys: B, of this step.
            rows: of the global batch.
            frame: (P, 1): the target where it is excluded, else the context's own frame.
            frames: T.
        """
        shape = len(frame), self.num_negatives
        total = rows.total * frames
        own = torch.arange(rows.start, rows.start + len(keys.key), device=frame.device)
        own = own[:, None, None]
        if self.negatives == "batch":
            return keys.integers("negatives", total, *shape)
        if self.negatives == "not_target":
            skip = 1 + keys.integers("negatives", total - 1, *shape)
            return (own * frames + frame + skip) % total
        if self.negatives == "same_sequence":
            return own * frames + keys.integers("negatives", frames, *shape)
        if self.negatives == "other_sequences":
            if rows.total < 2:
                raise ValueError("negatives of other sequences want a batch of 2, got 1")
            other = (own + 1 + keys.integers("sequences", rows.total - 1, *shape)) % rows.total
            return other * frames + keys.integers("frames", frames, *shape)
        skip = 1 + keys.integers("frames", frames - 1, *shape)
        sequence = keys.integers("sequences", rows.total, *shape)
        return sequence * frames + (frame + skip) % frames
