"""Page: render the report's HTML from runs and their encoders' outputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

import sslzoo
from sslzoo.callbacks.compare_with_start import CHANGE
from sslzoo.eval.attention import attention_picture, cls_attention
from sslzoo.report import charts
from sslzoo.report.metrics import describe, order
from sslzoo.report.pictures import data_uri, neighbors, picture
from sslzoo.report.samples import Samples, plane, spectrum, statistics
from sslzoo.report.summary import FINAL, number, summary
from sslzoo.report.verdict import verdict
from sslzoo.runs.run import Run, Table, differences

MAP_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
MAP_NORMAL = (
    "Normal: dots of one class lie together; the axes have no unit. Point at a dot for its class."
)
MAP_UNLABELED = "Normal: groups of dots, not one point or line; the axes have no unit."


class Chart(NamedTuple):
    """A chart with its title, the sentence on what is normal, and the metric that it shows."""

    title: str
    svg: Markup
    normal: str
    metric: str = ""


@dataclass
class Looked:
    """Outputs of one run's encoder and data.

    Args:
        samples: test samples and their features.
        views: training views, (n, C, S, S) each, in [0, 1]; empty if they are not images.
        attention: PNG of the attention maps; None if the encoder is not a ViT.
        parameters: number of parameters of the encoder.
    """

    samples: Samples
    views: list[Tensor] = field(default_factory=list)
    attention: bytes | None = None
    parameters: int = 0


@dataclass(frozen=True)
class Layout:
    """Which maps, and how many neighbors, the page shows.

    Args:
        maps: any of "pca", "tsne" and "umap".
        num_queries: number of queries, one per row of neighbors.
        num_neighbors: neighbors per query.
    """

    maps: Sequence[str] = ("pca", "tsne")
    num_queries: int = 8
    num_neighbors: int = 10


def attention_png(encoder: nn.Module, inputs: Tensor | None) -> bytes | None:
    """PNG of the inputs' attention maps; None if the encoder has none."""
    if inputs is None:
        return None
    try:
        maps = cls_attention(encoder, inputs)
    except ValueError:  # not a ViT with a class token
        return None
    file = io.BytesIO()
    sheet = attention_picture(inputs, maps)
    large = max(1, round(900 / sheet.width))
    sheet.resize((sheet.width * large, sheet.height * large), resample=0).save(file, "png")
    return file.getvalue()


def render(
    runs: list[Run],
    looked: dict[str, Looked],
    layout: Layout,
    results: Sequence[tuple[str, Table]] = (),
    notices: Sequence[str] = (),
) -> str:
    """Render the page as HTML.

    Args:
        runs: the runs to report.
        looked: outputs by the run's name, without runs whose weights or data are missing.
        layout: which maps, and how many neighbors.
        results: evaluation tables besides those in the run directories.
        notices: the parts that are missing from the page, with reasons.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = number
    template = environment.from_string(files(__package__).joinpath("template.html").read_text())
    first = next(iter(looked.values()), None)
    features = {name: statistics(look.samples) for name, look in looked.items()}
    verdicts = {
        run.name: verdict(run.curves, features.get(run.name), run.results.get(FINAL))
        for run in runs
    }
    for name, look in looked.items():
        features[name] |= _purity(look.samples)
    states = {name: one.state for name, one in verdicts.items()}
    sizes = {name: look.parameters for name, look in looked.items()}
    parts: dict[str, Any] = {
        "verdicts": verdicts,
        "summary": summary(runs, states, sizes, features),
        "tables": _tables(runs, results),
        "lines": _lines(runs),
        "curves": _curves(runs),
        "gaps": _gaps(runs),
        "num_samples": 0 if first is None else len(first.samples.features),
        "maps": _maps(looked, layout),
        "spectrum": _spectrum(runs, looked) if looked else None,
        "labeled": any(look.samples.labels is not None for look in looked.values()),
        "neighbors": _neighbors(looked, layout),
        "views": _views(looked),
        "attention": _attention(looked),
        "different": differences(runs),
    }
    shown_sections = [
        ("runs", "Runs", True),
        ("evaluation", "Evaluation", parts["tables"]),
        ("curves", "Curves", parts["curves"]),
        ("features", "Features", looked),
        ("neighbors", "Neighbors", parts["neighbors"]),
        ("views", "Views", parts["views"]),
        ("attention", "Attention", parts["attention"]),
        ("configs", "Configs", True),
    ]
    return template.render(
        title=", ".join(run.name for run in runs),
        version=sslzoo.__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        contents=[(anchor, name) for anchor, name, there in shown_sections if there],
        runs=runs,
        notices=notices,
        **parts,
    )


def _tables(runs: list[Run], results: Sequence[tuple[str, Table]]) -> list[tuple[str, Table]]:
    own = [
        (f"{run.name}: {title}", table)
        for run in runs
        for title, table in run.results.items()
        if title != FINAL
    ]
    return [*own, *results]


def _purity(samples: Samples) -> dict[str, float]:
    """Fraction of samples whose nearest other sample has the same label."""
    if samples.labels is None or len(samples.labels) < 2:
        return {}
    rows = torch.arange(len(samples.labels))
    nearest = neighbors(samples.features, rows, 1)[:, 0]
    same = samples.labels[nearest] == samples.labels
    return {"nearest neighbor has the same label": same.double().mean().item()}


def _lines(runs: list[Run]) -> list[tuple[str, str, str]]:
    """Legend of several runs: name, color and dashes of each."""
    if len(runs) < 2:
        return []
    styles = [charts.line_style(number) for number in range(len(runs))]
    return [
        (run.name, color, " ".join(map(str, dashes)))
        for run, (color, dashes) in zip(runs, styles, strict=True)
    ]


def _curves(runs: list[Run]) -> list[Chart]:
    """Draw every metric, those with a known meaning first; one equal to the loss is omitted."""
    names = [run.name for run in runs]
    drawn = []
    for name in sorted({name for run in runs for name in run.curves}, key=order):
        lines = {
            run.name: (run.curves[name].steps, run.curves[name].values)
            for run in runs
            if name in run.curves and run.curves[name].values
        }
        repeats = name != "train/loss" and all(
            run.curves.get(name) == run.curves.get("train/loss") for run in runs
        )
        if lines and not repeats and not name.endswith(CHANGE):  # the curve begins at row 0
            title, unit, normal = describe(name)
            svg = charts.line_chart(title, lines, "training step", unit, names)
            drawn.append(Chart(title, Markup(svg), normal, name))
    return drawn


def _gaps(runs: list[Run]) -> list[str]:
    return [
        f"{run.name}: {curve.num_not_finite} values of {name} are not finite and not drawn."
        for run in runs
        for name, curve in run.curves.items()
        if curve.num_not_finite
    ]


def _maps(looked: dict[str, Looked], layout: Layout) -> list[Chart]:
    drawn = []
    for kind in layout.maps:
        for name, look in looked.items():
            title = f"{MAP_NAMES[kind]} of {name}" if len(looked) > 1 else MAP_NAMES[kind]
            points = plane(look.samples.features, kind)
            svg = charts.scatter(title, points, _classes(look.samples))
            normal = MAP_NORMAL if look.samples.labels is not None else MAP_UNLABELED
            drawn.append(Chart(title, Markup(svg), normal))
    return drawn


def _classes(samples: Samples) -> dict[str, np.ndarray]:
    """Rows of each class by its name, in the order of the labels."""
    if samples.labels is None:
        return {"sample": np.arange(len(samples.features))}
    labels = samples.labels.numpy()
    found: dict[str, np.ndarray] = {}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        name = samples.name(int(rows[0]))
        found[f"{name} ({label})" if name in found else name] = rows
    return found


def _spectrum(runs: list[Run], looked: dict[str, Looked]) -> Chart:
    lines = {}
    for name, look in looked.items():
        shares = spectrum(look.samples.features)
        lines[name] = (list(range(1, len(shares) + 1)), shares)
    title, names = "Spectrum of the features", [run.name for run in runs]
    svg = charts.line_chart(title, lines, "dimension", "fraction of variance", names, True)
    return Chart(
        title,
        Markup(svg),
        "Normal: a slow descent; after a cliff, the dimensions are not used.",
    )


def _neighbors(
    looked: dict[str, Looked], layout: Layout
) -> list[tuple[str, int, list[list[dict[str, str]]]]]:
    sheets = []
    for name, look in looked.items():
        samples = look.samples
        if samples.images is None or len(samples.features) < 2:
            continue
        total = len(samples.features)
        queries = torch.linspace(0, total - 1, min(layout.num_queries, total)).round().long()
        found = neighbors(samples.features, queries, layout.num_neighbors)
        rows = []
        for query, row in zip(queries.tolist(), found.tolist(), strict=True):
            rows.append([_item(samples, query, "query"), *(_near(samples, query, i) for i in row)])
        sheets.append((name, 1 + found.shape[1], rows))
    return sheets


def _item(samples: Samples, sample: int, kind: str) -> dict[str, str]:
    assert samples.images is not None
    image = picture(samples.images[sample])
    return {"image": image, "label": samples.name(sample), "kind": kind}


def _near(samples: Samples, query: int, sample: int) -> dict[str, str]:
    if samples.labels is None:
        return _item(samples, sample, "")
    same = bool(samples.labels[query] == samples.labels[sample])
    return _item(samples, sample, "same" if same else "other")


def _views(looked: dict[str, Looked]) -> list[tuple[str, int, list[str]]]:
    sheets = []
    for name, look in looked.items():
        if look.views:
            rows = range(len(look.views[0]))
            images = [picture(view[row]) for row in rows for view in look.views]
            sheets.append((name, len(look.views), images))
    return sheets


def _attention(looked: dict[str, Looked]) -> list[tuple[str, str]]:
    return [
        (name, data_uri(look.attention))
        for name, look in looked.items()
        if look.attention is not None
    ]
