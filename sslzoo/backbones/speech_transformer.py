"""SpeechTransformer: convolutional positions and Transformer layers over frames of speech.

Reference code and deviations: `sslzoo.backbones.speech`.

Shapes: B sequences of T frames, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.batch import length_mask
from sslzoo.checks import check_interval, check_whole


class ConvPositions(nn.Module):
    """Convolutional relative positions. Shapes: (B, T, D) -> (B, T, D).

    One convolution whose weight is normalized per tap of the kernel, or several with a layer norm
    without weights each; then GELU. For an even kernel the last output is dropped.

    Args:
        width: D.
        kernel: frames of the convolution; 128 in wav2vec 2.0 and HuBERT, 95 in data2vec, where
            each of 5 layers has 95 // 5 = 19.
        groups: groups of channels; 16 in these papers.
        depth: number of layers.
    """

    def __init__(self, width: int, kernel: int = 128, groups: int = 16, depth: int = 1) -> None:
        super().__init__()
        for name, value in (("kernel", kernel), ("groups", groups), ("depth", depth)):
            check_whole(name, value, 1)
        if width % groups:
            raise ValueError(f"groups must divide the width {width}, got {groups}")
        size = kernel if depth == 1 else max(3, kernel // depth)
        self.groups, self.padding = groups, size // 2
        self.crop = 1 - size % 2
        self.convs = nn.ModuleList()
        if depth == 1:
            weight = torch.randn(width, width // groups, size) * math.sqrt(4 / (size * width))
            self.weight_v = nn.Parameter(weight)
            self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.convs.extend(
                nn.Conv1d(width, width, size, padding=size // 2, groups=groups)
                for _ in range(depth)
            )

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        """Positions to add; frames outside the mask `inside` (B, T, 1) count as zeros."""
        width = x.shape[2]
        if not self.convs:
            weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
            x = x if inside is None else x * inside
            x = F.conv1d(x.mT, weight, self.bias, padding=self.padding, groups=self.groups)
            return F.gelu(x[..., : x.shape[2] - self.crop]).mT
        for conv in self.convs:
            x = conv((x if inside is None else x * inside).mT)
            x = F.gelu(F.layer_norm(x[..., : x.shape[2] - self.crop].mT, (width,)))
        return x


class SpeechLayer(nn.Module):
    """A Transformer layer; also returns the feed-forward output before its residual.

    Args:
        width: D.
        heads: number of attention heads.
        hidden: hidden width of the feed-forward network.
        norm_first: pre-norm (large models), or post-norm (base models).
        dropout: dropout probability of both branches.
        attention_dropout: of the attention weights.
        activation_dropout: of the hidden activations.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        norm_first: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.attention_dropout = nn.Dropout(dropout), nn.Dropout(attention_dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Multi-head attention to the positions of the mask (B, 1, 1, T). (B, T, D)."""
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        rate = self.attention_dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.out(attended.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward network. (B, T, D)."""
        return self.fc2(self.activation_dropout(F.gelu(self.fc1(x))))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, with_fed: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output and, if asked, that of `feed` before the residual."""
        if self.norm_first:
            x = x + self.dropout(self.attend(self.norm1(x), mask))
            fed = self.feed(self.norm2(x))
            return x + self.dropout(fed), fed if with_fed else None
        x = self.norm1(x + self.dropout(self.attend(x, mask)))
        fed = self.feed(x)
        return self.norm2(x + self.dropout(fed)), fed if with_fed else None


class SpeechTransformer(nn.Module):
    """Convolutional positions and Transformer layers. Shapes: (B, T, D) -> (B, T, D).

    Args:
        width: D; 768 in base models, 1024 in large ones.
        depth: number of layers; 12 and 24.
        heads: attention heads; 12 and 16.
        hidden: hidden width of the feed-forward networks; None: 4 D.
        norm_first: pre-norm with a final norm (large), or post-norm with a norm before (base).
        position_kernel: see `ConvPositions`.
        position_groups: see `ConvPositions`.
        position_depth: see `ConvPositions`.
        dropout: dropout of the input and of both branches of a layer; 0.1 in base models.
        attention_dropout: of the attention weights; 0.1 in base models.
        activation_dropout: of the hidden activations; 0 in base models.
        layer_drop: probability with which a layer is skipped in training; 0.05 in base models.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int | None = None,
        norm_first: bool = False,
        position_kernel: int = 128,
        position_groups: int = 16,
        position_depth: int = 1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        layer_drop: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("heads", heads)):
            check_whole(name, value, 1)
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        check_interval("layer_drop", layer_drop, 0, 1, "[)")
        self.num_features, self.norm_first, self.layer_drop = width, norm_first, layer_drop
        self.positions: nn.Module = ConvPositions(
            width, position_kernel, position_groups, position_depth
        )
        rates = dropout, attention_dropout, activation_dropout
        self.layers = nn.ModuleList(
            SpeechLayer(width, heads, hidden or 4 * width, norm_first, *rates) for _ in range(depth)
        )
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def add_positions(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Add the positions; frames after `lengths` (B,) become zero. (B, T, D)."""
        if lengths is None:
            return x + self.positions(x)
        inside = length_mask(lengths, x.shape[1])[..., None]
        x = x * inside
        return x + self.positions(x, inside)

    def run(
        self, x: Tensor, lengths: Tensor | None = None, with_fed: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layers on frames with positions.

        Args:
            x: (B, T, D) of `add_positions`.
            lengths: (B,) int64 frames of each sequence; None: all T.
            with_fed: whether the second result is wanted; otherwise it is empty.

        Returns:
            The input and the output of each layer, depth + 1 tensors of which `finish` makes the
            result, and each layer's feed-forward output before its residual. Frames after `lengths`
            have no meaning.
        """
        mask = None
        if lengths is not None:
            mask = length_mask(lengths.clamp_min(1), x.shape[1])[:, None, None]
        x = self.dropout(x if self.norm_first else self.norm(x))
        hidden, fed = [x], []
        for layer in self.layers:
            y, inner = layer(x, mask, with_fed)
            if self.training and self.layer_drop:
                kept = torch.rand((), device=x.device) >= self.layer_drop
                y = torch.where(kept, y, x.to(y.dtype))
                inner = None if inner is None else torch.where(kept, inner, 0)
            x = y
            hidden.append(x)
            fed += [] if inner is None else [inner]
        return hidden, fed

    def finish(self, x: Tensor) -> Tensor:
        """The result for the last layer's output: after the final norm in pre-norm. (B, T, D)."""
        return self.norm(x) if self.norm_first else x

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.finish(self.run(self.add_positions(x, lengths), lengths)[0][-1])
