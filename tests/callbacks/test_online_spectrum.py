"""OnlineSpectrum: the figures of the features of all ranks, without labels."""

from __future__ import annotations

import pytest
import torch

from sslzoo.callbacks.online_spectrum import OnlineSpectrum
from sslzoo.eval.spectrum import effective_rank, feature_std
from tests.callbacks.toy import FILTERS, FitOnly, Toy, ToyData, data, quiet, trainer

pytestmark = FILTERS


def features(module, n, seed):
    module.eval()
    with torch.no_grad():
        return module(data(n, seed)[0])


def test_it_logs_the_spectrum_of_the_query_set(tmp_path):
    module, run = Toy(), trainer(tmp_path, OnlineSpectrum())
    run.fit(module, datamodule=FitOnly(labeled=False))
    x = features(module, 31, 1)
    got = run.callback_metrics
    assert got["val/effective_rank"].item() == pytest.approx(effective_rank(x).item(), rel=1e-5)
    assert got["val/feature_std"].item() == pytest.approx(feature_std(x).mean().item(), rel=1e-5)


def test_without_a_query_set_it_takes_the_first_of_the_bank(tmp_path):
    module = Toy()
    loaders = ToyData(labeled=False).eval_dataloaders()._replace(query=None)
    run = trainer(tmp_path, OnlineSpectrum(max_samples=13, loaders=loaders))
    run.fit(module, datamodule=FitOnly(labeled=False))
    wanted = effective_rank(features(module, 53, 0)[:13]).item()
    assert run.callback_metrics["val/effective_rank"].item() == pytest.approx(wanted, rel=1e-5)


def validate_on_ranks(rank, world_size, folder):
    quiet()
    run = trainer(folder, OnlineSpectrum(max_samples=20), world_size=world_size)
    run.validate(Toy(), datamodule=ToyData(labeled=False), verbose=False)
    return run.callback_metrics["val/effective_rank"].item()


def test_ranks_log_the_same(ranks, tmp_path):
    (wanted,) = ranks(1, validate_on_ranks, 1, str(tmp_path))
    for world_size in (2, 3):
        got = ranks(world_size, validate_on_ranks, world_size, str(tmp_path))
        assert got == pytest.approx([wanted] * world_size, rel=1e-6)
