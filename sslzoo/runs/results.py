"""Results: metrics over models and seeds, their mean and deviation, and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Metrics = dict[str, float]


def statistics(rows: Sequence[Metrics]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation, over several models, of each metric that all have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    columns = {name: [row[name] for row in rows] for name in names}
    return {name: {"mean": mean(v), "std": stdev(v)} for name, v in columns.items()}


def summary(seeds: Sequence[int], rows: Sequence[Metrics]) -> dict[str, Any]:
    """Summarize one model: its metrics and, for several seeds, each seed's and their deviation.

    Args:
        seeds: the S seeds.
        rows: each seed's metrics; those independent of the seed are only in the first.
    """
    if len(rows) == 1:
        return {"metrics": rows[0]}
    both = statistics(rows)
    return {
        "metrics": rows[0] | {name: value["mean"] for name, value in both.items()},
        "std": {name: value["std"] for name, value in both.items()},
        "seeds": [
            {"seed": seed, "metrics": {name: row[name] for name in both}}
            for seed, row in zip(seeds, rows, strict=True)
        ],
    }


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file written by `sslzoo eval --output`.

    Raises:
        ValueError: the file is not JSON, or not a result.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        table([content])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} must be a result file of `sslzoo eval --output`, got "
            f"{type(error).__name__}: {error}"
        ) from None
    return content


def table(results: Sequence[dict[str, Any]]) -> str:
    """Make a Markdown table with one row per model and one column per metric.

    A model that was evaluated with several seeds has mean ± standard deviation over them.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    for row in (row for result in results for row in result["models"]):
        spread = {k: (row["metrics"][k], std) for k, std in row.get("std", {}).items()}
        rows.append((row["model"], row["metrics"] | spread))
    for result in results:
        if "statistics" in result:
            both = result["statistics"].items()
            rows.append(("mean ± std", {k: (v["mean"], v["std"]) for k, v in both}))
    names = list(dict.fromkeys(name for _, metrics in rows for name in metrics))
    lines = [f"| model | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for model, metrics in rows:
        cells = [_cell(metrics.get(name)) for name in names]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:.4f} ± {value[1]:.4f}"
    return f"{value:.4f}"
