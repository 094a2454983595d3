"""Losses: pure functions of tensors; the mean over ranks is the loss of the global batch."""

from sslzoo.losses.amdim import amdim_nce
from sslzoo.losses.cpc import cpc_info_nce
from sslzoo.losses.dcl import dcl
from sslzoo.losses.dino import dino, distillation, teacher_probabilities
from sslzoo.losses.ibot import ibot_patches
from sslzoo.losses.info_nce import batch_info_nce, info_nce
from sslzoo.losses.invaspread import invaspread
from sslzoo.losses.margin_contrastive import margin_contrastive
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
    "dcl",
    "dim_donsker_varadhan",
    "dim_fenchel_dual",
    "dim_info_nce",
    "dino",
    "discriminator_loss",
    "distillation",
    "generator_loss",
    "ibot_patches",
    "info_nce",
    "invaspread",
    "margin_contrastive",
    "nce",
    "nce_constant",
    "nt_xent",
    "proximal",
    "regression",
    "sampled_softmax",
    "slope_penalty",
    "sup_con",
    "teacher_probabilities",
    "triplet",
]
