"""Backbones: functions and classes that give an nn.Module with `num_features`."""

from sslzoo.backbones.amdim import AMDIMEncoder
from sslzoo.backbones.image import SmallResNet, cifar_resnet, timm_backbone
from sslzoo.backbones.patches import CPCResNet, PatchGrid
from sslzoo.backbones.scaled_resnet import scaled_resnet
from sslzoo.backbones.sk_resnet import simclr_v2_resnet
from sslzoo.backbones.staged import Staged, dim_convnet, staged_cifar_resnet
from sslzoo.backbones.towers import Towers
from sslzoo.norm import GlobalBatchNorm, convert_batch_norm

__all__ = [
    "AMDIMEncoder",
    "CPCResNet",
    "GlobalBatchNorm",
    "PatchGrid",
    "SmallResNet",
    "Staged",
    "Towers",
    "cifar_resnet",
    "convert_batch_norm",
    "dim_convnet",
    "scaled_resnet",
    "simclr_v2_resnet",
    "staged_cifar_resnet",
    "timm_backbone",
]
