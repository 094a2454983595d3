"""Evaluation: functions of features and labels, and the modules that train with labels."""

from sslzoo.eval.classifier import Classifier, Headed, LastBlocks, load_weights
from sslzoo.eval.distill import Distill
from sslzoo.eval.fine_tune import FineTune
from sslzoo.eval.mixing import Mixing

__all__ = ["Classifier", "Distill", "FineTune", "Headed", "LastBlocks", "Mixing", "load_weights"]
