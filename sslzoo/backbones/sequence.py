"""SequenceEncoder: an encoder of frames, and a context over them that is pooled to one vector.

Shapes: B sequences, T frames, D features of a frame, D' of a context.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslzoo.batch import Padded


class FrameMLP(nn.Module):
    """Linear - ReLU - Linear on each frame by itself. Shapes: (B, T, F) -> (B, T, D).

    Args:
        in_features: F.
        width: D, and of the hidden layer.
    """

    def __init__(self, in_features: int, width: int = 64):
        super().__init__()
        self.num_features = width
        self.layers = nn.Sequential(
            nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, width)
        )

    def num_frames(self, lengths: Tensor) -> Tensor:
        """As many as there were. Shapes: (B,) int64 -> (B,)."""
        return lengths

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.layers(x)


class SequenceEncoder(nn.Module):
    """Frames, their contexts, and one vector a sequence: the mean (or last) context.

    Takes tensors, or `Padded` where sequences have several lengths; then no frame that padding
    made counts, and a sequence's features are those that it has alone.

    Args:
        encoder: (B, ...) -> (B, T, D), with `num_features`: `WaveEncoder`,
            `FrameMLP`, or one of your own. To take `Padded` it also takes `lengths` as
            second argument and has `num_frames`.
        context: (B, T, D) -> (B, T, D'), with `in_features` and `out_features`; its output at a
            frame depends on that frame and those before (`heads.Recurrent`).
        pool: "mean" (Greedy InfoMax) or "last" (CPC_audio) context.

    Attributes:
        num_features: D'.
        frame_features: D.
    """

    def __init__(
        self, encoder: nn.Module, context: nn.Module, pool: Literal["mean", "last"] = "mean"
    ):
        super().__init__()
        width: Any = getattr(encoder, "num_features", None)
        if not isinstance(width, int):
            raise ValueError(
                f"an encoder needs num_features (int), {type(encoder).__name__} has {width!r}"
            )
        takes, gives = (getattr(context, f"{side}_features", None) for side in ("in", "out"))
        if takes != width or not isinstance(gives, int):
            raise ValueError(
                f"a context of {width} in_features and with out_features wanted, "
                f"{type(context).__name__} has {takes!r} and {gives!r}"
            )
        if pool not in ("mean", "last"):
            raise ValueError(f'pool must be "mean" or "last", got {pool!r}')
        self.encoder, self.context, self.pool = encoder, context, pool
        self.frame_features, self.num_features = width, gives

    def forward_parts(self, x: Tensor | Padded) -> tuple[Tensor, Tensor]:
        """Frames z (B, T, D) and contexts c (B, T, D')."""
        z = self.encoder(*x) if isinstance(x, Padded) else self.encoder(x)
        return z, self.context(z)

    def forward_frames(self, x: Tensor | Padded) -> Padded:
        """Contexts (B, T, D') and how many of the T frames each sequence has."""
        _, c = self.forward_parts(x)
        if not isinstance(x, Padded):
            return Padded(c, torch.full((len(c),), c.shape[1], device=c.device))
        encoder: Any = self.encoder
        return Padded(c, encoder.num_frames(x.lengths))

    def forward(self, x: Tensor | Padded) -> Tensor:
        """Pooled context (B, D')."""
        c, lengths = self.forward_frames(x)
        if self.pool == "last":
            last = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, c.shape[2])
            return c.gather(1, last)[:, 0]
        inside = (torch.arange(c.shape[1], device=c.device) < lengths[:, None])[..., None]
        return (c * inside).sum(1) / lengths.clamp_min(1)[:, None]
