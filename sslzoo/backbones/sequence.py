"""SequenceEncoder: a frame encoder and a context network, pooled to one vector per sequence.

Shapes: B sequences, T frames, D features of a frame, D' features of a context.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslzoo.batch import Padded, check_frames
from sslzoo.checks import check_choice, check_num_features


class FrameMLP(nn.Module):
    """Linear - ReLU - Linear on each frame. Shapes: (B, T, F) -> (B, T, D).

    Args:
        in_features: F.
        width: D, which is also the hidden width.
    """

    def __init__(self, in_features: int, width: int = 64):
        super().__init__()
        self.num_features = width
        self.layers = nn.Sequential(
            nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, width)
        )

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames, unchanged. Shapes: (B,) int64 -> (B,)."""
        return lengths

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.layers(x)


def check_context(encoder: nn.Module, context: nn.Module) -> tuple[int, int]:
    """Return the widths (D, D') of an encoder's frames and of their contexts.

    Raises:
        ValueError: the context network does not take the frames, or lacks the attributes.
    """
    width = check_num_features(encoder, "encoder")
    takes, gives = (getattr(context, f"{side}_features", None) for side in ("in", "out"))
    if takes != width or not isinstance(gives, int):
        raise ValueError(
            f"the context must have in_features {width} and an int out_features, "
            f"{type(context).__name__} has {takes!r} and {gives!r}"
        )
    return width, gives


class SequenceEncoder(nn.Module):
    """Encode frames, compute their contexts, and pool the contexts per sequence.

    The input is a tensor, or `Padded` for sequences of several lengths. Padding then does not
    change a sequence's features.

    Args:
        encoder: (B, ...) -> (B, T, D), with `num_features`: `WaveEncoder` (its `in_features` for
            sequences of vectors), `FrameMLP`, or your own.
            For `Padded` it also needs a second argument `lengths` and a method `num_frames`.
        context: causal network (B, T, D) -> (B, T, D'), with `in_features` and `out_features`
            (`heads.Recurrent`).
        pool: the "mean" (Greedy InfoMax) or the "last" (CPC_audio) context.
        reverse: whether a context sees its own and the later frames, not the earlier ones, so that
            `methods.CPC` predicts earlier ones (the --cpc_mode reverse of CPC_audio).

    Attributes:
        num_features: D'.
        frame_features: D.

    Raises:
        ValueError: the widths do not fit, or the last context is pooled in reverse.
    """

    def __init__(
        self,
        encoder: nn.Module,
        context: nn.Module,
        pool: Literal["mean", "last"] = "mean",
        reverse: bool = False,
    ):
        super().__init__()
        width, gives = check_context(encoder, context)
        check_choice("pool", pool, ("mean", "last"))
        if reverse and pool == "last":
            raise ValueError(
                "pool must be 'mean' with reverse=True, since the last context has seen one frame "
                "only, got 'last'"
            )
        self.encoder, self.context, self.pool = encoder, context, pool
        self.reverse = reverse
        self.frame_features, self.num_features = width, gives

    def forward_parts(self, x: Tensor | Padded) -> tuple[Tensor, Tensor]:
        """Frames z (B, T, D) and contexts c (B, T, D')."""
        z = self.encoder(*x) if isinstance(x, Padded) else self.encoder(x)
        if self.reverse:
            return z, self.flip(self.context(self.flip(z, x)), x)
        return z, self.context(z)

    def flip(self, frames: Tensor, x: Tensor | Padded) -> Tensor:
        """Reverse the frames (B, T, .) of each sequence of x in time; padding stays at the end."""
        if not isinstance(x, Padded):
            return frames.flip(1)
        lengths = self.num_frames(x.lengths)[:, None]
        t = torch.arange(frames.shape[1], device=frames.device)
        order = torch.where(t < lengths, lengths - 1 - t, t)
        return frames.gather(1, order[..., None].expand_as(frames))

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of sequences of these lengths. Shapes: (B,) int64 -> (B,)."""
        encoder: Any = self.encoder
        return encoder.num_frames(lengths) if hasattr(encoder, "num_frames") else lengths

    def forward_layers(self, x: Tensor | Padded) -> tuple[list[Tensor], Tensor]:
        """Frames z (B, T, D) and contexts c (B, T, D'), and the number of frames (B,).

        Raises:
            ValueError: a sequence is shorter than a frame.
        """
        if not isinstance(x, Padded):
            z, c = self.forward_parts(x)
            return [z, c], torch.full((len(c),), c.shape[1], device=c.device)
        frames = self.num_frames(x.lengths)
        check_frames(x.lengths, frames, type(self.encoder).__name__)
        return list(self.forward_parts(x)), frames

    def forward_frames(self, x: Tensor | Padded) -> Padded:
        """Contexts (B, T, D') with the number of frames per sequence."""
        layers, frames = self.forward_layers(x)
        return Padded(layers[-1], frames)

    def forward(self, x: Tensor | Padded) -> Tensor:
        """The pooled contexts (B, D')."""
        frames = self.forward_frames(x)
        c, lengths = frames
        if self.pool == "last":
            last = (lengths - 1).clamp_min(0)[:, None, None].expand(-1, 1, c.shape[2])
            return c.gather(1, last)[:, 0]
        return (c * frames.mask[..., None]).sum(1) / lengths.clamp_min(1)[:, None]
