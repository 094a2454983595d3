"""Callbacks: teachers, memories, and evaluation during training."""

from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.feature_writer import FeatureWriter
from sslzoo.callbacks.final_table import FinalTable
from sslzoo.callbacks.memory import CommitMemory, commit
from sslzoo.callbacks.online_accuracy import OnlineAccuracy
from sslzoo.callbacks.online_knn import OnlineKNN
from sslzoo.callbacks.online_probe import OnlineProbe
from sslzoo.callbacks.online_spectrum import OnlineSpectrum
from sslzoo.callbacks.progress import ProgressBar
from sslzoo.callbacks.sentences import OnlineSpearman, SentenceTable

__all__ = [
    "EMA",
    "CommitMemory",
    "FeatureWriter",
    "FinalTable",
    "OnlineAccuracy",
    "OnlineKNN",
    "OnlineProbe",
    "OnlineSpearman",
    "OnlineSpectrum",
    "ProgressBar",
    "SentenceTable",
    "commit",
]
