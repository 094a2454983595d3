"""Backbones: functions and classes that give an nn.Module with `num_features`."""

from sslzoo.backbones.amdim import AMDIMEncoder
from sslzoo.backbones.image import SmallResNet, cifar_resnet, timm_backbone
from sslzoo.backbones.patches import CPCResNet, PatchGrid
from sslzoo.backbones.sk_resnet import simclr_v2_resnet
from sslzoo.backbones.staged import Staged, dim_convnet, staged_cifar_resnet
from sslzoo.backbones.text import HFEncoder, KeyedDropout, SmallTransformer, hf_encoder
from sslzoo.backbones.towers import Towers
from sslzoo.norm import GlobalBatchNorm, convert_batch_norm

__all__ = [
    "AMDIMEncoder",
    "CPCResNet",
    "GlobalBatchNorm",
    "HFEncoder",
    "KeyedDropout",
    "PatchGrid",
    "SmallResNet",
    "SmallTransformer",
    "Staged",
    "Towers",
    "cifar_resnet",
    "convert_batch_norm",
    "dim_convnet",
    "hf_encoder",
    "simclr_v2_resnet",
    "staged_cifar_resnet",
    "timm_backbone",
]
