"""Backbones: functions and classes that build an nn.Module with `num_features`."""

from sslzoo.backbones.alexnet import half_alexnet
from sslzoo.backbones.amdim import AMDIMEncoder
from sslzoo.backbones.audio_ntt import AudioNTT
from sslzoo.backbones.checks import check_pooling, check_pools_token
from sslzoo.backbones.conv_frames import ConvFrames, normalize_waveforms
from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.backbones.hugging_face import HFMaps, HFSound, HFSpeech, HFTokens, HFWhisper, hf
from sslzoo.backbones.image import SmallConvNet, SmallResNet, cifar_resnet, timm_backbone
from sslzoo.backbones.multi_crop import multi_crop
from sslzoo.backbones.patches import CPCResNet, PatchGrid
from sslzoo.backbones.scaled_resnet import scaled_resnet
from sslzoo.backbones.sequence import FrameMLP, SequenceEncoder
from sslzoo.backbones.sk_resnet import simclr_v2_resnet
from sslzoo.backbones.speech import SpeechEncoder, check_speech, without_dropout
from sslzoo.backbones.speech_transformer import ConvPositions, SpeechTransformer
from sslzoo.backbones.staged import Staged, dim_convnet, staged_cifar_resnet
from sslzoo.backbones.swin import Swin, timm_swin
from sslzoo.backbones.text import (
    HFEncoder,
    KeyedDropout,
    SentenceConv,
    SentenceSequence,
    SmallTransformer,
    hf_encoder,
)
from sslzoo.backbones.text_tower import TextTransformer
from sslzoo.backbones.timm_models import start_from
from sslzoo.backbones.towers import Towers
from sslzoo.backbones.unet import UNet
from sslzoo.backbones.vit import ViT
from sslzoo.backbones.vit_builders import small_vit, timm_vit
from sslzoo.backbones.wave import FrameNorm, WaveEncoder
from sslzoo.layers import GlobalBatchNorm, convert_batch_norm, convert_to_group_norm

__all__ = [
    "AMDIMEncoder",
    "AudioNTT",
    "CPCResNet",
    "ConvFrames",
    "ConvPositions",
    "FrameMLP",
    "FrameNorm",
    "GlobalBatchNorm",
    "HFEncoder",
    "HFMaps",
    "HFSound",
    "HFSpeech",
    "HFTokens",
    "HFWhisper",
    "KeyedDropout",
    "PatchGrid",
    "SentenceConv",
    "SentenceSequence",
    "SequenceEncoder",
    "SmallConvNet",
    "SmallResNet",
    "SmallTransformer",
    "SpeechEncoder",
    "SpeechTransformer",
    "Staged",
    "Swin",
    "TextTransformer",
    "Towers",
    "UNet",
    "ViT",
    "WaveEncoder",
    "check_pooling",
    "check_pools_token",
    "check_speech",
    "cifar_resnet",
    "convert_batch_norm",
    "convert_to_group_norm",
    "dim_convnet",
    "half_alexnet",
    "hf",
    "hf_encoder",
    "multi_crop",
    "normalize_waveforms",
    "scaled_resnet",
    "simclr_v2_resnet",
    "small_vit",
    "staged_cifar_resnet",
    "start_from",
    "timm_backbone",
    "timm_swin",
    "timm_vit",
    "without_drop_path",
    "without_dropout",
]
