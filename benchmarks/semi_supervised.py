"""Semi-supervised: SimCLR v2's second and third step, beside training from scratch.

    python -m benchmarks.semi_supervised --data FOLDER --pretrained RUN/checkpoints/last.ckpt

RUN is one of simclr/folder_small_v2_10ep. On 1 % and 10 % of the labels: the net fine-tuned from
that run, the same net from random weights with the same recipe and with three times its epochs,
and, on all images without labels, a student of the fine-tuned net. Accuracies are the run's own
`val/top1` after the last epoch. Rows go to benchmarks/results/semi_supervised.json, each as soon as
it is there; rows that stand there are kept unless `--only` names them. Arguments after `--` go to
`sslzoo fit`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.driver import ROOT
from benchmarks.quality import TIMING, fit, split_arguments
from benchmarks.worker import versions

RESULT = ROOT / "benchmarks" / "results" / "semi_supervised.json"
TUNE = {"1": "folder_small_v2_fine_tune_1pct_60ep", "10": "folder_small_v2_fine_tune_10pct_30ep"}
DISTIL = "folder_small_v2_distill_10ep"
STARTS = ("fine-tuned", "from scratch", "from scratch, 3x epochs", "distilled")
ROWS = [f"{percent} %, {start}" for percent in TUNE for start in STARTS]


def top1(run: Path) -> float:
    """The last `val/top1` that a run logged."""
    with (run / "metrics.csv").open() as file:
        values = [row["val/top1"] for row in csv.DictReader(file) if row.get("val/top1")]
    return float(values[-1])


def outcome(run: Path, config: str) -> dict[str, Any]:
    """What the results say of a run with labels, by this recipe."""
    timing = json.loads((run / TIMING).read_text())
    timing.pop("extra")
    given = yaml.safe_load((run / "config.yaml").read_text())
    return {
        "top1": top1(run),
        "epochs": given["trainer"]["max_epochs"],
        "seeds": [given["seed_everything"]],
        "config": f"configs/{config}.yaml",
        **timing,
        "versions": versions(),
    }


def last(run: Path) -> str:
    return str(run / "checkpoints" / "last.ckpt")


def arguments(row: str, pretrained: str, kept: dict[str, Any], runs: Path) -> tuple[str, list[str]]:
    """Config and overrides of a row."""
    percent, start = row.split(" %, ")
    config = TUNE[percent]
    if start == "distilled":
        teacher = kept[f"{percent} %, fine-tuned"]["run"]
        weights = [f"--model.teacher_weights={last(runs / teacher)}"]
        return DISTIL, [*weights, f"--model.weights={pretrained}"]
    if start == "fine-tuned":
        return config, [f"--model.weights={pretrained}"]
    epochs = int(config.rpartition("_")[2].removesuffix("ep"))
    longer = [f"--trainer.max_epochs={3 * epochs}"] if "3x" in start else []
    return config, ["--model.weights=random", *longer]


def measure(
    row: str,
    data: str,
    val_dir: str,
    pretrained: str,
    kept: dict[str, Any],
    runs: Path,
    more: list[str],
) -> dict[str, Any]:
    """Train a row; what goes into the results."""
    config, extra = arguments(row, pretrained, kept, runs)
    extra = [*extra, "--trainer.enable_progress_bar=false", *more]
    folder = (runs / row.replace(" ", "_").replace("%", "percent").replace(",", "")).resolve()
    run = fit(f"simclr/{config}", data, val_dir, folder, extra)
    return {**outcome(run, f"simclr/{config}"), "run": str(run.relative_to(runs.resolve()))}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semi_supervised")
    parser.description = __doc__
    parser.add_argument("--data", required=True, help="folder with train/ and the test images")
    parser.add_argument("--val-dir", default="test")
    parser.add_argument("--pretrained", required=True, help="checkpoint of folder_small_v2_10ep")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "semi_supervised")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[])
    own, more = split_arguments(args)
    given = parser.parse_args(own)
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    data, pretrained = (str(Path(path).resolve()) for path in (given.data, given.pretrained))
    for row in given.only or [row for row in ROWS if row not in kept]:
        kept[row] = measure(row, data, given.val_dir, pretrained, kept, given.runs, more)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        ordered = {name: kept[name] for name in ROWS if name in kept}
        given.output.write_text(json.dumps(ordered, indent=1) + "\n")
        print(row, kept[row]["top1"], flush=True)


if __name__ == "__main__":
    main()
