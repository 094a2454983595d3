"""Bible: CPC on the verses of the King James Bible in order, with tasks given as files.

    apt-get install bible-kjv bible-kjv-text
    python -m benchmarks.bible --folder FOLDER --pairs STSB

Every fifth chapter of each book is held out, and `sslzoo fit --config cpc/text_small_8ep` trains on
the verses of the others. A linear probe tells the book of the verses of the held-out chapters
(books of at least ten chapters; trained on every eighth training verse), and STSB, a folder with
dev.csv and test.csv, has scored pairs of modern sentences. The run's own `sentence_table.json` has
the trained and the untrained encoder, means of their token embeddings and a bag of words. Beside
them are the zoo's CLEAR and SimCSE, which were trained on STS-B's sentences, with their own
tokenizers. Results: benchmarks/results/bible.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, fit, split_arguments
from benchmarks.text import TABLE, correlations
from benchmarks.worker import versions
from sslzoo import load
from sslzoo.commands.configs import find_config
from sslzoo.data import TextLines
from sslzoo.eval.features import extract
from sslzoo.eval.linear import linear_probe
from sslzoo.transforms import plain_text

RESULT = ROOT / "benchmarks" / "results" / "bible.json"
WHOLE = "gen1:1-rev22:21"
LEAST_CHAPTERS = 10
HELD_OUT = 5  # every fifth chapter
PROBED = 8  # every eighth training verse
CONFIG = "cpc/text_small_8ep"
ZOO = ("clear-small_transformer-stsb", "simcse-small_transformer-stsb")


class Verse(NamedTuple):
    """A verse, its book and its chapter."""

    book: str
    chapter: int
    text: str


def read_verses(lines: Sequence[str]) -> list[Verse]:
    """Parse lines such as "1Sm2:3 Talk no more", as the command `bible -f` prints them.

    Raises:
        ValueError: a line is no verse.
    """
    verses = []
    for line in lines:
        found = re.fullmatch(r"(\d?[A-Za-z]+)(\d+):\d+ (.+)", line.strip())
        if found is None:
            raise ValueError(f"a line must be a verse such as 'Ge1:1 In the ...', got {line!r}")
        verses.append(Verse(found[1], int(found[2]), found[3]))
    return verses


def write(folder: Path, verses: Sequence[Verse]) -> dict[str, int]:
    """Write text.txt, book_train.tsv and book_test.tsv; their numbers of lines, and the books."""
    last: dict[str, int] = {}
    for verse in verses:
        last[verse.book] = max(last.get(verse.book, 0), verse.chapter)
    training = [verse for verse in verses if verse.chapter % HELD_OUT]
    known = [verse for verse in training if last[verse.book] >= LEAST_CHAPTERS][::PROBED]
    asked = [v for v in verses if last[v.book] >= LEAST_CHAPTERS and not v.chapter % HELD_OUT]
    files = {
        "text.txt": [verse.text for verse in training],
        "book_train.tsv": [f"{verse.book}\t{verse.text}" for verse in known],
        "book_test.tsv": [f"{verse.book}\t{verse.text}" for verse in asked],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    books = {"books": len({verse.book for verse in known})}
    return {name.partition(".")[0]: len(lines) for name, lines in files.items()} | books


def of_the_zoo(name: str, folder: Path, pairs: Path) -> dict[str, float]:
    """Both tasks of an encoder of the zoo."""
    encoder = load(name)
    tokenizer = encoder.preprocess.tokenizer
    data = TextLines(
        str(folder / "text.txt"), plain_text(), tokenizer, **tasks(folder, pairs), seed=0
    )
    data.setup("validate")
    data = data.with_input(encoder.preprocess)
    loaders = data.eval_dataloaders()
    known, asked = (
        extract(encoder, loader, loaders, "forward", "cpu")
        for loader in (loaders.bank, loaders.query)
    )
    given = known.features, known.label, asked.features, asked.label, loaders.num_classes
    return {**correlations(data, encoder), "linear": linear_probe(*given)}


def tasks(folder: Path, pairs: Path) -> dict[str, Any]:
    """Arguments of `TextLines`: the files of both tasks."""
    labeled = {f"labeled_{part}": str(folder / f"book_{part}.tsv") for part in ("train", "test")}
    return {**labeled, "pairs": {part: str(pairs / f"{part}.csv") for part in ("dev", "test")}}


def train(folder: Path, pairs: Path, extra: Sequence[str]) -> Path:
    """Run the command; the folder of the run."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in tasks(folder, pairs).items()}
    options = [f"--data.{key}={text}" for key, text in texts.items()]
    options += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", *extra]
    return fit(find_config(CONFIG), str(folder / "text.txt"), None, folder / "runs", options)


def measure(run: Path, folder: Path, pairs: Path, lines: dict[str, int]) -> dict[str, Any]:
    """Return what goes into the results."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    timing = json.loads((run / TIMING).read_text())
    del timing["extra"]  # the paths of this machine
    return {
        "config": f"configs/{CONFIG}.yaml",
        "epochs": config["trainer"]["max_epochs"],
        "seeds": [config["seed_everything"]],
        "lines": lines,
        **timing,
        "scores": json.loads((run / TABLE).read_text()),
        "zoo": {name: of_the_zoo(name, folder, pairs) for name in ZOO},
        "versions": versions(),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bible", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the files made here")
    parser.add_argument("--pairs", type=Path, required=True, help="with dev.csv and test.csv")
    parser.add_argument("--bible", default="bible", help="the command")
    parser.add_argument("--run", type=Path, help="take this finished run instead of training")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    folder, pairs = given.folder.resolve(), given.pairs.resolve()
    command = [*given.bible.split(), "-f", WHOLE]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = write(folder, read_verses(printed.stdout.splitlines()))
    run = given.run or train(folder, pairs, extra)
    result = measure(run, folder, pairs, lines)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result["scores"], **result["zoo"]}, indent=1))


if __name__ == "__main__":
    main()
