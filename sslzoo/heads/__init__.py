"""Heads: modules between the backbone and the loss."""

from sslzoo.heads.causal_transformer import CausalTransformer
from sslzoo.heads.context import PixelContext
from sslzoo.heads.dino import DINOHead, Prototypes
from sslzoo.heads.ijepa_predictor import IJEPAPredictor
from sslzoo.heads.mae_decoder import MAEDecoder
from sslzoo.heads.mlp import (
    MLP,
    byol_mlp,
    lejepa_projector,
    simclr_projector,
    simclr_v2_projector,
    simsiam_predictor,
    simsiam_projector,
)
from sslzoo.heads.mutual_information import MapEncoder, MI1x1ConvNet, PriorDiscriminator
from sslzoo.heads.per_view import PerView
from sslzoo.heads.projection import clip_projection
from sslzoo.heads.quantizer import GumbelQuantizer, Quantized
from sslzoo.heads.recurrent import NoContext, Recurrent
from sslzoo.heads.step_predictors import LinearSteps, TransformerSteps
from sslzoo.heads.text import MLMHead, TanhHead
from sslzoo.heads.units import UnitHead

__all__ = [
    "MLP",
    "CausalTransformer",
    "DINOHead",
    "GumbelQuantizer",
    "IJEPAPredictor",
    "LinearSteps",
    "MAEDecoder",
    "MI1x1ConvNet",
    "MLMHead",
    "MapEncoder",
    "NoContext",
    "PerView",
    "PixelContext",
    "PriorDiscriminator",
    "Prototypes",
    "Quantized",
    "Recurrent",
    "TanhHead",
    "TransformerSteps",
    "UnitHead",
    "byol_mlp",
    "clip_projection",
    "lejepa_projector",
    "simclr_projector",
    "simclr_v2_projector",
    "simsiam_predictor",
    "simsiam_projector",
]
