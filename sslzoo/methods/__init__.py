"""Methods: one LightningModule, one file, one paper."""

from sslzoo.methods.amdim import AMDIM
from sslzoo.methods.base import SSLMethod
from sslzoo.methods.byol import BYOL
from sslzoo.methods.clear import CLEAR
from sslzoo.methods.cmc import CMC
from sslzoo.methods.dcl import DCL
from sslzoo.methods.deep_infomax import DeepInfoMax
from sslzoo.methods.image_cpc import ImageCPC
from sslzoo.methods.instdisc import InstDisc
from sslzoo.methods.invaspread import InvaSpread
from sslzoo.methods.margin_contrastive import MarginContrastive
from sslzoo.methods.moco import MoCo
from sslzoo.methods.nnclr import NNCLR
from sslzoo.methods.simclr import SimCLR
from sslzoo.methods.simcse import SimCSE
from sslzoo.methods.supcon import SupCon
from sslzoo.methods.triplet import Triplet

__all__ = [
    "AMDIM",
    "BYOL",
    "CLEAR",
    "CMC",
    "DCL",
    "NNCLR",
    "DeepInfoMax",
    "ImageCPC",
    "InstDisc",
    "InvaSpread",
    "MarginContrastive",
    "MoCo",
    "SSLMethod",
    "SimCLR",
    "SimCSE",
    "SupCon",
    "Triplet",
]
