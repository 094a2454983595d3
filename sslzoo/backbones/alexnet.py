"""half_alexnet: CMC's AlexNet for one view, with half of AlexNet's width and batch norm.

Tian, Krishnan and Isola, Contrastive Multiview Coding, ECCV 2020,
https://arxiv.org/abs/1906.05849. Reference code: HobbitLong/CMC at 7b227be. torchvision's AlexNet
has other widths, biases, dropout and no batch norm, and timm has no AlexNet.
"""

from __future__ import annotations

from torch import nn

from sslzoo.backbones.staged import Staged
from sslzoo.layers import GlobalBatchNorm

#           channels, kernel, stride, padding, max-pooled
_BLOCKS = (
    (48, 11, 4, 2, True),
    (128, 5, 1, 2, True),
    (192, 3, 1, 1, False),
    (192, 3, 1, 1, False),
    (128, 3, 1, 1, True),
)


def half_alexnet(in_chans: int = 3, bn_groups: int = 1) -> nn.Module:
    """CMC's half AlexNet: five convolutions, fc6 and fc7, to 2048 features.

    Each layer has batch norm and ReLU. The feature map, 128 x 6 x 6 for 224 pixels, is the "layer
    5" of the authors' linear classifier. fc8 is CMC's head, a Linear on top.

    Args:
        in_chans: channels of the view: 1 for L, 2 for ab.
        bn_groups: groups into which batch norm splits the global batch; 1: no split.
    """

    def normed(layer: nn.Module, width: int) -> list[nn.Module]:
        return [layer, GlobalBatchNorm(width, groups=bn_groups), nn.ReLU(inplace=True)]

    blocks = []
    for width, kernel, stride, padding, pooled in _BLOCKS:
        conv = nn.Conv2d(in_chans, width, kernel, stride, padding, bias=False)
        pool = [nn.MaxPool2d(3, 2)] if pooled else []
        blocks.append(nn.Sequential(*normed(conv, width), *pool))
        in_chans = width
    fc6, fc7 = (
        nn.Sequential(*normed(nn.Linear(wide, 2048), 2048)) for wide in (in_chans * 6 * 6, 2048)
    )
    return Staged(nn.Sequential(*blocks), nn.Sequential(nn.Flatten(), fc6, fc7), in_chans, 2048)
