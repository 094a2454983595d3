"""OnlineKNN: the same number on any number of ranks, and nothing disturbed."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sslzoo.callbacks.online_knn import OnlineKNN
from sslzoo.eval.knn import knn_accuracies, knn_top1
from tests.callbacks.toy import FILTERS, NUM_CLASSES, FitOnly, Toy, ToyData, data, quiet, trainer

pytestmark = FILTERS
NAME = "val/knn_top1_k5_t0.07"


def reference(module, k=5, temperature=0.07):
    bank, labels = data(53, 0)
    query, truth = data(31, 1)
    training = module.training
    module.eval()
    with torch.no_grad():
        x, y = module(query), module(bank)
    module.train(training)
    return knn_top1(x, truth, y, labels, NUM_CLASSES, [(k, temperature)])[0]


def test_it_logs_the_accuracy_of_eval_mode_features(tmp_path):
    module, run = Toy(), trainer(tmp_path, OnlineKNN(5))
    run.fit(module, datamodule=FitOnly())
    assert run.callback_metrics[NAME].item() == pytest.approx(reference(module))
    assert NAME in run.progress_bar_metrics


def test_several_settings_have_their_names(tmp_path):
    module, run = Toy(), trainer(tmp_path, OnlineKNN([1, 5], [0.07, 0.5]))
    run.fit(module, datamodule=FitOnly())
    names = {f"val/knn_top1_k{k}_t{t}" for k in (1, 5) for t in (0.07, 0.5)}
    assert names <= run.callback_metrics.keys()
    got = run.callback_metrics["val/knn_top1_k1_t0.5"].item()
    assert got == pytest.approx(reference(module, 1, 0.5))


def test_top5_is_logged_if_asked(tmp_path):
    module, run = Toy(), trainer(tmp_path, OnlineKNN(5, top5=True))
    run.fit(module, datamodule=FitOnly())
    bank, labels = data(53, 0)
    query, truth = data(31, 1)
    with torch.no_grad():
        x, y = module.eval()(query), module(bank)
    ((top1, top5),) = knn_accuracies(x, truth, y, labels, NUM_CLASSES, [(5, 0.07)])
    assert run.callback_metrics[NAME].item() == pytest.approx(top1)
    assert run.callback_metrics[NAME.replace("top1", "top5")].item() == pytest.approx(top5)


def test_views_that_the_network_cannot_take_are_named_before_the_first_step(tmp_path):
    module = Toy()
    module.net[1] = torch.nn.Linear(13, 12)
    error = r"Toy cannot be evaluated on views of \(2, 3, 4, 4\) float32: RuntimeError: .*13x12"
    with pytest.raises(ValueError, match=error):
        trainer(tmp_path, OnlineKNN(5)).fit(module, datamodule=FitOnly())


def test_weights_and_random_state_are_those_of_a_run_without_it(tmp_path):
    states = []
    for callbacks in ([], [OnlineKNN(5)]):
        module, run = Toy(), trainer(tmp_path, *callbacks, max_epochs=3)
        run.fit(module, datamodule=FitOnly())
        states.append((module.state_dict(), torch.get_rng_state()))
    (one, random_one), (two, random_two) = states
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(random_one, random_two)


class Count(OnlineKNN):
    def __init__(self, **options):
        super().__init__(5, **options)
        self.epochs = []

    def evaluate(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)
        return super().evaluate(trainer, pl_module)


def test_it_runs_every_n_epochs_and_in_the_last(tmp_path):
    count = Count(every_n_epochs=2)
    trainer(tmp_path, count, max_epochs=5).fit(Toy(), datamodule=FitOnly())
    assert count.epochs == [1, 3, 4]


def test_validation_inside_fit_does_not_run_it_twice(tmp_path):
    count = Count()
    trainer(tmp_path, count, max_epochs=2).fit(Toy(), datamodule=ToyData())
    assert count.epochs == [0, 1]


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_validate_and_test_run_it(tmp_path, verb):
    module, run = Toy(), trainer(tmp_path, OnlineKNN(5))
    (logged,) = getattr(run, verb)(module, datamodule=ToyData(), verbose=False)
    assert logged[NAME] == pytest.approx(reference(module))


def test_a_model_checkpoint_can_monitor_it(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor=NAME, mode="max")
    run = trainer(tmp_path, best, OnlineKNN(5), enable_checkpointing=True)
    run.fit(Toy(), datamodule=FitOnly())
    assert best.best_model_score is not None
    assert best.best_model_path


def test_loaders_may_be_given_to_any_module(tmp_path):
    module = Toy()
    run = trainer(tmp_path, OnlineKNN(5, loaders=ToyData().eval_dataloaders()))
    run.fit(module, train_dataloaders=ToyData().train_dataloader())
    assert run.callback_metrics[NAME].item() == pytest.approx(reference(module))


def test_missing_data_says_what_to_pass(tmp_path):
    with pytest.raises(ValueError, match=r"OnlineKNN\(loaders=EvalLoaders\("):
        trainer(tmp_path, OnlineKNN(5)).fit(Toy(), ToyData().train_dataloader())


def test_data_without_labels_names_online_spectrum(tmp_path):
    with pytest.raises(ValueError, match="use OnlineSpectrum"):
        trainer(tmp_path, OnlineKNN(5)).fit(Toy(), datamodule=FitOnly(labeled=False))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        OnlineKNN(every_n_epochs=0)


def validate_on_ranks(rank, world_size, sharded, folder):
    quiet()
    module, run = Toy(), trainer(folder, OnlineKNN([1, 5]), world_size=world_size)
    run.validate(module, datamodule=ToyData(sharded=sharded), verbose=False)
    return {name: value.item() for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("sharded", [True, False])
def test_one_two_and_three_ranks_log_the_same(ranks, sharded, tmp_path):
    (wanted,) = ranks(1, validate_on_ranks, 1, sharded, str(tmp_path))
    assert wanted[NAME] == pytest.approx(reference(Toy()))
    for world_size in (2, 3):
        for got in ranks(world_size, validate_on_ranks, world_size, sharded, str(tmp_path)):
            assert got == wanted
