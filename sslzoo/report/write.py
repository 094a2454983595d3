"""Write: read runs, their encoders and their data, and write the page to a file."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

from sslzoo.atomic_write import atomic_write
from sslzoo.data.datamodule import SampleDataModule
from sslzoo.data.image.datamodule import ImageDataModule
from sslzoo.report.page import Layout, Looked, attention_png, render
from sslzoo.report.pictures import shown
from sslzoo.report.samples import seen, set_seed, training_views
from sslzoo.runs.encoders import build_data, read_model
from sslzoo.runs.results import read_result
from sslzoo.runs.run import Run, evaluation, read_runs


class ReportWarning(UserWarning):
    """Warning that the page lacks what could not be read."""


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
    size = sum(p.numel() for p in encoder.parameters())
    found = Looked(seen(encoder, data, samples, images), parameters=size)
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
            warnings.warn(notices[-1], ReportWarning, stacklevel=2)
    page = render(runs, looked, layout or Layout(), tables, notices)
    target = Path(output) if output is not None else runs[0].folder / "report.html"
    atomic_write(target, page)
    return target
