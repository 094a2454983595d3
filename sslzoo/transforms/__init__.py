"""Transforms: batched, per-sample-random views made on the batch's own device."""

from sslzoo.transforms.block_masks import BlockMasks
from sslzoo.transforms.crop import RandomResizedCrop
from sslzoo.transforms.eval_view import EvalView
from sslzoo.transforms.log_mel import LogMel
from sslzoo.transforms.log_mel_views import LogMelViews
from sslzoo.transforms.neighbours import NearestEmbeddings, TableFile
from sslzoo.transforms.recipes import (
    amdim_views,
    byol_views,
    cmc_views,
    cpc_views,
    digit_views,
    dim_views,
    ijepa_views,
    instdisc_views,
    invaspread_views,
    mae_views,
    moco_v1_views,
    moco_v2_views,
    moco_v3_views,
    multi_crop_views,
    simclr_views,
)
from sslzoo.transforms.supervised import crop_view, mae_fine_tune_views
from sslzoo.transforms.text import Reordering, SpanDeletion, Substitution, WordDeletion
from sslzoo.transforms.text_views import Drawn, TextViews, clear_views, plain_text
from sslzoo.transforms.views import View, Views
from sslzoo.transforms.waveform import Waveform

__all__ = [
    "BlockMasks",
    "Drawn",
    "EvalView",
    "LogMel",
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
    "clear_views",
    "cmc_views",
    "cpc_views",
    "crop_view",
    "digit_views",
    "dim_views",
    "ijepa_views",
    "instdisc_views",
    "invaspread_views",
    "mae_fine_tune_views",
    "mae_views",
    "moco_v1_views",
    "moco_v2_views",
    "moco_v3_views",
    "multi_crop_views",
    "plain_text",
    "simclr_views",
]
