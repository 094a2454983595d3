"""Pairs of images and captions in shards: batches on ranks, resume, what is alone, the command."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from sslzoo.callbacks import OnlineRetrieval
from sslzoo.commands.data import main
from sslzoo.data import ImageTextFolder, ImageTextShards
from sslzoo.data.streams.image_text import captions_of
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.write import index_shards, write_shards
from sslzoo.data.text.tokenizer import WordPiece
from sslzoo.methods import SigLIP
from sslzoo.transforms import clip_views
from tests.data.streams.toys import batches, encoded, write_tar
from tests.data.toys import clip, quiet

pytest.importorskip("tokenizers")

COUNTS = [5, 1, 8, 6]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def caption(number: int) -> str:
    return f"photo {NUMBERS[number // 10]} {NUMBERS[number % 10]}"


def members(number: int, form: str) -> list[tuple[str, bytes]]:
    kinds = ("jpg", "png", "webp")
    kind = kinds[number % 3]
    image = encoded(number, {"jpg": "JPEG"}.get(kind, kind.upper()))
    texts = [caption(number), f"again {NUMBERS[number % 10]}"][: 1 + number % 2]
    if form == "txt":
        text = ("txt", "\n".join(texts).encode())
    else:
        told: Any = texts if number % 2 else texts[0]
        text = ("json", json.dumps({"url": "x", "of": {"caption": told}}).encode())
    return [(f"{number:05d}.{kind}", image), (f"{number:05d}.{text[0]}", text[1])]


def tars(root: Path, form: str = "txt", without: Any = ()) -> str:
    first = 0
    for shard, count in enumerate(COUNTS):
        numbers = range(first, first + count)
        every = chain(*(members(number, form) for number in numbers))
        write_tar(root / f"p-{shard}.tar", [m for m in every if m[0] not in without])
        first += count
    return str(root / "p-*.tar")


def pairs(train: Any, **options: Any) -> ImageTextShards:
    plain: dict[str, Any] = {"batch_size": 4, "seed": 1, "num_workers": 0, "max_length": 9}
    plain |= {"shuffle_shards": 2, "shuffle_samples": 7}
    data = ImageTextShards(train, clip_views(8), WordPiece(60), **{**plain, **options})
    data.setup("fit")
    return data


def samples(data: Any, **options: int) -> dict[int, tuple[Any, list[int]]]:
    """The image and the words of each sample."""
    out = {}
    for batch in batches(data, **options):
        image, text = batch.views
        for row, index in enumerate(batch.index.tolist()):
            assert index not in out
            words = text.ids[row, : int(text.lengths[row])].tolist()
            out[index] = image[row].flatten().tolist(), words
    return out


def words_of(data: Any, ids: list[int]) -> str:
    return data.tokenizer._ready().decode(ids)


@pytest.mark.parametrize("form", ["txt", "json"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_pairs_are_the_same_on_ranks_and_workers_and_resume(tmp_path: Path, form: str) -> None:
    key = "txt" if form == "txt" else "json.of.caption"
    data = pairs(tars(tmp_path, form), text_key=key)
    whole = samples(data)
    assert sorted(whole) == list(range(20))
    for index, (_, ids) in whole.items():
        again = f"again {NUMBERS[index % 10]}" if index % 2 else caption(index)
        assert words_of(data, ids) in (caption(index), again)
    assert whole != samples(data, epoch=1)
    for world, workers in ((2, 0), (4, 0)) if form == "json" else ((2, 1),):
        parts = [samples(data, rank=r, world=world, workers=workers) for r in range(world)]
        assert sum(map(len, parts)) == 20
        assert {k: v for part in parts for k, v in part.items()} == whole
    one = [batch.index.tolist() for batch in batches(data)]
    kept = set(chain(*one[2:]))
    assert samples(data, first=2) == {k: v for k, v in whole.items() if k in kept}


def test_evaluation_has_every_caption_of_every_batch(tmp_path: Path) -> None:
    source = tars(tmp_path)
    data = pairs(source, val=source, eval_batch_size=1)
    texts = [data.eval_views(batch).views[1] for batch in data.eval_loader(data.sets.query)]
    assert all(text.ids.shape[:2] == (1, 2) for text in texts)
    assert sum(int((text.lengths > 2).sum()) for text in texts) == 30


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
def test_it_trains_and_retrieves(tmp_path: Path) -> None:
    source = tars(tmp_path)
    data = pairs(source, val=source)
    trainer = quiet([OnlineRetrieval((1, 20))])
    trainer.fit(clip(60, 9, SigLIP), data)
    assert trainer.callback_metrics["val/image_to_text_r20"] > 0.5


LONE = [
    ({"00003.jpg"}, 1, 0, "1 texts without an image, such as sample 3 of .*p-0.tar"),
    ({"00006.txt", "00013.txt"}, 0, 2, "2 images without a text, such as sample 0 of .*p-2.tar"),
]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(("without", "images", "texts", "message"), LONE)
def test_what_is_alone_is_named_or_left_out(
    tmp_path: Path, without: set[str], images: int, texts: int, message: str, indexed: bool
) -> None:
    source = tars(tmp_path, without=without)
    if indexed:
        with pytest.raises(ValueError, match=r"every sample must have a member"):
            index_shards([source], None, "txt", str(tmp_path / "list.json"))
    with pytest.raises(ValueError, match=message):
        pairs(source)
    data = pairs(source, unpaired="skip")
    assert data.num_samples == 20 - images - texts
    said = {words_of(data, ids) for _, ids in samples(data).values()}
    assert not any(caption(int(name[:5])) in said for name in without)


def test_empty_and_unreadable_pairs_are_named_or_counted(tmp_path: Path) -> None:
    source = tars(tmp_path)
    spoiled = [*members(0, "txt"), *members(2, "txt"), *members(4, "txt")]
    spoiled[1] = (spoiled[1][0], b"")
    spoiled[3] = (spoiled[3][0], b" \n")
    spoiled[4] = (spoiled[4][0], b"no image")
    write_tar(tmp_path / "p-0.tar", spoiled)
    with pytest.raises(ValueError, match=r"1 empty texts, such as sample 0 of .*p-0.tar"):
        pairs(source)
    with pytest.raises(ValueError, match=r"sample 2 of .*p-0.tar .*cannot identify image"):
        pairs(source, unpaired="skip")
    data = pairs(source, unpaired="skip", on_broken="skip")
    assert data.num_samples == 17
    with pytest.warns(UserWarning, match="skipped a broken sample"):
        found = samples_of_rows(data)
    assert {0, 1} & found == set()
    assert data.num_broken == 2


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (" \n", "must have a caption, got ' "),
        (None, "must have a caption, got None"),
        ({"a": 1}, "a caption must be a text or a list of texts, got {'a': 1}"),
        ("a\0b", "must be UTF-8 without NUL"),
    ],
)
def test_a_sample_without_a_text_is_refused_or_unpaired(
    tmp_path: Path, told: Any, message: str
) -> None:
    every = [m for i in range(6) for m in members(i, "json")]
    every[5] = (every[5][0], json.dumps({"of": {"caption": told}}).encode())
    write_tar(tmp_path / "p.tar", every)
    source = str(tmp_path / "p.tar")
    with pytest.raises(ValueError, match=rf"sample 2 of .*p.tar .*{message}"):
        pairs(source, text_key="json.of.caption")
    if told == " \n" or told is None:
        data = pairs(source, text_key="json.of.caption", unpaired="skip", drop_last=False)
        with pytest.warns(UserWarning, match=r"skipped a broken sample: sample 2 of"):
            assert samples_of_rows(data) == {0, 1, 3, 4, 5}
        assert data.num_broken == 1


def test_captions_end_at_line_breaks_alone() -> None:
    assert captions_of("a\u2028b\x0bc\x85d\r\ne\rf\n\n") == ["a b c d", "e", "f"]
    assert captions_of(["a\nb", None, " c "]) == ["a b", "c"]


def samples_of_rows(data: Any) -> set[int]:
    return {int(i) for batch in batches(data) for i in batch.index}


def test_a_wrong_key_and_an_address_are_refused(tmp_path: Path) -> None:
    source = tars(tmp_path, "json")
    with pytest.raises(ValueError, match=r"text_key must be a member .* got 'txt', which none"):
        pairs(source)
    with pytest.raises(ValueError, match=r"must have the field 'caption', got \['of', 'url'\]"):
        pairs(source, text_key="json.caption")
    with pytest.raises(ValueError, match="must not be trained on shards of an address"):
        _ = pairs(_in_memory(tmp_path), cache_dir=str(tmp_path / "cache"))


def _in_memory(root: Path) -> str:
    """The shards of a folder at an address of fsspec's memory."""
    fsspec = pytest.importorskip("fsspec")
    folder = root / "remote"
    index_shards([tars(folder)], None, "txt", str(folder / "list.json"))
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"/{root.name}/{path.name}", path.read_bytes())
    return f"memory://{root.name}/list.json"


def test_an_address_gives_the_pairs_of_the_disk(tmp_path: Path) -> None:
    address = _in_memory(tmp_path)
    local = pairs(str(tmp_path / "remote" / "list.json"))
    local.tokenizer.save(str(tmp_path / "words.json"))
    data = ImageTextShards(
        *(address, clip_views(8), WordPiece(path=str(tmp_path / "words.json")), 4, 9),
        seed=1,
        num_workers=0,
        shuffle_shards=2,
        shuffle_samples=7,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup("fit")
    assert samples(data) == samples(local)
    assert isinstance(data.cache, ShardCache)
    with pytest.raises(ValueError, match="address"):
        pairs(address, local_files_only=True)


def test_parquet_has_captions_too(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = arrow.table(
        {"image": [encoded(i) for i in range(8)], "caption": [caption(i) for i in range(8)]}
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    data = pairs(str(tmp_path / "a.parquet"), text_key="caption")
    assert {k: words_of(data, ids) for k, (_, ids) in samples(data).items()} == {
        i: caption(i) for i in range(8)
    }


def folder(root: Path) -> Path:
    for number in range(20):
        for name, content in members(number, "txt"):
            path = root / ("train" if number < 14 else "val") / f"d{number % 2}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def test_the_command_shards_a_folder_of_pairs(tmp_path: Path, capsys: Any) -> None:
    source, target = folder(tmp_path / "photos"), tmp_path / "shards"
    main(["shard", str(source), "--output", str(target), "--captions"])
    assert "sslzoo.data.ImageTextShards" in capsys.readouterr().out
    data = pairs(str(target / "train.json"), val=str(target / "val.json"))
    own = ImageTextFolder(str(source), clip_views(8), WordPiece(60), 4, 9)
    own.setup("fit")
    given = sorted(own.sets.train.captions.of(i) for i in range(14))
    assert sorted(data.sets.train._captions(i) for i in range(14)) == given
    assert len(data.sets.query) == 6


def test_the_command_names_what_is_alone(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos")
    (source / "train" / "d0" / "alone.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"1 texts without an image, such as .*alone.txt"):
        write_shards(str(source), str(tmp_path / "a"), captions=True)
    (source / "train" / "d0" / "alone.txt").unlink()
    (source / "train" / "d1" / "00001.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"must have its captions in 00001.txt, got none"):
        write_shards(str(source), str(tmp_path / "b"), captions=True)
    written = write_shards(str(source), str(tmp_path / "c"), captions=True, on_broken="skip")
    assert written["train"].samples == 13
    assert [Path(path).name for path in written["train"].skipped] == ["00001.png"]
