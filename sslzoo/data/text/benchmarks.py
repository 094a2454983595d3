"""Sentence benchmarks in their official files: STS 2012 to 2017, and SentEval's classification.

Layouts: facebookresearch/SentEval at 1eef9f7, senteval/sts.py, binary.py, trec.py, sst.py, mrpc.py
and sick.py; SemEval's own archives of STS, whose names differ in details.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sslzoo.data.listing import check_folder
from sslzoo.text_file import read_text

_INPUT = re.compile(r"STS(?:20\d\d)?\.input\.(.+)\.txt")
# The parts that SentEval evaluates: of 2013 all but SMT, whose license is another.
STS_PARTS: dict[str, tuple[str, ...]] = {
    "12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "13": ("FNWN", "headlines", "OnWN"),
    "14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
    "17": ("track5.en-en",),
}


class Pairs(NamedTuple):
    """Scored pairs of sentences.

    Args:
        first: n sentences.
        second: n sentences.
        score: n numbers.
    """

    first: list[str]
    second: list[str]
    score: list[float]


def read_sts(root: str | Path) -> dict[str, dict[str, Pairs]]:
    """Read the years of STS below a folder: by year ("12"), the pairs of each part.

    A year is a folder whose name has it, such as STS12-en-test (SentEval), or STS2016 and
    sts2017 (SemEval). A part is a file STS.input.<part>.txt of `sentence<TAB>sentence` lines with
    the scores in STS.gs.<part>.txt, anywhere in the folder. Pairs without a score are left out.

    Args:
        root: the folder, such as SentEval's data/downstream/STS, or that of one year.

    Raises:
        ValueError: there is no such year, a part is missing, or a file is malformed.
    """
    folder = check_folder(root, "root")
    years: dict[str, dict[str, Pairs]] = {}
    for inside in [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        named = re.search(r"sts[-_]?(?:20)?(1[2-7])", inside.name.lower())
        if named is None:
            continue
        files = {
            found.group(1): path
            for path in sorted(inside.rglob("*.txt"))
            if (found := _INPUT.fullmatch(path.name)) is not None
        }
        if not files:
            continue
        wanted = STS_PARTS[named.group(1)]
        missing = [part for part in wanted if part not in files]
        if missing:
            raise ValueError(
                f"{str(inside)!r} must have STS.input.<part>.txt of {list(wanted)}, got none of "
                f"{missing}"
            )
        years[named.group(1)] = {part: _pairs(files[part], part, inside) for part in wanted}
    if not years:
        raise ValueError(
            "root must have folders of years, such as STS12-en-test, with STS.input.<part>.txt, "
            f"got none in {str(root)!r}"
        )
    return years


def _pairs(path: Path, part: str, folder: Path) -> Pairs:
    name = re.compile(rf"STS(?:20\d\d)?\.gs\.{re.escape(part)}\.txt")
    gold = [p for p in sorted(folder.rglob("*.txt")) if name.fullmatch(p.name)]
    if not gold:
        raise ValueError(f"{path} must have its scores in STS.gs.{part}.txt, got none")
    lines = read_text(path).removesuffix("\n").split("\n")
    scores = read_text(gold[0]).removesuffix("\n").split("\n")
    if len(lines) != len(scores):
        raise ValueError(
            f"{gold[0]} must have one score per line of {path.name} ({len(lines)}), got "
            f"{len(scores)}"
        )
    found = Pairs([], [], [])
    for number, (line, score) in enumerate(zip(lines, scores, strict=True), 1):
        if not score.strip():
            continue
        parts = line.rstrip("\r").split("\t")
        try:
            found.score.append(float(score))
            found.first.append(" ".join(parts[0].split()))
            found.second.append(" ".join(parts[1].split()))
        except (ValueError, IndexError):
            raise ValueError(
                f"a line of {path.name} must be sentence<TAB>sentence with a score, line {number} "
                f"is {line[:60]!r} with {score[:20]!r}"
            ) from None
    if len(found.score) < 2:
        raise ValueError(f"{path} must have at least 2 scored pairs, got {len(found.score)}")
    return found


class Task(NamedTuple):
    """A classification task of SentEval.

    Args:
        train: sentences, or pairs of them.
        train_labels: classes from 0.
        test: likewise; None: the figure is the mean of ten folds of `train`.
        test_labels: likewise.
        classes: number of classes.
    """

    train: list[tuple[str, ...]]
    train_labels: list[int]
    test: list[tuple[str, ...]] | None
    test_labels: list[int]
    classes: int


def _sides(files: tuple[str, str]) -> Callable[[Path], Task]:
    """A task with one file per class, in Latin-1; the first is the positive class."""

    def make(folder: Path) -> Task:
        rows: list[tuple[str, ...]] = []
        labels: list[int] = []
        for name, label in zip(files, (1, 0), strict=True):
            lines = (folder / name).read_text("latin-1").splitlines()
            kept = [" ".join(line.split()) for line in lines if line.strip()]
            rows += [(line,) for line in kept]
            labels += [label] * len(kept)
        return Task(rows, labels, None, [], 2)

    return make


_TREC = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def _trec(folder: Path) -> Task:
    parts = []
    for name in ("train_5500.label", "TREC_10.label"):
        rows: list[tuple[str, ...]] = []
        labels: list[int] = []
        for line in (folder / name).read_text("latin-1").splitlines():
            coarse, _, rest = line.strip().partition(":")
            if coarse not in _TREC or " " not in rest:
                raise ValueError(
                    f"a line of {folder / name} must be CLASS:fine question with a class of "
                    f"{list(_TREC)}, got {line[:60]!r}"
                )
            rows.append((" ".join(rest.split()[1:]),))
            labels.append(_TREC.index(coarse))
        parts.append((rows, labels))
    return Task(*parts[0], *parts[1], len(_TREC))


def _table(
    train: str,
    test: str,
    columns: tuple[int, ...],
    label: int,
    header: bool,
    names: tuple[str, ...],
) -> Callable[[Path], Task]:
    """A task of tab-separated files, with the columns of its sentences and of its class."""

    def make(folder: Path) -> Task:
        parts = []
        for name in (train, test):
            rows, labels = [], []
            lines = read_text(folder / name).splitlines()[header:]
            for number, line in enumerate(lines, 1 + header):
                cells = line.split("\t")
                if len(cells) <= max(*columns, label) or cells[label].strip() not in names:
                    raise ValueError(
                        f"a line of {folder / name} must have its class, one of {list(names)}, in "
                        f"column {label + 1}, line {number} is {line[:60]!r}"
                    )
                rows.append(tuple(" ".join(cells[c].split()) for c in columns))
                labels.append(names.index(cells[label].strip()))
            parts.append((rows, labels))
        return Task(*parts[0], *parts[1], len(names))

    return make


_SICK = ("NEUTRAL", "ENTAILMENT", "CONTRADICTION")
_SENTEVAL: dict[str, tuple[str, tuple[str, str], Callable[[Path], Task]]] = {
    "MR": ("MR", (p := ("rt-polarity.pos", "rt-polarity.neg")), _sides(p)),
    "CR": ("CR", (p := ("custrev.pos", "custrev.neg")), _sides(p)),
    "SUBJ": ("SUBJ", (p := ("subj.objective", "subj.subjective")), _sides(p)),
    "MPQA": ("MPQA", (p := ("mpqa.pos", "mpqa.neg")), _sides(p)),
    "SST2": (
        "SST/binary",
        (p := ("sentiment-train", "sentiment-test")),
        _table(*p, (0,), 1, False, ("0", "1")),
    ),
    "TREC": ("TREC", ("train_5500.label", "TREC_10.label"), _trec),
    "MRPC": (
        "MRPC",
        (p := ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")),
        _table(*p, (3, 4), 0, True, ("0", "1")),
    ),
    "SICK-E": (
        "SICK",
        (p := ("SICK_train.txt", "SICK_test_annotated.txt")),
        _table(*p, (1, 2), 4, True, _SICK),
    ),
}
TASKS = tuple(_SENTEVAL)


def read_senteval(root: str | Path) -> dict[str, Task]:
    """Read the tasks of SentEval that a folder has, by name.

    Args:
        root: SentEval's data/downstream, with MR, CR, SUBJ, MPQA, SST/binary, TREC, MRPC or SICK.

    Raises:
        ValueError: there is none, one lacks a file, or a line is malformed.
    """
    folder = check_folder(root, "root")
    found = {}
    for name, (inside, files, make) in _SENTEVAL.items():
        own = folder / inside
        if not own.is_dir():
            continue
        missing = [file for file in files if not (own / file).is_file()]
        if missing:
            raise ValueError(f"{str(own)!r} must have {list(files)}, got none of {missing}")
        task = make(own)
        if not task.train or (task.test is not None and not task.test):
            raise ValueError(f"the files in {str(own)!r} must have sentences, got none")
        found[name] = task
    if not found:
        folders = [inside for inside, _, _ in _SENTEVAL.values()]
        raise ValueError(f"root must have a folder of {folders}, got none in {str(root)!r}")
    return found
