"""Backbones: functions and classes that give an nn.Module with `num_features`."""

from sslzoo.backbones.image import SmallResNet, cifar_resnet, timm_backbone
from sslzoo.backbones.towers import Towers
from sslzoo.norm import GlobalBatchNorm, convert_batch_norm

__all__ = [
    "GlobalBatchNorm",
    "SmallResNet",
    "Towers",
    "cifar_resnet",
    "convert_batch_norm",
    "timm_backbone",
]
