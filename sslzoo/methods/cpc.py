"""CPC: representation learning with contrastive predictive coding, for sequences.

Van den Oord, Li and Vinyals, 2018, https://arxiv.org/abs/1807.03748, section 3.1 (its authors
published no code); Riviere et al., Unsupervised Pretraining Transfers Well Across Languages, ICASSP
2020, https://arxiv.org/abs/2002.02848, is a config of this class. Reference code:
loeweX/Greedy_InfoMax at 22d17e4 (with one module it is CPC) and facebookresearch/CPC_audio at
b98a1bd.

Deviations:
    1. Negatives are independent keyed draws of (seed, step, sample) from the global batch; the two
       codes draw them from the process's generator and from one GPU's batch. Greedy InfoMax draws
       permutations, so that each frame is a negative equally often.
    2. The predictions of one context share its negatives, as in CPC_audio; in Greedy InfoMax the
       predictions of one frame share them.
    3. An epoch has one random window of each file, as in Greedy InfoMax; CPC_audio's covers all of
       each file.
    4. Batches of one speaker leave out the windows that do not fill a batch; CPC_audio's last batch
       of a speaker is smaller.
    5. `TransformerSteps` has one table of relative positions for all lengths up to `max_frames`;
       CPC_audio's is for one length.
    6. For text, the paper maps word2vec's vocabulary onto its word embeddings after training; here
       `WordPiece` splits unknown words.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from sslzoo.batch import Batch, Padded, ViewSpec
from sslzoo.distributed import Rows, row_layout
from sslzoo.losses import cpc_info_nce
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, step_keys
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys

Negatives = Literal["batch", "not_target", "other_frames", "other_sequences", "same_sequence"]


def check_unpadded(view: Any) -> None:
    """Refuse sequences with lengths, since frames of their padding would be predicted.

    Raises:
        ValueError: says how to get others.
    """
    if isinstance(view, Padded):
        raise ValueError(
            "the views of CPC must be windows without padding (B, L), got Padded; set short of the "
            "data module to pad, loop or skip"
        )


class CPC(SSLMethod):
    """Predict the next K frames of a sequence from its context, against negative frames.

    Args:
        backbone: with `forward_parts`, x -> frames z (B, T, D) and contexts c (B, T, D')
            (`backbones.SequenceEncoder`; for text `backbones.SentenceSequence`, whose frames are
            sentences). With its `reverse` the K earlier frames are predicted.
        predictor: W_k, (B, P, D') -> (B, P, K, D), with `num_steps` K (`heads.LinearSteps`); K is
            12 in the paper.
        num_negatives: negatives per context: 10 in Greedy InfoMax, 128 in CPC_audio.
        negatives: where they are drawn from: "batch", any frame of the batch (Greedy InfoMax's
            method 1, "mixed speaker" in the paper); "not_target", any frame but the target, drawn
            for each step separately (method 0); "other_frames", of any sequence, a frame at
            another time than the context (CPC_audio); "other_sequences" ("excl." in the paper);
            "same_sequence" (method 2). Batches of one speaker are up to the data module.
        score: "dot" product (paper, Greedy InfoMax) or its "mean" over dimensions (CPC_audio).
        whole_steps: whether only contexts that are followed by all K frames predict (CPC_audio);
            otherwise those followed by at least one frame do (Greedy InfoMax).
        sum_steps: whether the losses of the steps are summed (CPC_audio) or averaged.
        optimizer: see `SSLMethod`; Adam with rate 2e-4 in the paper.
        schedule: see `SSLMethod`; none in the paper.
        parameter_groups: see `SSLMethod`; nothing is decayed in the code.

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

    takes = ViewSpec(1, 1)

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
        frame = getattr(backbone, "frame_features", None)
        width = getattr(backbone, "context_features", backbone.num_features)
        ends = [getattr(predictor, f"{side}_features", None) for side in ("in", "out")]
        if not isinstance(frame, int) or ends != [width, frame]:
            raise ValueError(
                "backbone must have forward_parts and frame_features (SequenceEncoder), and "
                f"predictor must map {width} to {frame} features, got {type(backbone).__name__} "
                f"with frame_features {frame!r} and {type(predictor).__name__} from {ends[0]!r} to "
                f"{ends[1]!r}"
            )
        if negatives not in get_args(Negatives) or score not in ("dot", "mean"):
            raise ValueError(
                f"negatives must be one of {list(get_args(Negatives))} and score 'dot' or 'mean', "
                f"got {negatives!r} and {score!r}"
            )
        if num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
        self.predictor = predictor
        self.num_steps = int(cast(Any, predictor).num_steps)
        self.num_negatives, self.negatives = num_negatives, negatives
        self.scale = 1.0 if score == "dot" else 1.0 / frame
        self.whole_steps, self.sum_steps = whole_steps, sum_steps

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        check_unpadded(batch.views[0])
        z, c = backbone.forward_parts(batch.views[0])  # (B, T, D), (B, T, D')
        if getattr(backbone, "reverse", False):
            z, c = (backbone.flip(part, batch.views[0]) for part in (z, c))
        frames, steps = z.shape[1], self.num_steps
        if frames <= steps:
            raise ValueError(
                f"sequences must have more than {steps} frames, the steps predicted, got {frames}"
            )
        contexts = frames - (steps if self.whole_steps else 1)  # P
        t = torch.arange(contexts, device=z.device)[:, None]
        target = t + torch.arange(1, steps + 1, device=z.device)  # t + k, (P, K)
        inside = (target < frames).to(torch.float32)
        weights = inside / inside.sum(0)
        positives = target.clamp_max(frames - 1)
        predictions = self.predictor(c[:, :contexts])  # W_k c_t, (B, P, K, D)
        rows = row_layout(len(z))
        keys = step_keys(self, batch)
        if self.negatives == "not_target":  # drawn for each step: P K contexts of one prediction
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
            keys: (B,), of this step.
            rows: layout of the global batch.
            frame: (P, 1), the frame to exclude: for "not_target" the target, else the context.
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
                raise ValueError(
                    "the global batch must have at least 2 sequences (for negatives), got 1"
                )
            other = (own + 1 + keys.integers("sequences", rows.total - 1, *shape)) % rows.total
            return other * frames + keys.integers("frames", frames, *shape)
        skip = 1 + keys.integers("frames", frames - 1, *shape)
        sequence = keys.integers("sequences", rows.total, *shape)
        return sequence * frames + (frame + skip) % frames
