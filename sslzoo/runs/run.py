"""Run: contents of a run directory, without weights and data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from sslzoo.run_folder import RunFolder, read_metrics

Table = dict[str, dict[str, float]]  # row -> column -> value


class Curve(NamedTuple):
    """A logged metric: its finite values, and the number of non-finite ones."""

    steps: list[int]
    values: list[float]
    num_not_finite: int


class Run(NamedTuple):
    """A run of `sslzoo fit`.

    Args:
        name: the shortest name that is unique in a report.
        folder: the run directory.
        config: its config.yaml, parsed.
        config_text: the text of config.yaml.
        record: its run.json: command, versions, commit and date; empty for older runs.
        curves: logged curves by metric.
        results: evaluation tables by title.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    config_text: str
    record: dict[str, Any]
    curves: dict[str, Curve]
    results: dict[str, Table]

    @property
    def method(self) -> str:
        """Name of the method's class."""
        return str(self.config.get("model", {}).get("class_path", "?")).rpartition(".")[2]


def read_runs(folders: list[str]) -> list[Run]:
    """Read the runs of several folders, with unique names.

    Raises:
        ValueError: a folder has no config.yaml, or is given twice.
    """
    paths = [Path(folder) for folder in folders]
    whole = [path.resolve() for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError(f"the run directories must be distinct, got {folders}")
    return [_read(path, name) for path, name in zip(paths, _names(whole), strict=True)]


def _names(paths: list[Path]) -> list[str]:
    """Shortest unique names: the last parts of each path, at least two."""
    depth = 2
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def _read(folder: Path, name: str) -> Run:
    run = RunFolder(folder)
    config = run.config()
    text, curves = run.config_file.read_text(), read_curves(run.metrics_file)
    return Run(name, folder, config, text, run.record(), curves, _results(folder))


def read_curves(path: Path) -> dict[str, Curve]:
    """Read each column of a CSVLogger's file; empty if there is no file."""
    curves: dict[str, Curve] = {}
    for step, name, value in read_metrics(path):
        if not step:
            continue
        curve = curves.setdefault(name, Curve([], [], 0))
        if math.isfinite(value):
            curve.steps.append(int(step))
            curve.values.append(value)
        else:
            curves[name] = curve._replace(num_not_finite=curve.num_not_finite + 1)
    return curves


def _results(folder: Path) -> dict[str, Table]:
    """Read the table from the end of fit, and every result of `sslzoo eval` in the folder."""
    tables: dict[str, Table] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            continue
        if path.name == "final_table.json":
            tables["At the end of training"] = _final_table(content)
        elif "models" in content:
            tables[path.name] = evaluation(content)
    return tables


def _final_table(content: dict[str, Any]) -> Table:
    """Read FinalTable's scores, naming the columns that its arguments change."""
    few, changed = content.get("labels_per_class"), content.get("changed")
    linear = "linear" if few is None else f"linear probe accuracy, {few} labels per class"
    names = {
        "linear": linear,
        "changed_knn": f"{changed}: knn",
        "changed_linear": f"{changed}: {linear}",
    }
    rows = {"untrained": "start"} if content.get("baseline") == "start weights" else {}
    return {
        rows.get(row, row): {names.get(name, name): value for name, value in columns.items()}
        for row, columns in content.get("scores", {}).items()
    }


def evaluation(content: dict[str, Any]) -> Table:
    """Read the metrics of a result file of `sslzoo eval`, by model."""
    return {row["model"]: row["metrics"] for row in content["models"]}


def differences(runs: list[Run]) -> dict[str, dict[str, str]]:
    """Find the differences between the runs' configs: setting -> run -> value."""
    flat = {run.name: dict(_flat(run.config)) for run in runs}
    names = sorted({name for settings in flat.values() for name in settings})
    rows = {name: {run: flat[run].get(name, "-") for run in flat} for name in names}
    return {name: row for name, row in rows.items() if len(set(row.values())) > 1}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        parts = [
            _flat(inner, f"{prefix}.{name}" if prefix else str(name))
            for name, inner in value.items()
        ]
        return [pair for part in parts for pair in part]
    return [(prefix, json.dumps(value, sort_keys=True, default=str))]
