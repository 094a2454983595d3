"""Dense evaluation: segmentation by frozen feature maps, label propagation and PCA pictures."""

from sslzoo.eval.dense.davis import (
    ObjectScores,
    contour_accuracy,
    davis_metrics,
    region_similarity,
    score_video,
)
from sslzoo.eval.dense.linear import LinearOptions
from sslzoo.eval.dense.linear_head import (
    LinearHead,
    segmentation_loss,
    slide_logits,
    whole_logits,
)
from sslzoo.eval.dense.maps import RawPixels, center_pad, feature_map
from sslzoo.eval.dense.pca import pca_colors, pca_picture
from sslzoo.eval.dense.propagation import PropagationOptions, propagate, segment_video
from sslzoo.eval.dense.protocols import DenseOptions, dense_metrics
from sslzoo.eval.dense.retrieval import RetrievalOptions
from sslzoo.eval.dense.scores import SegmentationScores, confusion, scores_of

__all__ = [
    "DenseOptions",
    "LinearHead",
    "LinearOptions",
    "ObjectScores",
    "PropagationOptions",
    "RawPixels",
    "RetrievalOptions",
    "SegmentationScores",
    "center_pad",
    "confusion",
    "contour_accuracy",
    "davis_metrics",
    "dense_metrics",
    "feature_map",
    "pca_colors",
    "pca_picture",
    "propagate",
    "region_similarity",
    "score_video",
    "scores_of",
    "segment_video",
    "segmentation_loss",
    "slide_logits",
    "whole_logits",
]
