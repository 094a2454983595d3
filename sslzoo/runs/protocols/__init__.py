"""The papers' evaluation protocols by name, for `sslzoo eval --protocol`.

    sslzoo eval RUN --protocol dino_knn
    sslzoo eval RUN --protocol mae_linear --mae_linear.training.epochs 10

A protocol is a frozen dataclass of settings; the paper's are its defaults here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sslzoo.eval.protocols.probe import Training
from sslzoo.runs.protocols.base import Protocol, Subject, subject_of
from sslzoo.runs.protocols.dense import (
    LinearSegmentation,
    RetrievalSegmentation,
    VideoSegmentation,
)
from sslzoo.runs.protocols.features import (
    Clustering,
    FewLabels,
    Knn,
    LowShot,
    Phones,
    Transfer,
)
from sslzoo.runs.protocols.images import CopyDetection, RevisitedRetrieval, VocTransfer
from sslzoo.runs.protocols.probes import Attentive, LayerProbes, LinearProbe
from sslzoo.runs.protocols.sentences import SentEval, Sts
from sslzoo.runs.protocols.speech import LayerSumOfClips, LayerSumOfFrames
from sslzoo.runs.results import Metrics

__all__ = ["PROTOCOLS", "Entry", "Protocol", "Subject", "check_name", "figures", "subject_of"]


class Entry(NamedTuple):
    """A protocol and where it is from.

    Attributes:
        protocol: its settings.
        source: paper, and code with its commit.
    """

    protocol: Protocol
    source: str


_DINO = "Caron et al., ICCV 2021 (arXiv 2104.14294); facebookresearch/dino at 7c446df, "
_SCALES = (1.0, 1 / math.sqrt(2), 0.5)
_BARLOW = Training("sgd", 0.3, 100, 256, 1e-6, every="epoch")

PROTOCOLS: dict[str, Entry] = {
    "dino_knn": Entry(Knn(), _DINO + "eval_knn.py"),
    "instdisc_knn": Entry(
        Knn(k=(200,)),
        "Wu et al., CVPR 2018 (arXiv 1805.01978); zhirongw/lemniscate.pytorch at f7cfe29, test.py",
    ),
    "dino_linear": Entry(
        LinearProbe(Training("sgd", 0.001, 100, 1024, every="epoch"), num_blocks=4),
        _DINO + "eval_linear.py, ViT-S",
    ),
    "dino_linear_vit_base": Entry(
        LinearProbe(
            Training("sgd", 0.001, 100, 1024, every="epoch"), num_blocks=1, mean_patches=True
        ),
        _DINO + "eval_linear.py, ViT-B",
    ),
    "mae_linear": Entry(
        LinearProbe(Training("lars", 0.1, 90, 16384, warmup_epochs=10), "bicubic", norm=True),
        "He et al., CVPR 2022 (arXiv 2111.06377); facebookresearch/mae at efb2a80, "
        "main_linprobe.py",
    ),
    "moco_linear": Entry(
        LinearProbe(Training("sgd", 30.0, 100, 256, milestones=(60, 80))),
        "He et al., CVPR 2020 (arXiv 1911.05722); facebookresearch/moco at 78b69ca, main_lincls.py",
    ),
    "moco_v3_linear": Entry(
        LinearProbe(Training("sgd", 3.0, 90, 1024, every="epoch")),
        "Chen et al., ICCV 2021 (arXiv 2104.02057); facebookresearch/moco-v3 at c349e6e, "
        "main_lincls.py, ViT (ResNet-50: base_lr 0.1)",
    ),
    "simclr_linear": Entry(
        LinearProbe(Training("nesterov", 0.1, 90, 4096, 1e-6), "bicubic", init_std=0.0),
        "Chen et al., ICML 2020 (arXiv 2002.05709); google-research/simclr at 383d414",
    ),
    "byol_linear": Entry(
        LinearProbe(Training("nesterov", 0.2, 80, 4096), "bicubic", init_std=0.0194),
        "Grill et al., NeurIPS 2020 (arXiv 2006.07733); deepmind/deepmind-research at d8df415, "
        "byol",
    ),
    "simsiam_linear": Entry(
        LinearProbe(Training("larc", 0.1, 90, 4096, every="epoch")),
        "Chen and He, CVPR 2021 (arXiv 2011.10566); facebookresearch/simsiam at a7bc177, "
        "main_lincls.py",
    ),
    "swav_linear": Entry(
        LinearProbe(_BARLOW),
        "Caron et al., NeurIPS 2020 (arXiv 2006.09882); facebookresearch/swav at 06b1b7c, "
        "eval_linear.py",
    ),
    "barlow_twins_linear": Entry(
        LinearProbe(_BARLOW),
        "Zbontar et al., ICML 2021 (arXiv 2103.03230); facebookresearch/barlowtwins at 8e8d284, "
        "evaluate.py",
    ),
    "vicreg_linear": Entry(
        LinearProbe(Training("sgd", 0.02, 100, 256, 1e-6, every="epoch")),
        "Bardes et al., ICLR 2022 (arXiv 2105.04906); facebookresearch/vicreg at 4e12602, "
        "evaluate.py",
    ),
    "ijepa_attentive": Entry(
        Attentive(Training("adamw", 0.00025, 20, 1024, 0.001)),
        "Bardes et al., 2024 (arXiv 2404.08471); facebookresearch/jepa at 0f772c5, "
        "configs/evals/vitl16_in1k.yaml, whose paper compares I-JEPA by it",
    ),
    "cae_attentive": Entry(
        Attentive(Training("sgd", 0.1, 90, 1024), complete=False),
        "Chen et al., IJCV 2024 (arXiv 2202.03026): cross-attention and a Linear; rate and length "
        "are our choice",
    ),
    "instdisc_layers": Entry(
        LayerProbes(Training("sgd", 0.1, 100, 256, 1e-4)),
        "Wu et al., CVPR 2018 (arXiv 1805.01978), section 4.2: conv1 to conv5; the code has no "
        "linear classifier, so optimizer, rate and batch norm are our choice",
    ),
    "simclr_transfer": Entry(
        Transfer(),
        "Chen et al., ICML 2020 (arXiv 2002.05709), appendix B.8.1: 45 L2 weights by L-BFGS",
    ),
    "semi_1pct": Entry(
        FewLabels(0.01),
        "Assran et al., ECCV 2022 (arXiv 2204.07141); facebookresearch/msn at 5474d5f, "
        "logistic_eval.py: a logistic regression on frozen features with 1 % of the labels",
    ),
    "semi_10pct": Entry(FewLabels(0.1), "as semi_1pct, with 10 % of the labels"),
    "low_shot": Entry(
        LowShot(),
        "Assran et al., ECCV 2022 (arXiv 2204.07141), section 4: 1, 2 and 5 images per class, "
        "three splits; facebookresearch/msn at 5474d5f, logistic_eval.py",
    ),
    "clustering": Entry(
        Clustering(),
        "k-means on normalized features; Van Gansbeke et al., SCAN, ECCV 2020 (arXiv 2005.12320), "
        "report its accuracy, NMI and ARI",
    ),
    "voc07_transfer": Entry(
        VocTransfer(),
        "Chen et al., ICML 2020 (arXiv 2002.05709), appendix B.8.1: mAP of VOC 2007 by 11 points",
    ),
    "dino_copy_detection": Entry(CopyDetection(), _DINO + "eval_copy_detection.py"),
    "dinov2_linear_segmentation": Entry(
        LinearSegmentation(),
        "Oquab et al., TMLR 2024 (arXiv 2304.07193); facebookresearch/dinov2 at b8931f7, "
        "eval/segmentation; its schedule is not public, so optimizer, rate and length are ours",
    ),
    "hummingbird": Entry(
        RetrievalSegmentation(),
        "Balazevic et al., NeurIPS 2023 (arXiv 2306.01667); vpariza/open-hummingbird-eval at "
        "0fd976f",
    ),
    "dino_davis": Entry(VideoSegmentation(), _DINO + "eval_video_segmentation.py"),
    "dino_roxford5k": Entry(
        RevisitedRetrieval(dataset="roxford5k"),
        _DINO + "eval_image_retrieval.py; Radenovic et al., CVPR 2018 (arXiv 1803.11285)",
    ),
    "dino_rparis6k": Entry(
        RevisitedRetrieval(dataset="rparis6k"),
        _DINO + "eval_image_retrieval.py; Radenovic et al., CVPR 2018 (arXiv 1803.11285)",
    ),
    "roxford5k": Entry(
        RevisitedRetrieval(dataset="roxford5k", size=1024, crop_queries=True, scales=_SCALES),
        "Radenovic et al., CVPR 2018 (arXiv 1803.11285); filipradenovic/revisitop at 3bb68d3",
    ),
    "rparis6k": Entry(
        RevisitedRetrieval(dataset="rparis6k", size=1024, crop_queries=True, scales=_SCALES),
        "Radenovic et al., CVPR 2018 (arXiv 1803.11285); filipradenovic/revisitop at 3bb68d3",
    ),
    "sts": Entry(
        Sts(),
        "Agirre et al., SemEval 2012 to 2017; facebookresearch/SentEval at 1eef9f7, sts.py",
    ),
    "senteval": Entry(
        SentEval(),
        "Conneau and Kiela, LREC 2018 (arXiv 1803.05449); facebookresearch/SentEval at 1eef9f7",
    ),
    "cpc_phones": Entry(
        Phones(),
        "van den Oord et al., 2018 (arXiv 1807.03748), section 3.1; loeweX/Greedy_InfoMax at "
        "22d17e4: Adam 1e-4, 20 epochs",
    ),
    "superb_clips": Entry(
        LayerSumOfClips(),
        "Yang et al., Interspeech 2021 (arXiv 2105.01051): keyword spotting and speaker "
        "identification; s3prl/s3prl at 04fc021, upstream/interfaces.py; standardization, rate and "
        "length are our choice",
    ),
    "superb_frames": Entry(
        LayerSumOfFrames(),
        "Yang et al., Interspeech 2021 (arXiv 2105.01051), on frames with given alignments instead "
        "of by CTC, as s3prl/s3prl at a4600f9, downstream/phone_linear; "
        "standardization, rate and length are our choice",
    ),
}


def figures(
    protocols: Mapping[str, Protocol], subject: Subject, seeds: Sequence[int]
) -> list[Metrics]:
    """Evaluate by several protocols; collective.

    Args:
        protocols: the protocols by name.
        subject: the encoder and its data.
        seeds: seeds of the protocols' draws.

    Returns:
        Per seed, the figures as `<protocol>/<figure>`.
    """
    return [
        {
            f"{name}/{figure}": value
            for name, protocol in protocols.items()
            for figure, value in protocol(subject, seed).items()
        }
        for seed in seeds
    ]


def check_name(name: str) -> Entry:
    """The protocol of a name.

    Raises:
        ValueError: there is none; the error lists all.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]
