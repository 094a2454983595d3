"""Transforms: random views per sample, made in batches on the batch's device."""

from sslzoo.transforms.audio.log_mel import LogMel
from sslzoo.transforms.audio.log_mel_image import LogMelImage
from sslzoo.transforms.audio.log_mel_views import LogMelViews
from sslzoo.transforms.audio.waveform import Waveform
from sslzoo.transforms.image.channel_views import channel_views
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.displace import Displace
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.recipes import (
    amdim_views,
    byol_views,
    clip_views,
    cmc_views,
    cpc_views,
    digit_views,
    dim_views,
    ijepa_views,
    instdisc_views,
    invaspread_views,
    lejepa_views,
    mae_views,
    moco_v1_views,
    moco_v2_views,
    moco_v3_views,
    msn_views,
    multi_crop_views,
    ressl_views,
    simclr_views,
    vicregl_views,
    w_mse_views,
)
from sslzoo.transforms.image.supervised import crop_view, mae_fine_tune_views
from sslzoo.transforms.image.views import View, Views
from sslzoo.transforms.text.augmentations import (
    Reordering,
    SpanDeletion,
    Substitution,
    WordDeletion,
)
from sslzoo.transforms.text.neighbors import NearestEmbeddings, TableFile
from sslzoo.transforms.text.views import Drawn, TextViews, clear_views, plain_text

__all__ = [
    "Displace",
    "Drawn",
    "EvalView",
    "LogMel",
    "LogMelImage",
    "LogMelViews",
    "NearestEmbeddings",
    "RandomResizedCrop",
    "Reordering",
    "SpanDeletion",
    "Substitution",
    "TableFile",
    "TextViews",
    "View",
    "Views",
    "Waveform",
    "WordDeletion",
    "amdim_views",
    "byol_views",
    "channel_views",
    "clear_views",
    "clip_views",
    "cmc_views",
    "cpc_views",
    "crop_view",
    "digit_views",
    "dim_views",
    "ijepa_views",
    "instdisc_views",
    "invaspread_views",
    "lejepa_views",
    "mae_fine_tune_views",
    "mae_views",
    "moco_v1_views",
    "moco_v2_views",
    "moco_v3_views",
    "msn_views",
    "multi_crop_views",
    "plain_text",
    "ressl_views",
    "simclr_views",
    "vicregl_views",
    "w_mse_views",
]
