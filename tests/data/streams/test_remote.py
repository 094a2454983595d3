"""Shards of an address: whole files in a cache with a bound, and no half files."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch

from sslzoo.data.streams import remote
from sslzoo.data.streams.remote import AddressError, ShardCache
from sslzoo.data.streams.write import index_shards
from tests.data.streams.toys import batches, encoded, shards, write_tar, write_tars


def files(folder: Path) -> list[str]:
    return sorted(path.name.split("-", 2)[2] for path in folder.iterdir() if "-" in path.name)


def test_shards_of_an_address_are_those_of_the_files(tmp_path: Path):
    names = write_tars(tmp_path / "t", [6, 4, 8])
    index_shards(names, None, "auto", str(tmp_path / "t" / "all.json"))
    local = batches(shards(str(tmp_path / "t" / "all.json")))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "t"), "/t", recursive=True)
    data = shards("memory://t/all.json", cache_dir=str(tmp_path / "cache"))
    assert files(tmp_path / "cache") == ["t-000.tar", "t-000.tar.index.npy"]  # of the first check
    for ours, theirs in zip(batches(data), local, strict=True):
        assert all(map(torch.equal, ours.views, theirs.views))
        assert torch.equal(ours.label, theirs.label)
    assert len(files(tmp_path / "cache")) == 6
    memory.rm("/t", recursive=True)
    again = [batch.index.tolist() for batch in batches(data)]  # from the cache alone
    assert again == [batch.index.tolist() for batch in local]


def test_the_shards_that_are_mixed_next_are_downloaded_ahead(tmp_path: Path):
    names = write_tars(tmp_path / "t", [4] * 6)
    index_shards(names, None, "auto", str(tmp_path / "t" / "all.json"))
    fsspec.filesystem("memory").put(str(tmp_path / "t"), "/a", recursive=True)
    data = shards("memory://a/all.json", cache_dir=str(tmp_path / "cache"))
    order = data.order().shards(data.seed, 0).tolist()
    next(iter(data.train_dataloader()))  # it needs the first two
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "fetch" in thread.name:
            thread.join()
    wanted = {f"t-{shard:03d}.tar" for shard in order[:4]} | {"t-000.tar"}
    assert {name for name in files(tmp_path / "cache") if name.endswith(".tar")} == wanted


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_run_of_another_reads_no_address_in_a_list_either(tmp_path: Path, suffix: str):
    listed = {"shardlist": [{"url": f"memory://b/x.{suffix}", "nsamples": 9}]}
    (tmp_path / "all.json").write_text(json.dumps(listed))
    given = tmp_path / "all.json" if suffix == "tar" else "memory://b/x.parquet"
    with pytest.raises(ValueError, match=r"must be local, since nothing is downloaded.*--trust"):
        shards(str(given), local_files_only=True)


def test_files_used_longest_ago_are_removed(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for name in "abc":
        memory.pipe(f"/e/{name}.tar", bytes(1000))
    cache = ShardCache(str(tmp_path), 2500 / 2**30)
    paths = {name: cache.path(f"memory://e/{name}.tar") for name in "ab"}
    for age, name in enumerate("ab"):
        os.utime(paths[name], (1000 + age, 1000 + age))
    cache.path("memory://e/a.tar")  # used again
    own = paths["a"].name[:17] + "0-"
    for name, age in (("old.part", 3 * 86400), ("new.part", 60)):
        (tmp_path / f"{own}{name}.tar").write_bytes(bytes(9))
        os.utime(tmp_path / f"{own}{name}.tar", (time.time() - age,) * 2)
    cache.path("memory://e/c.tar")
    assert files(tmp_path) == ["a.tar", "c.tar", "new.part.tar"]


def test_other_files_in_the_folder_are_neither_counted_nor_removed(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for name in "ab":
        memory.pipe(f"/o/{name}.tar", bytes(1000))
    (tmp_path / "litdata").mkdir()
    for name in ("thesis.csv", "train-0.tar", "x-old.part.tar", "litdata/chunk.bin"):
        (tmp_path / name).write_bytes(bytes(3000))
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    before = set(tmp_path.rglob("*"))
    cache = ShardCache(str(tmp_path), 1500 / 2**30)
    first = cache.path("memory://o/a.tar")
    assert before | {first} <= set(tmp_path.rglob("*"))
    cache.path("memory://o/b.tar")
    assert before <= set(tmp_path.rglob("*"))
    assert not first.exists()


@pytest.mark.parametrize("protocol", ["file", "memory", "http"])
def test_a_shard_that_was_rewritten_is_downloaded_again(tmp_path: Path, protocol: str):
    web, memory = tmp_path / "web", fsspec.filesystem("memory")
    server = Web(web)
    url = {"file": f"file://{web}", "memory": "memory://v", "http": server.url}[protocol]
    if protocol == "http":
        pytest.importorskip("aiohttp")

    def write(labels: list[bytes]) -> None:
        members = [(f"{i}.jpg", encoded(i)) for i in range(4)]
        for i, label in enumerate(labels):
            members.insert(2 * i + 1, (f"{i}.cls", label))
        name = str(write_tar(web / "t.tar", members))
        os.utime(name, (1000 * len(set(labels)),) * 2)
        (web / "all.json").unlink(missing_ok=True)
        index_shards([name], None, "auto", str(web / "all.json"))
        memory.put(f"{web}/", "/v", recursive=True)

    def labels(options: dict[str, object]) -> list[int]:
        data = shards(f"{url}/all.json", batch_size=4, shuffle_shards=0, **options)
        (batch,) = batches(data)
        assert batch.label is not None
        return batch.label.tolist()

    options = {"cache_dir": str(tmp_path / "cache")}
    try:
        write([b"0"] * 4)
        assert labels(options) == [0] * 4
        kept = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*-*")}
        assert labels(options) == [0] * 4
        assert {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*-*")} == kept
        write([b"2", b"1"] * 2)
        assert labels(options) == [2, 1, 2, 1]
    finally:
        server.stop()
    assert files(tmp_path / "cache") == ["t.tar", "t.tar.index.npy"]  # the old ones are removed


class Web:
    """A server of the files of a folder."""

    def __init__(self, folder: Path, handler: type[SimpleHTTPRequestHandler] | None = None) -> None:
        given = partial(handler or Quiet, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), given)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class Unsteady(Quiet):
    """Answers every second request alone."""

    asked = 0

    def do_GET(self) -> None:
        Unsteady.asked += 1
        if Unsteady.asked % 2:
            self.send_error(503)
        else:
            super().do_GET()


class Cut(Quiet):
    """Tells the size of a file and sends the half of it."""

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.path == "/b.tar" else content)


class Whole(Quiet):
    """Sends a file without its length, of which no part can be asked for."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Path(self.translate_path(self.path)).read_bytes())

    def do_HEAD(self) -> None:
        self.do_GET()


def test_parquet_of_a_server_that_sends_whole_files_is_read(tmp_path: Path):
    pytest.importorskip("aiohttp")
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table({"image": [encoded(i) for i in range(6)], "label": [0] * 6})
    (tmp_path / "web").mkdir()
    parquet.write_table(table, tmp_path / "web" / "a.parquet")
    server = Web(tmp_path / "web", Whole)
    options = {"on_broken": "skip", "cache_dir": str(tmp_path / "cache")}
    try:
        data = shards(f"{server.url}/a.parquet", **options)
        batches(data)
        assert (data.num_samples, data.num_broken) == (6, 0)
    finally:
        server.stop()


def test_a_download_that_fails_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("aiohttp")
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.tar").write_bytes(b"abc")
    server = Web(tmp_path / "web", Unsteady)
    try:
        assert (
            ShardCache(str(tmp_path / "cache")).path(f"{server.url}/a.tar").read_bytes() == b"abc"
        )
    finally:
        server.stop()
    assert waited == [1.0]


def test_a_download_that_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "_WAITS", (0.0,))
    (tmp_path / "web").mkdir()
    for name in ("a.tar", "b.tar"):
        (tmp_path / "web" / name).write_bytes(os.urandom(5000))
    server = Web(tmp_path / "web", Cut)
    url = server.url
    cache = ShardCache(str(tmp_path / "cache"))
    try:
        found = cache.path(f"{url}/a.tar").read_bytes()
        assert found == (tmp_path / "web" / "a.tar").read_bytes()
        for name in ("b.tar", "no.tar"):
            with pytest.raises(AddressError, match=f"{url}/{name}"):
                cache.path(f"{url}/{name}")
    finally:
        server.stop()
    assert files(tmp_path / "cache") == ["a.tar"]
    assert not list((tmp_path / "cache").glob("*.part*"))


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_what_cannot_be_downloaded_is_no_broken_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: str
):
    names = write_tars(tmp_path / "t", [6, 4, 8])
    index_shards(names, None, "auto", str(tmp_path / "t" / "all.json"))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "t"), f"/n{skip}", recursive=True)
    options = {"on_broken": skip, "num_workers": 0}

    memory.rm(f"/n{skip}/t-001.tar")
    data = shards(f"memory://n{skip}/all.json", cache_dir=str(tmp_path / "cache"), **options)
    with pytest.raises(AddressError, match=rf"readable, got memory://n{skip}/t-001\.tar"):
        batches(data)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(memory), "get_file", full)
    text = rf"downloads must have room.*/new for memory://n{skip}/t-000\.tar \(No space left"
    with pytest.raises(AddressError, match=text):
        shards(f"memory://n{skip}/all.json", cache_dir=str(tmp_path / "new"), **options)
    assert not files(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(AddressError, match=r"must have room and be writable, got .*/file for"):
        shards(f"memory://n{skip}/all.json", cache_dir=str(tmp_path / "file"), **options)


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_parquet_of_an_address_that_fails_is_not_left_out(tmp_path: Path, skip: str):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    memory = fsspec.filesystem("memory")
    for name in "ab":
        parquet.write_table(arrow.table({"image": [encoded(0)] * 6}), tmp_path / f"{name}.parquet")
        memory.put(str(tmp_path / f"{name}.parquet"), f"/p/{name}.parquet")
    names = [f"memory://p/{name}.parquet" for name in "abc"]
    options = {"on_broken": skip, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(AddressError, match=r"must be readable, got memory://p/c\.parquet"):
        shards(names, **options)
    with pytest.raises(ValueError, match=r"^image_key and label_key must be among the columns"):
        shards(names[:2], image_key="photo", **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_for_less_than_a_shard_is_slow_but_right(tmp_path: Path, workers: int):
    names = write_tars(tmp_path / "t", [6, 4, 8])
    index_shards(names, None, "auto", str(tmp_path / "t" / "all.json"))
    local = [batch.index.tolist() for batch in batches(shards(str(tmp_path / "t" / "all.json")))]
    options = {"cache_dir": str(tmp_path / "cache"), "cache_gb": 1 / 2**30}
    data = shards(f"file://{tmp_path}/t/all.json", **options)
    assert [batch.index.tolist() for batch in batches(data, workers=workers)] == local


def test_a_shard_of_another_size_than_its_list_says_is_refused(tmp_path: Path):
    names = write_tars(tmp_path / "t", [6])
    index_shards(names, None, "auto", str(tmp_path / "t" / "all.json"))
    size = os.path.getsize(names[0])
    with open(names[0], "ab") as file:
        file.write(bytes(512))
    message = f"must have {size} bytes as its list says, got {size + 512}"
    with pytest.raises(ValueError, match=message):
        shards(f"file://{tmp_path}/t/all.json", cache_dir=str(tmp_path / "cache"))
    os.truncate(names[0], size)
    (tmp_path / "t" / "t-000.tar.index.npy").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"index .*t-000\.tar\.index\.npy must be a whole array"):
        shards(str(tmp_path / "t" / "all.json"))


@pytest.mark.parametrize("query", ["?download=true", "?sig=a/b%2Fc*[d]"])
def test_the_query_of_an_address_is_no_part_of_a_name(tmp_path: Path, query: str):
    pytest.importorskip("aiohttp")
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    web = tmp_path / "web"
    names = write_tars(web, [6, 4])
    index_shards(names, None, "auto", str(web / "all.json"))
    listed = {"shardlist": [{"url": f"t-000.tar{query}", "nsamples": 6}]}
    (web / "one.json").write_text(json.dumps(listed))
    table = arrow.table({"image": [encoded(i) for i in range(6)], "label": [0] * 6})
    parquet.write_table(table, web / "a.parquet")
    server = Web(web)
    try:
        for name, count in (("all.json", 10), ("one.json", 6), ("a.parquet", 6)):
            data = shards(f"{server.url}/{name}{query}", cache_dir=str(tmp_path / "cache"))
            assert data.num_samples == count
            assert batches(data)
            assert all("?" not in text for text in data.sets.train.shards.identity())
        (web / "index.json").write_text(json.dumps({"chunks": [], "config": {}}))
        with pytest.raises(ValueError, match="address of LitData must have no query"):
            shards(f"{server.url}{query}", cache_dir=str(tmp_path / "cache"))
    finally:
        server.stop()


def test_a_folder_of_an_address_must_be_litdata(tmp_path: Path):
    fsspec.filesystem("memory").pipe("/f/lit-v1.0/a.txt", b"a")
    options = {"cache_dir": str(tmp_path)}
    with pytest.raises(AddressError, match=r"must be one of LitData.*got memory://f/li.*/\*\.parq"):
        shards("memory://f/lit-v1.0", **options)
    fsspec.filesystem("memory").pipe("/f/lit-v1.0/index.json", b'{"chunks": []}')
    with pytest.raises(ValueError, match=r"must be an index of LitData, got KeyError"):
        shards("memory://f/lit-v1.0", **options)


@pytest.mark.parametrize("name", ["x.part.tar", f"a.tar?signature={'x' * 300}"])
def test_any_name_of_an_address_is_kept_in_the_cache(tmp_path: Path, name: str):
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/k/{name}", bytes(1000))
    kept = ShardCache(str(tmp_path)).path(f"memory://k/{name}")
    memory.rm("/k", recursive=True)
    assert ShardCache(str(tmp_path)).path(f"memory://k/{name}") == kept
    assert len(files(tmp_path)) == 1
