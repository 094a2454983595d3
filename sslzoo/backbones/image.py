"""Image backbones: timm models, ResNets with a CIFAR stem, and a small ResNet for CPUs.

Each has `num_features` and `forward: (B, C, H, W) -> (B, num_features)`. Weights are channels_last,
and batch norm is over the global batch unless `bn_groups` is set.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import timm
import torch
from torch import Tensor, nn

from sslzoo.backbones.timm_models import Channels, create, start, with_features
from sslzoo.checks import check_choice, check_interval, check_sides
from sslzoo.layers import GlobalBatchNorm, convert_batch_norm, convert_to_group_norm

Norm = Literal["batch", "group"]


def _with_norm(model: nn.Module, norm: Norm, bn_groups: int) -> nn.Module:
    check_choice("norm", norm, get_args(Norm))
    if norm == "batch":
        return convert_batch_norm(model, bn_groups)
    if bn_groups != 1:
        raise ValueError(f"bn_groups must be 1 with norm 'group', got {bn_groups}")
    return convert_to_group_norm(model)


def timm_backbone(
    name: str,
    pretrained: bool = False,
    bn_groups: int = 1,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    img_size: int | tuple[int, int] | None = None,
    zero_init_last: bool | None = None,
    norm: Norm = "batch",
    options: dict[str, Any] | None = None,
    weights: str | None = None,
    channels: Channels | None = None,
) -> nn.Module:
    """A timm model without its classifier.

    It has `forward_map` (B, C, H, W) -> (B, map_features, h, w) unless timm gives no map of it, and
    vision transformers have `forward_tokens` (without masks: see `timm_vit`).

    Args:
        name: a name in `timm.list_models()`: resnet50, convnext_tiny, swin_tiny_patch4_window7_224,
            ..., also with a tag of weights (NAME.TAG), or hf-hub:OWNER/REPOSITORY.
        pretrained: whether to load timm's weights of that name, from the Hugging Face Hub.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        in_chans: channels of the input.
        drop_path_rate: rate of stochastic depth, for models that have it.
        img_size: side of the images in pixels, or (height, width), for models with a fixed size
            (ViT).
        zero_init_last: whether the last batch norm of each residual block has an initial scale of
            0 (SimCLR: true, InstDisc: false), for ResNets; None: the model's default.
        norm: "batch", or "group" for group norm and weight standardization
            (`convert_to_group_norm`).
        options: further arguments of timm's model, such as {num_heads: 12} for MoCo v3's ViT-S.
            VICRegL's ConvNeXts have {head_norm_first: true, ls_init_value: null}: a map that is
            normalized before it is pooled, and no layer scale.
        weights: weights to load instead: a name in the zoo, a file, an address or a run directory;
            see `sslzoo.zoo.load_start_weights`.
        channels: how the input filters are adapted to other channels; see there.

    Raises:
        ValueError: the name does not exist or does not take an argument; the weights do not fit.
        OSError: the weights cannot be fetched.
    """
    further = dict(options or {})
    if drop_path_rate:
        further["drop_path_rate"] = drop_path_rate
    if img_size is not None:
        further["img_size"] = check_sides("img_size", img_size)
    if zero_init_last is not None:
        further["zero_init_last"] = zero_init_last
    model = _with_norm(create(name, pretrained, in_chans, further), norm, bn_groups)
    start(model, name, pretrained, weights, channels)
    return with_features(model).to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def cifar_resnet(
    name: str = "resnet18",
    bn_groups: int = 1,
    in_chans: int = 3,
    zero_init_last: bool = True,
    norm: Norm = "batch",
) -> nn.Module:
    """A timm ResNet with a stem for small images: 3x3 convolution, stride 1, no max-pool.

    It has `forward_map`, and the arguments are `timm_backbone`'s.
    """
    if not name.startswith("resnet"):
        raise ValueError(f"name must be a timm ResNet such as resnet18, got {name!r}")
    model = timm.create_model(name, num_classes=0, in_chans=in_chans, zero_init_last=zero_init_last)
    width = model.conv1.out_channels
    model.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model = with_features(_with_norm(model, norm, bn_groups))
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Residual block 3x3 - 3x3 with a projection shortcut and the stride in the first."""

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


class SmallConvNet(nn.Module):
    """A small convolutional net for centered images, whose features keep where things are.

    Each 3x3 convolution halves the resolution, and a Linear reads the flattened map. Both have ReLU
    and no batch norm. By default 1.6 M parameters and 512 features.

    Args:
        widths: channels of the convolutions.
        num_features: width of the features.
        size: side of the images in pixels, or (height, width).
        in_chans: channels of the images.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64),
        num_features: int = 512,
        size: int | tuple[int, int] = 28,
        in_chans: int = 1,
    ):
        super().__init__()
        if not widths:
            raise ValueError("widths must be one or more numbers of channels, got none")
        height, width = check_sides("size", size)
        layers: list[nn.Module] = []
        for wide, narrow in zip((in_chans, *widths), widths, strict=False):
            layers += [nn.Conv2d(wide, narrow, 3, 2, 1), nn.ReLU(inplace=True)]
            height, width = (height + 1) // 2, (width + 1) // 2
        self.size, self.num_features = check_sides("size", size), num_features
        self.convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.linear = nn.Linear(widths[-1] * height * width, num_features)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.size:
            height, width = self.size
            raise ValueError(
                f"images must be (B, C, {height}, {width}), the size of SmallConvNet, got "
                f"{tuple(x.shape)}"
            )
        return self.linear(self.convolutions(x).flatten(1)).relu()


class SmallResNet(nn.Module):
    """A ResNet for images of about 32 pixels that trains in minutes on CPUs.

    It has a 3x3 stem and one residual block per further width, each of which halves the resolution;
    by default 1.2 M parameters and 256 features.

    Args:
        widths: channels of the stem and of the blocks.
        in_chans: channels of the input.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
        map_block: the block, from 1, whose output is the feature map; None: the last.
        norm: see `timm_backbone`; with "group" the widths must be multiples of 16.
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
        if map_block is not None:
            check_interval("map_block", map_block, 1, last)
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
        """The feature map (B, map_features, H / 2^map_block, W / 2^map_block)."""
        return self.blocks[: self.map_block](self.relu(self.bn(self.stem(x))))

    def forward_from_map(self, m: Tensor) -> Tensor:
        """The features (B, num_features) of a feature map."""
        return self.blocks[self.map_block :](m).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_from_map(self.forward_map(x))
