"""Charts: plots for light and dark pages, as SVG text and PNG data.

Text and axes have the page's own color; the rest has mid tones.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = (  # Okabe and Ito's eight colors without black and yellow, then darker and lighter ones
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#7f7f7f", "#9467bd", "#8c564b", "#bcbd22"),
)
_PAGE = "#010203"  # placeholder for the page's color until the SVG is complete
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sslzoo",
    "font.size": 9,
    "text.color": _PAGE,
    "axes.labelcolor": _PAGE,
    "axes.edgecolor": _PAGE,
    "xtick.color": _PAGE,
    "ytick.color": _PAGE,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def line_chart(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    names: Sequence[str],
    log: bool = False,
) -> str:
    """Draw a line chart as an `<svg>` element, with one line per name.

    Args:
        title: title above the chart.
        lines: x and y of each name that has them.
        x_label: label of the x axis.
        names: all names of the page, which determine the colors; several names get a legend.
        log: whether y is logarithmic; values that are not positive are then omitted.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.subplots()
        for name, (x, y) in lines.items():
            color = PALETTE[names.index(name) % len(PALETTE)]
            few = len(x) <= 12
            axes.plot(x, y, label=name, lw=1.4, color=color, marker="o" if few else None, ms=3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.15, color=_PAGE)
        if log:
            axes.set_yscale("log", nonpositive="mask")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-8))  # below is rounding error
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
        return _svg(figure, canvas, title)


def _svg(figure: Figure, canvas: FigureCanvasSVG, title: str) -> str:
    file = io.StringIO()
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    canvas.print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_PAGE, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # One page contains several charts, and each id must be unique.
    salt = re.sub(r"\W", "", title) + str(len(text))
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{salt}-", text)
    return text.replace("<svg", '<svg role="img"', 1)


def scatter(points: np.ndarray, groups: np.ndarray | None) -> bytes:
    """Draw a scatter plot as a transparent PNG. Shapes: points (n, 2), groups (n,) of int.

    Args:
        points: coordinates of the points.
        groups: group of each point, colored by `PALETTE` in turn; None: one color.
    """
    figure = Figure(figsize=(4.2, 4.2), dpi=140)
    canvas = FigureCanvasAgg(figure)
    axes: Axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.axis("off")
    figure.patch.set_alpha(0.0)
    which = np.zeros(len(points), int) if groups is None else groups
    colors = [PALETTE[group % len(PALETTE)] for group in which]
    axes.scatter(points[:, 0], points[:, 1], s=7, c=colors, alpha=0.75, linewidths=0)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()
