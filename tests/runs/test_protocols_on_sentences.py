"""STS and SentEval: tiny trees in the official layouts, by hand, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from sslzoo.backbones import SmallTransformer
from sslzoo.data.inputs import TextInput
from sslzoo.data.text.benchmarks import STS_PARTS, read_senteval, read_sts
from sslzoo.data.text.tokenizer import WordPiece
from sslzoo.runs.protocols import Subject, figures
from sslzoo.runs.protocols.sentences import SentEval, Sts, sts_figures
from tests.ranks import Ranks

WORDS = [
    "a",
    "good",
    "bad",
    "film",
    "plot",
    "is",
    "was",
    "fine",
    "dull",
    "story",
    "who",
    "what",
    "where",
    "city",
    "number",
]


def sentence(seed: int, words: int = 5) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def sts(root: Path) -> Path:
    """The years 12 (SentEval's names) and 16 (SemEval's), four pairs per part."""
    for year, prefix, folder in (("12", "STS", "STS12-en-test"), ("16", "STS2016", "sts2016")):
        inputs, gold = root / folder, root / folder
        if year == "16":
            gold = gold / "gs"
        for path in (inputs, gold):
            path.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(STS_PARTS[year]):
            rows = [
                f"{sentence(4 * number + i)}\t{sentence(90 + 4 * number + i)}" for i in range(4)
            ]
            rows = [f"{row}\tsource" for row in rows] if year == "16" else rows
            (inputs / f"{prefix}.input.{part}.txt").write_text("\n".join(rows) + "\n")
            (gold / f"{prefix}.gs.{part}.txt").write_text("4.5\n\n1.0\n2.25\n")
    return root


def senteval(root: Path) -> Path:
    for folder, names in (("MR", ("rt-polarity.pos", "rt-polarity.neg")),):
        (root / folder).mkdir(parents=True)
        for name, word in zip(names, ("good", "dull"), strict=True):
            lines = [f"{word} {word} {sentence(i, 2)} \xe9" for i in range(12)]
            (root / folder / name).write_text("\n".join(lines) + "\n", "latin-1")
    (root / "TREC").mkdir()
    for name, count in (("train_5500.label", 20), ("TREC_10.label", 6)):
        kinds = (("HUM:ind", "who"), ("LOC:city", "where"))
        lines = [f"{k} {w} {w} {sentence(i, 2)} ?" for i in range(count) for k, w in kinds]
        (root / "TREC" / name).write_text("\n".join(lines) + "\n", "latin-1")
    (root / "MRPC").mkdir()
    for name in ("train", "test"):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for i in range(10):
            first = sentence(i)
            lines.append(f"1\t0\t0\t{first}\t{first}")
            lines.append(f"0\t0\t0\t{first}\t{sentence(50 + i)}")
        (root / "MRPC" / f"msr_paraphrase_{name}.txt").write_text(
            "\ufeff" + "\n".join(lines) + "\n"
        )
    return root


def subject() -> Subject:
    tokenizer = WordPiece(200)
    tokenizer.prepare([" ".join(WORDS)] * 3)
    torch.manual_seed(0)
    encoder = SmallTransformer(tokenizer.num_ids, 16, 1, 2, max_length=16, dropout=0.0).eval()
    return Subject(encoder, torch.device("cpu"), preprocess=TextInput(tokenizer, 16))


def on_rank(rank: int, root: Path) -> dict[str, float]:
    settings = {
        "sts": Sts(str(root / "STS"), batch_size=7),
        "senteval": SentEval(str(root), l2=(1e-2, 1.0), folds=4, batch_size=5),
    }
    for protocol in settings.values():
        protocol.check()
    return figures(settings, subject(), [0])[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("downstream")
    senteval(root)
    sts(root / "STS")
    return root


def test_every_figure_is_the_same_on_one_two_and_three_ranks(tree: Path, ranks: Ranks) -> None:
    one = on_rank(0, tree)
    assert {"sts/sts12_spearman_all", "sts/sts16_pearson_wmean", "sts/average"} <= set(one)
    assert {"senteval/MR", "senteval/TREC", "senteval/MRPC", "senteval/average"} == {
        name for name in one if name.startswith("senteval")
    }
    assert one["senteval/MRPC"] > 0.9  # equal sentences have |u - v| = 0
    for world in (2, 3):
        for got in ranks(world, on_rank, tree):
            assert got == one


def test_sts_figures_are_scipys() -> None:
    draw = torch.Generator().manual_seed(0)
    cosines = [torch.rand(n, generator=draw) for n in (5, 9, 3)]
    scores = [torch.rand(n, generator=draw).mul(5).round() for n in (5, 9, 3)]
    got = sts_figures(cosines, scores)
    for name, of in (("spearman", spearmanr), ("pearson", pearsonr)):
        parts = [of(c, s)[0] for c, s in zip(cosines, scores, strict=True)]
        assert got[f"{name}_mean"] == pytest.approx(np.mean(parts), abs=1e-5)
        assert got[f"{name}_wmean"] == pytest.approx(np.average(parts, weights=[5, 9, 3]), abs=1e-5)
        whole = of(torch.cat(cosines), torch.cat(scores))[0]
        assert got[f"{name}_all"] == pytest.approx(whole, abs=1e-5)


def test_pairs_without_a_score_are_left_out(tree: Path) -> None:
    years = read_sts(tree / "STS")
    assert list(years) == ["12", "16"]
    assert list(years["12"]) == list(STS_PARTS["12"])
    pairs = years["16"]["headlines"]
    assert pairs.score == [4.5, 1.0, 2.25]
    assert pairs.second[0] == sentence(94)
    alone = read_sts(tree / "STS" / "STS12-en-test")
    assert list(alone) == ["12"]


def test_senteval_is_read_as_it_is_published(tree: Path) -> None:
    tasks = read_senteval(tree)
    assert list(tasks) == ["MR", "TREC", "MRPC"]
    assert tasks["MR"].train_labels == [1] * 12 + [0] * 12
    assert tasks["MR"].train[0][0].endswith("\xe9")
    assert tasks["MR"].test is None
    trec = tasks["TREC"]
    assert (trec.classes, set(trec.train_labels)) == (6, {3, 4})
    assert trec.train[0][0].startswith("who who")
    assert len(tasks["MRPC"].train[0]) == 2
    assert SentEval(str(tree), tasks=["TREC"])(subject())["TREC"] > 0.9
    assert SentEval(str(tree), tasks=["MR"], folds=3)(subject())["MR"] > 0.9


def test_what_the_files_lack_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="root must have folders of years"):
        Sts(str(tmp_path)).check()
    with pytest.raises(ValueError, match="root must have a folder of"):
        SentEval(str(tmp_path)).check()
    root = sts(tmp_path / "STS")
    gold = root / "STS12-en-test" / "STS.gs.MSRvid.txt"
    gold.write_text("1\n2\n")
    with pytest.raises(ValueError, match=r"one score per line of .*MSRvid.txt \(4\), got 2"):
        Sts(str(root)).check()
    gold.write_text("1\nhigh\n3\n4\n")
    with pytest.raises(ValueError, match=r"line 2 is .* with 'high'"):
        Sts(str(root)).check()
    gold.unlink()
    with pytest.raises(ValueError, match=r"must have its scores in STS\.gs\.MSRvid\.txt"):
        Sts(str(root)).check()
    (root / "STS12-en-test" / "STS.input.MSRpar.txt").unlink()
    with pytest.raises(ValueError, match=r"got none of \['MSRpar'\]"):
        Sts(str(root)).check()
    down = senteval(tmp_path / "down")
    with pytest.raises(ValueError, match=r"tasks must be among .*, got \['CR'\]"):
        SentEval(str(down), tasks=["CR"]).check()
    (down / "TREC" / "TREC_10.label").write_text("PLACE:x where ?\n")
    with pytest.raises(ValueError, match="CLASS:fine question"):
        SentEval(str(down)).check()
    (down / "MR" / "rt-polarity.neg").unlink()
    with pytest.raises(ValueError, match=r"got none of \['rt-polarity.neg'\]"):
        SentEval(str(down)).check()
    bare: Any = Subject(torch.nn.Linear(2, 2), torch.device("cpu"))
    with pytest.raises(ValueError, match="record a preprocessing of text, got none"):
        Sts(str(sts(tmp_path / "more")))(bare)
