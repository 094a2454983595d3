"""PatchGrid: encode an image as a grid of overlapping patches, each independently.

Van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
https://arxiv.org/abs/1807.03748, section 3.3. Reference code: loeweX/Greedy_InfoMax at 22d17e4,
vision/models/Resnet_Encoder.py.

Shapes: B images of S x S pixels, C channels, a grid of g x g patches of P x P pixels, D features.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sslzoo.checks import check_choice, check_num_features
from sslzoo.layers import GlobalBatchNorm


def cut_patches(images: Tensor, patch: int, stride: int) -> Tensor:
    """Cut images into patches by row and column. Shapes: (B, C, S, S) -> (B, g, g, C, P, P)."""
    cut = images.unfold(2, patch, stride).unfold(3, patch, stride)  # (B, C, g, g, P, P)
    return cut.permute(0, 2, 3, 1, 4, 5)


class PatchGrid(nn.Module):
    """Encode every patch of an image; the image's features are the mean over patches.

    The input is images, or mosaics of g P x g P pixels with the patches side by side, without
    overlap, as from `transforms.cpc_views` with `per_patch`.

    Args:
        encoder: encoder of a patch: (B, C, P, P) -> (B, num_features).
        size: S, side of an image in pixels; 64 in Greedy InfoMax, 256 in the paper.
        patch: P; 16 in Greedy InfoMax, 64 in the paper.
        stride: pixels from one patch to the next; 8 in Greedy InfoMax, 32 in the paper, for a
            7 x 7 grid in both.

    Attributes:
        num_features: D.
        map_features: D.
        grid: g.

    Raises:
        ValueError: the encoder has no `num_features`, or the patches do not fill the image; in use,
            the images have neither S nor g P pixels.
    """

    def __init__(self, encoder: nn.Module, size: int = 64, patch: int = 16, stride: int = 8):
        super().__init__()
        width = check_num_features(encoder, "encoder")
        if not 0 < stride <= patch <= size or (size - patch) % stride:
            raise ValueError(
                "sizes must be 0 < stride <= patch <= size with size - patch a multiple of stride, "
                f"got size {size}, patch {patch}, stride {stride}"
            )
        self.encoder = encoder
        self.size, self.patch, self.stride = size, patch, stride
        self.grid = (size - patch) // stride + 1
        self.num_features = self.map_features = width

    def forward_map(self, x: Tensor) -> Tensor:
        """The patches' features. Shapes: (B, C, S, S) or (B, C, g P, g P) -> (B, D, g, g)."""
        mosaic = self.grid * self.patch
        if x.shape[2] != x.shape[3] or x.shape[2] not in (self.size, mosaic):
            raise ValueError(
                f"images must have {self.size} pixels, or {mosaic} for mosaics, got {x.shape[2]} x "
                f"{x.shape[3]}"
            )
        stride = self.stride if x.shape[2] == self.size else self.patch
        patches = cut_patches(x, self.patch, stride).flatten(0, 2)
        features = self.encoder(patches.contiguous(memory_format=torch.channels_last))
        return features.unflatten(0, (-1, self.grid, self.grid)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_map(x).mean((2, 3))


class ChannelNorm(nn.Module):
    """Layer norm over the channels at each position. Shapes: (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


Norm = Literal["none", "layer", "batch"]


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    return ChannelNorm(channels) if kind == "layer" else GlobalBatchNorm(channels)


class _Bottleneck(nn.Module):
    """Pre-activation bottleneck 1x1 - 3x3 - 1x1 with the stride in the second."""

    def __init__(self, wide: int, narrow: int, stride: int, norm: Norm):
        super().__init__()
        out = 4 * narrow
        bias = norm == "none"
        self.norm1, self.norm2, self.norm3 = (_norm(norm, c) for c in (wide, narrow, narrow))
        self.conv1 = nn.Conv2d(wide, narrow, 1, bias=bias)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, 1, bias=bias)
        self.conv3 = nn.Conv2d(narrow, out, 1, bias=bias)
        same = stride == 1 and wide == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(wide, out, 1, stride, bias=bias)
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        shortcut = x if self.same else self.shortcut(active)
        y = self.conv2(self.norm2(self.conv1(active)).relu())
        return self.conv3(self.norm3(y).relu()) + shortcut


class CPCResNet(nn.Module):
    """A pre-activation bottleneck ResNet for patches, by default without batch norm.

    Batch norm would leak information between the patches of an image, which solves the task without
    learning. The defaults are Greedy InfoMax's encoder: the first three stages of a ResNet-50, a
    5x5 stem of stride 1, 1024 features. CPC v2 has layer norm.

    Args:
        blocks: number of blocks per stage; (3, 4, 6), and (3, 4, 23) for the paper's ResNet-101.
        widths: bottleneck width per stage; the output has four times as many channels.
        norm: "none" (CPC v1), "layer" (v2), or "batch" (to study the leak).
        in_chans: channels of a patch.
        stem: "small" (5x5, stride 1) for patches of 8 to 32 pixels, or "imagenet" (7x7, stride 2,
            max-pool).
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 6),
        widths: tuple[int, ...] = (64, 128, 256),
        norm: Norm = "none",
        in_chans: int = 3,
        stem: Literal["small", "imagenet"] = "small",
    ):
        super().__init__()
        if len(blocks) != len(widths) or not blocks:
            raise ValueError(
                f"blocks and widths must have one entry per stage, got {blocks} and {widths}"
            )
        check_choice("norm", norm, get_args(Norm))
        check_choice("stem", stem, ("small", "imagenet"))
        wide, bias = widths[0], norm != "batch"  # a bias before batch norm has no gradient
        layers: list[nn.Module] = (
            [nn.Conv2d(in_chans, wide, 5, 1, 2, bias=bias)]
            if stem == "small"
            else [nn.Conv2d(in_chans, wide, 7, 2, 3, bias=bias), nn.MaxPool2d(3, 2, 1)]
        )
        for stage, (depth, narrow) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_Bottleneck(wide, narrow, stride, norm))
                wide = 4 * narrow
        self.layers = nn.Sequential(*layers, _norm(norm, wide))
        self.num_features = wide
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))
