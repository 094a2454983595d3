"""`sslzoo data check`: what a folder or a list of images holds, and the YAML that reads it.

sslzoo data check photos
sslzoo data check scans.csv --value_range -1000 2000 --clip --yaml data.yaml
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslzoo.commands.errors import Parser, one_sentence, without_debug


def _parser() -> Parser:
    parser = Parser(
        prog="sslzoo data",
        description="Check images before training: counts, sizes, channels, bits, values, mean and "
        "std, unreadable and equal files; last comes the YAML of the data module to use.",
    )
    parser.add_argument("verb", choices=["check"], help="what to do")
    parser.add_argument("source", help="folder, or list (.csv, .tsv, .parquet, .txt)")
    parser.add_argument(
        *("--value_range",), nargs=2, type=float, metavar=("BLACK", "WHITE"), help="range of values"
    )
    parser.add_argument("--clip", action="store_true", help="clip values outside --value_range")
    parser.add_argument("--reader", help="your function that reads a file, such as mine.read")
    parser.add_argument("--path_column", default="path", help="column of paths in a list")
    parser.add_argument("--label_column", default="label", help="column of classes")
    parser.add_argument("--split_column", default="split", help="column of splits")
    parser.add_argument("--root", help="folder of the relative paths of a list")
    parser.add_argument("--num_workers", type=int, help="threads that read")
    parser.add_argument("--yaml", help="also write the YAML to this file")
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo data` on `args`; errors print one line."""
    args, debug = without_debug(args)
    given = vars(_parser().parse_args(args))
    with one_sentence("sslzoo data", debug):
        from sslzoo.data.check import check_data  # after --help, since it imports torch

        target = given.pop("yaml")
        del given["verb"]
        report = check_data(**{**given, "reader": _function(given["reader"])})
        print(report)
        if target is not None:
            Path(target).write_text(report.yaml, encoding="utf-8")


def _function(name: str | None) -> Any:
    if name is None:
        return None
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None) if module else None
    if not callable(found):
        raise ValueError(f"--reader must be a function as module.name, got {name!r}")
    return found
