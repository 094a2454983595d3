"""`sslzoo report`: compare runs in one HTML page.

    sslzoo report runs/simclr/folder_small_10ep/version_0
    sslzoo report RUN RUN --results eval.json --root FOLDER --output report.html

Curves, tables and configs come from the run directories; maps, neighbors, views and attention maps
from the last checkpoint and the run's own data. The page names what could not be read.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from sslzoo.atomic_write import atomic_write
from sslzoo.commands.errors import one_sentence, without_debug
from sslzoo.commands.evaluate import HelpFormatter, SchemaParser
from sslzoo.commands.zoo import TRUST
from sslzoo.data.datamodule import SampleDataModule
from sslzoo.data.image.datamodule import ImageDataModule
from sslzoo.report.page import Layout, Looked, attention_png, render
from sslzoo.report.pictures import shown
from sslzoo.report.samples import seen, set_seed, training_views
from sslzoo.runs.encoders import build_data, read_model
from sslzoo.runs.results import read_result
from sslzoo.runs.run import Run, evaluation, read_runs


def look(run: Run, samples: int, images: int, root: str | None, trust: bool = False) -> Looked:
    """Compute the parts of the report that need a run's encoder and data.

    Args:
        run: the run, with its last checkpoint.
        samples: number of test samples to encode.
        images: number of training samples whose views are shown, and of attention maps.
        root: current root of the data; None: the one in the config.
        trust: see `sslzoo.load`.

    Raises:
        ValueError, OSError, ImportError: the weights or the data cannot be read.
    """
    section = copy.deepcopy(run.config.get("data"))
    if not section:
        raise ValueError("the config must have the key `data`, got none")
    if root is not None:
        section.setdefault("init_args", {})["root"] = root
    set_seed(run.config)
    data = build_data(section, str(run.folder), trust)
    if not isinstance(data, SampleDataModule):
        raise ValueError(f"data must be a data module of sslzoo, got {type(data).__name__}")
    encoder = read_model(str(run.folder), trust).encoder.eval()
    data.prepare_data()
    data.setup("validate")
    found = Looked(seen(encoder, data, samples, images))
    if isinstance(data, ImageDataModule):
        view = data.eval_view
        views = training_views(data, images)
        found.views = [shown(x, view.mean, view.std) for x in views]
        found.attention = attention_png(encoder, found.samples.inputs)
    return found


def write(
    folders: Sequence[str],
    output: str | None = None,
    results: Sequence[str] = (),
    root: str | None = None,
    samples: int = 2000,
    images: int = 8,
    layout: Layout | None = None,
    pictures: bool = True,
    trust: bool = False,
) -> Path:
    """Write the report atomically.

    Args:
        folders: run directories, `runs/<config>/version_N`.
        output: the file; None: `report.html` in the first run directory.
        results: more files that `sslzoo eval --output` wrote.
        root: current `root` of the data, if it has moved.
        samples: number of test samples for maps, spectrum and neighbors.
        images: rows of the views and of the attention maps.
        layout: which maps, and how many neighbors.
        pictures: False omits everything that needs weights and data.
        trust: see `sslzoo.load`.

    Returns:
        The file's path.

    Raises:
        ValueError: a folder is not a run directory, or a number is too small.
        OSError: a file cannot be read or written.
    """
    if samples < 3 or images < 1:
        raise ValueError(
            f"samples must be at least 3 and images at least 1, got {samples} and {images}"
        )
    runs = read_runs(list(folders))
    tables = [(Path(path).name, evaluation(read_result(Path(path)))) for path in results]
    looked: dict[str, Looked] = {}
    notices = []
    for run in runs if pictures else []:
        try:
            looked[run.name] = look(run, samples, images, root, trust)
        except (ValueError, OSError, ImportError) as error:
            line = " ".join(str(error).split())
            notices.append(f"{run.name}: skipped maps, neighbors and views: {line}")
            warnings.warn(notices[-1], stacklevel=2)
    page = render(runs, looked, layout or Layout(), tables, notices)
    target = Path(output) if output is not None else runs[0].folder / "report.html"
    atomic_write(target, page)
    return target


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
