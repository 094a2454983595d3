"""Callbacks: teacher updates, memory updates, and evaluation during training."""

from sslzoo.callbacks.attention_maps import AttentionMaps
from sslzoo.callbacks.clip import (
    ClipPerModule,
    ClipPerParameter,
    ClipTogether,
    clip_per_module,
    clip_per_parameter,
)
from sslzoo.callbacks.clusters import ClusterEpochs
from sslzoo.callbacks.compare_with_start import CompareWithStart, WorseThanStartWarning
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.epoch_lines import EpochLines
from sslzoo.callbacks.feature_writer import FeatureWriter
from sslzoo.callbacks.final_table import FinalTable
from sslzoo.callbacks.freeze import Freeze, FreezeUntil
from sslzoo.callbacks.gram import GramAnchoring, RefreshGramTeacher
from sslzoo.callbacks.image_text import OnlineRetrieval, OnlineZeroShot
from sslzoo.callbacks.l2_sp import L2SP
from sslzoo.callbacks.lora import LoRA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.callbacks.online_accuracy import OnlineAccuracy
from sslzoo.callbacks.online_knn import OnlineKNN
from sslzoo.callbacks.online_linear import OnlineLinear
from sslzoo.callbacks.online_probe import OnlineProbe
from sslzoo.callbacks.online_prototypes import OnlinePrototypes
from sslzoo.callbacks.online_segmentation import OnlineSegmentation
from sslzoo.callbacks.online_spectrum import CollapseWarning, OnlineSpectrum
from sslzoo.callbacks.pca_maps import PCAMaps
from sslzoo.callbacks.per_block import PerBlock
from sslzoo.callbacks.progress import ProgressBar
from sslzoo.callbacks.sentences import OnlineSpearman, SentenceTable
from sslzoo.callbacks.training_monitor import TrainingMonitor
from sslzoo.callbacks.views_in_workers import ViewsInWorkers
from sslzoo.callbacks.watch import Watch
from sslzoo.callbacks.weight_decay import WeightDecaySchedule

__all__ = [
    "EMA",
    "L2SP",
    "AttentionMaps",
    "ClipPerModule",
    "ClipPerParameter",
    "ClipTogether",
    "ClusterEpochs",
    "CollapseWarning",
    "CommitMemory",
    "CompareWithStart",
    "EpochLines",
    "FeatureWriter",
    "FinalTable",
    "Freeze",
    "FreezeUntil",
    "GramAnchoring",
    "LoRA",
    "OnlineAccuracy",
    "OnlineKNN",
    "OnlineLinear",
    "OnlineProbe",
    "OnlinePrototypes",
    "OnlineRetrieval",
    "OnlineSegmentation",
    "OnlineSpearman",
    "OnlineSpectrum",
    "OnlineZeroShot",
    "PCAMaps",
    "PerBlock",
    "ProgressBar",
    "RefreshGramTeacher",
    "SentenceTable",
    "TrainingMonitor",
    "ViewsInWorkers",
    "Watch",
    "WeightDecaySchedule",
    "WorseThanStartWarning",
    "clip_per_module",
    "clip_per_parameter",
]
