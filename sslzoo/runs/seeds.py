"""Results of runs: their last validation metrics, aggregated over seeds.

Fine-tuning, and the papers' linear protocols by SGD, are runs of `sslzoo fit`: their result is the
last epoch's `val/top1`, and their protocol is the config.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslzoo.run_folder import RunFolder
from sslzoo.runs.results import summary


def results_of_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Make results, as of `sslzoo eval --output`, from runs that differ only in their seed.

    Args:
        folders: runs/<config>/version_N, in any order.

    Raises:
        ValueError: a folder is not a run directory, or has no validation; or two runs are the same.
    """
    alike: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder in folders:
        config = RunFolder(folder).config()
        alike.setdefault(without_seed(config), []).append((folder, config))
    return [_result(runs) for runs in alike.values()]


def without_seed(config: dict[str, Any]) -> str:
    """The config without the seed, which runs of several seeds share."""
    common = copy.deepcopy(config)
    common.pop("seed_everything", None)
    common.get("trainer", {}).pop("default_root_dir", None)
    return json.dumps(common, sort_keys=True, default=str)


def _result(runs: Sequence[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    folder, config = runs[0]
    seeds = [int(config["seed_everything"]) for _, config in runs]
    if len(set(seeds)) < len(seeds):
        names = [str(folder) for folder, _ in runs]
        raise ValueError(f"runs of one config must have distinct seeds, got {seeds} for {names}")
    rows = [RunFolder(folder).last_validation() for folder, _ in runs]
    for (path, _), row in zip(runs, rows, strict=True):
        if not row:
            raise ValueError(f"metrics.csv of {str(path)!r} must have validation metrics, got none")
    title = str(folder) if len(runs) == 1 else f"{folder} and {len(runs) - 1} more seeds"
    return {
        "models": [{"model": title, **summary(seeds, rows), "config": config}],
        "seeds": seeds,
        **RunFolder(folder).record(),
    }
