"""Bible: sentence encoders trained on the King James Bible, with tasks given as files.

    apt-get install bible-kjv bible-kjv-text
    python -m benchmarks.bible --folder FOLDER --pairs STSB

Every fifth chapter of each book is held out. CPC, CLEAR and SimCSE train by `sslzoo fit` on the
verses of the other chapters, with one tokenizer. A linear probe tells the book of the verses of the
held-out chapters (books of at least ten chapters; trained on every eighth training verse), and
STSB, a folder with dev.csv and test.csv, has scored pairs of modern sentences. Each run's own
`sentence_table.json` has the trained and the untrained encoder, means of their token embeddings and
a bag of words. Results: benchmarks/results/bible.json, one row per method.
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
from benchmarks.text import TABLE
from benchmarks.worker import versions
from sslzoo.commands.configs import find_config

RESULT = ROOT / "benchmarks" / "results" / "bible.json"
WHOLE = "gen1:1-rev22:21"
LEAST_CHAPTERS = 10
HELD_OUT = 5  # every fifth chapter
PROBED = 8  # every eighth training verse
MAX_LENGTH, NUM_IDS = 48, 6000
METHODS = {  # recipe and epochs, of similar CPU time
    "cpc": ("cpc/text_small_8ep", 8),
    "clear": ("clear/stsb_small_40ep", 1),
    "simcse": ("simcse/stsb_small_40ep", 2),
}


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


def data_section(folder: Path, pairs: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The data of a run: a recipe's views and batches of lines of the Bible, with both tasks."""
    own = config["data"]["init_args"]
    same = {key: own[key] for key in ("transform", "batch_size")} | {"window": own.get("window", 1)}
    tokenizer = {"class_path": "sslzoo.data.WordPiece", "init_args": {"num_ids": NUM_IDS}}
    tasks = {f"labeled_{part}": str(folder / f"book_{part}.tsv") for part in ("train", "test")}
    scored = {part: str(pairs / f"{part}.csv") for part in ("dev", "test")}
    about = {"root": str(folder / "text.txt"), "tokenizer": tokenizer, "max_length": MAX_LENGTH}
    arguments = {**same, **about, **tasks, "pairs": scored}
    return {"class_path": "sslzoo.data.TextLines", "init_args": arguments}


def run_config(folder: Path, pairs: Path, path: str, epochs: int) -> dict[str, Any]:
    """A recipe on the Bible: its method and optimizer, this tokenizer and these tasks."""
    text = Path(path).read_text().replace("num_ids: 5500", f"num_ids: {NUM_IDS}")
    config = yaml.safe_load(text.replace("max_length: 32", f"max_length: {MAX_LENGTH}"))
    config["trainer"]["max_epochs"] = epochs
    config["trainer"]["callbacks"] = [{"class_path": "sslzoo.callbacks.SentenceTable"}]
    return {**config, "data": data_section(folder, pairs, config)}


def row(
    folder: Path, pairs: Path, recipe: str, epochs: int, extra: Sequence[str]
) -> dict[str, Any]:
    """Train by the command; what goes into the results."""
    runs = folder / "runs" / recipe.partition("/")[0]
    runs.mkdir(parents=True, exist_ok=True)
    config = run_config(folder, pairs, find_config(recipe), epochs)
    (runs / "config.yaml").write_text(yaml.safe_dump(config))
    options = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", *extra]
    run = fit(str(runs / "config.yaml"), config["data"]["init_args"]["root"], None, runs, options)
    return {
        "method": config["model"]["class_path"],
        "config": f"configs/{recipe}.yaml",
        "data": "King James Bible",
        "epochs": epochs,
        "seeds": [config["seed_everything"]],
        **json.loads((run / TIMING).read_text()),
        "scores": json.loads((run / TABLE).read_text()),
        "versions": versions(),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bible", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the files made here")
    parser.add_argument("--pairs", type=Path, required=True, help="with dev.csv and test.csv")
    parser.add_argument("--bible", default="bible", help="the command")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.epilog = "Arguments after -- go to `sslzoo fit`."
    own, extra = split_arguments(args)
    given = parser.parse_args(own)
    folder = given.folder.resolve()
    printed = subprocess.run(
        [*given.bible.split(), "-f", WHOLE], capture_output=True, text=True, check=True
    )
    counts = write(folder, read_verses(printed.stdout.splitlines()))
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    for name in given.only:
        recipe, epochs = METHODS[name]
        kept[name] = row(folder, given.pairs.resolve(), recipe, epochs, extra) | {"lines": counts}
        given.output.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        print(name, kept[name]["scores"], flush=True)


if __name__ == "__main__":
    main()
