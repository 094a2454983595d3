"""Summary: what each run is, what it cost and what it scored, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sslzoo.callbacks.compare_with_start import CHANGE
from sslzoo.report.metrics import describe
from sslzoo.runs.run import Curve, Run

FINAL = "At the end of training"  # the table of FinalTable
_COLUMNS = {"knn": "kNN accuracy", "linear": "linear probe accuracy"}
_ROWS = {
    "trained": "trained encoder",
    "start": "start weights",
    "untrained": "untrained encoder",
    "raw": "raw pixels",
}

Groups = dict[str, dict[str, dict[str, str]]]  # group -> quantity -> run -> value


def summary(
    runs: list[Run],
    states: Mapping[str, str],
    parameters: Mapping[str, int],
    features: Mapping[str, Mapping[str, float]],
) -> Groups:
    """Collect the quantities of every run; those that no run has are omitted.

    Args:
        runs: the runs.
        states: the state of each run's verdict.
        parameters: number of parameters of each encoder that could be read.
        features: statistics of the samples' features of each such encoder.
    """
    groups: Groups = {}
    for run in runs:
        of_run = {
            "Run": {"verdict": states[run.name], **_setting(run)},
            "Cost": _cost(run, parameters.get(run.name)),
            "Scores": _scores(run),
            "Features of the samples": {
                name: number(value) for name, value in features.get(run.name, {}).items()
            },
        }
        for group, quantities in of_run.items():
            for name, value in quantities.items():
                groups.setdefault(group, {}).setdefault(name, {})[run.name] = value
    return groups


def number(value: object) -> str:
    """Format a value with four digits."""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _setting(run: Run) -> dict[str, str]:
    config = run.config
    model = config.get("model", {}).get("init_args") or {}
    data = config.get("data", {})
    trainer = config.get("trainer") or {}
    found = {
        "method": run.method,
        "backbone": _class(model.get("backbone")),
        "data": _class(data),
        "batch size (per process)": (data.get("init_args") or {}).get("batch_size"),
        "epochs": trainer.get("max_epochs"),
        "seed": config.get("seed_everything"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _class(section: Any) -> str | None:
    path = section.get("class_path") if isinstance(section, dict) else None
    return None if path is None else str(path).rpartition(".")[2]


def _cost(run: Run, parameters: int | None) -> dict[str, str]:
    found = {}
    if parameters is not None:
        found["encoder parameters"] = f"{parameters:,}"
    if start := run.record.get("start"):
        found["start weights"] = str(start.get("source"))
    if steps := [curve.steps[-1] + 1 for curve in run.curves.values() if curve.steps]:
        found["training steps"] = f"{max(steps):,}"
    found |= _rate(run)
    if isinstance(seconds := run.record.get("seconds"), int | float):
        found["time (h:mm:ss)"] = str(timedelta(seconds=round(seconds)))
    if rates := _values(run.curves, "train/samples_per_second"):
        found["samples per second (median)"] = f"{sorted(rates)[len(rates) // 2]:,.0f}"
    if memory := _values(run.curves, "train/memory_mb"):
        found["memory (MB, highest)"] = f"{max(memory):,.0f}"
    if device := run.record.get("processor") or run.record.get("accelerator"):
        found["processor"] = f"{device}, {run.record.get('ranks', 1)} process(es)"
    return found


def _rate(run: Run) -> dict[str, str]:
    logged = _values(run.curves, "train/lr")
    if logged:
        return {"learning rate (highest, last)": f"{max(logged):.3g}, {logged[-1]:.3g}"}
    model = run.config.get("model", {}).get("init_args") or {}
    optimizer = model.get("optimizer")
    rate = (optimizer.get("init_args") or {}).get("lr") if isinstance(optimizer, dict) else None
    return {} if rate is None else {"learning rate (config)": f"{rate:g}"}


def _scores(run: Run) -> dict[str, str]:
    found = {}
    for name, curve in run.curves.items():
        change = _values(run.curves, f"{name}{CHANGE}")
        if change:
            found[f"{describe(name).title}, start weights"] = number(curve.values[-1] - change[-1])
            found[f"{describe(name).title}, change from the start weights"] = f"{change[-1]:+,.4g}"
        if name.endswith(CHANGE):
            continue
        if curve.values and (name == "train/loss" or not name.startswith("train/")):
            found[f"{describe(name).title}, last"] = number(curve.values[-1])
    for row, title in _ROWS.items():
        for column, value in run.results.get(FINAL, {}).get(row, {}).items():
            found[f"{_COLUMNS.get(column, column)}, {title}"] = number(value)
    return found


def _values(curves: Mapping[str, Curve], name: str) -> list[float]:
    return curves[name].values if name in curves else []
