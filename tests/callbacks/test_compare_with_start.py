"""CompareWithStart: row 0 is the evaluation of the start weights, and every value differs from it.

Row 0 against `Suite`, which `sslzoo eval` runs: tests/commands/test_start_from.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from sslzoo.callbacks import (
    CompareWithStart,
    EpochLines,
    FinalTable,
    OnlineKNN,
    OnlineLinear,
    OnlineProbe,
    OnlineSpectrum,
    WorseThanStartWarning,
)
from sslzoo.callbacks.evaluation import Evaluation
from sslzoo.report.summary import summary
from sslzoo.report.verdict import verdict
from sslzoo.runs.run import Run, read_curves
from tests.callbacks.toy import FILTERS, FitOnly, Toy, quiet, trainer
from tests.ranks import Ranks

pytestmark = [
    *FILTERS,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
KNN, LINEAR, RANK = "val/knn_top1_k5_t0.07", "val/linear_top1", "val/effective_rank"


class Falling(Evaluation):
    """A score of labels that falls by 0.1 per evaluation."""

    reads_labels = True

    def __init__(self, name: str = "val/knn_top1", factor: float = 0.1) -> None:
        super().__init__()
        self.name, self.factor, self.count = name, factor, 0

    def rehearse(self, *_: Any) -> None: ...

    def metric_names(self) -> list[str]:
        return [self.name]

    def evaluate(self, *_: Any) -> dict[str, float]:
        self.count += 1
        return {self.name: 1.0 - self.factor * (self.count - 1)}


def fit(
    folder: Path, *callbacks: Callback, epochs: int = 2, path: Any = None, **options: Any
) -> tuple[CompareWithStart, Any]:
    """Fit the toy with row 0, logged to CSV."""
    compare, data = CompareWithStart(), options.pop("data", FitOnly())
    run = trainer(folder, *callbacks, compare, max_epochs=epochs, **options)
    run.loggers = [CSVLogger(folder, name="", version="")]
    run.fit(Toy(), datamodule=data, ckpt_path=path, weights_only=True)
    return compare, run


@pytest.fixture(autouse=True)
def worse_is_allowed() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WorseThanStartWarning)
        yield


def test_row_0_is_the_evaluation_of_the_start_weights_and_changes_nothing(tmp_path: Path) -> None:
    evaluations = [OnlineKNN(5), OnlineLinear(), OnlineSpectrum(), OnlineProbe()]
    compare, run = fit(tmp_path, *evaluations)
    module = Toy()
    alone = trainer(
        tmp_path / "alone", *(parts := [OnlineKNN(5), OnlineLinear(), OnlineSpectrum()])
    )
    alone.fit(Toy(), datamodule=FitOnly())
    wanted: dict[str, float] = {}
    for part in parts:
        wanted |= part.evaluate(alone, module.eval())
    assert compare.start == wanted  # none of OnlineProbe, which has not learned
    for name, start in compare.start.items():
        assert run.callback_metrics[name] == alone.callback_metrics[name], "row 0 changes the run"
        change = run.callback_metrics[f"{name}_change"].item()
        assert change == pytest.approx(compare.last[name] - start, abs=1e-6)
    curves = read_curves(tmp_path / "metrics.csv")
    assert curves[KNN].steps == [0, 5, 11]
    assert curves[KNN].values[0] == pytest.approx(compare.start[KNN])
    assert len(curves[f"{KNN}_change"].values) == 2


def test_evaluations_in_any_order_have_their_change(tmp_path: Path) -> None:
    compare = CompareWithStart()
    run = trainer(tmp_path, compare, OnlineKNN(5), max_epochs=1)
    run.fit(Toy(), datamodule=FitOnly())
    assert f"{KNN}_change" in run.callback_metrics


def test_a_resumed_run_keeps_row_0_and_a_second_fit_has_its_own(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    first, _ = fit(tmp_path, OnlineKNN(5), saved, epochs=1, enable_checkpointing=True)
    two, path = tmp_path / "two", saved.last_model_path
    again = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    second, _ = fit(two, OnlineKNN(5), again, path=path, enable_checkpointing=True)
    assert second.start == first.start
    assert second.best[KNN][1] in (1, 2)
    module, compare = Toy(), CompareWithStart()
    for _ in range(2):
        run = trainer(tmp_path, compare, OnlineSpectrum(), max_epochs=1)
        run.fit(module, datamodule=FitOnly())
    untrained = OnlineSpectrum().evaluate(run, Toy().eval())
    assert compare.start[RANK] != untrained[RANK]  # the trained module's


def test_data_without_labels_has_a_label_free_row(tmp_path: Path) -> None:
    parts = [OnlineKNN(5, if_labeled=True), OnlineLinear(if_labeled=True), OnlineSpectrum()]
    compare, run = fit(tmp_path, *parts, epochs=1, data=FitOnly(labeled=False))
    assert set(compare.start) == {RANK, "val/feature_std"}
    assert KNN not in run.callback_metrics
    assert "no metric reads labels" in compare.summary()[-1]


def test_worse_than_the_start_warns_once_and_the_summary_says_so(tmp_path: Path) -> None:
    with pytest.warns(WorseThanStartWarning, match=r"val/knn_top1 is 0.9 and was 1 with") as found:
        compare, _ = fit(tmp_path, Falling(), epochs=3)
    assert len([w for w in found if w.category is WorseThanStartWarning]) == 1
    assert compare.summary() == [
        "val/knn_top1: start weights 1, best 0.9 (-0.1, epoch 1), last 0.7 (-0.3)",
        "no epoch beats the start weights in val/knn_top1: the start weights are the better "
        "encoder",
    ]


def test_an_effective_rank_below_half_of_row_0_warns(tmp_path: Path) -> None:
    with pytest.warns(WorseThanStartWarning, match="val/effective_rank is 0.4"):
        fit(tmp_path, Falling(RANK, 0.6), epochs=1)


@pytest.mark.filterwarnings("error::sslzoo.callbacks.WorseThanStartWarning")
def test_a_better_or_slightly_worse_run_does_not_warn(tmp_path: Path) -> None:
    compare, _ = fit(tmp_path, Falling(factor=-0.1), Falling("val/linear_top1", 0.01))
    assert len(compare.summary()) == 2


def test_lines_table_and_report_show_the_difference(tmp_path: Path, capsys: Any) -> None:
    fit(tmp_path, OnlineKNN(5), FinalTable(5), EpochLines())
    out = capsys.readouterr().out
    assert "start weights  knn_top1_k5_t0.07 " in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert all("(+" in line or "(-" in line for line in lines)
    assert "untrained" not in out
    curves = read_curves(tmp_path / "metrics.csv")
    run = Run("a", tmp_path, {}, "", {"start": {"source": "b"}}, curves, {})
    scores = summary([run], {"a": "healthy"}, {}, {})["Scores"]
    title = "kNN top-1 accuracy (k 5, T 0.07)"
    assert f"{title}, start weights" in scores
    assert scores[f"{title}, change from the start weights"]["a"][0] in "+-"


def test_the_verdict_names_a_run_that_is_worse_than_its_start(tmp_path: Path) -> None:
    fit(tmp_path, Falling(), epochs=2)
    found = verdict(read_curves(tmp_path / "metrics.csv"))
    assert found.state == "not converged"
    assert "-0.200 from the start weights" in found.reason


def _of_rank(rank: int, folder: str, world: int) -> dict[str, float]:
    quiet()
    torch.manual_seed(0)
    compare = CompareWithStart()
    run = trainer(folder, OnlineKNN(5), OnlineSpectrum(), compare, max_epochs=1, world_size=world)
    run.fit(Toy(), datamodule=FitOnly())
    return compare.start


def test_row_0_is_the_same_on_two_ranks(ranks: Ranks, tmp_path: Path) -> None:
    one = _of_rank(0, str(tmp_path), 1)
    for rank in ranks(2, _of_rank, str(tmp_path), 2):
        assert rank == pytest.approx(one, rel=1e-5)


def test_a_checkpoint_can_follow_the_change(tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, monitor=f"{KNN}_change", mode="max")
    fit(tmp_path, OnlineKNN(5, every_n_epochs=2), saved, enable_checkpointing=True)
    assert saved.best_model_path


def test_without_an_evaluation_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have an evaluation"):
        fit(tmp_path)
