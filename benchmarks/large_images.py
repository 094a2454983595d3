"""Large images: crops that read their box alone, against decoding the whole image.

    python -m benchmarks.large_images --folder FOLDER

FOLDER gets one synthetic image of 10,000 x 10,000 pixels and 4 channels of 16 bits (800 MB as an
array) in each format, and is left as it is. Every case is a process of its own: it opens the file
anew for each sample, as a loader's worker does, and cuts two crops of 224 pixels from boxes of 0.02
to 0.1 % of the area (141 to 316 pixels a side). Peak memory is the process's largest resident set
less that before the first sample (of Linux alone). Everything goes to
benchmarks/results/large_images.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.driver import ROOT
from benchmarks.worker import versions
from sslzoo.data.image.rasters import open_image
from sslzoo.random import sample_keys
from sslzoo.runs.provenance import processor
from sslzoo.transforms import RandomResizedCrop, View, Views
from sslzoo.transforms.image.pixels import Decoding, Raster

RESULT = ROOT / "benchmarks" / "results" / "large_images.json"
SIDE, CHANNELS, TILE, CROP = 10_000, 4, 512, 224
SCALE = (0.0002, 0.001)
CASES = {
    "tiled TIFF (Deflate)": ("tiled.tif", False),
    "Zarr (Zstandard)": ("image.zarr", False),
    "HDF5 (gzip)": ("image.h5", False),
    ".npy (memory-mapped)": ("image.npy", False),
    "tiled TIFF, decoded whole": ("tiled.tif", True),
    "Zarr, decoded whole": ("image.zarr", True),
}


def image(side: int) -> np.ndarray:
    """(C, H, W): smooth bands with the noise of a sensor."""
    rng = np.random.default_rng(0)
    rows = np.linspace(0, 40, side, dtype=np.float32)
    out = np.empty((CHANNELS, side, side), np.uint16)
    for number, band in enumerate(out):
        waves = np.sin(rows * (1 + number))[:, None] * np.cos(rows * (2 + number))
        band[:] = 30_000 + 20_000 * waves
        band += rng.integers(0, 64, band.shape, dtype=np.uint16)
    return out


def write(folder: Path, side: int) -> None:
    """Write the image in every format that is missing."""
    writers: dict[str, Callable[[Path, np.ndarray], None]] = {
        "tiled.tif": _tiff,
        "image.zarr": _zarr,
        "image.h5": _hdf5,
        "image.npy": np.save,
    }
    missing = [name for name in writers if not (folder / name).exists()]
    pixels = image(side) if missing else None
    for name in missing:
        writers[name](folder / name, pixels)


def _tiff(path: Path, pixels: np.ndarray) -> None:
    import tifffile

    how: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "separate"}
    tifffile.imwrite(path, pixels, tile=(TILE, TILE), compression="zlib", **how)


def _zarr(path: Path, pixels: np.ndarray) -> None:
    import zarr

    chunks = (CHANNELS, TILE, TILE)
    array = zarr.create_array(str(path), shape=pixels.shape, dtype=pixels.dtype, chunks=chunks)
    array[:] = pixels


def _hdf5(path: Path, pixels: np.ndarray) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        chunks = (CHANNELS, TILE, TILE)
        file.create_dataset(
            "image", data=pixels, chunks=chunks, compression="gzip", compression_opts=1
        )


def measure(path: Path, whole: bool, seconds: float) -> dict[str, float]:
    """Crops per second and peak memory, for at least `seconds` and two samples."""
    views = Views([View(RandomResizedCrop(CROP, SCALE), [])] * 2)
    decoding = Decoding(CHANNELS, may_be_dark=True)
    with open_image(str(path)) as opened:  # imports the format's package
        assert isinstance(opened, Raster)
        opened.read(0, 0, 1, 1)
    _forget_peak()
    before, begin, samples = _resident(peak=False), time.perf_counter(), 0
    while samples < 2 or time.perf_counter() - begin < seconds:
        keys = sample_keys(0, samples, torch.tensor([0]))
        with open_image(str(path)) as opened:
            crops = views.crop_one(decoding(opened) if whole else decoding.lazily(opened), keys)
        assert [crop.shape for crop in crops] == [(CHANNELS, CROP, CROP)] * 2
        samples += 1
    spent = time.perf_counter() - begin
    return {
        "crops_per_second": round(2 * samples / spent, 2),
        "peak_mb": round(_resident(peak=True) - before, 1),
        "samples": samples,
    }


def _resident(peak: bool) -> float:
    """Resident set, or the largest since `_forget_peak`, in MB."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.case:
        name, whole = CASES[given.case]
        print(json.dumps(measure(given.folder / name, whole, given.seconds)))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    write(given.folder, given.side)
    rows = {}
    for case in CASES:
        words = [sys.executable, "-m", "benchmarks.large_images", f"--folder={given.folder}"]
        words += [f"--case={case}", f"--seconds={given.seconds}"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        rows[case] = json.loads(done.stdout)
        size = _bytes(given.folder / CASES[case][0])
        rows[case]["file_mb"] = round(size / 1e6)
        print(f"{case:28} {rows[case]}", flush=True)
    about = {"side": given.side, "channels": CHANNELS, "bits": 16, "crop": CROP, "scale": SCALE}
    kept = {"processor": processor(), "image": about, "rows": rows, "versions": versions()}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
