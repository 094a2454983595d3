"""Methods: one LightningModule, one file, one paper."""

from sslzoo.methods.base import SSLMethod
from sslzoo.methods.byol import BYOL
from sslzoo.methods.dcl import DCL
from sslzoo.methods.instdisc import InstDisc
from sslzoo.methods.moco import MoCo
from sslzoo.methods.nnclr import NNCLR
from sslzoo.methods.simclr import SimCLR
from sslzoo.methods.supcon import SupCon

__all__ = ["BYOL", "NNCLR", "InstDisc", "MoCo", "SSLMethod", "SimCLR"]
from sslzoo.methods.invaspread import InvaSpread

__all__ = [
    "BYOL",
    "DCL",
    "InstDisc",
    "InvaSpread",
    "SSLMethod",
    "SimCLR",
    "SupCon",
]
