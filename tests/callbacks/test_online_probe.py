"""OnlineProbe: never touches the encoder, the same on any number of ranks, restorable."""

from __future__ import annotations

import pytest
import torch

from sslzoo.callbacks.online_probe import OnlineProbe
from tests.callbacks.toy import FILTERS, NUM_CLASSES, FitOnly, Toy, ToyData, data, quiet, trainer

pytestmark = FILTERS


def test_the_encoder_is_bit_identical_with_and_without_it(tmp_path):
    states = []
    for callbacks in ([], [OnlineProbe()]):
        module = Toy()
        trainer(tmp_path, *callbacks, max_epochs=3).fit(module, datamodule=FitOnly())
        states.append((module.state_dict(), torch.get_rng_state(), module.net[3].training))
    (one, random_one, mode_one), (two, random_two, mode_two) = states
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(random_one, random_two)
    assert mode_one == mode_two


def test_it_learns_separable_classes():
    probe = OnlineProbe(num_classes=NUM_CLASSES)
    x, y = data(400, 2)
    for _ in range(20):
        for a, b in zip(x.flatten(1).split(50), y.split(50), strict=True):
            probe.step(a, b)
    query, truth = data(300, 3)
    z = probe._standardize(query.flatten(1), update=False)
    assert ((z @ probe.state["weight"].T).argmax(1) == truth).float().mean() > 0.85


def test_its_gradient_is_that_of_cross_entropy():
    probe = OnlineProbe(num_classes=NUM_CLASSES, lr=0.5, momentum=0.0, weight_decay=0.1)
    x, y = data(30, 4)
    probe.step(x.flatten(1), y)
    before = probe.state["weight"].clone().requires_grad_()
    probe.step(x.flatten(1), y)
    z = probe._standardize(x.flatten(1), update=False)
    loss = torch.nn.functional.cross_entropy(z @ before.T, y)
    (loss + 0.05 * before[:, :-1].square().sum()).backward()
    wanted = before.detach() - 0.5 * before.grad
    torch.testing.assert_close(probe.state["weight"], wanted)


def test_it_logs_the_accuracy_of_the_query_set(tmp_path):
    probe, module = OnlineProbe(), Toy()
    run = trainer(tmp_path, probe)
    run.fit(module, datamodule=FitOnly())
    query, truth = data(31, 1)
    module.eval()
    with torch.no_grad():
        scores = probe._standardize(module(query), update=False) @ probe.state["weight"].T
    wanted = (scores.argmax(1) == truth).float().mean().item()
    assert run.callback_metrics["val/probe_top1"].item() == pytest.approx(wanted)


def test_a_resumed_run_has_the_same_probe(tmp_path):
    whole = OnlineProbe()
    trainer(tmp_path, whole, max_epochs=4).fit(Toy(), datamodule=FitOnly())
    first = trainer(tmp_path, OnlineProbe(), max_epochs=2)
    module = Toy()
    module.net[3].p = 0.0  # dropout's generator is the resume battery's business
    first.fit(module, datamodule=FitOnly())
    first.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    ends = []
    for path in (None, tmp_path / "half.ckpt"):
        probe, module = OnlineProbe(), Toy()
        module.net[3].p = 0.0
        run = trainer(tmp_path, probe, max_epochs=4)
        run.fit(module, datamodule=FitOnly(), ckpt_path=path, weights_only=True)
        ends.append(probe.state)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def steps_on_ranks(rank, world_size, counts):
    probe = OnlineProbe(num_classes=NUM_CLASSES)
    x, y = data(sum(counts), 5)
    for _ in range(3):
        own = [slice(0, len(x)), None, None]
        if world_size > 1:
            start = sum(counts[:rank])
            own[0] = slice(start, start + counts[rank])
        probe.step(x.flatten(1)[own[0]], y[own[0]])
    return probe.state


@pytest.mark.parametrize("counts", [[7, 4], [5, 1, 9]])
def test_uneven_ranks_equal_one_process(ranks, counts):
    (wanted,) = ranks(1, steps_on_ranks, 1, counts)
    for state in ranks(len(counts), steps_on_ranks, len(counts), counts):
        for name in wanted:
            torch.testing.assert_close(state[name], wanted[name], rtol=1e-4, atol=1e-5)


def validate_on_ranks(rank, world_size, folder, state):
    quiet()
    probe = OnlineProbe()
    probe.load_state_dict(state)
    run = trainer(folder, probe, world_size=world_size)
    run.validate(Toy(), datamodule=ToyData(), verbose=False)
    return run.callback_metrics["val/probe_top1"].item()


def test_ranks_log_the_same_accuracy(ranks, tmp_path):
    probe = OnlineProbe()
    trainer(tmp_path, probe, max_epochs=1).fit(Toy(), datamodule=FitOnly())
    (wanted,) = ranks(1, validate_on_ranks, 1, str(tmp_path), probe.state_dict())
    for world_size in (2, 3):
        args = (world_size, str(tmp_path), probe.state_dict())
        assert ranks(world_size, validate_on_ranks, *args) == [wanted] * world_size


def test_data_without_labels_names_online_spectrum(tmp_path):
    run = trainer(tmp_path, OnlineProbe())
    with pytest.raises(ValueError, match="use OnlineSpectrum"):
        run.fit(Toy(), datamodule=FitOnly(labeled=False))
    run = trainer(tmp_path, OnlineProbe(num_classes=3))
    with pytest.raises(ValueError, match="use OnlineSpectrum"):
        run.fit(Toy(), datamodule=FitOnly(labeled=False))
