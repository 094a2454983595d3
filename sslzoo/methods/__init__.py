"""Self-supervised methods: one LightningModule and one file per method."""

from sslzoo.methods.amdim import AMDIM
from sslzoo.methods.barlow_twins import BarlowTwins
from sslzoo.methods.base import SSLMethod
from sslzoo.methods.byol import BYOL
from sslzoo.methods.byol_a import BYOLA
from sslzoo.methods.clear import CLEAR
from sslzoo.methods.clip import CLIP
from sslzoo.methods.cmc import CMC
from sslzoo.methods.cpc import CPC
from sslzoo.methods.data2vec import Data2Vec
from sslzoo.methods.dcl import DCL
from sslzoo.methods.deep_infomax import DeepInfoMax
from sslzoo.methods.deepcluster_v2 import DeepClusterV2
from sslzoo.methods.densecl import DenseCL
from sslzoo.methods.dino import DINO
from sslzoo.methods.dinov2 import DINOv2
from sslzoo.methods.hubert import HuBERT
from sslzoo.methods.ibot import IBOT
from sslzoo.methods.ijepa import IJEPA
from sslzoo.methods.image_cpc import ImageCPC
from sslzoo.methods.instdisc import InstDisc
from sslzoo.methods.invaspread import InvaSpread
from sslzoo.methods.lejepa import LeJEPA
from sslzoo.methods.mae import MAE
from sslzoo.methods.margin_contrastive import MarginContrastive
from sslzoo.methods.moco import MoCo
from sslzoo.methods.moco_v3 import MoCoV3
from sslzoo.methods.msn import MSN
from sslzoo.methods.nnclr import NNCLR
from sslzoo.methods.ressl import ReSSL
from sslzoo.methods.siglip import SigLIP
from sslzoo.methods.simclr import SimCLR
from sslzoo.methods.simcse import SimCSE
from sslzoo.methods.simmim import SimMIM
from sslzoo.methods.simsiam import SimSiam
from sslzoo.methods.supcon import SupCon
from sslzoo.methods.swav import SwAV
from sslzoo.methods.tico import TiCo
from sslzoo.methods.triplet import Triplet
from sslzoo.methods.vicreg import VICReg
from sslzoo.methods.vicregl import VICRegL
from sslzoo.methods.w_mse import WMSE
from sslzoo.methods.wav2vec2 import Wav2Vec2

__all__ = [
    "AMDIM",
    "BYOL",
    "BYOLA",
    "CLEAR",
    "CLIP",
    "CMC",
    "CPC",
    "DCL",
    "DINO",
    "IBOT",
    "IJEPA",
    "MAE",
    "MSN",
    "NNCLR",
    "WMSE",
    "BarlowTwins",
    "DINOv2",
    "Data2Vec",
    "DeepClusterV2",
    "DeepInfoMax",
    "DenseCL",
    "HuBERT",
    "ImageCPC",
    "InstDisc",
    "InvaSpread",
    "LeJEPA",
    "MarginContrastive",
    "MoCo",
    "MoCoV3",
    "ReSSL",
    "SSLMethod",
    "SigLIP",
    "SimCLR",
    "SimCSE",
    "SimMIM",
    "SimSiam",
    "SupCon",
    "SwAV",
    "TiCo",
    "Triplet",
    "VICReg",
    "VICRegL",
    "Wav2Vec2",
]
