"""Units of recordings: k-means of MFCC or of a layer's features, HuBERT's targets.

Hsu et al., HuBERT, 2021, https://arxiv.org/abs/2106.07447, section II-A. Reference code:
facebookresearch/fairseq at 3d262bb, examples/hubert/simple_kmeans: MiniBatchKMeans of scikit-learn
on a tenth of the files.

Deviations:
    MFCC: without dither.
    rows: at most 500 frames per cluster are kept for k-means.
    long recordings: parts of 1,600,000 samples, as in the code, but each is normalized by itself,
        and no frame is lost between them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from sslzoo.atomic_write import check_target
from sslzoo.backbones import SpeechEncoder
from sslzoo.batch import Padded
from sslzoo.checks import check_choice, check_interval, check_whole
from sslzoo.data import WaveformInput
from sslzoo.data.audio.sound_files import (
    SOUND_EXTENSIONS,
    SoundFileError,
    num_samples,
    read_sound,
)
from sslzoo.data.audio.units import write_units
from sslzoo.data.datamodule import OnBroken
from sslzoo.data.listing import UNITS, check_folder, find_files
from sslzoo.data.too_short import told_short, too_short
from sslzoo.random import run_keys
from sslzoo.runs.encoders import read_model
from sslzoo.transforms.audio.mfcc import MFCC
from sslzoo.value_range import as_sound

_ROWS_PER_UNIT = 500
_RATE = 16000  # Hz, of MFCC in the paper
_CHUNK = 1_600_000  # samples that an encoder sees at once, the code's max_chunk
_SPAN = 3628800  # samples, a multiple of every stride in use


def cluster_units(
    folder: str,
    to: str,
    num_units: int = 100,
    rate: int | None = None,
    encoder: str | None = None,
    layer: int | None = None,
    fraction: float = 0.1,
    seed: int = 0,
    on_broken: OnBroken = "error",
) -> str:
    """Cluster the frames of all recordings in a folder, and write their clusters.

    Args:
        folder: of the recordings.
        to: the npz file, see `sslzoo.data.audio.units`.
        num_units: number of clusters; 100 for MFCC, 500 for features in the paper.
        rate: sampling rate in Hz, to which files are resampled; None: the encoder's, or 16000.
        encoder: run, zoo name or file of a speech encoder; None: MFCC.
        layer: the encoder's layer, from 1; 6 in the second iteration of the paper.
        fraction: of the recordings for k-means; 0.1 in the code.
        seed: of the recordings for k-means, and of k-means.
        on_broken: raise an "error" for a recording that is unreadable or shorter than a frame, or
            "skip" it with a warning: an unreadable one is left out, a short one has no units.

    Returns:
        What was written, in one sentence.

    Raises:
        ValueError: there are no recordings, fewer frames than clusters, or no such layer; or see
            `on_broken`.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise ImportError(
            f"sslzoo units needs packages that are not installed ({error}); run: pip install "
            "'sslzoo[audio]'"
        ) from None
    check_whole("num_units", num_units, 2)
    check_choice("on_broken", on_broken, get_args(OnBroken))
    if not to.endswith(UNITS):
        raise ValueError(f"to must end in {UNITS}, got {to!r}")
    check_target(Path(to).expanduser())
    check_interval("fraction", fraction, 0, 1, "(]")
    paths = find_files(check_folder(folder, "folder"), SOUND_EXTENSIONS).paths
    if not paths:
        raise ValueError(f"folder must hold recordings, got none in {folder!r}")
    source = _mfcc(rate, layer) if encoder is None else _encoder(encoder, rate, layer)
    paths, long = _readable(paths, source, on_broken)
    order = run_keys(seed, "units").permutation("files", len(long))[0].tolist()
    rows: list[np.ndarray] = []
    chosen = [long[number] for number in order[: max(1, round(fraction * len(long)))]]
    for _, own in _frames(chosen, source, on_broken):
        rows.append(own)
        if sum(map(len, rows)) >= _ROWS_PER_UNIT * num_units:
            break
    if not rows:
        raise SoundFileError(f"all {len(chosen)} recordings for k-means are unreadable")
    frames = np.concatenate(rows)
    if len(frames) < num_units:
        raise ValueError(
            f"num_units must be at most the {len(frames)} frames of the {len(rows)} recordings for "
            f"k-means, got {num_units}; raise fraction"
        )
    k_means = MiniBatchKMeans(
        num_units,
        max_iter=100,
        batch_size=10_000,
        n_init=20,
        tol=0.0,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        random_state=seed,
    ).fit(frames)
    units = {path: torch.empty(0, dtype=torch.int32) for path in sorted(set(paths) - set(long))}
    for path, own in _frames(long, source, on_broken):
        units[path] = torch.from_numpy(k_means.predict(own).astype(np.int32))
    write_units(to, list(units), units.values(), source.unit_rate, num_units)
    every = torch.cat(list(units.values()))
    return (
        f"{to}: {len(every)} units of {len(units)} recordings, {source.unit_rate:g} per second, "
        f"{len(every.unique())} of {num_units} clusters in use"
    )


class _Source(NamedTuple):
    """What makes frames of recordings.

    Attributes:
        net: has `num_frames`.
        rate: of the waveforms that it takes.
        view: number of samples -> length of the view that the net is given.
        features: waveforms (1, L) -> frames (T, F).
    """

    net: Any
    rate: int
    view: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]

    @property
    def unit_rate(self) -> float:
        """Frames per second."""
        ends = self.net.num_frames(self.view(torch.tensor([self.rate, self.rate + _SPAN])))
        return int(ends.diff()) * self.rate / _SPAN


def _mfcc(rate: int | None, layer: int | None) -> _Source:
    if layer is not None:
        raise ValueError(f"layer must be given with an encoder, got {layer} without one")
    mfcc = MFCC(_RATE if rate is None else rate)
    return _Source(mfcc, mfcc.rate, lambda lengths: lengths, lambda wave: mfcc(wave)[0])


def _encoder(name: str, rate: int | None, layer: int | None) -> _Source:
    model = read_model(name)
    net = cast(Any, model.encoder.eval())
    preprocess = cast(Any, model.preprocess())
    sound = preprocess is None or isinstance(preprocess, WaveformInput)
    if not (sound and hasattr(net, "forward_layers") and hasattr(net, "num_frames")):
        raise ValueError(
            f"encoder must be a speech encoder with forward_layers, got {type(net).__name__}"
        )
    own = net.rate if preprocess is None else preprocess.rate
    if rate not in (None, own):
        raise ValueError(f"rate must be the encoder's {own} Hz, got {rate}")
    transform = None if preprocess is None else preprocess.transform
    in_parts = isinstance(net, SpeechEncoder)
    device, number = next(net.parameters()).device, 0 if layer is None else layer

    @torch.no_grad()
    def layers(wave: Tensor) -> tuple[list[Tensor], Tensor]:
        view = Padded(wave, torch.tensor([wave.shape[1]]))
        view = view if transform is None else transform.evaluation(view)
        return net.forward_layers(Padded(*(part.to(device) for part in view)))

    def features(wave: Tensor) -> Tensor:
        made = [layers(part) for part in (_parts(wave, net) if in_parts else [wave])]
        return torch.cat([found[number][0, : int(count[0])].cpu() for found, count in made])

    depth = len(layers(torch.zeros(1, own))[0]) - 1
    check_interval("layer", number, 1, depth)
    view = getattr(transform, "num_frames", lambda lengths: lengths)
    return _Source(net, own, view, features)


def _parts(wave: Tensor, net: SpeechEncoder) -> list[Tensor]:
    """Parts of a waveform (1, L) whose frames are as many as those of all of it."""
    stride = net.frames.stride
    frames = max(1, _CHUNK // stride)  # of a part
    count = int(net.num_frames(torch.tensor(wave.shape[1])))
    starts = range(0, count * stride, frames * stride)
    return [wave[:, start : start + net.samples(frames)] for start in starts]


def _readable(
    paths: list[str], source: _Source, on_broken: OnBroken
) -> tuple[list[str], list[str]]:
    """The recordings that can be read, and those of them that are long enough for a frame."""
    readable, counts = [], []
    for path in paths:
        try:
            counts.append(num_samples(path, source.rate))
            readable.append(path)
        except SoundFileError as error:
            _skip(error, on_broken)
    if not readable:
        raise SoundFileError(f"all {len(paths)} recordings are unreadable")
    short = too_short(source.net, source.view(torch.tensor(counts)))
    if short:
        told = told_short(
            *(source.net, "recordings", {"folder": readable}, {"folder": short}),
            lambda _, row: f"{readable[row]} with {counts[row]} samples at {source.rate} Hz",
        )
        if on_broken == "error":
            raise ValueError(f"{told}; set on_broken: skip to leave them out")
        if len(short) == len(readable):
            raise ValueError(told)
        print(f"sslzoo units: {told}; all of them have no units", file=sys.stderr)
    few = set(short)
    return readable, [path for row, path in enumerate(readable) if row not in few]


def _frames(
    paths: list[str], source: _Source, on_broken: OnBroken
) -> Iterator[tuple[str, np.ndarray]]:
    """Each recording that can be read, and its frames (T, F)."""
    for path in paths:
        try:
            wave = read_sound(path, source.rate, 0, num_samples(path, source.rate))
        except SoundFileError as error:
            _skip(error, on_broken)
            continue
        frames = source.features(as_sound(torch.from_numpy(wave))[None])
        yield path, frames.numpy().astype(np.float64)


def _skip(error: SoundFileError, on_broken: OnBroken) -> None:
    if on_broken == "error":
        raise SoundFileError(f"{error}; set on_broken: skip to leave it out") from error
    print(f"sslzoo units: skipped: {error}", file=sys.stderr)
