"""`sslzoo eval`: what encoders are worth on a data module.

    sslzoo eval RUN                                      on the data that the run was trained on
    sslzoo eval NAME RUN/checkpoints/last.ckpt --on CONFIG --data.root FOLDER

A model is a run's folder, or anything that `sslzoo.load` takes. Features are extracted once and
cached by a hash of weights and data; with `--devices N` each rank has its share. Several runs (of
several seeds, say) also give mean and standard deviation; so does one run with few labels, whose
`--seeds` draw them. Results go to a JSON file, and `sslzoo eval --table FILES` makes a table of
such files.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import jsonargparse
import yaml
from lightning import LightningDataModule, seed_everything
from lightning.fabric import Fabric
from torch import nn

import sslzoo
from sslzoo.data.alignment import view_alignment
from sslzoo.data.fingerprint import fingerprint
from sslzoo.data.module import ImageDataModule
from sslzoo.distributed import barrier, rank
from sslzoo.eval.cache import cached_features, module_digest
from sslzoo.eval.features import Features, extract
from sslzoo.eval.suite import OF_BANK_LABELS, Suite
from sslzoo.shipped import find_config
from sslzoo.transforms.eval_view import EvalView
from sslzoo.zoo.building import build_backbone
from sslzoo.zoo.cache import home

PACKAGES = ("torch", "torchvision", "lightning", "timm")
RECORD = "run.json"  # in a run's folder: its command and its surroundings
Metrics = dict[str, float]


class Model(NamedTuple):
    """An encoder to evaluate.

    Args:
        name: as it was asked for.
        encoder: (B, ...) -> (B, num_features).
        view: that its training normalised images by; None: not known.
        config: the run's, or what the card says of the recipe.
    """

    name: str
    encoder: nn.Module
    view: EvalView | None
    config: dict[str, Any]


def read_model(name: str) -> Model:
    """A run's folder, or what `sslzoo.load` takes.

    Raises:
        ValueError: the folder holds no finished run, or see `sslzoo.load`.
    """
    folder = Path(name)
    if not folder.is_dir():
        encoder: Any = sslzoo.load(name)
        card = getattr(encoder, "card", None)
        about = {} if card is None else json.loads(card.to_json())
        view = getattr(encoder, "preprocess", None)
        return Model(name, encoder, view if isinstance(view, EvalView) else None, about)
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    if not config.is_file() or not checkpoint.is_file():
        raise ValueError(f"a run has config.yaml and checkpoints/last.ckpt, {name!r} has not both")
    content = yaml.safe_load(config.read_text())
    data = build_data(content["data"])
    return Model(name, sslzoo.load(str(checkpoint)), getattr(data, "eval_view", None), content)


def build_data(section: dict[str, Any]) -> LightningDataModule:
    """The `data` of a config, as the command builds it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parsed = parser.parse_object({"data": section})
    return parser.instantiate(parsed)["data"]  # type: ignore[no-any-return]


def untrained(model: Model) -> nn.Module:
    """The same net with new weights, of seed 0.

    Raises:
        ValueError: neither a config nor a card says how it is built.
    """
    init = model.config.get("model", {}).get("init_args", {})
    backbone = init.get("backbone") or model.config.get("backbone")
    if backbone is None:
        raise ValueError(f"{model.name!r} does not say how its backbone is built")
    seed_everything(0, verbose=False)
    return build_backbone(backbone).eval()


def measure(
    encoder: nn.Module,
    view: EvalView | None,
    data: ImageDataModule,
    suite: Suite,
    fabric: Fabric,
    cache: Path | None,
    seeds: Sequence[int] = (0,),
) -> list[Metrics]:
    """The metrics of one encoder; collective.

    The first seed's are all, the others' those that few labels change: features are extracted
    once.

    Args:
        encoder: put on the fabric's device, in eval mode.
        view: whose normalisation and colours the encoder knows; None: those of the data.
        data: set up; its `eval_view` gives the size.
        suite: what is measured.
        fabric: launched.
        cache: folder of features; None: none is kept.
        seeds: of the labels that the suite's `train_fraction` leaves.

    Returns:
        One for each seed.
    """
    own = data.eval_view
    if view is not None:
        data.eval_view = EvalView(
            own.size,
            own.resize,
            view.mean,
            view.std,
            view.interpolation,
            own.fraction,
            view.space,
        )
    try:
        encoder = encoder.eval().to(fabric.device)
        loaders = data.eval_dataloaders()
        key = f"{module_digest(encoder)} {fingerprint(data)} {fabric.device.type}"

        def features(part: str, loader: Any) -> Features:
            found, _ = cached_features(
                cache, f"{key} {part}", lambda: extract(encoder, loader, loaders)
            )
            # Where the ranks' backend is; Apple's GPUs have no float64.
            device = "cpu" if fabric.device.type == "mps" else fabric.device
            return Features(*(None if x is None else x.to(device) for x in found))  # type: ignore[arg-type]

        bank = features("bank", loaders.bank)
        query = None if loaders.query is None else features("query", loaders.query)
        of_labels = [name for name in suite.protocols if name in OF_BANK_LABELS]
        rows = [suite(bank, query, loaders.num_classes, seeds[0])]
        if "label_free" in suite.protocols:
            aligned = view_alignment(encoder, data, fabric.device)
            rows[0] |= {} if aligned is None else {"alignment": aligned}
        for seed in seeds[1:]:
            few = dataclasses.replace(suite, protocols=of_labels)
            rows.append(few(bank, query, loaders.num_classes, seed))
        return rows
    finally:
        data.eval_view = own


def statistics(rows: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each metric that all models have; several models."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: {"mean": mean(v), "std": stdev(v)} for name, v in columns.items()}


def summary(seeds: Sequence[int], rows: Sequence[Metrics]) -> dict[str, Any]:
    """What a result says of one model: its metrics and, of several seeds, each one's and spread.

    Args:
        seeds: S of them.
        rows: each seed's metrics; what the seed does not change stands in the first alone.
    """
    if len(rows) == 1:
        return {"metrics": rows[0]}
    both = statistics(rows)
    return {
        "metrics": rows[0] | {name: value["mean"] for name, value in both.items()},
        "std": {name: value["std"] for name, value in both.items()},
        "seeds": [
            {"seed": seed, "metrics": {name: row[name] for name in both}}
            for seed, row in zip(seeds, rows, strict=True)
        ],
    }


def check_seeds(seeds: Sequence[int], suite: Suite) -> None:
    """Refuse seeds that would draw nothing, or the same twice.

    Raises:
        ValueError: names what was given and what is wanted.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds wants different numbers, at least one, got {list(seeds)}")
    if suite.train_fraction == 1:
        raise ValueError(
            "--seeds draw the labels that are known, so they want --suite.train_fraction below 1 "
            "(0.01, 0.1), got 1.0; with all labels an evaluation draws nothing"
        )


def surroundings() -> dict[str, Any]:
    """Version, commit (where the package stands in a clone), packages and date."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "sslzoo": sslzoo.__version__,
        "commit": _commit(Path(sslzoo.__file__).parents[1]),
        "versions": {"python": sys.version.split()[0], **versions},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _commit(clone: Path) -> str | None:
    """HEAD of the repository whose root this is; None elsewhere, and where there is no git."""
    git = ["git", "-C", str(clone), "rev-parse", "--show-prefix", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    prefix, head = found.stdout.split("\n")[:2]
    return None if prefix else head  # a prefix: an environment inside somebody else's repository


def table(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: a row for each model of each file, a column for each metric.

    A model that was measured with several seeds has mean ± standard deviation over them.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    for row in (row for result in results for row in result["models"]):
        spread = {k: (row["metrics"][k], std) for k, std in row.get("std", {}).items()}
        rows.append((row["model"], row["metrics"] | spread))
    for result in results:
        if "statistics" in result:
            both = result["statistics"].items()
            rows.append(("mean ± std", {k: (v["mean"], v["std"]) for k, v in both}))
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    lines = [f"| model | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for model, metrics in rows:
        cells = [_cell(metrics.get(name)) for name in names]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:.4f} ± {value[1]:.4f}"
    return f"{value:.4f}"


def _section(words: Sequence[str], on: str | None) -> dict[str, Any]:
    """The `data` of the config that was asked for, or of the first run among the words."""
    run = next((Path(word) for word in words if (Path(word) / "config.yaml").is_file()), None)
    if on is not None:
        path = Path(find_config(on))
    elif run is not None:
        path = run / "config.yaml"
    else:
        raise ValueError(
            "--on CONFIG (or a run's config.yaml) wanted, whose data is evaluated on; got "
            f"{words[0]!r}, which is no run's folder"
        )
    if not path.is_file():
        raise ValueError(f"no config file {on!r}")
    content = yaml.safe_load(path.read_text())
    if "data" not in content:
        raise ValueError(f"{str(path)!r} has no `data`")
    return content["data"]  # type: ignore[no-any-return]


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(prog="sslzoo eval", description=__doc__)
    parser.add_argument("models", nargs="+", help="run folders, zoo names, files or addresses")
    parser.add_argument("--on", type=str | None, help="config whose data is evaluated on")
    parser.add_subclass_arguments(LightningDataModule, "data")
    parser.add_class_arguments(Suite, "suite")
    parser.add_argument(
        "--seeds", type=list[int] | None, help="of the labels that suite.train_fraction leaves"
    )
    parser.add_argument("--untrained", type=bool, default=False, help="also the net untrained")
    parser.add_argument("--cache", type=str | None, help='folder of features; "none" for none')
    parser.add_argument("--accelerator", type=str, default="auto")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--output", type=str | None, help="JSON file of the results")
    return parser


def main(args: Sequence[str]) -> None:
    """The verb; `args` without its name. An error is one line and status 1."""
    try:
        if args[:1] == ["--table"]:
            print(table([json.loads(Path(path).read_text()) for path in args[1:]]))
        else:
            _run(list(args))
    except (ValueError, OSError, ImportError) as error:
        print(f"sslzoo eval: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _run(args: list[str]) -> None:
    parser = _parser()
    words = [arg for arg in args if not arg.startswith("-")]
    on = next((args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--on"), None)
    on = next((arg.removeprefix("--on=") for arg in args if arg.startswith("--on=")), on)
    if words and not {"--help", "-h"} & set(args):
        parser.set_defaults({"data": _section(words, on)})
    given = parser.parse_args(args)
    built = parser.instantiate(given)
    evaluate(given, built["data"], built["suite"])


def evaluate(given: Any, data: LightningDataModule, suite: Suite) -> dict[str, Any]:
    """Measure every model that was asked for, write and print the results.

    Raises:
        ValueError: the data module is not of images, or see `check_seeds`.
    """
    if not isinstance(data, ImageDataModule):
        raise ValueError(
            f"images wanted, got the data module {type(data).__name__}; sound, sequences and "
            "sentences are evaluated during fit, see their methods' pages"
        )
    if given.seeds is not None:
        check_seeds(given.seeds, suite)
    seeds = given.seeds or [0]
    fabric = Fabric(
        accelerator=given.accelerator,
        devices=given.devices,
        strategy="ddp" if given.devices > 1 else "auto",
    )
    fabric.launch()
    seed_everything(0, verbose=False)  # the views of `alignment`
    if rank() == 0:
        data.prepare_data()
    barrier()
    data.setup("validate")
    cache = None if given.cache == "none" else Path(given.cache or home() / "features")
    rows: list[dict[str, Any]] = []
    for name in given.models:
        model = read_model(name)
        todo = {name: model.encoder}
        if given.untrained:
            todo[f"{name}, untrained"] = untrained(model)
        for title, encoder in todo.items():
            of_seeds = measure(encoder, model.view, data, suite, fabric, cache, seeds)
            rows.append({"model": title, **summary(seeds, of_seeds), "config": model.config})
    trained = [row["metrics"] for row in rows if not row["model"].endswith(", untrained")]
    result = {
        "models": rows,
        **({"statistics": statistics(trained)} if len(trained) > 1 else {}),
        "suite": dataclasses.asdict(suite),
        "seeds": seeds,
        "data": given.data.as_dict() if hasattr(given.data, "as_dict") else given.data,
        **surroundings(),
    }
    if rank() == 0:
        if given.output is not None:
            Path(given.output).parent.mkdir(parents=True, exist_ok=True)
            Path(given.output).write_text(json.dumps(result, indent=1, default=str) + "\n")
        print(table([result]))
    return result
