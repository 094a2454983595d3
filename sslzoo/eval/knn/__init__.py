"""Exact weighted k-nearest-neighbor classification with the bank sharded over ranks."""

from sslzoo.eval.knn.classify import knn_accuracies, knn_predict, knn_top1

__all__ = ["knn_accuracies", "knn_predict", "knn_top1"]
