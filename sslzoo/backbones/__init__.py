"""Backbones: functions and classes that give an nn.Module with `num_features`."""

from sslzoo.backbones.image import SmallResNet, cifar_resnet, timm_backbone
from sslzoo.norm import GlobalBatchNorm, convert_batch_norm

__all__ = ["GlobalBatchNorm", "SmallResNet", "cifar_resnet", "convert_batch_norm", "timm_backbone"]
