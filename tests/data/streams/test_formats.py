"""Parquet, LitData, Hugging Face's iterable sets and WebDataset's own reader and writer."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sslzoo.data import HFImages, ImageDataset
from sslzoo.data.image.datamodule import ImageDataModule
from sslzoo.data.streams.parquet import row_groups
from tests.data.streams.toys import CLASSES, batches, encoded, shards, two_crops, write_tars

COUNTS = [9, 1, 12, 8]


def items(first: int, count: int) -> list[dict[str, Any]]:
    return [{"image": encoded(i), "label": i % 3} for i in range(first, first + count)]


def parquet(root: Path, rows_per_group: int = 4, form: str = "bytes") -> str:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root.mkdir(exist_ok=True)
    first = 0
    for shard, count in enumerate(COUNTS):
        rows = items(first, count)
        images: list[Any] = [row["image"] for row in rows]
        if form == "struct":  # of Hugging Face
            images = [{"bytes": image, "path": None} for image in images]
        labels = [row["label"] for row in rows]
        table = arrow.table({"image": images, "label": labels, "more": labels})
        if form == "struct":
            names = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        name = root / f"p-{shard:02d}.parquet"
        parquet.write_table(table, name, row_group_size=rows_per_group)
        first += count
    return str(root / "p-*.parquet")


def expected(root: Path, **options: Any) -> ImageDataModule:
    """The same samples in tar files, whose blocks are other ones."""
    return shards(write_tars(root / "tars", COUNTS), **options)


def samples(data: Any, **options: int) -> dict[int, tuple[list[list[int]], int]]:
    """The views and the label of each sample."""
    out = {}
    for batch in batches(data, **options):
        for row, index in enumerate(batch.index.tolist()):
            assert index not in out
            out[index] = [v[row].flatten().tolist() for v in batch.views], int(batch.label[row])
    return out


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_parquet_gives_the_samples_of_tar_files(tmp_path: Path, form: str):
    source = parquet(tmp_path / "p", form=form)
    data = shards(source, num_classes=None if form == "struct" else 3)
    assert samples(data) == samples(expected(tmp_path))
    assert data.num_classes == 3
    assert data.classes == (CLASSES if form == "struct" else None)
    blocks = [list(data.sets.train.shards.blocks(i)) for i in range(4)]
    assert blocks == [[4, 4, 1], [1], [4, 4, 4], [4, 4]]


def check_ranks_workers_and_resume(data: Any) -> None:
    one = [batch.index.tolist() for batch in batches(data)]
    assert sorted(chain(*one)) == list(range(30))
    whole = samples(data)
    for world, workers in ((2, 2), (3, 1)):
        parts = [samples(data, rank=r, world=world, workers=workers) for r in range(world)]
        assert sum(map(len, parts)) == 30  # no two ranks have one sample
        assert {k: v for part in parts for k, v in part.items()} == whole
    assert [batch.index.tolist() for batch in batches(data, first=3)] == one[3:]
    kept = set(chain(*one[3:]))
    assert samples(data, first=3) == {k: v for k, v in whole.items() if k in kept}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_parquet_is_the_same_on_ranks_and_workers_and_resumes(tmp_path: Path):
    check_ranks_workers_and_resume(shards(parquet(tmp_path / "p")))


def test_other_row_groups_are_refused_in_the_middle_of_an_epoch(tmp_path: Path):
    loader = shards(parquet(tmp_path / "p")).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    shards(parquet(tmp_path / "again")).train_dataloader().load_state_dict(state)
    with pytest.raises(ValueError, match=r"shards, shuffle_shards .* those of the checkpoint"):
        shards(parquet(tmp_path / "p", 3)).train_dataloader().load_state_dict(state)


def test_parquet_keeps_few_row_groups(tmp_path: Path):
    data = shards(parquet(tmp_path / "p"))
    loader = data.train_dataloader()
    reader = loader._loader.dataset.shards  # type: ignore[attr-defined]
    for _ in loader:
        assert reader._tables._total <= 7 + 2 * 4
    assert reader._tables._total


@pytest.mark.parametrize("problem", ["truncated", "column", "null"])
@pytest.mark.filterwarnings("ignore:.*(left out|skipped a broken)")
def test_broken_parquet_is_named_or_skipped(tmp_path: Path, problem: str):
    source = parquet(tmp_path / "p")
    path = tmp_path / "p" / "p-02.parquet"
    message, kept, broken = r"p-02\.parquet must be a whole Parquet file", 18, 1
    if problem == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif problem == "column":
        with pytest.raises(ValueError, match=r"among the columns .*p-00\.parquet, got 'photo'"):
            shards(source, image_key="photo")
        return
    else:
        arrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet as files

        images = [encoded(i) for i in range(12)]
        images[5] = None
        files.write_table(arrow.table({"image": images, "label": [0] * 12, "more": [0] * 12}), path)
        message, kept, broken = r"cannot read sample 5 of .*p-02\.parquet", 30, 1
    with pytest.raises(ValueError, match=message):
        batches(shards(source))
    data = shards(source, on_broken="skip")
    batches(data)
    assert (data.num_samples, data.num_broken) == (kept, broken)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("shuffle_shards", [0, 1, 5])
def test_row_groups_without_rows_alter_nothing(tmp_path: Path, shuffle_shards: int):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    table = arrow.Table.from_pylist(items(0, 9))
    parts = {"a": [3, 0, 2], "b": [0], "c": [4], "d": [0]}
    first = 0
    for name, sizes in parts.items():
        with files.ParquetWriter(tmp_path / f"{name}.parquet", table.schema) as writer:
            for size in sizes:
                writer.write_table(table.slice(first, size))
                first += size
    options = {"shuffle_shards": shuffle_shards, "drop_last": False}
    data = shards(str(tmp_path / "*.parquet"), **options)
    assert [data.sets.train.shards.blocks(i) for i in (0, 1)] == [[3, 0, 2], [0]]
    assert sorted(samples(data)) == [*range(9)]
    assert sum(len(batch.index) for batch in batches(data, first=1)) == 3


@pytest.mark.filterwarnings("ignore:skipped a broken")
def test_a_parquet_file_that_was_replaced_or_damaged_is_refused(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path = tmp_path / "a.parquet"
    table = arrow.Table.from_pylist(items(0, 12))
    files.write_table(table, path, row_group_size=6)
    data = shards(str(path), on_broken="skip")
    files.write_table(table, path, row_group_size=4)  # the footer was read before
    with pytest.raises(ValueError, match="all 6 images of a batch are broken"):
        batches(data)
    with pytest.raises(ValueError, match=r"row groups must be \[6, 6\] as .*, got \[4, 4, 4\]"):
        data.sets.train.shards.again(1).read(0, 0)

    files.write_table(table, path, write_page_checksum=True, compression="none")
    content = bytearray(path.read_bytes())
    content[content.index(items(3, 1)[0]["image"]) + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read sample 0 of .*CRC checksum"):
        shards(str(path))

    files.write_table(arrow.table({"image": ["0.jpg"] * 9}), path)
    with pytest.raises(ValueError, match=r"must hold the bytes of an image, got the text '0\.jpg'"):
        shards(str(path))


def test_row_groups_of_another_sum_are_a_broken_file():
    footer = SimpleNamespace(num_row_groups=2, num_rows=6)
    footer.row_group = lambda i: SimpleNamespace(num_rows=[1, 3][i])
    with pytest.raises(ValueError, match=r"row groups of \[1, 3\] rows, and 6 in all"):
        row_groups(footer)


def test_parquet_files_must_have_the_same_classes(tmp_path: Path):
    source = parquet(tmp_path / "p", form="struct")
    from pyarrow import parquet as files

    path = tmp_path / "p" / "p-01.parquet"
    table = files.read_table(path)
    names = {"info": {"features": {"label": {"names": CLASSES[::-1]}}}}
    files.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), path)
    with pytest.raises(ValueError, match=r"have the classes \['cat', .* got \['eel', .*p-01"):
        shards(source)


def test_parquet_may_hold_lists_of_pixels(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    import numpy as np
    from pyarrow import parquet as files

    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
    kind = arrow.list_(arrow.list_(arrow.list_(arrow.uint8())))
    images = arrow.array(pixels.tolist(), kind)
    files.write_table(arrow.table({"image": images, "label": [0] * 6}), tmp_path / "a.parquet")
    data = shards(str(tmp_path / "a.parquet"))
    read = data.sets.train.shards.read(0, 4).image
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels[4])
    assert len(batches(data)) == 1


@pytest.mark.parametrize("imports", ["", "import datasets"])
def test_parquet_of_hugging_faces_arrays_needs_no_datasets(tmp_path: Path, imports: str):
    datasets = pytest.importorskip("datasets")
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
    features = datasets.Features(
        {"image": datasets.Array3D((9, 12, 3), "uint8"), "label": datasets.Value("int64")}
    )
    given = {"image": list(pixels), "label": [0] * 6}
    datasets.Dataset.from_dict(given, features=features).to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "pixels.npy", pixels)
    script = f"""
import sys
import numpy as np
{imports}
from tests.data.streams.toys import shards
read = shards(sys.argv[1] + "/a.parquet").sets.train.shards
found = np.stack([read.read(0, i).image for i in range(6)])
assert found.dtype == np.uint8 and (found == np.load(sys.argv[1] + "/pixels.npy")).all()
assert ("datasets" in sys.modules) == {bool(imports)}
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)


def litdata_folder(root: Path, samples: Sequence[Any], **options: Any) -> str:
    """Chunks as `litdata.optimize` writes them, in this process."""
    pytest.importorskip("litdata")
    from litdata.streaming.cache import Cache

    root.mkdir()
    cache = Cache(str(root), chunk_size=8, **options)
    for i, item in enumerate(samples):
        cache[i] = item
    cache.done()
    cache.merge()
    return str(root)


@pytest.mark.filterwarnings("ignore")  # of litdata
@pytest.mark.parametrize("cache_gb", [None, 1.0, 1e-6], ids=["folder", "address", "small cache"])
def test_litdata_gives_the_samples_of_tar_files(tmp_path: Path, cache_gb: float | None):
    source = litdata_folder(tmp_path / "lit", items(0, 30))
    options = {"cache_dir": str(tmp_path / "cache"), "cache_gb": cache_gb}
    data = shards(source) if cache_gb is None else shards(f"file://{source}", **options)
    assert data.sets.train.shards.counts.tolist() == [8, 8, 8, 6]
    assert samples(data) == samples(expected(tmp_path))
    check_ranks_workers_and_resume(data)


@pytest.mark.filterwarnings("ignore")  # of litdata
def test_a_copy_of_litdata_fetches_a_chunk_that_was_removed(tmp_path: Path):
    source = litdata_folder(tmp_path / "lit", items(0, 30))
    cache = tmp_path / "cache"
    read = shards(f"file://{source}", cache_dir=str(cache)).sets.train.shards
    first, second = (read.read(0, row).image for row in range(2))
    copied = pickle.loads(pickle.dumps(read))
    for path in cache.glob("*-chunk-*"):
        path.unlink()
    assert copied.read(0, 1).image == second
    assert copied.read(0, 0).image == first


@pytest.mark.filterwarnings("ignore")  # of litdata
def test_litdata_that_does_not_fit_its_index_is_named_or_skipped(tmp_path: Path):
    source = Path(litdata_folder(tmp_path / "lit", items(0, 30)))
    index, chunk = source / "index.json", source / "chunk-0-1.bin"
    whole, content = chunk.read_bytes(), json.loads(index.read_text())
    for kept in (whole[:-1], None):
        chunk.unlink()
        if kept is not None:
            chunk.write_bytes(kept)
        got = len(kept or b"")
        message = rf"of .*/chunk-0-1\.bin .*must have {len(whole)} bytes as .*, got {got}\)"
        with pytest.raises(ValueError, match=message):
            shards(str(source))
        data = shards(str(source), on_broken="skip")
        batches(data)
        assert (data.num_samples, data.num_broken) == (30, 8)
    chunk.write_bytes(whole)
    for changed, message in [
        (
            {"chunk_size": 7},
            r"chunk must be that of index\.json, got RuntimeError: Chunk 1 header item count",
        ),
        ({"chunk_size": -1}, r"at least 0 samples, got -1 for .*chunk-0-1\.bin"),
        ({"chunk_size": 7.5}, r"index\.json must be an index of LitData, got TypeError"),
    ]:
        chunks = [*content["chunks"]]
        chunks[1] = {**chunks[1], **changed}
        index.write_text(json.dumps({**content, "chunks": chunks}))
        with pytest.raises(ValueError, match=message):
            shards(str(source))
    for text, message in [
        (json.dumps({"chunks": content["chunks"]}), "must be an index of LitData, got KeyError"),
        ("{", r"index\.json must be an index in JSON, got"),
    ]:
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            shards(str(source))


@pytest.mark.filterwarnings("ignore")  # of litdata
def test_litdata_that_would_run_code_is_refused(tmp_path: Path):
    evil = [{**item, "label": Evil(tmp_path / "mark")} for item in items(0, 30)]
    source = litdata_folder(tmp_path / "lit", evil)
    for on_broken in ("error", "skip"):
        with pytest.raises(ValueError, match=r"plain values, .* no_header_tensor, got 'pick"):
            shards(source, on_broken=on_broken)
    index = tmp_path / "lit" / "index.json"
    given = index.read_text()
    for changed, message in [
        (given.replace('"pickle"', '"bytes:pickle"'), "must be plain values.*got 'bytes:pickle'"),
        (given.replace('"pickle"', '"graph"'), "must be plain values.*got 'graph'"),
        (
            given.replace('"pickle"', '"int"').replace("builtins.dict", "collections.defaultdict"),
            r"must be dictionaries, lists or tuples, got 'collections\.defaultdict'",
        ),
        (
            given.replace('"pickle"', '"int"').replace("chunk-0-0", "../chunk-0-0"),
            r"chunks of .* must lie in it, got '\.\./chunk-0-0",
        ),
    ]:
        assert changed != given
        index.write_text(changed)
        with pytest.raises(ValueError, match=message):
            shards(source)
    index.write_text(given.replace('"pickle"', '"bytes"'))  # when it is checked
    from sslzoo.data.streams.litdata import LitShards
    from sslzoo.data.streams.remote import ShardCache
    from sslzoo.data.streams.shards import Fields

    opened = LitShards(source, Fields("image", "label"), ShardCache())
    index.write_text(given)  # when the library reads it
    with pytest.raises(ValueError, match="got pickled ones, which run code"):
        opened.read(0, 0)
    assert not (tmp_path / "mark").exists()


def pairs() -> list[tuple[bytes, int]]:
    """Items as tuples, since the library compresses no dictionaries."""
    return [(item["image"], item["label"]) for item in items(0, 30)]


def compressed_folder(root: Path, compression: str = "zstd", level: str = "chunk") -> str:
    pytest.importorskip("zstd")
    return litdata_folder(root, pairs(), compression=compression, compression_level=level)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")  # of litdata
@pytest.mark.parametrize("compression", ["zstd", "zstd:7"])
def test_compressed_litdata_is_read_and_left_as_it_is(tmp_path: Path, compression: str):
    source = compressed_folder(tmp_path / "lit", compression)
    before = content_of(tmp_path / "lit")
    assert f"chunk-0-1.{compression}.bin" in before
    wanted = samples(expected(tmp_path))
    for given, cache_gb in [(source, 1.0), (source, 1e-6), (f"file://{source}", 1e-6)]:
        data = shards(given, cache_dir=str(tmp_path / "cache"), cache_gb=cache_gb)
        assert samples(data) == wanted
        assert content_of(tmp_path / "lit") == before
    data = shards(source, cache_dir=str(tmp_path / "cache"))
    assert data.sets.train.fingerprint() is not None
    if compression == "zstd":
        check_ranks_workers_and_resume(data)
    assert content_of(tmp_path / "lit") == before


@pytest.mark.filterwarnings("ignore")  # of litdata
@pytest.mark.parametrize("problem", ["truncated", "garbage", "missing"])
def test_a_broken_chunk_of_compressed_litdata_breaks_no_other(tmp_path: Path, problem: str):
    source = compressed_folder(tmp_path / "lit")
    cache_dir = str(tmp_path / "cache")
    assert samples(shards(source, cache_dir=cache_dir)) == samples(expected(tmp_path))
    chunk = tmp_path / "lit" / "chunk-0-1.zstd.bin"
    content = chunk.read_bytes()
    chunk.unlink()
    if problem != "missing":
        chunk.write_bytes(content[:200] if problem == "truncated" else b"x" * len(content))
    with pytest.raises(ValueError, match=r"cannot read sample . of .*chunk-0-1\.zstd\.bin"):
        batches(shards(source, cache_dir=cache_dir))
    data = shards(source, cache_dir=cache_dir, on_broken="skip")
    batches(data)
    assert data.num_broken == 8
    read = data.sets.train.shards.again(1)
    for number in (7, 8, 16, 9, 0, 29):
        if 8 <= number < 16:
            with pytest.raises(ValueError, match="the chunk must"):
                read.read(*read.place(number))
        else:
            assert read.read(*read.place(number)).image == encoded(number)


@pytest.mark.filterwarnings("ignore")  # of litdata
@pytest.mark.parametrize("compressed", [False, True])
def test_want_of_memory_is_no_broken_sample(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
):
    make = compressed_folder if compressed else lambda root: litdata_folder(root, pairs())
    source = make(tmp_path / "lit")

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    if compressed:
        compressor = SimpleNamespace(decompress=full)
        monkeypatch.setattr("sslzoo.data.streams.litdata._compressor", lambda _: compressor)
    else:
        monkeypatch.setattr("litdata.StreamingDataset.__getitem__", full)
    with pytest.raises(MemoryError):
        shards(source, cache_dir=str(tmp_path / "cache"), on_broken="skip")


@pytest.mark.filterwarnings("ignore")  # of litdata
def test_an_error_of_the_decompression_is_that_of_a_broken_sample(tmp_path: Path):
    source = compressed_folder(tmp_path / "lit", level="sample")  # the library writes no frames
    with pytest.raises(ValueError, match=r"chunk must be that of index\.json, got Error: Input"):
        shards(source)


def test_litdata_of_another_compression_is_refused(tmp_path: Path):
    source = Path(litdata_folder(tmp_path / "lit", pairs()))
    index = json.loads((source / "index.json").read_text())
    index["config"]["compression"] = "gzip"
    (source / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"compression of .* must be zstd or null, got 'gzip'"):
        shards(str(source))


def iterable(count: int = 3) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    )
    rows = [{"image": {"bytes": row["image"], "path": None}, "label": row["label"]}
            for row in items(0, 30)]  # fmt: skip
    return datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(count)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_iterable_sets_give_the_samples_of_tar_files(tmp_path: Path):
    data = ImageDataset(
        iterable().with_format("torch"), two_crops(), batch_size=6, seed=1, num_workers=0
    )
    data.setup("fit")
    assert data.sets.train.shards.counts.tolist() == [10, 10, 10]
    assert (data.num_samples, data.num_classes) == (30, 3)
    assert samples(data) == samples(expected(tmp_path))
    check_ranks_workers_and_resume(data)


@pytest.mark.parametrize("num_samples", [None, 20])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_iterable_set_that_is_shuffled_must_have_a_seed(num_samples: int | None):
    def data(given: Any) -> ImageDataset:
        data = ImageDataset(
            *(given, two_crops(), 6), seed=1, num_workers=0, num_samples=num_samples
        )
        data.setup("fit")
        return data

    given = iterable()
    datasets = pytest.importorskip("datasets")
    mixed = datasets.interleave_datasets([given, given], [0.5, 0.5])
    for one in (given.shuffle(buffer_size=10), given.shuffle(buffer_size=10).map(dict), mixed):
        with pytest.raises(ValueError, match=r"must be shuffled with a seed.*use shuffle\(seed=0"):
            data(one)
    whole, again = (samples(data(given.shuffle(seed=3, buffer_size=10))) for _ in range(2))
    assert whole == again


def test_generators_of_several_shards_need_no_number_of_samples():
    datasets = pytest.importorskip("datasets")

    def generate(shards: list[int]) -> Any:
        for shard in shards:
            yield from items(10 * shard, 10)

    given = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": [0, 1, 2]})
    data = ImageDataset(given, two_crops(), batch_size=6, seed=1, num_classes=3)
    data.setup("fit")
    assert sorted(samples(data)) == list(range(30))


def uneven(first: int, counts: Sequence[int]) -> Any:
    """An iterable set with shards of so many samples, whose labels are their numbers."""
    datasets = pytest.importorskip("datasets")

    def generate(shards: list[list[int]]) -> Any:
        for start, count in shards:
            for i in range(start, start + count):
                yield {"image": {"bytes": encoded(i), "path": None}, "label": i}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    parts = [[first + sum(counts[:i]), count] for i, count in enumerate(counts)]
    return datasets.IterableDataset.from_generator(
        generate, gen_kwargs={"shards": parts}, features=features
    )


SHARDS_WOULD_DIFFER = {
    "take": lambda one, _: one.take(10),
    "skip": lambda one, _: one.skip(10),
    "shuffle and take": lambda one, _: one.shuffle(seed=3, buffer_size=9).take(40),
    "take and filter": lambda one, _: one.take(20).filter(lambda row: row["label"] % 2),
    "take and concatenate": lambda one, concatenate: concatenate([one.take(10), one.skip(10)]),
    "repeat and take": lambda one, _: one.repeat(None).take(90),
    "indices": lambda one, _: one.map(lambda row, i: {"label": i}, with_indices=True),
    "last batch": lambda one, _: one.map(
        lambda rows: rows, batched=True, batch_size=4, drop_last_batch=True
    ),
}


def set_of(given: Any, **options: Any) -> ImageDataset:
    plain = {"batch_size": 4, "seed": 1, "num_workers": 0, "num_classes": 2000}
    data = ImageDataset(given, two_crops(), **{**plain, **options})
    data.setup("fit")
    return data


def check_one_shard(given: Any) -> None:
    """Check the samples and their order, on ranks and workers and after a resume."""
    wanted = [int(row["label"]) for row in given]
    data = set_of(given)
    shards = data.sets.train.shards
    assert shards.counts.tolist() == [len(wanted)]
    assert [shards.read(0, i).label for i in range(len(wanted))] == wanted
    whole = [batch.label.tolist() for batch in batches(data)]
    assert all(label in wanted for label in chain(*whole))
    assert [batch.label.tolist() for batch in batches(data, first=1)] == whole[1:]
    ranks = [batches(data, rank=rank, world=2, workers=2) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        assert sorted(one) == sorted(chain(*(part.label.tolist() for part in parts)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", SHARDS_WOULD_DIFFER)
def test_an_iterable_set_whose_shards_would_differ_is_read_as_one(name: str):
    datasets = pytest.importorskip("datasets")
    check_one_shard(SHARDS_WOULD_DIFFER[name](uneven(0, [3, 40]), datasets.concatenate_datasets))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"stopping_strategy": "all_exhausted"},
        {"probabilities": [0.5, 0.5], "seed": 1},
    ],
    ids=["in turn", "all", "at random"],
)
def test_interleaved_sets_are_read_in_their_own_order(how: dict[str, Any]):
    datasets = pytest.importorskip("datasets")
    given = [uneven(0, [3, 40]), uneven(1000, [20, 5])]
    check_one_shard(datasets.interleave_datasets(given, **how))


def test_a_set_that_was_split_over_nodes_is_refused():
    pytest.importorskip("datasets")
    from datasets.distributed import split_dataset_by_node

    for options in ({}, {"num_samples": 12}):
        with pytest.raises(ValueError, match=r"must be the whole set, .*split_dataset_by_node"):
            set_of(split_dataset_by_node(uneven(0, [9, 9]), 0, 2), **options)


def test_an_iterable_set_without_an_end_is_refused():
    datasets = pytest.importorskip("datasets")
    endless = uneven(0, [9, 9]).repeat(None)
    both = [endless, uneven(50, [4])]
    for given in (
        endless.map(dict),
        datasets.concatenate_datasets(both),
        datasets.interleave_datasets(both, stopping_strategy="all_exhausted"),
    ):
        with pytest.raises(ValueError, match=r"must have an end, .* got one of repeat\(None\)"):
            set_of(given)
    assert set_of(datasets.interleave_datasets(both)).num_samples == 8
    assert set_of(endless.map(dict), num_samples=12).num_samples == 12


def test_a_shard_is_entered_by_skipping_not_by_reading_the_stream():
    datasets = pytest.importorskip("datasets")
    made: list[int] = []

    def generate(shards: list[int]) -> Any:
        for shard in shards:
            for row in items(600 * shard, 600):
                made.append(shard)
                yield row

    given = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": [0, 1, 2]})
    from sslzoo.data.streams.iterable import IterableShards

    shards = IterableShards(given, ("image", "label"), [600] * 3)
    assert shards.read(1, 300).image == encoded(900)
    assert shards.read(1, 511).image == encoded(1111)
    assert shards.read(1, 512).image == encoded(1112)
    assert set(made) == {1}
    assert len(made) <= 600
    with pytest.raises(ValueError, match="ended after 600 samples"):
        IterableShards(given, ("image", "label"), [700] * 3).read(0, 650)


def test_a_forked_process_does_not_read_on_in_a_file_of_its_parent(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "lines"
    path.write_text("".join(f"{i:0127d}\n" for i in range(1024)))

    def generate(paths: list[str]) -> Any:
        for one in paths:
            with open(one) as file:  # its position is that of every process that shares it
                yield from ({"image": line.strip(), "label": 0} for line in file)

    given = datasets.IterableDataset.from_generator(generate, gen_kwargs={"paths": [str(path)]})
    from sslzoo.data.streams.iterable import IterableShards

    shards = IterableShards(given, ("image", "label"), [1024])
    assert int(shards.read(0, 0).image) == 0
    child = os.fork()
    if child == 0:
        try:
            found = [int(shards.read(0, offset).image) for offset in range(256, 1024)]
            os._exit(found != list(range(256, 1024)))
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    found = [int(shards.read(0, offset).image) for offset in range(256, 1024)]
    assert found == list(range(256, 1024))


def test_a_streamed_hugging_face_folder_needs_no_number_of_samples(tmp_path: Path):
    pytest.importorskip("datasets")
    parquet(tmp_path / "p", form="struct")
    data = HFImages(*(str(tmp_path / "p"), two_crops(), 6), streaming=True, seed=1, num_workers=0)
    data.setup("fit")
    assert data.sets.train.shards.counts.tolist() == COUNTS
    assert sorted(samples(data)) == list(range(30))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset closes no file
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_we_write_and_writes_what_we_read(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    pattern = str(tmp_path / "w-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0) as sink:
        for i in range(30):
            sink.write({"__key__": f"{i:04d}", "jpg": encoded(i), "cls": i % 3})
    data = shards(str(tmp_path / "w-*.tar"))
    assert data.sets.train.shards.counts.tolist() == [7, 7, 7, 7, 2]
    assert samples(data) == samples(expected(tmp_path))
    names = write_tars(tmp_path / "ours", COUNTS)
    read = list(webdataset.WebDataset(names, shardshuffle=False))
    assert [row["jpg"] for row in read] == [encoded(i) for i in range(30)]
    assert [int(row["cls"]) for row in read] == [i % 3 for i in range(30)]


@pytest.mark.parametrize("name", ["pyarrow.parquet", "litdata"])
def test_a_missing_library_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch):
    from sslzoo.data.streams.shards import library

    monkeypatch.setitem(sys.modules, name, None)
    package = re.escape(name.partition(".")[0])
    with pytest.raises(ImportError, match=f"reading x needs the package {package}, .*pip install"):
        library(name, "x")


def test_torch_has_no_part_in_the_order(tmp_path: Path):
    data = expected(tmp_path)
    torch.manual_seed(0)
    first = [batch.index.tolist() for batch in batches(data)]
    torch.manual_seed(1)
    assert [batch.index.tolist() for batch in batches(data)] == first
