"""`sslzoo eval`: evaluate encoders on a data module.

    sslzoo eval RUN                                      on the data that the run was trained on
    sslzoo eval NAME RUN/checkpoints/last.ckpt --on CONFIG --data.root FOLDER
    sslzoo eval NAME --protocol dino_linear --on CONFIG --dino_linear.training.epochs 10
    sslzoo eval NAME --protocol sts --sts.root FOLDER

A model is a run directory, or anything that `sslzoo.load` takes. Features are extracted once and
cached by a hash of weights and data; with `--devices N` each rank computes a part. Runs that differ
only in their seed also give mean and standard deviation; so does one run with few labels, which
`--seeds` draw. `--protocol` evaluates as a paper does. `--output` writes a JSON file; `sslzoo eval
--table` prints the table of such files, and of the directories of runs that were validated with
labels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import jsonargparse
from lightning import LightningDataModule, seed_everything
from lightning.fabric import Fabric

from sslzoo.atomic_write import atomic_write, check_target
from sslzoo.commands.configs import find_config
from sslzoo.commands.errors import one_sentence, refuse, without_debug
from sslzoo.commands.help_text import HelpFormatter
from sslzoo.commands.zoo import TRUST
from sslzoo.distributed import barrier, rank
from sslzoo.eval.suite import OF_LABELS, OF_MAPS, Suite
from sslzoo.run_folder import RunFolder
from sslzoo.runs.encoders import build_data, read_model, untrained
from sslzoo.runs.evaluation import (
    Found,
    as_known_to,
    find,
    fingerprint_of,
    loaders_of,
    measure,
    note,
)
from sslzoo.runs.protocols import PROTOCOLS, Protocol, check_name, figures, subject_of
from sslzoo.runs.provenance import provenance
from sslzoo.runs.results import read_result, statistics, summary, table
from sslzoo.runs.seeds import results_of_runs, without_seed
from sslzoo.trust import read_config
from sslzoo.zoo.cache import home


class SchemaParser(jsonargparse.ArgumentParser):
    """jsonargparse's parser, whose errors are one sentence without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the inner parser of a class
            super().error(message, ex)
        refuse(self.prog, message, self._option_string_actions)


def check_seeds(seeds: Sequence[int], suite: Suite, by_protocol: bool = False) -> None:
    """Check that the seeds have an effect and are distinct.

    Args:
        seeds: the seeds.
        suite: the metrics.
        by_protocol: whether protocols are evaluated, whose draws the seeds determine.

    Raises:
        ValueError: a seed is repeated, there is none, or all labels are used.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds must be one or more distinct numbers, got {list(seeds)}")
    if suite.train_fraction == 1 and not by_protocol:
        raise ValueError(
            "--suite.train_fraction must be below 1, such as 0.01 or 0.1, with --seeds, which draw "
            "the labeled subset, got 1.0"
        )


def _first_run(words: Sequence[str]) -> str | None:
    """First run directory, whose data is used if no other is named."""
    return next((word for word in words if RunFolder(Path(word)).config_file.is_file()), None)


def _section(words: Sequence[str], on: str | None) -> dict[str, Any]:
    """The `data` section of the requested config, or of the first run in the arguments."""
    run = _first_run(words)
    if on is not None:
        path = Path(find_config(on))
    elif run is not None:
        path = RunFolder(Path(run)).config_file
    else:
        raise ValueError(
            "--on must be a config whose data to evaluate on, since the model "
            f"{words[0]!r} is not a run directory, got none"
        )
    if not path.is_file():
        raise ValueError(f"--on must be a config file or the name of a shipped one, got {on!r}")
    content = read_config(path)
    if "data" not in content:
        raise ValueError(f"{str(path)!r} must have the key `data`, got {list(content)!r:.200}")
    return content["data"]  # type: ignore[no-any-return]


def _option(args: Sequence[str], name: str) -> str | None:
    """Value of an option, before a parser exists."""
    after = next((args[i + 1] for i, arg in enumerate(args[:-1]) if arg == name), None)
    return next((a.partition("=")[2] for a in args if a.startswith(f"{name}=")), after)


def _protocols(text: str | None) -> dict[str, Protocol]:
    """The protocols of `--protocol`, with their papers' settings."""
    names = [] if text is None else [name.strip(" '\"") for name in text.strip("[]").split(",")]
    return {name: check_name(name).protocol for name in names}


def _parser(protocols: Mapping[str, Protocol]) -> jsonargparse.ArgumentParser:
    parser = SchemaParser(prog="sslzoo eval", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("models", nargs="+", help="run directories, zoo names, files or URLs")
    parser.add_argument("--on", type=str | None, help="config whose data to evaluate on")
    parser.add_subclass_arguments(LightningDataModule, "data")
    parser.add_class_arguments(Suite, "suite")
    parser.add_argument(
        "--protocol",
        type=str | None,
        help="papers' protocols instead of the suite, separated by commas: " + ", ".join(PROTOCOLS),
    )
    for name, protocol in protocols.items():
        parser.add_class_arguments(type(protocol), name)
        parser.set_defaults({name: _settings(protocol)})
    parser.add_argument(
        "--seeds",
        type=list[int] | None,
        help="seeds that draw the labels of suite.train_fraction, or of a protocol's draws",
    )
    parser.add_argument(
        "--untrained", type=bool, default=False, help="also evaluate each encoder untrained"
    )
    parser.add_argument("--cache", type=str | None, help='folder of cached features, or "none"')
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, cuda or auto")
    parser.add_argument("--devices", type=int, default=1, help="number of ranks")
    parser.add_argument("--output", type=str | None, help="JSON file to write the results to")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo eval` on `args`; errors print one line."""
    args, debug = without_debug(args)
    with one_sentence("sslzoo eval", debug):
        if args[:1] == ["--table"]:
            paths = [Path(path) for path in args[1:]]
            if not paths:
                raise ValueError("--table must be given files of --output or run directories")
            results = [read_result(path) for path in paths if not path.is_dir()]
            print(table(results + results_of_runs([path for path in paths if path.is_dir()])))
        else:
            _run(args)


def _run(args: list[str]) -> None:
    words = [arg for arg in args if not arg.startswith("-")]
    on = _option(args, "--on")
    named = _protocols(_option(args, "--protocol"))
    parser = _parser(named)
    reads_data = not named or any(protocol.needs_data for protocol in named.values())
    where = f"the config of {_first_run(words)}"
    from_run = on is None and "--trust" not in args  # not a config given by the user
    if reads_data and words and not {"--help", "-h"} & set(args):
        section = _section(words, on)
        if from_run:
            build_data(section, where)  # refused before a parser resolves its names
        parser.set_defaults({"data": section})
    given = parser.parse_args(args)
    suite = parser.instantiate(jsonargparse.Namespace(suite=given.suite))["suite"]
    chosen = {
        name: parser.instantiate(jsonargparse.Namespace({name: given[name]}))[name]
        for name in named
    }
    if not reads_data:
        data = None
    elif from_run:
        data = build_data(given.data.as_dict(), where)
    else:
        data = parser.instantiate(jsonargparse.Namespace(data=given.data))["data"]
    evaluate(given, data, suite, chosen)


def evaluate(
    given: Any,
    data: LightningDataModule | None,
    suite: Suite,
    protocols: Mapping[str, Protocol] | None = None,
) -> dict[str, Any]:
    """Evaluate every requested model, then print and write the results.

    Args:
        given: the parsed arguments.
        data: the data module; None if every protocol reads a folder of its own.
        suite: the metrics, unless there are protocols.
        protocols: papers' protocols by name.

    Raises:
        ValueError: the data module has no `eval_dataloaders`, other samples than an encoder
            expects, or less than a protocol needs; or see `check_seeds`.
        OSError: the results cannot be written; they are printed before.
    """
    if given.output is not None:
        check_target(Path(given.output))
    for protocol in (protocols or {}).values():
        protocol.check()
    if given.seeds is not None:
        check_seeds(given.seeds, suite, bool(protocols))
    seeds = given.seeds or [0]
    fabric = Fabric(
        accelerator=given.accelerator,
        devices=given.devices,
        strategy="ddp" if given.devices > 1 else "auto",
    )
    fabric.launch()
    seed_everything(0, verbose=False)  # the views of `alignment`
    if data is not None:
        if rank() == 0:
            data.prepare_data()
        barrier()
        data.setup("validate")
        loaders_of(data)  # refused before an encoder is downloaded
    cache = None if given.cache == "none" else Path(given.cache or home() / "features")
    own = None if given.on is not None else _first_run(given.models)
    folders = not all(protocol.needs_data for protocol in (protocols or {}).values())
    rows: list[dict[str, Any]] = []
    for name in given.models:
        model = read_model(name, given.trust)
        known = None if data is None else as_known_to(model, data, name == own)
        made = None if cache is None or known is None else fingerprint_of(known)
        if cache is not None and known is not None and made is None:
            note(f"features are not cached, since {type(data).__name__} has no fingerprint()")
            cache = None
        todo = {name: model.encoder}
        if given.untrained:
            todo[f"{name}, untrained"] = untrained(model, given.trust)
        for title, encoder in todo.items():
            if protocols:
                subject = subject_of(model, encoder, known, folders, fabric.device, cache, made)
                of_seeds = figures(protocols, subject, seeds)
            else:
                assert known is not None
                found = find(encoder, known, suite, fabric, cache, made)
                suite = _fitting(suite, found)
                of_seeds = measure(encoder, known, found, suite, fabric, seeds)
            rows.append({"model": title, **summary(seeds, of_seeds), "config": model.config})
    trained = [row for row in rows if not row["model"].endswith(", untrained")]
    result = {
        "models": rows,
        **({"statistics": statistics([r["metrics"] for r in trained])} if _alike(trained) else {}),
        **(_described(protocols) if protocols else {"suite": dataclasses.asdict(suite)}),
        "seeds": seeds,
        "data": None if data is None else _plain(given.data),
        **provenance(),
    }
    if rank() == 0:
        print(table([result]))
        if given.output is not None:
            atomic_write(Path(given.output), json.dumps(result, indent=1, default=str) + "\n")
    return result


def _alike(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the models are runs of several seeds, whose configs are else the same."""
    configs = [row["config"] for row in rows]
    seeds = {config.get("seed_everything") for config in configs} - {None}
    differ = len(seeds) == len(rows) > 1
    return differ and len({without_seed(config) for config in configs}) == 1


def _plain(section: Any) -> Any:
    return section.as_dict() if hasattr(section, "as_dict") else section


def _settings(protocol: Protocol) -> dict[str, Any]:
    return dataclasses.asdict(cast(Any, protocol))


def _described(protocols: Mapping[str, Protocol]) -> dict[str, Any]:
    """Settings and source of each protocol, for the result file."""
    return {
        "protocols": {
            name: {"source": check_name(name).source, **_settings(protocol)}
            for name, protocol in protocols.items()
        }
    }


def _fitting(suite: Suite, found: Found) -> Suite:
    """Make the suite's protocols explicit, and report those that the data does not allow."""
    named = suite.fitting(found.bank, found.query, found.num_classes, found.pairs, found.maps)
    assert named.protocols is not None
    read = {*OF_LABELS, *OF_MAPS}
    if suite.protocols is None and not set(named.protocols) & read:
        note(f"skipped {', '.join(OF_LABELS)}: the data has no query set with one class per sample")
    return named
