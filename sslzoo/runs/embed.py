"""Features of files: images, sounds, lines of text or arrays, written with their names.

sslzoo.embed("simclr-small_resnet-cifar10jpeg", ["photos"], "features.npz")
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from sslzoo.atomic_write import check_target, replacing
from sslzoo.data import FrameInput, TextInput, WaveformInput
from sslzoo.data.audio.sound_files import SOUND_EXTENSIONS, num_samples, read_sound
from sslzoo.data.image.rasters import ARRAY_EXTENSIONS, open_image
from sslzoo.data.listing import find_files
from sslzoo.data.too_short import too_short
from sslzoo.eval.fingerprint import text_digest
from sslzoo.file_lock import acquire
from sslzoo.runs.encoders import read_model
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding

SUFFIXES = (".npz", ".parquet")
_PART = 1024  # samples after which features are kept for a later resume
_TEXTS = (".txt", ".csv", ".tsv", ".jsonl", ".md")
_ARRAYS = (".npy",)


class Sample(NamedTuple):
    """One sample of a file.

    Args:
        path: the file, as given.
        row: line of a text, or sequence of an array; 0 if the file is one sample.
    """

    path: str
    row: int = 0


class _Kind(NamedTuple):
    """How the files of one kind of encoder are listed and read."""

    extensions: tuple[str, ...]
    samples: Callable[[str], list[Sample]]
    read: Callable[[Sample], Any]


def embed(
    model: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    batch_size: int = 64,
    device: str | None = None,
    on_broken: Literal["error", "skip"] = "error",
    trust: bool = False,
) -> Path:
    """Write an encoder's features of files, with the files' names.

    The file has `features` (N, D) float32, `path` (N,), and `row` (N,), the line of a text or the
    sequence of an array. A run that was killed goes on where it was when it is started again: parts
    are kept in `<to>.parts` until the file is whole, for the same weights and unchanged files.

    Args:
        model: a run directory, a name of the zoo, or a file (see `sslzoo.load`).
        sources: files, and folders, which are searched for files that the encoder takes: images,
            sounds, texts (one sample per line), or .npy arrays (T, F) and (N, T, F).
        to: the file to write, .npz or .parquet (which needs pyarrow).
        batch_size: samples per forward pass.
        device: such as "cpu" or "cuda"; None: a GPU if there is one.
        on_broken: raise an "error" for an unreadable file, or one that is too short for a frame of
            the encoder, or "skip" it with a warning.
        trust: see `sslzoo.load`.

    Returns:
        The path of the file.

    Raises:
        ValueError: there is no such model or file, no known preprocessing, or another process
            writes the file.
        OSError: a file cannot be read or written.
        ImportError: the format or the kind of file needs a package that is not installed.
    """
    target = Path(to)
    _check(target, batch_size)
    found = read_model(os.fspath(model), trust)
    preprocess = found.preprocess()
    if preprocess is None:
        raise ValueError(
            f"{os.fspath(model)!r} must record its preprocessing, got none; load it in Python and "
            "call it on tensors that you preprocess"
        )
    kind = _kind_of(preprocess)
    samples = _samples(sources, kind)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = found.encoder.to(where).eval()
    views = preprocess.of_pixels() if isinstance(preprocess, EvalView) else preprocess
    read = _long_enough(kind.read, preprocess, encoder)
    run = _Run(encoder, views, read, batch_size, where, on_broken)
    parts = target.with_name(f"{target.name}.parts")
    with _alone(target):
        _enter(parts, _key(encoder, preprocess, samples))
        for start in range(0, len(samples), _PART):
            path, rows = parts / f"{start:012d}.safetensors", samples[start : start + _PART]
            if _load(path) is None:
                with replacing(path) as part:
                    save_file(run.features(rows, start, len(samples)), part)
        whole = [_load(path) for path in sorted(parts.glob("*.safetensors"))]
        arrays = {name: np.concatenate([part[name] for part in whole if part]) for name in _NAMES}
        kept = [samples[i] for i in arrays["index"]]
        _write(target, arrays["features"], kept)
        shutil.rmtree(parts)
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Context manager that keeps other processes from the parts of a file."""
    lock = acquire(target.with_name(f"{target.name}.lock"), {"process": os.getpid()})
    if lock is None:
        raise ValueError(
            f"the features must be written by one process at a time, got {str(target)!r}, which "
            "another one is writing; wait for its end, or name another file"
        )
    try:
        yield
    finally:
        lock.release()


_NAMES = ("features", "index")


class _Run(NamedTuple):
    """One pass over samples."""

    encoder: nn.Module
    preprocess: Callable[[Any], Any]
    read: Callable[[Sample], Any]
    batch_size: int
    device: str
    on_broken: str

    @torch.inference_mode()
    def features(self, samples: list[Sample], first: int, of: int) -> dict[str, np.ndarray]:
        """Features (n, D) of the readable samples, and their positions (n,) from `first`."""
        rows: list[np.ndarray] = []
        index: list[int] = []
        width = int(getattr(self.encoder, "num_features", 0))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(samples), self.batch_size):
                chosen = samples[start : start + self.batch_size]
                read = list(pool.map(self._attempt, chosen))
                good = [i for i, value in enumerate(read) if value is not None]
                if good:
                    x = self.preprocess([read[i] for i in good])
                    output = self.encoder(move_data_to_device(x, self.device))
                    rows.append(output.float().cpu().numpy())
                    index += [first + start + i for i in good]
        if sys.stderr.isatty():
            print(f"\r{first + len(samples)}/{of}", end="", file=sys.stderr, flush=True)
        features = np.concatenate(rows) if rows else np.zeros((0, width), np.float32)
        return {"features": features, "index": np.array(index, np.int64)}

    def _attempt(self, sample: Sample) -> Any:
        try:
            return self.read(sample)
        except (OSError, ValueError, SyntaxError) as error:
            told = f"{sample.path} must be readable, got {' '.join(str(error).split())}"
            if self.on_broken == "error":
                more = "; --on_broken=skip leaves such files out"
                raise ValueError(told + more) from error
            print(f"sslzoo: skipped: {told}", file=sys.stderr)
            return None


def _check(target: Path, batch_size: int) -> None:
    """Refuse, before any work, what could not be written."""
    if target.suffix not in SUFFIXES:
        raise ValueError(f"the file to write must end in .npz or .parquet, got {str(target)!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_target(target)
    if target.suffix == ".parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(
            "a .parquet file needs pyarrow, which is not installed; run pip install pyarrow, or "
            "write .npz"
        ) from None
    return pyarrow


def _kind_of(preprocess: Any) -> _Kind:
    """How to read files for a preprocessing."""
    if isinstance(preprocess, EvalView):
        Image.init()
        channels = preprocess.channels or 3
        decoding = Decoding(
            channels, preprocess.value_range, may_be_dark=True, clip=preprocess.clip
        )
        extensions = (*sorted(Image.EXTENSION), *ARRAY_EXTENSIONS)

        def read_image(sample: Sample) -> Any:
            with open_image(sample.path, channels) as image:
                return decoding(image)

        return _Kind(extensions, _whole, read_image)
    if isinstance(preprocess, WaveformInput):
        rate = preprocess.rate

        def read_wave(sample: Sample) -> Any:
            return read_sound(sample.path, rate, 0, num_samples(sample.path, rate))

        return _Kind(SOUND_EXTENSIONS, _whole, read_wave)
    if isinstance(preprocess, TextInput):
        return _Kind(_TEXTS, _lines, _line)
    assert isinstance(preprocess, FrameInput)
    return _Kind(_ARRAYS, _sequences, _sequence)


def _long_enough(
    read: Callable[[Sample], Any], preprocess: Any, encoder: nn.Module
) -> Callable[[Sample], Any]:
    """Reads samples, and refuses those that are too short for a frame of the encoder."""
    if not isinstance(preprocess, WaveformInput | FrameInput):
        return read

    def read_checked(sample: Sample) -> Any:
        value = read(sample)
        length = torch.tensor([len(value)])
        seen = preprocess.lengths(length) if isinstance(preprocess, WaveformInput) else length
        if too_short(encoder, seen):
            raise ValueError(f"{len(value)} values, too few for a frame of the encoder")
        return value

    return read_checked


def _whole(file: str) -> list[Sample]:
    return [Sample(file)]


def _lines(file: str) -> list[Sample]:
    with open(file, encoding="utf-8") as text:
        return [Sample(file, row) for row, line in enumerate(text) if line.strip()]


@lru_cache(maxsize=1)
def _text(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").split("\n")


def _line(sample: Sample) -> str:
    return _text(sample.path)[sample.row].strip()


def _array(file: str) -> np.ndarray:
    values = np.load(file, mmap_mode="r", allow_pickle=False)
    if values.ndim not in (2, 3):
        raise ValueError(f"{file} must hold (T, F) or (N, T, F), got shape {values.shape}")
    return values


def _sequences(file: str) -> list[Sample]:
    values = _array(file)
    return [Sample(file, row) for row in range(len(values) if values.ndim == 3 else 1)]


def _sequence(sample: Sample) -> np.ndarray:
    values = _array(sample.path)
    return np.array(values[sample.row] if values.ndim == 3 else values)


def _samples(sources: Sequence[str | os.PathLike[str]], kind: _Kind) -> list[Sample]:
    """All samples in order: files as given, and folders' sorted files."""
    found: list[Sample] = []
    for source in [os.fspath(each) for each in sources]:
        if os.path.isdir(source) and not source.endswith(".zarr"):
            files = find_files(source, kind.extensions).paths
            if not files:
                some = ", ".join(kind.extensions[:5])
                raise ValueError(
                    f"{source!r} must have files that the encoder takes ({some}, ...), got none"
                )
        elif os.path.isfile(source) or source.endswith(".zarr"):
            files = [source]
        else:
            raise ValueError(f"a source must be a file or a folder, got {source!r}")
        for file in files:
            found += kind.samples(file)
    if not found:
        raise ValueError("there must be at least one sample, got none")
    return found


def _key(encoder: nn.Module, preprocess: Any, samples: Sequence[Sample]) -> str:
    """Hash of everything that the features depend on."""
    digest = hashlib.sha256(preprocess.fingerprint().encode())
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for file in dict.fromkeys(sample.path for sample in samples):
        status = os.stat(file)
        digest.update(f"{file}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return text_digest([digest.hexdigest(), str(len(samples))])


def _enter(parts: Path, key: str) -> None:
    """Keep the parts of the same features, and remove others."""
    note = parts / "key"
    if parts.is_dir() and (not note.is_file() or note.read_text() != key):
        strange = [path.name for path in _strange(parts)]
        if strange:
            raise ValueError(f"{str(parts)!r} must be a folder of parts, got {strange[0]!r} in it")
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    note.write_text(key)


def _strange(parts: Path) -> Iterator[Path]:
    return (p for p in parts.iterdir() if p.name != "key" and ".safetensors" not in p.name)


def _load(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):  # missing or incomplete
        return None


def _write(target: Path, features: np.ndarray, kept: Sequence[Sample]) -> None:
    paths = [sample.path for sample in kept]
    rows = np.array([sample.row for sample in kept], np.int64)
    with replacing(target) as part:
        if target.suffix == ".npz":
            with part.open("wb") as file:
                np.savez(file, features=features, path=np.array(paths, dtype=np.str_), row=rows)
            return
        arrow = _pyarrow()
        values = arrow.FixedSizeListArray.from_arrays(
            arrow.array(features.reshape(-1)), features.shape[1]
        )
        table = arrow.table({"path": paths, "row": rows, "features": values})
        arrow.parquet.write_table(table, part)
