"""Shards are written whole or not at all, and hold the files byte by byte."""

from __future__ import annotations

import errno
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from PIL import Image

import sslzoo.data.streams.write as write
from sslzoo.commands.data import main
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.sources import open_shards
from sslzoo.data.streams.tar import BrokenShardError, TarKeys, index_path, scan_tar
from sslzoo.data.streams.write import index_shards, write_shards
from tests.data.streams.toys import CLASSES, encoded, write_photos, write_tar, write_tars


def test_shards_hold_the_files_byte_by_byte_in_mixed_order(tmp_path: Path):
    root = write_photos(tmp_path / "photos")
    write_photos(root, (1, 2, 1), "val")
    written = write_shards(str(root), str(tmp_path / "out"), shard_mb=0.02)
    assert (written["train"].samples, written["train"].classes) == (36, 3)
    assert written["train"].shards == len(list((tmp_path / "out").glob("train-*.tar"))) > 3
    names = (tmp_path / "out" / "train.files.txt").read_text().splitlines()
    assert names != sorted(names)
    found: list[tuple[bytes, int]] = []
    for path in sorted((tmp_path / "out").glob("train-*.tar")):  # read by tarfile alone
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]
        assert os.path.getsize(path) <= 0.02 * 2**20 + tarfile.RECORDSIZE
        for (image, content), (label, text) in zip(members[::2], members[1::2], strict=True):
            assert image.removesuffix(".jpg") == label.removesuffix(".cls") == f"{len(found):09d}"
            found.append((content, int(text)))
    expected = [((root / "train" / name).read_bytes(), CLASSES.index(name.partition("/")[0]))
                for name in names]  # fmt: skip
    assert found == expected
    listed = json.loads((tmp_path / "out" / "train.json").read_text())
    assert listed["classes"] == CLASSES
    assert sum(shard["nsamples"] for shard in listed["shardlist"]) == 36
    again = write_shards(str(root), str(tmp_path / "again"), shard_mb=0.02)
    for path in sorted((tmp_path / "out").iterdir()):
        assert (again["train"].file.parent / path.name).read_bytes() == path.read_bytes()


def test_an_output_that_exists_is_refused_and_unchanged(tmp_path: Path):
    root = write_photos(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"the output must not exist, got .*out"):
        write_shards(str(root), str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("problem", ["unreadable", "class", "disk", "interrupt"])
def test_nothing_is_left_of_a_failed_writing(
    tmp_path: Path, problem: str, monkeypatch: pytest.MonkeyPatch
):
    root = write_photos(tmp_path / "photos")
    error: type[BaseException] = ValueError
    if problem == "unreadable":
        (root / "train" / "eel" / "3.jpg").write_bytes(b"no image")
    elif problem == "class":
        (root / "val" / "fox").mkdir(parents=True)
        (root / "val" / "fox" / "0.jpg").write_bytes(encoded(0))
    else:
        error = OSError if problem == "disk" else KeyboardInterrupt
        original = write._Shard.add

        def fail(self: write._Shard, key: str, members: dict[str, bytes]) -> None:
            if key.endswith("20"):
                raise error("full")
            original(self, key, members)

        monkeypatch.setattr(write._Shard, "add", fail)
    with pytest.raises(error, match=r"3\.jpg|fox|full"):
        write_shards(str(root), str(tmp_path / "out"), shard_mb=0.02)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("at", ["folder", "shard"])
def test_a_full_disk_is_said_of_the_output(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
):
    root, out = write_photos(tmp_path / "photos"), tmp_path / "out"

    def full(*args: object, **kwargs: object) -> None:
        named = (str(tmp_path / ".out.abc"),) if at == "folder" else ()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)

    where = (write.tempfile, "mkdtemp") if at == "folder" else (write._Shard, "add")
    monkeypatch.setattr(*where, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_shards(str(root), str(out))
    assert caught.value.filename == str(out)


def test_unreadable_files_are_skipped_by_choice_and_named(tmp_path: Path):
    root = write_photos(tmp_path / "photos")
    (root / "train" / "eel" / "3.jpg").write_bytes(encoded(0)[:200])
    (root / "train" / "eel" / "4.jpg").unlink()
    (root / "train" / "eel" / "4.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"cannot read the image .*[34]\.jpg.*on_broken"):
        write_shards(str(root), str(tmp_path / "out"), decode=True)
    written = write_shards(str(root), str(tmp_path / "out"), on_broken="skip", decode=True)
    assert written["train"].samples == 34
    assert sorted(Path(path).name for path in written["train"].skipped) == ["3.jpg", "4.jpg"]


def test_bytes_that_changed_on_the_way_to_the_disk_are_noticed(tmp_path: Path):
    shard = write._Shard(tmp_path / "a.tar")
    for i in range(3):
        shard.add(str(i), {"jpg": encoded(i), "cls": b"1"})
    shard.close()
    shard.verify(TarKeys())
    content = bytearray(shard.path.read_bytes())
    content[700] ^= 1
    shard.path.write_bytes(content)
    with pytest.raises(ValueError, match="must hold the 3 samples that were written"):
        shard.verify(TarKeys())


def test_the_index_is_that_of_the_members(tmp_path: Path):
    long = "d" * 120  # needs a header of its own
    members = [
        ("__skipped__/x.jpg", b"1"),
        (f"{long}/a.b.jpg", b""),
        ("a/0.jpg", encoded(0)),
        ("a/0.cls", b"2"),
        ("a/1.cls", b"1"),
        ("a/1.png", encoded(1, "PNG")),
        ("a/._1.png", b"of a Mac"),
        ("a/README", b"no sample"),
        ("a/2.cls", b"0"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    index = scan_tar(path)
    content = path.read_bytes()
    parts = [[content[o : o + n] if o >= 0 else None for o, n in row.reshape(2, 2)]
             for row in index[-3:]]  # fmt: skip
    assert parts == [[encoded(0), b"2"], [encoded(1, "PNG"), b"1"], [None, b"0"]]
    assert len(index) == 5
    for size in (len(content) // 3, 100, 0):
        path.write_bytes(content[:size])
        with pytest.raises(BrokenShardError, match=r"a\.tar must be a whole, uncompressed tar"):
            scan_tar(path)


def test_existing_shards_are_indexed_and_listed(tmp_path: Path):
    names = write_tars(tmp_path / "t", [3, 5])
    with pytest.raises(ValueError, match=r"must be a new \.json file in the one folder"):
        index_shards(names, None, "auto", str(tmp_path / "t.json"))
    listed = str(tmp_path / "t" / "all.json")
    assert index_shards([str(tmp_path / "t" / "t-{000..001}.tar")], None, "auto", listed) == 8
    for name in names:
        assert np.array_equal(np.load(index_path(name)), scan_tar(name))
    found = open_shards(listed, None, "auto", ShardCache()).shards
    assert found.counts.tolist() == [3, 5]
    assert found.read(1, 4) == (encoded(7), "1", None)
    first = [(f"{i}.{kind}", encoded(i) if kind == "jpg" else b"2")
             for i in (2, 0, 1) for kind in ("cls", "jpg")]  # fmt: skip
    size = Path(names[0]).stat().st_size
    assert write_tar(Path(names[0]), first).stat().st_size == size
    with pytest.raises(ValueError, match=r"index must be that of the file, but no member of \d+"):
        open_shards(listed, None, "auto", ShardCache()).shards.read(0, 1)
    fewer = json.loads(Path(listed).read_text())
    fewer["shardlist"][1]["nsamples"] = 4
    Path(names[0]).with_name("fewer.json").write_text(json.dumps(fewer))
    found = open_shards(str(tmp_path / "t" / "fewer.json"), None, "auto", ShardCache()).shards
    with pytest.raises(ValueError, match="the shard has 5 samples, its list says fewer"):
        found.read(1, 0)
    Path(names[1]).write_bytes(Path(names[1]).read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"t-001\.tar must have \d+ bytes as its list says, got"):
        open_shards(listed, None, "auto", ShardCache())


@pytest.mark.parametrize("kind", ["color", "gray", "bands", "captions"])
def test_the_printed_yaml_fits_the_images(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "photos"
    for i in range(7):
        folder = root / ("cat" if i < 4 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        side = 40 if i else 9  # one of them is tiny
        pixels = np.random.default_rng(i).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
        if kind == "bands":
            np.save(folder / f"{i}.npy", pixels[..., [0, 1, 2, 0, 1]].astype(np.uint16) * 257)
        else:
            Image.fromarray(pixels[..., 0] if kind == "gray" else pixels).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"a photograph {i}")
    more = ["--captions"] if kind == "captions" else []
    main(["shard", str(root), "--output", str(tmp_path / "out"), *more])
    section = yaml.safe_load(capsys.readouterr().out.partition("\n\n")[2])["data"]
    assert section["init_args"]["batch_size"] == 4
    if kind == "captions":
        assert section["init_args"]["transform"]["init_args"]["size"] == 32
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=LightningDataModule)
    data = parser.instantiate(parser.parse_object({"data": section}))["data"]
    data.setup("fit")
    channels = {"color": 3, "gray": 1, "bands": 5}[kind]
    first = data.train_views(next(iter(data.train_dataloader())), 0).views
    assert [view.shape for view in first] == [(4, channels, 32, 32)] * 2
