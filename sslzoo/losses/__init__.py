"""Losses: pure functions of tensors whose mean over ranks is the loss of the global batch."""

from sslzoo.losses.amdim import amdim_nce
from sslzoo.losses.barlow_twins import barlow_twins
from sslzoo.losses.classification import cross_entropy, soft_cross_entropy
from sslzoo.losses.cluster_cross_entropy import cluster_cross_entropy
from sslzoo.losses.cpc import cpc_info_nce
from sslzoo.losses.data2vec import average_targets, masked_regression, normalize_targets, spread
from sslzoo.losses.dcl import dcl
from sslzoo.losses.densecl import dense_info_nce, dense_matches
from sslzoo.losses.dino import dino, distillation, teacher_probabilities
from sslzoo.losses.gram import gram, resize_tokens
from sslzoo.losses.ibot import ibot_patches, ibot_selected
from sslzoo.losses.image_text import clip_loss, siglip_loss
from sslzoo.losses.info_nce import batch_info_nce, info_nce
from sslzoo.losses.invaspread import invaspread
from sslzoo.losses.koleo import koleo
from sslzoo.losses.margin_contrastive import margin_contrastive
from sslzoo.losses.masked_features import masked_features
from sslzoo.losses.masked_l1 import masked_l1, window_normalize
from sslzoo.losses.masked_language_model import masked_language_model
from sslzoo.losses.masked_pixels import masked_pixels, patchify
from sslzoo.losses.masked_units import masked_units
from sslzoo.losses.msn import MSNTerms, msn, msn_targets
from sslzoo.losses.mutual_information import (
    dim_donsker_varadhan,
    dim_fenchel_dual,
    dim_info_nce,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from sslzoo.losses.nce import bank_softmax, nce, nce_constant, proximal, sampled_softmax
from sslzoo.losses.nt_xent import nt_xent
from sslzoo.losses.regression import negative_cosine, regression
from sslzoo.losses.ressl import relational
from sslzoo.losses.sigreg import random_directions, sigreg, view_invariance
from sslzoo.losses.sinkhorn import sinkhorn
from sslzoo.losses.sup_con import sup_con
from sslzoo.losses.swapped_prediction import swapped_prediction
from sslzoo.losses.tico import TiCoTerms, tico
from sslzoo.losses.triplet import triplet
from sslzoo.losses.vicreg import VICRegTerms, vicreg
from sslzoo.losses.vicregl import crop_centers, vicregl_global, vicregl_local
from sslzoo.losses.w_mse import w_mse, whiten
from sslzoo.losses.wav2vec2 import (
    codebook_diversity,
    feature_penalty,
    group_perplexities,
    masked_contrastive,
    perplexity,
)

__all__ = [
    "MSNTerms",
    "TiCoTerms",
    "VICRegTerms",
    "amdim_nce",
    "average_targets",
    "bank_softmax",
    "barlow_twins",
    "batch_info_nce",
    "clip_loss",
    "cluster_cross_entropy",
    "codebook_diversity",
    "cpc_info_nce",
    "crop_centers",
    "cross_entropy",
    "dcl",
    "dense_info_nce",
    "dense_matches",
    "dim_donsker_varadhan",
    "dim_fenchel_dual",
    "dim_info_nce",
    "dino",
    "discriminator_loss",
    "distillation",
    "feature_penalty",
    "generator_loss",
    "gradient_penalty",
    "gram",
    "group_perplexities",
    "ibot_patches",
    "ibot_selected",
    "info_nce",
    "invaspread",
    "koleo",
    "margin_contrastive",
    "masked_contrastive",
    "masked_features",
    "masked_l1",
    "masked_language_model",
    "masked_pixels",
    "masked_regression",
    "masked_units",
    "msn",
    "msn_targets",
    "nce",
    "nce_constant",
    "negative_cosine",
    "normalize_targets",
    "nt_xent",
    "patchify",
    "perplexity",
    "proximal",
    "random_directions",
    "regression",
    "relational",
    "resize_tokens",
    "sampled_softmax",
    "siglip_loss",
    "sigreg",
    "sinkhorn",
    "soft_cross_entropy",
    "spread",
    "sup_con",
    "swapped_prediction",
    "teacher_probabilities",
    "tico",
    "triplet",
    "vicreg",
    "vicregl_global",
    "vicregl_local",
    "view_invariance",
    "w_mse",
    "whiten",
    "window_normalize",
]
