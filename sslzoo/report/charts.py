"""Charts: plots for light and dark pages, as SVG text.

Text and axes have the page's own color; the rest has mid tones.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = (  # Okabe and Ito's eight colors without black and yellow, then darker and lighter ones
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#7f7f7f", "#9467bd", "#8c564b", "#bcbd22"),
)
DASHES = ((), (6, 2), (2, 2), (6, 2, 2, 2))
SIDE = 400  # side of a scatter plot, in its own units
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


def line_style(number: int) -> tuple[str, tuple[int, ...]]:
    """Color and dashes of the page's run of this number."""
    return PALETTE[number % len(PALETTE)], DASHES[number % len(DASHES)]


def line_chart(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    names: Sequence[str],
    log: bool = False,
) -> str:
    """Draw a line chart as an `<svg>` element, with one line per name.

    Args:
        title: the chart's accessible name.
        lines: x and y of each name that has them.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        names: all names of the page, which determine the colors and dashes.
        log: whether y is logarithmic; values that are not positive are then omitted.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.subplots()
        for name, (x, y) in lines.items():
            color, dashes = line_style(names.index(name))
            few = len(x) <= 12
            (line,) = axes.plot(x, y, lw=1.6, color=color, marker="o" if few else None, ms=3)
            if dashes:
                line.set_dashes(dashes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.15, color=_PAGE)
        if log:
            axes.set_yscale("log", nonpositive="mask")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], 1e-8))  # below is rounding error
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
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def scatter(title: str, points: np.ndarray, groups: Mapping[str, np.ndarray]) -> str:
    """Draw a scatter plot as an `<svg>` element; a dot shows its group's name under the pointer.

    Args:
        title: the plot's accessible name.
        points: (n, 2) coordinates.
        groups: rows of each group by its name, colored by `PALETTE` in turn; named in the plot
            too if each group has its own color and there are several.
    """
    low, high = points.min(0), points.max(0)
    scale = (SIDE - 20) / max(float((high - low).max()), 1e-12)
    # The y axis points upwards, as in the plots that readers know.
    placed = (points - (low + high) / 2) * scale * np.array([1, -1]) + SIDE / 2
    drawn, labels = [], []
    named = 1 < len(groups) <= len(PALETTE)
    for number, (name, rows) in enumerate(groups.items()):
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in placed[rows])
        color = PALETTE[number % len(PALETTE)]
        drawn.append(f'<g fill="{color}"><title>{escape(name)}</title>{dots}</g>')
        if named:
            x, y = np.median(placed[rows], axis=0)
            labels.append(f'<text x="{x:.1f}" y="{y:.1f}">{escape(name)}</text>')
    return (
        f'<svg class="map" role="img" aria-label="{escape(title)}" viewBox="0 0 {SIDE} {SIDE}">'
        f"{''.join(drawn)}{''.join(labels)}</svg>"
    )
