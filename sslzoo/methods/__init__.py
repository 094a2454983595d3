"""Methods: one LightningModule, one file, one paper."""

from sslzoo.methods.base import SSLMethod
from sslzoo.methods.byol import BYOL
from sslzoo.methods.dcl import DCL
from sslzoo.methods.instdisc import InstDisc
from sslzoo.methods.invaspread import InvaSpread
from sslzoo.methods.margin_contrastive import MarginContrastive
from sslzoo.methods.moco import MoCo
from sslzoo.methods.nnclr import NNCLR
from sslzoo.methods.simclr import SimCLR
from sslzoo.methods.supcon import SupCon
from sslzoo.methods.triplet import Triplet

__all__ = ["BYOL", "NNCLR", "InstDisc", "MoCo", "SSLMethod", "SimCLR"]

__all__ = [
    "BYOL",
    "DCL",
    "InstDisc",
    "InvaSpread",
    "MarginContrastive",
    "SSLMethod",
    "SimCLR",
    "SupCon",
    "Triplet",
]
