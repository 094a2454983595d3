"""ImageShards: the batches of a folder, on any number of ranks and workers, and after a resume."""

from __future__ import annotations

import io
import shutil
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from sslzoo.batch import Batch
from sslzoo.data import ImageFolder, ImageShards
from sslzoo.data.streams.shards import Sample
from sslzoo.data.streams.tar import TarShards
from sslzoo.data.streams.write import index_shards, write_shards
from tests.data.streams.toys import (
    CLASSES,
    batches,
    encoded,
    shards,
    two_crops,
    write_photos,
    write_tar,
    write_tars,
)

COUNTS = [5, 9, 1, 12, 3]  # 30 samples


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_tars(tmp_path_factory.mktemp("tars"), COUNTS)


def same(ours: Batch, theirs: Batch) -> bool:
    views = all(map(torch.equal, ours.views, theirs.views))
    assert ours.label is not None
    assert theirs.label is not None
    return views and torch.equal(ours.index, theirs.index) and torch.equal(ours.label, theirs.label)


def joined(parts: list[Batch]) -> Batch:
    views = [torch.cat(view) for view in zip(*(part.views for part in parts), strict=True)]
    labels = [part.label for part in parts if part.label is not None]
    return Batch(views, torch.cat([part.index for part in parts]), torch.cat(labels))


def test_shards_give_the_views_of_the_folder(tmp_path: Path):
    root = write_photos(tmp_path / "photos")
    write_photos(root, (2, 1, 3), "val")
    write_shards(str(root), str(tmp_path / "shards"), shard_mb=0.02)
    data = shards(
        str(tmp_path / "shards" / "train.json"), val=str(tmp_path / "shards" / "val.json")
    )
    folder = ImageFolder(str(root), two_crops(), batch_size=6, seed=1, decode="workers")
    folder.setup("fit")
    assert (data.num_samples, data.num_classes, data.classes) == (36, 3, CLASSES)
    names = (tmp_path / "shards" / "train.files.txt").read_text().splitlines()
    paths = [folder.sets.train.path(i) for i in range(36)]
    row = {f"{Path(path).parent.name}/{Path(path).name}": i for i, path in enumerate(paths)}
    crops = folder.train_source(folder._sampler())
    for batch in batches(data):
        rows = [row[names[i]] for i in batch.index.tolist()]
        # The keys of a sample are those of its index, so the folder's are replaced.
        keys = crops.crops.keys(batch.index)
        cut = [crops._cut(r, keys.rows(slice(i, i + 1))) for i, r in enumerate(rows)]
        for view, ours in enumerate(batch.views):
            assert torch.equal(ours, torch.stack([one.views[view] for one in cut]))
        assert torch.equal(batch.label, folder.sets.train.labels[rows])
    evaluated = [list(x.eval_dataloaders().query) for x in (data, folder)]
    counts = [torch.cat([batch.label for batch in each]).bincount() for each in evaluated]
    assert counts[0].tolist() == counts[1].tolist() == [2, 1, 3]
    assert data.encoder_input().fingerprint() == folder.encoder_input().fingerprint()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_ranks_and_workers_see_one_process_batches(tars: list[str], workers: int):
    data = shards(tars)
    one = batches(data, epoch=1)
    assert sorted(chain(*(batch.index.tolist() for batch in one))) == list(range(30))
    labels = [int(i) % 3 for batch in one for i in batch.index]
    assert torch.cat([batch.label for batch in one]).tolist() == labels
    for world in {0: (1, 2, 3), 1: (2,), 2: (3,)}[workers]:
        ranks = [batches(data, 1, rank, world, workers) for rank in range(world)]
        for whole, parts in zip(one, zip(*ranks, strict=True), strict=True):
            assert same(joined(list(parts)), whole)


class Counting(TarShards):
    """Writes down which samples are read."""

    reads: list[tuple[int, int]]

    def again(self, recent: int) -> Counting:
        other = Counting(self.shards, self.keys, self.cache, self.scanned)
        other.reads = self.reads
        return other

    def read(self, shard: int, offset: int) -> Sample:
        self.reads.append((shard, offset))
        return super().read(shard, offset)


def test_a_resume_within_a_shard_reads_only_what_follows(tars: list[str]):
    data = shards(tars)
    images = data.sets.train
    given = images.shards
    images.shards = Counting(given.shards, given.keys, given.cache, given.scanned)
    images.shards.reads = []
    whole = batches(data)
    reads = list(images.shards.reads)
    assert len(reads) == len(set(reads)) == 30
    for first in range(1, 5):
        images.shards.reads.clear()
        for ours, theirs in zip(batches(data, first=first), whole[first:], strict=True):
            assert same(ours, theirs)
        assert images.shards.reads == reads[6 * first :]


def test_other_shards_or_shuffling_are_refused_in_the_middle(tars: list[str], tmp_path: Path):
    data = shards(tars)
    loader = data.train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    for other in (shards(tars, shuffle_samples=8), shards(write_tars(tmp_path, COUNTS[::-1]))):
        with pytest.raises(ValueError, match=r"shards, shuffle_shards .* those of the checkpoint"):
            other.train_dataloader().load_state_dict(state)
    names = write_tars(tmp_path / "even", [10, 10, 10])
    loader = shards(names).train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    renamed = shutil.copy(names[0], tmp_path / "even" / "z.tar")
    big = write_tar(
        tmp_path / "t-002.tar", [(f"{i}.png", encoded(i, "PNG", (90, 90))) for i in range(10)]
    )
    for other in (names[::-1], [renamed, *names[1:]], [*names[:2], str(big)]):
        with pytest.raises(ValueError, match=r"shards, shuffle_shards .* those of the checkpoint"):
            shards(other, label_key=None).train_dataloader().load_state_dict(state)
    moved = [shutil.copy(name, tmp_path) for name in names]
    shards(moved).train_dataloader().load_state_dict(state)
    older = {key: value for key, value in state.items() if key != "files"}
    shards(names).train_dataloader().load_state_dict(older)
    ended = {**state, "position": len(loader)}
    shards(tars, shuffle_samples=8).train_dataloader().load_state_dict(ended)


def test_a_fraction_is_a_part_of_the_same_samples(tars: list[str]):
    data = shards(tars, train_fraction=0.5, batch_size=5)
    assert data.num_samples == 15
    found = batches(data, epoch=2)
    places = [data.sets.train.place(int(i)) for batch in found for i in batch.index]
    assert len(set(places)) == 15
    number = [sum(COUNTS[:shard]) + offset for shard, offset in places]
    assert torch.cat([batch.label for batch in found]).tolist() == [n % 3 for n in number]
    assert max(number) > 20


def test_evaluation_reads_each_sample_once_in_order(tars: list[str]):
    data = shards(tars, eval_batch_size=7, num_workers=1, num_classes=3)
    bank = list(data.eval_dataloaders().bank)
    assert torch.cat([batch.index for batch in bank]).tolist() == list(range(30))
    assert torch.cat([batch.label for batch in bank]).tolist() == [i % 3 for i in range(30)]
    assert data.fingerprint() == shards(tars).fingerprint() is not None


def test_labels_may_be_names_a_json_field_or_none(tmp_path: Path):
    tar = write_tar(
        tmp_path / "a.tar",
        [
            member
            for i in range(4)
            for member in [
                (f"d/{i}.JPG", encoded(i)),
                (f"d/{i}.json", b'{"a": {"name": "%s"}}' % CLASSES[i % 3].encode()),
                (f"d/{i}.txt", b"ignored"),
            ]
        ],
    )
    named = shards(str(tar), label_key="json.a.name", classes=CLASSES, batch_size=4)
    (batch,) = batches(named)
    assert batch.label.tolist() == [int(i) % 3 for i in batch.index]
    assert named.num_classes == 3
    (batch,) = batches(shards(str(tar), batch_size=4, num_classes=None))
    assert batch.label is None
    with pytest.raises(ValueError, match=r"label must be a whole number or one of classes .*'cat'"):
        shards(str(tar), label_key="json.a.name")
    with pytest.raises(ValueError, match=r"member \.cls, but 4 lack it, the first is sample 0 of"):
        shards(str(tar), label_key="cls")


@pytest.mark.filterwarnings("ignore:.*(skipped a broken|samples are skipped)")
def test_a_sample_without_a_label_is_named_wherever_it_is(tmp_path: Path):
    for first in ("alone", "in the first shard"):
        names = write_tars(tmp_path / first, [4, 4])
        lone = [(f"{i}.jpg", encoded(i)) for i in range(1 if first == "alone" else 4)]
        rest = [(f"{i}.{kind}", b"0" if kind == "cls" else encoded(i))
                for i in range(len(lone), 4) for kind in ("jpg", "cls")]  # fmt: skip
        write_tar(Path(names[0]), lone + rest)
        message = rf"member \.cls, but {len(lone)} lack it, the first is sample 0 of .*t-000\.tar"
        with pytest.raises(ValueError, match=message):
            shards(names)
        data = shards(names, on_broken="skip", batch_size=8)
        (batch,) = batches(data)
        assert batch.label is not None
        assert data.num_broken == len(lone)


@pytest.mark.parametrize("options", [{}, {"num_classes": None, "classes": CLASSES}])
def test_classes_of_shards_without_labels_are_refused(tmp_path: Path, options: dict[str, Any]):
    tar = str(write_tar(tmp_path / "a.tar", [(f"{i}.jpg", encoded(i)) for i in range(6)]))
    with pytest.raises(ValueError, match=r"must have labels where num_classes or classes .*null"):
        shards(tar, **options)
    assert batches(shards(tar, label_key=None, **options))[0].label is None
    assert batches(shards(tar, num_classes=None))[0].label is None


def labeled(path: Path, labels: list[bytes], kind: str = "cls") -> str:
    members = [[(f"{i}.jpg", encoded(i)), (f"{i}.{kind}", x)] for i, x in enumerate(labels)]
    return str(write_tar(path, list(chain(*members))))


def read_labels(data: ImageShards) -> list[int]:
    (batch,) = batches(data)
    assert batch.label is not None
    return batch.label[batch.index.argsort()].tolist()


def test_class_names_of_digits_are_names_where_classes_are_given(tmp_path: Path):
    options = {"batch_size": 4, "num_classes": None}
    names = labeled(tmp_path / "a.tar", [b"1", b"10", b"2", b"10"])
    assert read_labels(shards(names, classes=["1", "10", "2"], **options)) == [0, 1, 2, 1]
    with pytest.raises(ValueError, match=r"must be a whole number or one of .*'10'.* got '2'"):
        shards(names, classes=["1", "10"], **options)
    numbers = labeled(tmp_path / "b.tar", [b"1", b"0", b"2", b"0"])
    assert read_labels(shards(numbers, classes=CLASSES, **options)) == [1, 0, 2, 0]
    for name, count in (("1", 2), ("10", 1), ("2", 1)):
        for i in range(count):
            (tmp_path / "photos" / "train" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / "train" / name / f"{i}.jpg").write_bytes(encoded(i))
    write_shards(str(tmp_path / "photos"), str(tmp_path / "out"))  # it writes class numbers
    listed, bare = (str(tmp_path / "out" / f"train{end}") for end in (".json", "-*.tar"))
    for data in (
        shards(listed, **options),
        shards(listed, classes=["1", "10", "2"], **options),
        shards(listed, val=bare, **options),
    ):
        assert data.classes == ["1", "10", "2"]
        assert sorted(read_labels(data)) == [0, 0, 1, 2]
    (batch,) = list(data.eval_dataloaders().query)
    assert sorted(batch.label.tolist()) == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        (b"3", "cls", r"sample 2 of .*a\.tar .*a label must be in 0\.\.2, got 3"),
        (b"-1", "cls", r"sample 2 of .*a\.tar .*a label must be in 0\.\.2, got -1"),
        (b'{"y": [0, 1]}', "json", r"sample 2 of .*must be a whole number or .*got \[0, 1\]"),
        (b'{"y": 0.5}', "json", r"sample 2 of .*must be a whole number or .*got 0\.5"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*skipped a broken")
def test_labels_that_are_no_class_are_refused(
    tmp_path: Path, label: bytes, kind: str, message: str
):
    given = [b"0" if kind == "cls" else b'{"y": 0.0}'] * 4
    given[2] = label
    tar = labeled(tmp_path / "a.tar", given, kind)
    options = {"batch_size": 4, "label_key": "cls" if kind == "cls" else "json.y"}
    with pytest.raises(ValueError, match=message):
        shards(tar, **options)
    data = shards(tar, on_broken="skip", **options)
    batches(data)
    assert data.num_broken == 1


def test_a_folder_of_several_splits_and_shards_given_twice_are_refused(tmp_path: Path):
    root = write_photos(tmp_path / "photos")
    write_photos(root, (2, 1, 3), "val")
    out = tmp_path / "out"
    write_shards(str(root), str(out), shard_mb=0.02)
    with pytest.raises(
        ValueError, match=r"one split, got train, val in .*such as '.*/train\*\.tar'"
    ):
        shards(str(out))
    pattern = str(out / "train-*.tar")
    twice = [pattern, str(out / ".." / "out" / "train-000000.tar")]
    with pytest.raises(ValueError, match=r"must be given once, got .*out/train-000000\.tar twice"):
        shards(twice)
    with pytest.raises(ValueError, match=r"must be given once, got .*out/train-000000\.tar twice"):
        shards([str(out / "train.json")] * 2)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"must be given once, got .*out/train-000000\.tar twice"):
        index_shards([pattern, pattern], None, "auto", str(out / "new.json"))
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    for path in out.glob("val*"):
        path.unlink()
    assert shards(str(out)).num_samples == 36


@pytest.mark.parametrize(
    ("names", "got"),
    [
        (["in1k-train-0.tar", "in1k-validation-0.tar"], r"got train, validation .*/in1k-train\*\."),
        (["DEV-kit_Train0.tar", "DEV-kit_Val0.tar"], r"got dev-train, dev-val .*/DEV-kit_Train\*"),
        (["retrain-0.tar", "contest-0.tar", "validated-0.tar"], None),
        (["x-train-0.tar", "x-train-1.tar", "x-more-0.tar"], None),
    ],
)
def test_a_split_is_a_whole_word_of_a_name(tmp_path: Path, names: list[str], got: str | None):
    for name, given in zip(names, write_tars(tmp_path / "given", [4] * len(names)), strict=True):
        (tmp_path / "all").mkdir(exist_ok=True)
        shutil.move(given, tmp_path / "all" / name)
    if got is None:
        assert shards(str(tmp_path / "all")).num_samples == 4 * len(names)
        return
    with pytest.raises(ValueError, match=f"one split, {got}"):
        shards(str(tmp_path / "all"))


def test_a_folder_of_two_formats_is_refused(tmp_path: Path):
    write_tars(tmp_path, [4])
    (tmp_path / "t-000.parquet").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"one format, got \.tar and \.parquet .*such as '.*/\*\.tar"
    ):
        shards(str(tmp_path))
    assert shards(str(tmp_path / "*.tar"), batch_size=4).num_samples == 4


def test_braces_and_brackets_of_names_are_understood(tmp_path: Path):
    names = write_tars(tmp_path / "a [v2]", [4, 5, 6])
    folder = tmp_path / "a [v2]"
    Path(names[2]).rename(folder / "t-{1,2}.tar")
    for source, count in [
        (names[0], 4),
        (names[:2], 9),
        (str(folder), 15),
        (str(folder / "t-{000,001}.tar"), 9),
        (str(folder / "t-{000,00{1..1}}.tar"), 9),
        (str(folder / "t-{1,2}.tar"), 6),
    ]:
        assert shards(source, batch_size=4).num_samples == count
    folder.rename(tmp_path / "x{a,b}")
    assert shards(str(tmp_path / "x{a,b}" / "*.tar"), batch_size=4).num_samples == 15


@pytest.mark.parametrize(
    ("image_key", "label_key"), [(".jpg", ".cls"), ("png, JPG", " CLS"), ("x.png,.Jpg", "cls")]
)
def test_keys_of_members_may_be_written_as_extensions(
    tmp_path: Path, image_key: str, label_key: str
):
    names = write_tars(tmp_path, [6])
    index_shards(names, None, "auto", str(tmp_path / "all.json"))
    for source in (names, str(tmp_path / "all.json")):
        data = shards(source, image_key=image_key, label_key=label_key)
        assert sorted(read_labels(data)) == [0, 0, 1, 1, 2, 2]


def test_an_error_names_the_members_that_a_sample_has(tmp_path: Path):
    members = [(f"{i}.{kind}", encoded(i)) for i in range(6) for kind in ("Input.jpg", "mask.png")]
    tar = str(write_tar(tmp_path / "a.tar", members))
    message = r"sample 0 of .*a\.tar \('0' with \.input\.jpg, \.mask\.png\); set image_key to its"
    with pytest.raises(ValueError, match=message):
        shards(tar)
    assert shards(tar, image_key="Input.jpg", label_key=None).num_samples == 6


def test_names_that_begin_with_underscores_are_samples(tmp_path: Path):
    members = [("__shard__.json__", b"x"), ("__MACOSX/z.jpg", b"x"), ("._00.jpg", b"x")]
    members += [("__meta__.json", b"{}")]
    for i in range(12):
        name = f"{'__' if i % 2 else ''}{i:02d}"
        members += [(f"{name}.jpg", encoded(i)), (f"{name}.cls", b"1")]
    tar = str(write_tar(tmp_path / "a.tar", members))
    assert shards(tar).num_samples == 12


def test_a_labeled_folder_validates_a_stream(tmp_path: Path, tars: list[str]):
    root = write_photos(tmp_path, (2, 1, 3), "val")
    data = shards(tars, val=str(root / "val"))
    assert data.num_classes == 3
    query = data.eval_dataloaders().query
    assert query is not None
    assert torch.cat([batch.label for batch in query]).tolist() == [0, 0, 1, 2, 2, 2]


def broken_tars(root: Path, problem: str) -> str:
    """Two shards of 6, whose second breaks from sample 3 on, or in it."""
    names = write_tars(root, [6, 6])
    members = [(f"{i:05d}.{kind}", encoded(i) if kind == "jpg" else b"0")
               for i in range(6, 12) for kind in ("jpg", "cls")]  # fmt: skip
    if problem in ("listed", "lost"):
        index_shards(names, None, "auto", str(root / "all.json"))
    if problem == "lost":
        Path(names[1]).unlink()
    content = Path(names[1]).read_bytes() if problem != "lost" else b""
    at = content.find(b"00009.cls")  # within the fourth sample
    changed = {
        "truncated": content[: content.find(b"00009.jpg") + 700],
        "header": content[: at + 300],
        "member": content[:at],
        "endless": content[: content.find(b"00009.jpg")],
        "damaged": content[:at] + b"\xff" + content[at + 1 :],
        "joined": content + Path(names[0]).read_bytes(),
        "empty": b"",
        "compressed": b"\x1f\x8b\x08" + bytes(600),
    }
    changed["listed"] = changed["truncated"]
    if problem in changed:
        Path(names[1]).write_bytes(changed[problem])
    if problem == "undecodable":
        members[6] = (members[6][0], encoded(9)[:90])
        write_tar(Path(names[1]), members)
    if problem == "missing":
        write_tar(Path(names[1]), members[:6] + members[7:])
    if problem == "twice":
        write_tar(Path(names[1]), [*members[:6], ("00009.jpg", encoded(0)), *members[6:]])
    if problem in ("link", "symlink"):
        with tarfile.open(names[1], "w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if name == "00009.jpg":
                    info.type = tarfile.LNKTYPE if problem == "link" else tarfile.SYMTYPE
                    info.size, info.linkname = 0, "00008.jpg"
                tar.addfile(info, io.BytesIO(content))
    return str(root / ("all.json" if problem in ("listed", "lost") else "t-*.tar"))


@pytest.mark.parametrize(
    ("problem", "message", "kept", "broken"),
    [
        ("truncated", r"t-001.tar must be a whole, .* after 3 samples", 9, 1),
        ("header", r"t-001.tar must be a whole, .* got a damaged header .* after 3 samples", 9, 1),
        ("member", r"t-001.tar must be a whole, .* got no end \(two .* after 3 samples", 9, 1),
        ("endless", r"t-001.tar must be a whole, .* got no end \(two .* after 2 samples", 8, 1),
        ("damaged", r"t-001.tar must be a whole, .* got a damaged header .* after 3 samples", 9, 1),
        ("joined", r"t-001.tar must be a whole, .* behind the end .* after 6 samples", 12, 1),
        ("twice", r"t-001.tar must have one image .* two or a link for 1, such as '00009'", 12, 1),
        ("link", r"t-001.tar must have one image .* two or a link for 1, such as '00009'", 12, 1),
        ("symlink", r"t-001.tar must have one image .* or a link for 1, such as '00009'", 12, 1),
        ("undecodable", r"cannot read sample 3 of .*t-001.tar \(.*on_broken=.skip", 12, 1),
        ("missing", r"member \.jpg/.*but 1 lack it, the first is sample 3 of .*t-001.tar", 12, 1),
        ("empty", r"t-001.tar must be a whole, uncompressed tar file, .* after 0", 6, 1),
        ("compressed", r"uncompressed tar file, got compressed data \(decompress it\) .* 0", 6, 1),
        ("listed", r"t-001.tar must have \d+ bytes as its list says, got \d+; copy it", 12, 3),
        ("lost", r"t-001.tar must have \d+ bytes as its list says, got 0; copy it", 6, 6),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:.*(lost is unknown|skipped a broken|samples are skipped|left out|that it lacks)"
)
def test_broken_shards_are_named_or_skipped_and_counted(
    tmp_path: Path, problem: str, message: str, kept: int, broken: int
):
    source = broken_tars(tmp_path, problem)
    with pytest.raises(ValueError, match=message):
        batches(shards(source, batch_size=3))
    data = shards(source, batch_size=3, on_broken="skip")
    assert data.num_samples == kept
    found = batches(data)
    assert all(len(batch.index) == 3 for batch in found)
    assert data.num_broken == broken
    if problem in ("undecodable", "twice", "link", "symlink"):
        assert 9 not in set(chain(*(batch.index.tolist() for batch in found)))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no-{000..002}.tar", {}, r"must be existing .*got '.*no-000.tar'"),
        ("*.tar", {"batch_size": 31}, "at most 30 .*training set"),
        ("*.tar", {"image_key": "png"}, r"\.png, but 5 lack it, the first is sample 0 of"),
        ("*.tar", {"channels": 0}, "channels must be at least 1"),
        ("*.tar", {"shuffle_shards": -1}, "shuffle_shards must be at least 0"),
        ("*.tar", {"cache_gb": 0.0}, "cache_gb must be"),
        ("*.tar", {"on_broken": "drop"}, "on_broken must be"),
        ("*.jpg", {}, r"must be \.tar or \.parquet files.*got"),
        ("x.tar.gz", {}, r"must be \.tar or \.parquet files.*got '.*/x\.tar\.gz'; decompress"),
        ("https://a.b/x.tgz", {}, r"must be \.tar or .*got 'https://a\.b/x\.tgz'; decompress"),
        ("https://a.b/x.tar", {}, r"address must come with a \.json list.*sslzoo data index"),
        ("https://a.b/x.tar", {"local_files_only": True}, "must be local.*--trust"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(
    tars: list[str], tmp_path: Path, source: str, options: dict[str, Any], message: str
):
    (tmp_path / "a.jpg").write_bytes(encoded(0))
    (tmp_path / "x.tar.gz").write_bytes(b"")
    folder = tmp_path if source.endswith(("jpg", "gz")) else Path(tars[0]).parent
    with pytest.raises(ValueError, match=message):
        shards(source if "://" in source else str(folder / source), **options)


@pytest.mark.filterwarnings("error")
def test_a_shard_without_samples_alters_nothing(tmp_path: Path):
    names = write_tars(tmp_path, [0, 5, 0, 7])
    data = shards(names, batch_size=4)
    assert (data.num_samples, data.num_broken) == (12, 0)
    assert sorted(chain(*(batch.label.tolist() for batch in batches(data)))) == sorted(
        [0, 1, 2] * 4
    )
    assert index_shards(names, None, "auto", str(tmp_path / "all.json")) == 12
    listed = shards(str(tmp_path / "all.json"), batch_size=4)
    for ours, theirs in zip(batches(data), batches(listed), strict=True):
        assert same(ours, theirs)
    with pytest.raises(ValueError, match=r"shards must have samples, got none in .*t-000\.tar"):
        shards(names[::2])


def test_arrays_in_shards_keep_their_channels(tmp_path: Path):
    import numpy as np

    members = []
    for i in range(3):
        out = io.BytesIO()
        np.save(out, np.full((5, 9, 9), 100 * i, dtype=np.uint8))
        members.append((f"{i}.npy", out.getvalue()))
    options = {"channels": None, "batch_size": 3, "label_key": None}
    data = shards(str(write_tar(tmp_path / "a.tar", members)), **options)
    (batch,) = batches(data)
    assert batch.views[0].shape == (3, 5, 8, 8)
    assert batch.views[0][:, 0, 0, 0].tolist() == [100 * int(i) for i in batch.index]


def test_arrays_of_another_shape_in_shards_are_named(tmp_path: Path):
    import numpy as np

    out = io.BytesIO()
    np.save(out, np.zeros((4, 9, 9, 3), dtype=np.uint8))
    tar = str(write_tar(tmp_path / "a.tar", [("0.npy", out.getvalue())]))
    message = r"got \(4, 9, 9, 3\); store it so, or .* of ImageFolder or ImageList; it is sample 0"
    with pytest.raises(ValueError, match=message):
        shards(tar, label_key=None, batch_size=1)


def test_it_is_public_and_a_config_builds_it(tars: list[str]):
    import jsonargparse

    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(ImageShards, "data")
    given = {"train": tars, "transform": {"class_path": "sslzoo.transforms.simclr_views"}}
    parsed = parser.parse_object({"data": {"class_path": "ImageShards", "init_args": given}})
    assert parser.instantiate(parsed).data.given == (tars, None)
