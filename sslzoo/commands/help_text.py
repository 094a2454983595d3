"""What `sslzoo fit | validate | test | predict --help` say first."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from inspect import getdoc, isabstract

import jsonargparse
from lightning import LightningDataModule, LightningModule

FIT = """Train a method as a config says.

    sslzoo fit --config simclr/folder_small_10ep --data.root FOLDER
    sslzoo fit --config NAME --config mine.yaml --trainer.max_epochs 20   the last one wins
    sslzoo fit --config NAME --start_from NAME|FILE|ADDRESS|RUN           begin with these weights
    sslzoo fit --ckpt_path RUN/checkpoints/last.ckpt                      resume a run
    sslzoo fit --config NAME --print_config                               show all settings
    sslzoo fit --model.help                                               list the methods
    sslzoo fit --model.help sslzoo.methods.SimCLR                         the arguments of a class

NAME is one of `sslzoo configs`, or a YAML file. Every setting of a config is a flag, such as
--data.batch_size 64 or --model.temperature 0.1. The run directory is runs/NAME/version_N."""
EVALUATE = """{what}.

    sslzoo {verb} --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt

The results are written to RUN/{verb}."""
DESCRIPTIONS = {
    "fit": FIT,
    "validate": EVALUATE.format(verb="validate", what="Evaluate a run by its config's callbacks"),
    "test": EVALUATE.format(verb="test", what="Evaluate a run as validate does"),
    "predict": EVALUATE.format(verb="predict", what="Write the features of a run's encoder"),
}
CKPT_PATH = (
    "checkpoint that is resumed or evaluated: a file, a folder of shards, an address, or last: "
    "that of the newest run of this config"
)
WEIGHTS_ONLY = (
    "false: read a checkpoint with more than tensors and plain values; its code then runs"
)


# Packages whose classes `--model.help` and `--data.help` list.
_LISTED = {"--model": ("sslzoo.methods", "sslzoo.eval"), "--data": ("sslzoo.data",)}
_KNOWN = re.compile(r"known subclasses: ([\w.]+(?:, [\w.]+)*)")
_MANY = 100  # subclasses; nn.Module has 1,600
_PARTS = re.compile(r"sslzoo\.(backbones|heads)\.\w+")


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep a description's line breaks, and name the known classes of this package first."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return _KNOWN.sub(_ours_first, super()._get_help_string(action))


def _ours_first(found: re.Match[str]) -> str:
    names = found[1].split(", ")
    shown = sorted(names, key=lambda name: not name.startswith("sslzoo."))
    if len(names) > _MANY:
        shown = [name for name in names if _PARTS.fullmatch(name)]
        shown.append(f"and {len(names) - len(shown)} others")
    return f"known subclasses: {', '.join(shown)}"


def listed_classes(args: Sequence[str]) -> str | None:
    """What `--model.help` and `--data.help` say without a class; None: they are not asked so.

    Args:
        args: of the command, such as `["fit", "--model.help"]`.
    """
    asked = args[-1].removesuffix(".help") if args and args[-1].endswith(".help") else None
    if asked not in _LISTED:
        return None
    base = LightningModule if asked == "--model" else LightningDataModule
    rows = []
    for module in map(importlib.import_module, _LISTED[asked]):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type) and issubclass(found, base) and not isabstract(found):
                title = (getdoc(found) or "").partition("\n")[0]
                rows.append((f"{module.__name__}.{name}", title.rstrip(".:")))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {title}" for name, title in rows]
    return "\n".join([*lines, "", f"{asked}.help CLASS lists the arguments of one."])
