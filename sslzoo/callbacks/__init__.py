"""Callbacks: teacher updates, memory updates, and evaluation during training."""

from sslzoo.callbacks.attention_maps import AttentionMaps
from sslzoo.callbacks.clip import ClipPerParameter, clip_per_parameter
from sslzoo.callbacks.clusters import ClusterEpochs
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.epoch_lines import EpochLines
from sslzoo.callbacks.feature_writer import FeatureWriter
from sslzoo.callbacks.final_table import FinalTable
from sslzoo.callbacks.freeze import FreezeUntil
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.callbacks.online_accuracy import OnlineAccuracy
from sslzoo.callbacks.online_knn import OnlineKNN
from sslzoo.callbacks.online_probe import OnlineProbe
from sslzoo.callbacks.online_prototypes import OnlinePrototypes
from sslzoo.callbacks.online_spectrum import CollapseWarning, OnlineSpectrum
from sslzoo.callbacks.progress import ProgressBar
from sslzoo.callbacks.sentences import OnlineSpearman, SentenceTable
from sslzoo.callbacks.training_monitor import TrainingMonitor
from sslzoo.callbacks.weight_decay import WeightDecaySchedule

__all__ = [
    "EMA",
    "AttentionMaps",
    "ClipPerParameter",
    "ClusterEpochs",
    "CollapseWarning",
    "CommitMemory",
    "EpochLines",
    "FeatureWriter",
    "FinalTable",
    "FreezeUntil",
    "OnlineAccuracy",
    "OnlineKNN",
    "OnlineProbe",
    "OnlinePrototypes",
    "OnlineSpearman",
    "OnlineSpectrum",
    "ProgressBar",
    "SentenceTable",
    "TrainingMonitor",
    "WeightDecaySchedule",
    "clip_per_parameter",
]
