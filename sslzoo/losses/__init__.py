"""Losses: pure functions of tensors; the mean over ranks is the loss of the global batch."""

from sslzoo.losses.amdim import amdim_nce
from sslzoo.losses.classification import cross_entropy, distillation
from sslzoo.losses.cpc import cpc_info_nce
from sslzoo.losses.dcl import dcl
from sslzoo.losses.info_nce import batch_info_nce, info_nce
from sslzoo.losses.invaspread import invaspread
from sslzoo.losses.margin_contrastive import margin_contrastive
from sslzoo.losses.masked_language_model import masked_language_model
from sslzoo.losses.mutual_information import (
    dim_donsker_varadhan,
    dim_fenchel_dual,
    dim_info_nce,
    discriminator_loss,
    generator_loss,
    slope_penalty,
)
from sslzoo.losses.nce import bank_softmax, nce, nce_constant, proximal, sampled_softmax
from sslzoo.losses.nt_xent import nt_xent
from sslzoo.losses.regression import regression
from sslzoo.losses.sup_con import sup_con
from sslzoo.losses.triplet import triplet

__all__ = [
    "amdim_nce",
    "bank_softmax",
    "batch_info_nce",
    "cpc_info_nce",
    "cross_entropy",
    "dcl",
    "dim_donsker_varadhan",
    "dim_fenchel_dual",
    "dim_info_nce",
    "discriminator_loss",
    "distillation",
    "generator_loss",
    "info_nce",
    "invaspread",
    "margin_contrastive",
    "masked_language_model",
    "nce",
    "nce_constant",
    "nt_xent",
    "proximal",
    "regression",
    "sampled_softmax",
    "slope_penalty",
    "sup_con",
    "triplet",
]
