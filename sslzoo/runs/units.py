"""Units of recordings: k-means of MFCC or of a layer's features, HuBERT's targets.

Hsu et al., HuBERT, 2021, https://arxiv.org/abs/2106.07447, section II-A. Reference code:
facebookresearch/fairseq at 3d262bb, examples/hubert/simple_kmeans: MiniBatchKMeans of scikit-learn
on a tenth of the files.

Deviations:
    MFCC: without dither.
    rows: at most 500 frames per cluster are kept for k-means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sslzoo.batch import Padded
from sslzoo.checks import check_interval, check_whole
from sslzoo.data.audio.sound_files import SOUND_EXTENSIONS, num_samples, read_sound
from sslzoo.data.audio.units import write_units
from sslzoo.data.listing import UNITS, check_folder, find_files
from sslzoo.random import run_keys
from sslzoo.runs.encoders import read_model
from sslzoo.transforms.audio.mfcc import mfcc
from sslzoo.value_range import as_sound

_ROWS_PER_UNIT = 500


def cluster_units(
    folder: str,
    to: str,
    num_units: int = 100,
    rate: int = 16000,
    encoder: str | None = None,
    layer: int | None = None,
    fraction: float = 0.1,
    seed: int = 0,
) -> str:
    """Cluster the frames of all recordings in a folder, and write their clusters.

    Args:
        folder: of the recordings.
        to: the npz file, see `sslzoo.data.audio.units`.
        num_units: number of clusters; 100 for MFCC, 500 for features in the paper.
        rate: sampling rate in Hz for MFCC.
        encoder: run, zoo name or file of a speech encoder; None: MFCC.
        layer: the encoder's layer, from 1; 6 in the second iteration of the paper.
        fraction: of the recordings for k-means; 0.1 in the code.
        seed: of the recordings for k-means, and of k-means.

    Returns:
        What was written, in one sentence.

    Raises:
        ValueError: there are no recordings, fewer frames than clusters, or no such layer.
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
    if not to.endswith(UNITS):
        raise ValueError(f"to must end in {UNITS}, got {to!r}")
    check_interval("fraction", fraction, 0, 1, "(]")
    paths = find_files(check_folder(folder, "folder"), SOUND_EXTENSIONS).paths
    if not paths:
        raise ValueError(f"folder must hold recordings, got none in {folder!r}")
    features, rate, unit_rate = _features(rate, encoder, layer)
    order = run_keys(seed, "units").permutation("files", len(paths))[0].tolist()
    chosen = order[: max(1, round(fraction * len(paths)))]
    rows: list[np.ndarray] = []
    for number in chosen:
        rows.append(_of_file(paths[number], rate, features))
        if sum(map(len, rows)) >= _ROWS_PER_UNIT * num_units:
            break
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
    units = []
    for path in paths:
        own = _of_file(path, rate, features)
        found = k_means.predict(own) if len(own) else np.empty(0)
        units.append(torch.from_numpy(np.asarray(found, dtype=np.int32)))
    write_units(to, paths, units, unit_rate, num_units)
    used = len(np.unique(np.concatenate([row.numpy() for row in units])))
    return (
        f"{to}: {sum(map(len, units))} units of {len(paths)} recordings, {unit_rate:g} per second, "
        f"{used} of {num_units} clusters in use"
    )


def _features(
    rate: int, encoder: str | None, layer: int | None
) -> tuple[Callable[[Tensor], Tensor], int, float]:
    """A function (1, L) -> (T, F), the rate of its waveforms, and its frames per second."""
    if encoder is None:
        if layer is not None:
            raise ValueError(f"layer must be given with an encoder, got {layer} without one")
        return (lambda wave: mfcc(wave, rate)[0]), rate, 100.0
    model = read_model(encoder)
    net = cast(Any, model.encoder.eval())
    if not hasattr(net, "forward_layers"):
        raise ValueError(
            f"encoder must be a speech encoder with forward_layers, got {type(net).__name__}"
        )
    depth = len(net.transformer.layers)
    check_interval("layer", 0 if layer is None else layer, 1, depth)
    preprocess = cast(Any, model.preprocess())
    device = next(net.parameters()).device

    @torch.no_grad()
    def features(wave: Tensor) -> Tensor:
        view = Padded(wave, torch.tensor([wave.shape[1]]))
        if preprocess is not None:
            view = preprocess.transform.evaluation(view)
        layers, lengths = net.forward_layers(Padded(*(part.to(device) for part in view)))
        return layers[layer][0, : int(lengths[0])].cpu()

    return features, net.rate, net.rate / net.frames.stride


def _of_file(path: str, rate: int, features: Callable[[Tensor], Tensor]) -> np.ndarray:
    count = num_samples(path, rate)
    wave = as_sound(torch.from_numpy(read_sound(path, rate, 0, count)))[None]
    try:
        return features(wave).numpy().astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path} is too short for a frame: {error}") from None
