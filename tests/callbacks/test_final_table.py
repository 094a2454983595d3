"""FinalTable: three rows, two columns, the checkpoint and the next command."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sslzoo.callbacks.final_table import FinalTable
from sslzoo.eval.knn import knn_top1
from sslzoo.eval.linear import linear_probe
from sslzoo.random import rows_per_class
from tests.callbacks.toy import FILTERS, NUM_CLASSES, FitOnly, Toy, data, quiet, trainer

pytestmark = [
    *FILTERS,
    # Lightning on a resumed run, whose folder is the first's
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def knn_of(function):
    bank, labels = data(53, 0)
    query, truth = data(31, 1)
    args = (function(query).detach(), truth, function(bank).detach(), labels)
    return knn_top1(*args, NUM_CLASSES, [(5, 0.07)])[0]


def fit(folder, module, epochs=2, path=None):
    table = FinalTable(k=5)
    saved = ModelCheckpoint(folder / "checkpoints")
    run = trainer(folder, table, saved, max_epochs=epochs, enable_checkpointing=True)
    run.fit(module, datamodule=FitOnly(), ckpt_path=path, weights_only=True)
    return table, saved


def test_the_rows_are_trained_untrained_and_raw(tmp_path, capsys):
    module = Toy()
    table, saved = fit(tmp_path, module)
    assert table.scores["untrained"]["knn"] == knn_of(Toy().eval())
    assert table.scores["trained"]["knn"] == knn_of(module.eval())
    assert table.scores["raw"]["knn"] == knn_of(lambda view: view.flatten(1))
    assert all(0 < row["linear"] <= 1 for row in table.scores.values())
    out = capsys.readouterr().out
    for text in ("trained encoder", "untrained encoder", "raw pixels", "kNN", "linear probe"):
        assert text in out
    assert f"checkpoint: {saved.best_model_path}" in out
    assert f"next: sslzoo predict --config {tmp_path}/config.yaml" in out
    assert f"--ckpt_path {saved.best_model_path}" in out


def test_the_json_has_the_same_numbers(tmp_path):
    table, saved = fit(tmp_path, Toy())
    written = json.loads((tmp_path / "final_table.json").read_text())
    assert written["scores"] == table.scores
    assert written["checkpoint"] == saved.best_model_path


def test_a_resumed_run_remembers_the_untrained_encoder(tmp_path):
    first, saved = fit(tmp_path, Toy(), 1)
    second, _ = fit(tmp_path, Toy(), 2, saved.best_model_path)
    assert second.scores["untrained"] == first.scores["untrained"]


def test_few_labels_and_changed_samples_are_columns(tmp_path, capsys):
    table = FinalTable(5, labels_per_class=2, draws=2, change=halved, changed="in the dark")
    run = trainer(tmp_path, table, max_epochs=1)
    module = Toy()
    run.fit(module, datamodule=FitOnly())
    (bank, labels), (query, truth) = data(53, 0), data(31, 1)
    for prefix, factor in (("", 1.0), ("changed_", 0.5)):
        x, y = (module.eval()(view * factor).detach() for view in (bank, query))
        rows = [rows_per_class(labels, 2, seed) for seed in range(2)]
        wanted = [linear_probe(x[r], labels[r], y, truth, NUM_CLASSES) for r in rows]
        assert table.scores["trained"][f"{prefix}linear"] == pytest.approx(sum(wanted) / 2)
        assert table.scores["trained"][f"{prefix}knn"] == knn_of(lambda v, f=factor: module(v * f))
    assert all(len(row) == 4 for row in table.scores.values())
    out = " ".join(capsys.readouterr().out.split())
    assert "in the dark" in out


def halved(batch):
    return batch._replace(views=[view / 2 for view in batch.views])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"labels_per_class": 0}, {"draws": 0}], ids=str)
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        FinalTable(**wrong)


class Watched(FinalTable):
    """Notes whether the strategy was torn down when features were asked for."""

    def __init__(self, torn_down):
        super().__init__(k=5)
        self.torn_down, self.seen = torn_down, []

    def _score(self, bank, query, num_classes):
        self.seen.append(bool(self.torn_down))
        return super()._score(bank, query, num_classes)


def test_scores_are_computed_while_the_strategy_stands(tmp_path, monkeypatch):
    torn_down = []
    table = Watched(torn_down)
    run = trainer(tmp_path, table)
    teardown = run.strategy.teardown
    monkeypatch.setattr(run.strategy, "teardown", lambda: (torn_down.append(1), teardown()))
    run.fit(Toy(), datamodule=FitOnly())
    assert torn_down  # what follows is GPU modules on the CPU, and ranks that may be gone
    assert table.seen == [False] * 3
    assert (tmp_path / "final_table.json").exists()


def test_the_path_is_that_of_a_checkpoint_saved_when_training_ends(tmp_path):
    """One that no epoch's end saved: `save_last` does, after every other callback."""
    table = FinalTable(k=5)
    saved = ModelCheckpoint(tmp_path / "c", save_top_k=0, save_last=True, every_n_epochs=5)
    run = trainer(tmp_path, table, saved, enable_checkpointing=True)
    run.fit(Toy(), datamodule=FitOnly())
    written = json.loads((tmp_path / "final_table.json").read_text())
    assert written["checkpoint"] == saved.last_model_path != ""


def fit_on_rank(rank, folder, world):
    quiet()
    table = FinalTable(k=5)
    module = Toy()
    run = trainer(folder, table, max_epochs=1, world_size=world)
    run.fit(module, datamodule=FitOnly())
    return table.scores


def test_two_ranks_score_as_one(tmp_path, ranks):
    torch.manual_seed(0)
    one = fit_on_rank(0, str(tmp_path / "one"), 1)
    (tmp_path / "two").mkdir()
    first, second = ranks(2, fit_on_rank, str(tmp_path / "two"), 2)
    assert first["untrained"] == one["untrained"]
    assert first["raw"] == one["raw"]
    assert 0 < first["trained"]["linear"] <= 1
    assert {row: scores["knn"] for row, scores in first.items()} == {
        row: scores["knn"] for row, scores in second.items()
    }
    assert json.loads((tmp_path / "two" / "final_table.json").read_text())["scores"] == first


def test_data_without_labels_is_refused(tmp_path):
    run = trainer(tmp_path, FinalTable())
    with pytest.raises(ValueError, match="use OnlineSpectrum"):
        run.fit(Toy(), datamodule=FitOnly(labeled=False))
