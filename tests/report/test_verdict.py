"""The verdict on a run, and how the report describes its metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslzoo.report.metrics import describe, order
from sslzoo.report.summary import summary
from sslzoo.report.verdict import verdict
from sslzoo.runs.run import Curve, Run, read_runs

KNN = "val/knn_top1_k20_t0.07"
FALLING = [5.0, 4.0, 3.4, 3.0, 2.8, 2.7, 2.65, 2.64]


def curve(*values: float, bad: int = 0) -> Curve:
    return Curve([10 * (i + 1) for i in range(len(values))], list(values), bad)


HEALTHY = {
    "train/loss": curve(*FALLING),
    "val/effective_rank": curve(20, 30, 40),
    KNN: curve(0.7, 0.88, 0.9, 0.903, 0.905),
}


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        ({}, "healthy", "effective rank is 40; kNN top-1 accuracy (k 20, T 0.07) is 0.905, +0.005"),
        ({"val/effective_rank": curve(20, 5, 1.2)}, "collapsed", "rank is 1.2, and should be at l"),
        ({"val/effective_rank": curve(1.2, 5, 20)}, "healthy", "rank is 20"),
        ({"val/feature_std": curve(0.06, 0.0004)}, "collapsed", "feature std is 0.0004"),
        ({"val/effective_prototypes": curve(3, 1.1)}, "collapsed", "prototypes in use is 1.1"),
        ({"train/loss": curve(*FALLING, bad=2)}, "not converged", "in 2 of 10 logged values"),
        ({KNN: curve(0.5, 0.6, 0.7, 0.8, 0.9)}, "not converged", "still rises, by 0.200"),
        (
            {KNN: curve(0.5, 0.9, 0.9, 0.9, 0.85)},
            "not converged",
            "ends at 0.850, below its best, 0.9",
        ),
        # A loss may rise where a score says that the run is well, as with a momentum encoder.
        ({"train/loss": curve(*range(1, 9))}, "healthy", "0.905"),
        ({KNN: curve(0.9, 0.9, 0.9)}, "healthy", "loss fell from 4.5 to 2.65 and flattened"),
        ({KNN: curve(), "train/loss": curve(*range(1, 9))}, "not converged", "does not fall"),
        ({KNN: curve(), "train/loss": curve(*range(9, 1, -1))}, "not converged", "still falls"),
        ({KNN: curve(), "train/loss": curve(3, 2)}, "unknown", "A trend needs 4 values of a score"),
    ],
)
def test_verdict(change: dict[str, Curve], state: str, reason: str) -> None:
    found = verdict({**HEALTHY, **change})
    assert found.state == state
    assert reason in found.reason
    assert found.reason.endswith(".")
    assert not found.reason.endswith("..")


def test_the_features_and_the_untrained_encoder_count() -> None:
    features = {"effective rank": 30.0, "spread": 0.8}
    table = {"trained": {"knn": 0.9}, "untrained": {"knn": 0.8}}
    assert verdict(HEALTHY, features, table).state == "healthy"
    assert "0.800 for the untrained encoder" in verdict(HEALTHY, features, table).reason
    point = verdict(HEALTHY, {**features, "spread": 0.01}, table)
    assert point == ("collapsed", "The spread of the samples is 0.01, and should be at least 0.05.")
    worse = verdict(HEALTHY, features, {**table, "untrained": {"knn": 0.95}})
    assert worse.state == "not converged"
    assert worse.reason == "kNN accuracy is 0.900, below that of the untrained encoder, 0.950."
    assert verdict({}).state == "unknown"


def test_every_metric_has_a_title_a_unit_and_a_sentence() -> None:
    assert describe(KNN)[:2] == ("kNN top-1 accuracy (k 20, T 0.07)", "fraction correct")
    assert describe("train/lr").unit == "learning rate"
    assert describe("train/samples_per_second").unit == "samples per second"
    assert describe("train/new").title == "train/new"
    for name in (KNN, "train/loss", "val/effective_rank", "train/memory_mb", "train/new"):
        assert describe(name).normal.endswith(".")
    assert sorted([KNN, "a", "train/loss"], key=order) == ["train/loss", KNN, "a"]


def test_the_summary_shows_what_is_logged_and_copes_without() -> None:
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "sslzoo.methods.SimCLR",
            "init_args": {"optimizer": {"init_args": {"lr": 0.002}}},
        },
    }
    logged = {
        **HEALTHY,
        "train/lr": curve(0.001, 0.002, 0.0),
        "train/samples_per_second": curve(100, 3000, 2000),
        "train/memory_mb": curve(512, 600.4),
    }
    record = {"seconds": 3725.2, "processor": "AMD EPYC", "ranks": 2}
    results = {"At the end of training": {"trained": {"knn": 0.95}}}
    full = Run("a", Path(), config, json.dumps(config), record, logged, results)
    bare = Run("b", Path(), config, json.dumps(config), {}, {}, {})
    found = summary([full, bare], {"a": "healthy", "b": "unknown"}, {"a": 827632}, {})
    assert found["Run"]["method"] == {"a": "SimCLR", "b": "SimCLR"}
    assert found["Run"]["verdict"] == {"a": "healthy", "b": "unknown"}
    assert found["Cost"] == {
        "encoder parameters": {"a": "827,632"},
        "training steps": {"a": "81"},
        "learning rate (highest, last)": {"a": "0.002, 0"},
        "time (h:mm:ss)": {"a": "1:02:05"},
        "samples per second (median)": {"a": "2,000"},
        "memory (MB, highest)": {"a": "600"},
        "processor": {"a": "AMD EPYC, 2 process(es)"},
        "learning rate (config)": {"b": "0.002"},
    }
    assert found["Scores"]["kNN accuracy, trained encoder"] == {"a": "0.95"}


def test_the_final_table_names_what_its_arguments_change(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
    scores = {"trained": {"knn": 0.9, "linear": 0.8, "changed_knn": 0.7, "changed_linear": 0.6}}
    content = {"scores": scores, "labels_per_class": 10, "changed": "shifted"}
    (tmp_path / "final_table.json").write_text(json.dumps(content))
    (run,) = read_runs([str(tmp_path)])
    found = summary([run], {run.name: "unknown"}, {}, {})["Scores"]
    assert list(found) == [
        "kNN accuracy, trained encoder",
        "linear probe accuracy, 10 labels per class, trained encoder",
        "shifted: knn, trained encoder",
        "shifted: linear probe accuracy, 10 labels per class, trained encoder",
    ]
