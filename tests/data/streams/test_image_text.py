"""Pairs of images and captions in shards: batches on ranks, resume, what is alone, the command."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from sslzoo.callbacks import OnlineKNN, OnlineRetrieval, OnlineZeroShot
from sslzoo.commands.data import main
from sslzoo.data import ImageShards, ImageTextFolder, ImageTextShards
from sslzoo.data.streams.image_text import captions_of
from sslzoo.data.streams.remote import ShardCache
from sslzoo.data.streams.write import index_shards, write_shards
from sslzoo.data.text.tokenizer import WordPiece
from sslzoo.methods import SigLIP
from sslzoo.transforms import clip_views
from tests.data.streams.test_formats import litdata_folder
from tests.data.streams.toys import CLASSES, batches, encoded, write_tar
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
        name = CLASSES[number % 3]
        text = ("json", json.dumps({"url": "x", "kind": name, "of": {"caption": told}}).encode())
    label = [("cls", str(number % 3).encode())] * (form == "txt")
    return [(f"{number:05d}.{end}", content) for end, content in [(kind, image), text, *label]]


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
    assert [text.ids.shape[:2] for text in texts] == [(1, 1), (1, 2)] * 10
    assert sum(int((text.lengths > 2).sum()) for text in texts) == 30


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
def test_it_trains_retrieves_and_classifies(tmp_path: Path) -> None:
    source = tars(tmp_path)
    data = pairs(source, val=source, label_key="cls", classes=["two", "five", "eight"])
    trainer = quiet([OnlineRetrieval((1, 20)), OnlineZeroShot(ks=(3,)), OnlineKNN(1)])
    trainer.fit(clip(60, 9, SigLIP), data)
    found = trainer.callback_metrics
    assert found["val/image_to_text_r20"] > 0.5
    assert found["val/zero_shot_top3"] == 1
    assert found["val/knn_top1_k1_t0.07"] == 1  # the bank has the images of the query


def labels_of(data: Any, **options: int) -> dict[int, int]:
    every = batches(data, **options)
    return {int(i): int(x) for b in every for i, x in zip(b.index, b.label, strict=True)}


@pytest.mark.parametrize("form", ["cls", "json", "index", "old index", "columns"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_labels_are_the_samples_for_any_ranks_and_workers(tmp_path: Path, form: str) -> None:
    source, options = tars(tmp_path, "json" if form == "json" else "txt"), {"label_key": "cls"}
    if form == "json":
        options = {"label_key": "json.kind", "text_key": "json.of.caption"}
    elif form == "columns":
        pytest.importorskip("pyarrow")
        source, options = table(tmp_path / "a.parquet"), {"label_key": "c", "text_key": "caption"}
    elif "index" in form:
        listed = str(tmp_path / "list.json")
        old = form == "old index"  # of the captions alone, which is not that of the labels
        index_shards([source], None, *(("txt", listed) if old else ("cls", listed, "txt")))
        source = listed
    data = pairs(source, classes=CLASSES, **options)
    assert (data.classes, data.num_classes) == (CLASSES, 3)
    wanted = {i: i % 3 for i in range(20)}
    assert labels_of(data) == wanted
    parts = [labels_of(data, rank=r, world=2, workers=form == "cls") for r in range(2)]
    assert parts[0] | parts[1] == wanted
    assert sum(map(len, parts)) == 20
    query = data.eval_loader(data.sets.train)
    assert [int(x) for batch in query for x in batch.label] == [i % 3 for i in range(20)]
    assert samples(data) == samples(pairs(source, text_key=data.keys[2]))  # nothing else is new


@pytest.mark.filterwarnings("ignore")  # of litdata
@pytest.mark.parametrize("is_tuple", [False, True])
def test_litdata_has_labels_beside_captions(tmp_path: Path, is_tuple: bool) -> None:
    plain = [(encoded(i), caption(i), i % 3) for i in range(12)]
    named = [dict(zip(("image", "text", "label"), item, strict=True)) for item in plain]
    source = litdata_folder(tmp_path / "lit", plain if is_tuple else named)
    data = pairs(source, text_key="text", label_key="auto", num_classes=3)
    assert labels_of(data) == {i: i % 3 for i in range(12)}
    assert {i: words_of(data, ids) for i, (_, ids) in samples(data).items()} == {
        i: caption(i) for i in range(12)
    }
    if not is_tuple:
        with pytest.raises(ValueError, match="must have 'kind', got"):
            pairs(source, text_key="text", label_key="kind", num_classes=3)


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (
            None,
            {},
            r"must have the label 'cls' \(label_key\), but 1 of 6 lack it, the first",
        ),
        (b"7", {}, r"sample 4 of .*p.tar .*a label must be in 0..2, got 7"),
        (
            b"cow",
            {},
            r"sample 4 of .*p.tar .*classes \(\['cat', 'dog', 'eel'\]\), got 'cow'",
        ),
        (b"", {}, r"sample 4 of .*p.tar .*one of classes .*, got ''"),
        (b"1", {"classes": None}, "classes must be the list .* or num_classes .* None"),
        (b"1", {"label_key": "kind"}, r"must have the label 'kind' .*, but 6 of 6 lack it"),
        (b"1", {"val": "cow"}, r"sample 2 of .*val.tar .*a label must be in 0..2, got 3"),
    ],
)
def test_wrong_labels_are_refused_before_training(
    tmp_path: Path, label: bytes | None, options: dict[str, Any], message: str
) -> None:
    every = [m for i in range(6) for m in members(i, "txt")]
    every[14:15] = [] if label is None else [("00004.cls", label)]
    source = str(write_tar(tmp_path / "p.tar", every))
    if "val" in options:
        more = [*every[:8], ("00002.cls", b"3")]
        options = {"val": str(write_tar(tmp_path / "val.tar", more))}
    with pytest.raises(ValueError, match=message):
        pairs(source, **{"label_key": "cls", "classes": CLASSES, **options})
    if not options:
        data = pairs(source, label_key="cls", classes=CLASSES, on_broken="skip", drop_last=False)
        with pytest.warns(UserWarning, match="skipped a broken sample: sample 4 of"):
            assert labels_of(data) == {i: i % 3 for i in (0, 1, 2, 3, 5)}


def test_a_null_is_no_label(tmp_path: Path) -> None:
    every = [m for i in range(4) for m in members(i, "json")]
    every[5] = ("00002.json", json.dumps({"kind": None, "of": {"caption": "a"}}).encode())
    source = str(write_tar(tmp_path / "p.tar", every))
    with pytest.raises(ValueError, match=r"sample 2 of .*'json.kind' must hold a label, got null"):
        pairs(source, text_key="json.of.caption", label_key="json.kind", classes=CLASSES)


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
    spoiled = [member for i in (0, 2, 4) for member in members(i, "txt")[:2]]
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
        ("a \ud83d b", "must be UTF-8 without NUL"),  # half an emoji
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
    with pytest.raises(ValueError, match=r"must have the field 'caption', got \['kind', 'of',"):
        pairs(source, text_key="json.caption")
    with pytest.raises(ValueError, match=r"text_key must name a field .* json.caption, got 'json'"):
        pairs(source, text_key="json")
    with pytest.raises(ValueError, match=r"label_key must name a field of a JSON member"):
        pairs(source, text_key="json.of.caption", label_key="json")
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


def table(path: Path) -> str:
    """A Parquet file of images, captions and classes."""
    import pyarrow as arrow
    from pyarrow import parquet

    images, captions = ([make(i) for i in range(20)] for make in (encoded, caption))
    kinds = [CLASSES[i % 3] for i in range(20)]
    content = arrow.table({"image": images, "caption": captions, "c": kinds})
    parquet.write_table(content, path, row_group_size=4)
    return str(path)


def test_parquet_has_captions_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = table(tmp_path / "a.parquet")
    data = pairs(source, text_key="caption")
    assert {k: words_of(data, ids) for k, (_, ids) in samples(data).items()} == {
        i: caption(i) for i in range(20)
    }
    with pytest.raises(ValueError, match=r"image_key, text_key and label_key must be .* 'txt'"):
        pairs(source)


def folder(root: Path) -> Path:
    for number in range(20):
        for name, content in members(number, "txt")[:2]:
            path = root / ("train" if number < 14 else "val") / f"d{number % 2}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def test_the_command_shards_a_folder_of_pairs(tmp_path: Path, capsys: Any) -> None:
    source, target = folder(tmp_path / "photos"), tmp_path / "shards"
    main(["shard", str(source), "--output", str(target), "--captions"])
    said = capsys.readouterr().out
    assert "sslzoo.data.ImageTextShards" in said
    assert "label_key: cls" in said
    train, val = (str(target / f"{split}.json") for split in ("train", "val"))
    data = pairs(train, val=val, label_key="cls", drop_last=False)
    own = ImageTextFolder(str(source), clip_views(8), WordPiece(60), 4, 9, labels=True)
    own.setup("fit")
    assert data.classes == own.classes == ["d0", "d1"]
    read, label = own.sets.train, labels_of(data)
    given = sorted((read.captions.of(i), int(read.labels[i])) for i in range(14))
    assert sorted((data.sets.train._captions(i), label[i]) for i in label) == given
    assert len(data.sets.query) == 6
    images = ImageShards(train, clip_views(8), 7, num_workers=0)
    images.setup("fit")
    assert labels_of(images) == label


def test_folders_that_validation_does_not_share_are_no_classes(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos")
    (source / "val" / "d0").rename(source / "val" / "other")
    with pytest.warns(UserWarning, match=r"not written as classes, .* \['other'\]"):
        written = write_shards(str(source), str(tmp_path / "shards"), captions=True)
    assert written["train"].classes == written["val"].classes == 0
    with pytest.raises(ValueError, match=r"must have a label \(cls\), got none"):
        pairs(str(written["train"].file), label_key="cls", classes=["d0"])


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
