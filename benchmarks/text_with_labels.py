"""Text with labels: what the small sentence encoder learns of STS-B where it is told the scores.

    python -m benchmarks.text_with_labels --data FOLDER

The net, tokenizer and data of simcse/stsb_small_40ep, from the same random weights; the training
pairs' scores are regressed by the cosine of their sentences. It says how much of what SimCSE and
CLEAR lack is the net and its 10,536 sentences, and how much the missing labels. Spearman on dev
and test after every epoch; the row is the epoch that is best on dev. It goes to
benchmarks/results/text_with_labels.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning import seed_everything

from benchmarks.driver import ROOT
from benchmarks.quality import build
from benchmarks.speed import provenance
from benchmarks.text import correlations
from benchmarks.worker import versions
from sslzoo.commands.configs import find_config
from sslzoo.data.text.lines import Sentences, read_pairs
from sslzoo.random import Keys
from sslzoo.transforms.text.special import with_special

RESULT = ROOT / "benchmarks" / "results" / "text_with_labels.json"
CONFIG = "simcse/stsb_small_40ep"


def train(folder: Path, epochs: int, pairs: int, rate: float) -> list[dict[str, float]]:
    """Spearman before training and after each epoch.

    Args:
        folder: of train.csv, dev.csv and test.csv.
        epochs: of all pairs.
        pairs: in a batch.
        rate: of AdamW, falling to 0 along a line.
    """
    config = yaml.safe_load(Path(find_config(CONFIG)).read_text())
    config["data"]["init_args"] |= {"root": str(folder), "batch_size": pairs}
    seed_everything(config["seed_everything"], verbose=False)
    net: Any = build(config, "model").backbone
    data = build(config, "data")
    data.setup("fit")
    labeled = read_pairs(folder / "train.csv")
    assert labeled.label is not None
    source = Sentences(labeled, data.tokenizer, data.max_length - 2)
    scores = labeled.label[::2].float() / 5
    steps = epochs * (len(scores) // pairs)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    found = [correlations(data, net.eval())]
    for _ in range(epochs):
        net.train()
        for rows in torch.randperm(len(scores))[: len(scores) // pairs * pairs].split(pairs):
            lines = torch.stack([2 * rows, 2 * rows + 1], dim=1).flatten()
            tokens = with_special(
                source.__getitems__(lines.tolist()).views[0], data.tokenizer.special
            )
            z = net(tokens, Keys(lines).fold(0, schedule.last_epoch))
            loss = F.mse_loss(F.cosine_similarity(z[::2], z[1::2]), scores[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found.append(correlations(data, net.eval()))
        print(len(found) - 1, found[-1], flush=True)
    return found


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_with_labels")
    parser.description = __doc__
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and so on")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=64, help="in a batch")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    about, started = provenance(), time.process_time()
    found = train(given.data, given.epochs, given.pairs, given.rate)
    best = max(range(len(found)), key=lambda epoch: found[epoch]["spearman_dev"])
    result = {
        "config": f"configs/{CONFIG}.yaml",
        **{name: getattr(given, name) for name in ("epochs", "pairs", "rate")},
        "best_epoch": best,
        "scores": found[best],
        "every_epoch": found,
        "cpu_minutes": (time.process_time() - started) / 60,
        **about,
        "versions": versions(),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
