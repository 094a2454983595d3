"""SequenceArrays: sequences of feature vectors from npz or npy files.

Examples are sensor data, observations of an environment and log-mel frames. Shapes: N sequences of
T frames of F numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Batch, Padded, length_mask
from sslzoo.checks import check_at_least, check_interval
from sslzoo.data.datamodule import PredictOn, SampleDataModule, SampleSet, Sets
from sslzoo.data.inputs import FrameInput
from sslzoo.data.listing import check_folder, select_rows
from sslzoo.data.loader import BatchSource
from sslzoo.data.sampler import KeyedSampler
from sslzoo.data.too_short import told_short, too_short
from sslzoo.eval.fingerprint import array_digest, labels_digest
from sslzoo.random import sample_keys, stratified_split
from sslzoo.value_range import check_finite, from_array

_BLOCK = 1024  # sequences that are checked at a time


class ArraySequences(SampleSet):
    """Whole sequences: `Padded` if they have individual lengths, else (B, T, F).

    Args:
        values: (N, T, F), in memory or memory-mapped.
        labels: (N,) int64 classes, (N,) float32 regression targets, or None.
        lengths: (N,) int64 frames per sequence; None: all T.
    """

    def __init__(self, values: np.ndarray, labels: Tensor | None, lengths: Tensor | None) -> None:
        self.values, self.labels, self.lengths = values, labels, lengths

    def __len__(self) -> int:
        return len(self.values)

    def __getitems__(self, index: list[int]) -> Batch:
        rows = torch.tensor(index)
        values = torch.from_numpy(np.asarray(self.values[index], dtype=np.float32))
        label = select_rows(self.labels, rows)
        view = values if self.lengths is None else Padded(values, self.lengths[rows])
        return Batch([view], rows, label)

    def subset(self, rows: Tensor) -> ArraySequences:
        labels, lengths = (select_rows(x, rows) for x in (self.labels, self.lengths))
        return ArraySequences(self.values[rows.numpy()], labels, lengths)

    def fingerprint(self) -> str:
        known = labels_digest(self.labels) + labels_digest(self.lengths)
        return array_digest(self.values) + known

    def frames(self) -> Tensor:
        """Number of frames per sequence, (N,)."""
        if self.lengths is not None:
            return self.lengths
        return torch.full((len(self),), self.values.shape[1])


class FrameWindows:
    """A random window of each sequence, keyed by (seed, epoch, index): (B, L, F).

    Args:
        sequences: N sequences of at least L frames.
        window: L.
        seed: seed of the draws.
        epoch: shared int64 scalar that the sampler writes (`KeyedSampler.shared_epoch`).
    """

    def __init__(self, sequences: ArraySequences, window: int, seed: int, epoch: Tensor) -> None:
        self.sequences, self.window, self.seed, self.epoch = sequences, window, seed, epoch

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitems__(self, index: list[int]) -> Batch:
        rows = torch.tensor(index)
        unit = sample_keys(self.seed, int(self.epoch), rows).integers("window", 1 << 31)
        starts = (unit * (self.sequences.frames()[rows] - self.window + 1) >> 31).tolist()
        cases = zip(index, starts, strict=True)
        windows = [self.sequences.values[i, start : start + self.window] for i, start in cases]
        values = torch.from_numpy(np.stack(windows).astype(np.float32))
        return Batch([values], rows, select_rows(self.sequences.labels, rows))


class SequenceArrays(SampleDataModule):
    """Sequences in `<root>/train.npz` (or `.npy`) and, optionally, `<root>/val.npz` (or `.npy`).

    An npz file holds `values` (N, T, F) and optionally `label` (N,) and `lengths` (N,), the frames
    per sequence, after which values are zero. An npy file holds the values alone. Labels that are
    not integers are regression targets. Evaluation reads whole sequences.

    For the other arguments see `SampleDataModule`.

    Args:
        root: the folder.
        window: frames of a training window, at a random position; None: all T.
        standardize: whether each feature is standardized by its training mean and deviation.
        val_fraction: fraction of each class of the training file to hold out for validation.
        num_workers: loader processes; None: 0.
        seed: seed of batches and windows; None: the run's seed.
    """

    noun = "sequences"

    def __init__(
        self,
        root: str,
        window: int | None = None,
        batch_size: int = 64,
        standardize: bool = True,
        val_fraction: float | None = None,
        eval_batch_size: int = 64,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "query",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            batch_size, eval_batch_size, num_workers, seed, train_fraction, predict_on, drop_last
        )
        if window is not None:
            check_at_least("window", window, 1)
        if val_fraction is not None:
            check_interval("val_fraction", val_fraction, 0, 1, "()")
        self.root, self.window, self.standardize = root, window, standardize
        self.val_fraction = val_fraction
        self.input = FrameInput()  # `read` replaces it

    def read(self) -> Sets:
        """Load both files, and compute the mean and deviation of the training set."""
        root = check_folder(self.root, "root")
        train = _load(root, "train")
        assert train is not None
        query = _load(root, "val")
        if self.val_fraction is not None:
            rows = stratified_split(train.labels, len(train), self.val_fraction)
            train, query = (train.subset(part) for part in rows)
        if query is not None and query.values.shape[2] != train.values.shape[2]:
            widths = train.values.shape[2], query.values.shape[2]
            raise ValueError(f"train and val must have the same F, got {widths[0]} and {widths[1]}")
        window = train.values.shape[1] if self.window is None else self.window
        short = int((train.frames() < window).sum())
        if short:
            raise ValueError(
                f"training sequences must have at least {window} frames (window), {short} of "
                f"{len(train)} have fewer; set a smaller window"
            )
        width = train.values.shape[2]
        self.input = FrameInput([0.0] * width, [1.0] * width)
        if self.standardize:
            frames = length_mask(train.frames(), train.values.shape[1]).numpy()
            own = np.asarray(train.values, dtype=np.float64)[frames]  # (frames of all, F)
            self.input = FrameInput(own.mean(0).tolist(), own.std(0).clip(1e-6).tolist())
        labels = [x.labels for x in (train, query) if x is not None and x.labels is not None]
        if not labels or any(x.is_floating_point() for x in labels):
            return Sets(train, query, None)
        return Sets(train, query, 1 + max(int(x.max()) for x in labels))

    def train_source(self, sampler: KeyedSampler) -> BatchSource:
        train: ArraySequences = self.sets.train
        window = train.values.shape[1] if self.window is None else self.window
        return FrameWindows(train, window, self.seed, sampler.shared_epoch)

    def eval_source(self, samples: ArraySequences) -> BatchSource:
        return samples

    def check_module(self, module: Any) -> None:
        """Refuse sequences that are shorter than a frame of the module's encoder.

        Raises:
            ValueError: says how many there are, and which is the first.
        """
        sets = self.eval_sets()
        rows = {key: too_short(module, own.frames()) for key, own in sets.items()}
        rows = {key: own for key, own in rows.items() if own}
        if rows:
            raise ValueError(
                told_short(
                    *(module, self.noun, sets, rows),
                    lambda own, row: f"number {row} with {int(own.frames()[row])} frames",
                )
            )

    def train_views(self, batch: Batch, epoch: int) -> Batch:
        return self.eval_views(batch)  # only the window is random

    def eval_views(self, batch: Batch) -> Batch:
        return self._in_precision(batch._replace(views=[self.input(batch.views[0])]))

    def encoder_input(self) -> FrameInput:
        self.setup("validate")  # the mean and deviation come from the training set
        return self.input

    def preprocessing(self) -> dict[str, Any]:
        return {
            "kind": "frames",
            "mean": self.input.mean.tolist(),
            "std": self.input.std.tolist(),
        }

    def take_input(self, given: Any) -> None:
        """Use another encoder's mean and deviation."""
        widths = len(given.mean), self.sets.train.values.shape[2]
        if widths[0] not in (1, widths[1]):
            raise ValueError(
                f"frames must have {widths[0]} features for this encoder, those of "
                f"{type(self).__name__} have {widths[1]}"
            )
        self.input = given

    def workers(self, samples: Any) -> int:
        return 0


def _load(root: Path, name: str) -> ArraySequences | None:
    path = next((p for p in (root / f"{name}.npz", root / f"{name}.npy") if p.is_file()), None)
    if path is None:
        if name == "val":
            return None
        raise ValueError(f"{str(root)!r} must hold {name}.npz or {name}.npy, got neither")
    parts: dict[str, Any] = {}
    if path.suffix == ".npy":
        parts["values"] = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            parts = {key: arrays[key] for key in arrays.files}
    values = parts.get("values")
    if values is None or values.ndim != 3 or not len(values):
        got = sorted(parts) if values is None else values.shape
        raise ValueError(f"{path} must hold values (N, T, F), got {got}")
    if values.dtype.kind not in "buif" or values.dtype.itemsize > 8:
        raise ValueError(f"values in {path} must be numbers, got {values.dtype}")
    for start in range(0, len(values), _BLOCK):
        block = from_array(values[start : start + _BLOCK], "values")
        check_finite(block.to(torch.float32), f"values in {path}")
    extra = {}
    for key in ("label", "lengths"):
        given = extra[key] = None if key not in parts else _numbers(parts[key], key == "label")
        if given is not None and given.shape != (len(values),):
            raise ValueError(f"{key} in {path} must be ({len(values)},), got {tuple(given.shape)}")
        if given is not None:
            check_finite(given, f"{key} in {path}")
    lengths = extra["lengths"]
    if lengths is not None and (lengths.min() < 1 or lengths.max() > values.shape[1]):
        raise ValueError(
            f"lengths in {path} must be from 1 to {values.shape[1]} (T), got "
            f"{int(lengths.min())} to {int(lengths.max())}"
        )
    return ArraySequences(values, extra["label"], extra["lengths"])


def _numbers(given: np.ndarray, may_be_floats: bool) -> Tensor:
    """int64, or float32 if the values are not integers.

    Raises:
        ValueError: they are no numbers.
    """
    if given.dtype.kind not in "buif":
        raise ValueError(f"labels and lengths must be numbers, got {given.dtype}")
    if may_be_floats and given.dtype.kind == "f" and not np.isfinite(given).all():
        return torch.from_numpy(given.astype(np.float32))
    whole = given.astype(np.int64)
    if may_be_floats and not np.array_equal(whole, given):
        return torch.from_numpy(given.astype(np.float32))
    return torch.from_numpy(whole)
