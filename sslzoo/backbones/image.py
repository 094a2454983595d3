"""Image backbones: any timm model by name, the CIFAR stem, and a small net for CPUs.

Each is a function that returns an nn.Module with `num_features` and
`forward: (B, C, H, W) -> (B, num_features)`; weights are kept channels_last and batch norm is
over the global batch unless `bn_groups` says otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from sslzoo.layers import GlobalBatchNorm, convert_batch_norm, convert_to_group_norm

Norm = Literal["batch", "group"]


def _with_norm(model: nn.Module, norm: Norm, bn_groups: int) -> nn.Module:
    if norm not in ("batch", "group"):
        raise ValueError(f"norm is 'batch' or 'group', got {norm!r}")
    if norm == "batch":
        return convert_batch_norm(model, bn_groups)
    if bn_groups != 1:
        raise ValueError(f"norm 'group' has no batch norm: bn_groups 1 wanted, got {bn_groups}")
    return convert_to_group_norm(model)


def timm_backbone(
    name: str,
    pretrained: bool = False,
    bn_groups: int = 1,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    img_size: int | None = None,
    zero_init_last: bool | None = None,
    norm: Norm = "batch",
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A timm model without its classifier.

    Args:
        name: as in `timm.list_models()`: resnet50, vit_small_patch16_224, ...
        pretrained: load timm's weights for that name.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        in_chans: channels of the input.
        drop_path_rate: stochastic depth, for models that have it.
        img_size: input size in pixels, for models that fix it (ViT).
        zero_init_last: scale 0 in the last batch norm of each residual block (SimCLR: true,
            InstDisc: false), for models that take it; None leaves the model's default.
        norm: "group": group norm and weight standardization instead of batch norm
            (`convert_to_group_norm`).
        options: further arguments of timm's model, such as {num_heads: 12} for MoCo v3's ViT-S.
    """
    further = dict(options or {})
    if "checkpoint_path" in further:
        raise ValueError(
            "options must describe the network, got checkpoint_path: weights are loaded by "
            "pretrained=True or by sslzoo.load"
        )
    if drop_path_rate:
        further["drop_path_rate"] = drop_path_rate
    if img_size is not None:
        further["img_size"] = img_size
    if zero_init_last is not None:
        further["zero_init_last"] = zero_init_last
    if not timm.is_model(name.split(".")[0]):
        close = timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]
        raise ValueError(f"timm has no model {name!r}; names that are close: {close}")
    model = timm.create_model(
        name, pretrained=pretrained, num_classes=0, in_chans=in_chans, **further
    )
    return _with_norm(model, norm, bn_groups).to(memory_format=torch.channels_last)


def cifar_resnet(
    name: str = "resnet18",
    bn_groups: int = 1,
    in_chans: int = 3,
    zero_init_last: bool = True,
    norm: Norm = "batch",
) -> nn.Module:
    """A timm ResNet with the stem for small images: 3x3 convolution, stride 1, no max-pool.

    The arguments are `timm_backbone`'s.
    """
    if not name.startswith("resnet"):
        raise ValueError(f"cifar_resnet wants a timm resnet such as resnet18, got {name!r}")
    model = timm.create_model(name, num_classes=0, in_chans=in_chans, zero_init_last=zero_init_last)
    width = model.conv1.out_channels
    model.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return _with_norm(model, norm, bn_groups).to(memory_format=torch.channels_last)


class _Block(nn.Module):
    """3x3 - 3x3 residual block with a projection shortcut, stride in the first."""

    def __init__(self, wide: int, narrow: int, stride: int, bn_groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(wide, narrow, 3, stride, 1, bias=False)
        self.bn1 = GlobalBatchNorm(narrow, groups=bn_groups)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, 1, 1, bias=False)
        self.bn2 = GlobalBatchNorm(narrow, groups=bn_groups)
        self.shortcut = nn.Conv2d(wide, narrow, 1, stride, bias=False)
        self.bn3 = GlobalBatchNorm(narrow, groups=bn_groups)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.bn3(self.shortcut(x)))


class SmallResNet(nn.Module):
    """A residual net for images of about 32 pixels that trains in minutes on a CPU.

    A 3x3 stem and one residual block per further width, each halving the resolution; 1.2 M
    parameters and 256 features with the default widths.

    Args:
        widths: of the stem and of the blocks.
        in_chans: channels of the input.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        map_block: `forward_map` gives the output of this block, counted from 1; None: the last's.
        norm: see `timm_backbone`; with "group" the widths are multiples of 16.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        in_chans: int = 3,
        bn_groups: int = 1,
        map_block: int | None = None,
        norm: Norm = "batch",
    ):
        super().__init__()
        last = len(widths) - 1
        if map_block is not None and not 1 <= map_block <= last:
            raise ValueError(f"map_block is one of the {last} blocks from 1, got {map_block}")
        self.map_block = last if map_block is None else map_block
        self.map_features = widths[self.map_block]
        self.num_features = widths[-1]
        self.stem = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn = GlobalBatchNorm(widths[0], groups=bn_groups)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            *(_Block(a, b, 2, bn_groups) for a, b in zip(widths, widths[1:], strict=False))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        _with_norm(self, norm, bn_groups).to(memory_format=torch.channels_last)

    def forward_map(self, x: Tensor) -> Tensor:
        """Feature map (B, map_features, H / 2^map_block, W / 2^map_block)."""
        return self.blocks[: self.map_block](self.relu(self.bn(self.stem(x))))

    def forward_from_map(self, m: Tensor) -> Tensor:
        """Features (B, num_features) of a feature map."""
        return self.blocks[self.map_block :](m).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_from_map(self.forward_map(x))
