"""Streams: shards against the folder loader, in speed, start-up, memory and resume.

    python -m benchmarks.streams --folder FOLDER [--formats tar folder] [--knn]

FOLDER gets synthetic JPEG photographs of 400 x 300 pixels, 1,000 and 10,000 of them, as a folder,
as tar shards with an index, as Parquet with row groups of 100, as LitData and for Hugging Face's
iterable sets, and is left as it is. Every case is a process of its own with one thread and no
workers, which reads batches of 64 images with SimCLR's two crops of 224 pixels. Times are of the
processor and of the clock; other work on the machine alters the former less.

- start-up: from the data module's construction to its first batch;
- memory: the largest resident set beyond that before the data module (of Linux alone);
- resume: from a data module that is set up to the first batch after the middle of an epoch.

`--knn` measures the memory of exact kNN on random features of 1.28 million x 768 instead. All goes
to benchmarks/results/streams.json.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.driver import ROOT
from benchmarks.large_images import _forget_peak, _resident
from benchmarks.speed import commit
from benchmarks.worker import versions
from sslzoo.runs.provenance import processor

RESULT = ROOT / "benchmarks" / "results" / "streams.json"
SIZES = (1_000, 10_000)
DISTINCT = 250  # photographs; the others repeat their bytes
PER_SHARD, BATCH, MEASURED, CLASSES = 500, 64, 4, 10
FORMATS = {
    "folder": "folder of files",
    "tar": "tar shards with index",
    "tar_bare": "tar shards without index",
    "parquet": "Parquet",
    "litdata": "LitData",
    "iterable": "Hugging Face iterable set",
}
KNN_ROWS, KNN_WIDTH, KNN_QUERIES = 1_281_167, 768, 512


def photographs() -> list[bytes]:
    """Smooth colors with the noise of a sensor, as JPEG files."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(DISTINCT):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC))
        noisy = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        out.append(file.getvalue())
    return out


def write(folder: Path, size: int, formats: list[str]) -> None:
    """Write the formats that are missing."""
    photos = folder / f"folder_{size}"
    if not photos.exists():
        content = photographs()
        for i in range(size):
            target = photos / "train" / f"c{i % CLASSES}"
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{i}.jpg").write_bytes(content[i % DISTINCT])
    if not (folder / f"tar_{size}").exists():
        from sslzoo.data.streams.write import write_shards

        total = sum(file.stat().st_size for file in (photos / "train").rglob("*.jpg"))
        shard_mb = total / size * PER_SHARD / 2**20
        write_shards(str(photos), str(folder / f"tar_{size}"), shard_mb)
    rows = _rows(photos)
    if {"parquet", "iterable"} & set(formats) and not (folder / f"parquet_{size}").exists():
        _write_parquet(folder / f"parquet_{size}", rows)
    if "litdata" in formats and not (folder / f"litdata_{size}").exists():
        _write_litdata(folder / f"litdata_{size}", rows)


def _rows(photos: Path) -> list[tuple[Path, int]]:
    files = sorted((photos / "train").rglob("*.jpg"), key=lambda path: int(path.stem))
    return [(file, int(file.stem) % CLASSES) for file in files]


def _write_parquet(target: Path, rows: list[tuple[Path, int]]) -> None:
    import pyarrow
    from pyarrow import parquet

    target.mkdir()
    for first in range(0, len(rows), PER_SHARD):
        part = rows[first : first + PER_SHARD]
        images = [{"bytes": file.read_bytes(), "path": None} for file, _ in part]
        table = pyarrow.table({"image": images, "label": [label for _, label in part]})
        features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
        name = target / f"train-{first // PER_SHARD:05d}.parquet"
        parquet.write_table(table, name, row_group_size=100)


def _write_litdata(target: Path, rows: list[tuple[Path, int]]) -> None:
    from litdata.streaming.cache import Cache

    target.mkdir()
    cache = Cache(str(target), chunk_size=PER_SHARD)
    for i, (file, label) in enumerate(rows):
        cache[i] = {"image": file.read_bytes(), "label": label}
    cache.done()
    cache.merge()


def data_module(folder: Path, kind: str, size: int) -> Any:
    """The data module of a case, not set up."""
    from sslzoo.data import HFImages, ImageFolder, ImageShards
    from sslzoo.transforms import simclr_views

    views: Any = simclr_views(size=224)
    usual: dict[str, Any] = {"batch_size": BATCH, "num_workers": 0, "seed": 0}
    if kind == "folder":
        root = str(folder / f"folder_{size}")
        return ImageFolder(root, views, val_dir=None, decode="workers", **usual)
    if kind == "iterable":
        return HFImages(str(folder / f"parquet_{size}"), views, streaming=True, **usual)
    names = {"tar": "tar_{}/train.json", "tar_bare": "tar_{}/train-*.tar"}
    source = folder / names.get(kind, kind + "_{}").format(size)
    return ImageShards(str(source), views, num_classes=CLASSES, **usual)


class Clock:
    """Seconds of the clock and of this process's processor since it was made."""

    def __init__(self) -> None:
        self._begin, self._cpu = time.perf_counter(), time.process_time()

    def read(self, name: str, scale: float = 1) -> dict[str, float]:
        """Both, times `scale`."""
        wall, cpu = time.perf_counter() - self._begin, time.process_time() - self._cpu
        return {f"{name}_s": round(scale * wall, 4), f"{name}_cpu_s": round(scale * cpu, 4)}


def measure(folder: Path, kind: str, size: int) -> dict[str, float]:
    """One case; all imports and the first use of the views come before."""
    torch.set_num_threads(1)
    warm = data_module(folder, kind, SIZES[0])
    warm.setup("fit")
    next(iter(warm.train_dataloader()))
    del warm
    _forget_peak()
    before = _resident(peak=False)
    clock = Clock()
    data = data_module(folder, kind, size)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    found = clock.read("start_up")
    clock = Clock()
    for _ in range(MEASURED):
        next(batches)
    found |= clock.read("image", 1 / (MEASURED * BATCH))
    found["peak_mb"] = round(_resident(peak=True) - before, 1)
    middle = {**loader.state_dict(), "position": len(loader) // 2}
    clock = Clock()
    resumed = data.train_dataloader()
    resumed.load_state_dict(middle)
    next(iter(resumed))
    return {**found, **clock.read("resume")}


def measure_knn(rows: int) -> dict[str, float]:
    """Peak memory and time of exact kNN on random float16 features, made in place."""
    from sslzoo.eval.knn import knn_predict

    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> torch.Tensor:
        out = torch.empty(count, KNN_WIDTH, dtype=torch.float16)
        for part in out.split(10_000):
            part.copy_(torch.randn(part.shape, generator=generator))
        return out

    knn_predict(features(64), features(64), torch.zeros(64, dtype=torch.int64), 1000, 20, 0.07)
    bank, query = features(rows), features(KNN_QUERIES)
    labels = torch.randint(0, 1000, (rows,), generator=generator)
    _forget_peak()
    before = _resident(peak=False)
    cpu, begin = time.process_time(), time.perf_counter()
    knn_predict(query, bank, labels, 1000, 20, 0.07)
    return {
        "rows": rows,
        "features_mb": round(bank.nbytes / 1e6),
        "beyond_features_mb": round(_resident(peak=True) - before),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "queries": KNN_QUERIES,
    }


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--knn", action="store_true")
    parser.add_argument("--rows", type=int, default=KNN_ROWS)
    parser.add_argument("--beside", default="", help="what else ran on the machine")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    about = {"cpu": processor(), "beside": given.beside, "commit": commit()}
    if given.knn:
        kept["knn"] = {**measure_knn(given.rows), **about}
    else:
        given.folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, Any] = kept.get("rows", {})
        for size in given.sizes:
            write(given.folder, size, given.formats)
            for kind in given.formats:
                with get_context("fork").Pool(1) as process:  # with what is imported
                    row = process.apply(measure, (given.folder, kind, size))
                rows.setdefault(FORMATS[kind], {})[str(size)] = row
                print(f"{FORMATS[kind]:28} {size:6} {row}", flush=True)
        kept["rows"], kept["versions"] = rows, versions()
        kept |= about
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
