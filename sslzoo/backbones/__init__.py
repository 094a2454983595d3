"""Backbones: functions and classes that give an nn.Module with `num_features`."""

from sslzoo.backbones.amdim import AMDIMEncoder
from sslzoo.backbones.image import SmallResNet, cifar_resnet, timm_backbone
from sslzoo.backbones.multi_crop import multi_crop
from sslzoo.backbones.patches import CPCResNet, PatchGrid
from sslzoo.backbones.sk_resnet import simclr_v2_resnet
from sslzoo.backbones.staged import Staged, dim_convnet, staged_cifar_resnet
from sslzoo.backbones.towers import Towers
from sslzoo.backbones.vit import ViT, small_vit, timm_vit, without_drop_path
from sslzoo.norm import GlobalBatchNorm, convert_batch_norm

__all__ = [
    "AMDIMEncoder",
    "CPCResNet",
    "GlobalBatchNorm",
    "PatchGrid",
    "SmallResNet",
    "Staged",
    "Towers",
    "ViT",
    "cifar_resnet",
    "convert_batch_norm",
    "dim_convnet",
    "multi_crop",
    "simclr_v2_resnet",
    "small_vit",
    "staged_cifar_resnet",
    "timm_backbone",
    "timm_vit",
    "without_drop_path",
]
