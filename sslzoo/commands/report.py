"""`sslzoo report`: compare runs in one HTML page.

    sslzoo report runs/simclr/folder_small_10ep/version_0
    sslzoo report RUN RUN --results eval.json --root FOLDER --output report.html

Curves, tables and configs come from the run directories; maps, neighbors, views and attention maps
from the last checkpoint and the run's own data. The page names what could not be read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from sslzoo.commands.errors import one_sentence, without_debug
from sslzoo.commands.evaluate import SchemaParser
from sslzoo.commands.help_text import HelpFormatter
from sslzoo.commands.zoo import TRUST
from sslzoo.report.page import Layout
from sslzoo.report.write import write


def _parser() -> SchemaParser:
    parser = SchemaParser(prog="sslzoo report", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories, runs/<config>/version_N")
    parser.add_argument("--output", type=str | None, help="default: report.html in the first run")
    parser.add_argument("--results", type=list[str], default=[], help="outputs of sslzoo eval")
    parser.add_argument("--root", type=str | None, help="root folder of the data, if it has moved")
    parser.add_argument("--samples", type=int, default=2000, help="number of test samples to map")
    parser.add_argument("--images", type=int, default=8, help="rows of views and attention maps")
    parser.add_argument(
        "--pictures", type=bool, default=True, help="false: show only logged values"
    )
    parser.add_class_arguments(Layout, "layout")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo report` on `args`; errors print one line."""
    args, debug = without_debug(args)
    parser = _parser()
    with one_sentence("sslzoo report", debug):
        given: Any = parser.instantiate(parser.parse_args(args))
        with warnings.catch_warnings():
            warnings.showwarning = _plainly
            path = write(
                given.runs,
                given.output,
                given.results,
                given.root,
                given.samples,
                given.images,
                given.layout,
                given.pictures,
                given.trust,
            )
    print(path)


def _plainly(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"sslzoo report: {message}", file=sys.stderr)
