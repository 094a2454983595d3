"""Page: render the report's HTML from runs and their encoders' outputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from torch import Tensor, nn

import sslzoo
from sslzoo.eval.attention import attention_picture, cls_attention
from sslzoo.report import charts
from sslzoo.report.pictures import data_uri, neighbors, picture
from sslzoo.report.samples import Samples, plane, spectrum, statistics
from sslzoo.runs.run import Run, Table, differences

MAP_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass
class Looked:
    """Outputs of one run's encoder and data.

    Args:
        samples: test samples and their features.
        views: training views, (n, C, S, S) each, in [0, 1]; empty if they are not images.
        attention: PNG of the attention maps; None if the encoder is not a ViT.
    """

    samples: Samples
    views: list[Tensor] = field(default_factory=list)
    attention: bytes | None = None


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
    environment.filters["cell"] = _cell
    template = environment.from_string(files(__package__).joinpath("template.html").read_text())
    first = next(iter(looked.values()), None)
    parts: dict[str, Any] = {
        "tables": _tables(runs, looked, results),
        "curves": _curves(runs),
        "gaps": _gaps(runs),
        "seen": bool(looked),
        "num_samples": 0 if first is None else len(first.samples.features),
        "maps": _maps(looked, layout),
        "spectrum": _spectrum(runs, looked) if looked else "",
        "legend": _legend(looked),
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


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tables(
    runs: list[Run], looked: dict[str, Looked], results: Sequence[tuple[str, Table]]
) -> list[tuple[str, Table, str]]:
    tables = []
    last = {
        run.name: {
            name: curve.values[-1]
            for name, curve in run.curves.items()
            if curve.values and not name.startswith("train/")
        }
        for run in runs
    }
    if any(last.values()):
        note = "Logged during training, each at its own last step."
        tables.append(("Last value of each metric", last, note))
    if looked:
        of_samples = {name: statistics(look.samples) for name, look in looked.items()}
        for name, look in looked.items():
            of_samples[name] |= _purity(look.samples)
        note = "Computed on the samples that the maps show; not a protocol of any paper."
        tables.append(("Features of the samples", of_samples, note))
    for run in runs:
        tables += [(f"{run.name}: {title}", table, "") for title, table in run.results.items()]
    return tables + [(title, table, "") for title, table in results]


def _purity(samples: Samples) -> dict[str, float]:
    """Fraction of samples whose nearest other sample has the same label."""
    if samples.labels is None or len(samples.labels) < 2:
        return {}
    rows = torch.arange(len(samples.labels))
    nearest = neighbors(samples.features, rows, 1)[:, 0]
    same = samples.labels[nearest] == samples.labels
    return {"nearest has the same label": same.double().mean().item()}


def _curves(runs: list[Run]) -> list[Markup]:
    drawn = []
    for name in sorted({name for run in runs for name in run.curves}):
        lines = {
            run.name: (run.curves[name].steps, run.curves[name].values)
            for run in runs
            if name in run.curves and run.curves[name].values
        }
        if lines:
            chart = charts.line_chart(name, lines, "step", [run.name for run in runs])
            drawn.append(Markup(chart))
    return drawn


def _gaps(runs: list[Run]) -> list[str]:
    return [
        f"{run.name}: {curve.num_not_finite} values of {name} are not finite and not drawn."
        for run in runs
        for name, curve in run.curves.items()
        if curve.num_not_finite
    ]


def _maps(looked: dict[str, Looked], layout: Layout) -> list[tuple[str, str]]:
    drawn = []
    for kind in layout.maps:
        for name, look in looked.items():
            samples = look.samples
            labels = None if samples.labels is None else samples.labels.numpy()
            png = charts.scatter(plane(samples.features, kind), labels)
            drawn.append((f"{name}: {MAP_NAMES[kind]}", data_uri(png)))
    return drawn


def _spectrum(runs: list[Run], looked: dict[str, Looked]) -> Markup:
    lines = {}
    for name, look in looked.items():
        shares = spectrum(look.samples.features)
        lines[name] = (list(range(1, len(shares) + 1)), shares)
    names = [run.name for run in runs]
    return Markup(charts.line_chart("spectrum of the features", lines, "dimension", names, True))


def _legend(looked: dict[str, Looked]) -> list[tuple[str, str]]:
    """Legend of the classes' colors, if each has its own."""
    samples = next((look.samples for look in looked.values()), None)
    if samples is None or samples.labels is None:
        return []
    first = {int(label): row for row, label in reversed(list(enumerate(samples.labels)))}
    if len(first) > len(charts.PALETTE):
        return []
    return [
        (charts.PALETTE[label % len(charts.PALETTE)], samples.name(first[label]))
        for label in sorted(first)
    ]


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
