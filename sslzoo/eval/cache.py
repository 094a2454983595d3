"""Feature cache: one file per rank, keyed by a hash of all inputs.

The file name is the hash of the module's class, parameters and buffers, the data's fingerprint,
and the settings of the extraction. Writes are atomic.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sslzoo.atomic_write import replacing
from sslzoo.distributed import gather_objects, rank, world_size
from sslzoo.eval.features import Features


def cached_features(
    folder: Path | None, key: str, compute: Callable[[], Features]
) -> tuple[Features, bool]:
    """Load this rank's features if every rank has its file, otherwise compute them.

    Args:
        folder: the cache folder; None: always compute.
        key: a string of everything the features depend on; hashed with the number of ranks.
        compute: collective function whose result is written. If writing fails (a full disk), a
            line on stderr says so.

    Returns:
        The features (on the CPU if they come from the cache), and whether they come from it.
    """
    if folder is None:
        return compute(), False
    name = hashlib.sha256(f"{key}\n{world_size()} ranks".encode()).hexdigest()[:32]
    path = folder / f"{name}.{rank()}.safetensors"
    found = _read(path)
    if all(gather_objects(found is not None)):
        assert found is not None
        return found, True
    features = compute()
    try:
        _write(path, features)
    except OSError as error:
        print(f"sslzoo: features are not cached in {folder}: {error}", file=sys.stderr)
    return features, False


def _read(path: Path) -> Features | None:
    try:
        with safe_open(path, "pt") as file:
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):  # missing or incomplete
        return None
    return Features(kept["features"], kept.get("label"), kept["index"])


def _write(path: Path, features: Features) -> None:
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in features._asdict().items()
        if value is not None
    }
    with replacing(path) as part:
        save_file(tensors, part)
