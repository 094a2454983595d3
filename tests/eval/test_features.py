"""Features of a data set: eval mode for the duration, each sample once, on any number of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sslzoo.batch import Batch
from sslzoo.eval.features import eval_mode, extract, gather_features
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.spectrum import effective_rank


def identity(batch):
    return batch._replace(views=[batch.views[0] * 2])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4))


def batches(n=29, size=4):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    index, label = torch.arange(n), torch.arange(n) % 3
    parts = zip(x.split(size), index.split(size), label.split(size), strict=True)
    return [Batch([a], i, b) for a, i, b in parts]


def of(loader, sharded=False):
    return EvalLoaders(loader, None, identity, 3, sharded)


def test_flags_buffers_and_random_state_are_left_as_they_were():
    module = net()
    module[1].eval()
    flags = [child.training for child in module.modules()]
    state = {name: x.clone() for name, x in module.state_dict().items()}
    loader = DataLoader(TensorDataset(torch.randn(9, 6), torch.zeros(9)), batch_size=2)
    random = torch.get_rng_state()
    result = extract(module, loader, of(loader))
    assert [child.training for child in module.modules()] == flags
    assert all(torch.equal(x, state[name]) for name, x in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(result.index, torch.arange(9))
    assert not result.features.requires_grad


def test_flags_are_restored_after_an_error():
    module = net()
    with pytest.raises(RuntimeError), eval_mode(module):
        module(torch.zeros(1, 7))  # the wrong width
    assert all(child.training for child in module.modules())


def test_a_view_that_the_network_cannot_take_is_named():
    loader = [Batch([torch.zeros(4, 7)], torch.arange(4))]
    error = r"Sequential cannot be evaluated on views of \(4, 7\) float32: RuntimeError: .*4x7"
    with pytest.raises(ValueError, match=error):
        extract(net(), loader, of(loader))


def test_features_are_those_of_eval_mode():
    module = net()
    loader = batches()
    x = torch.cat([batch.views[0] for batch in loader])
    got = extract(module, loader, of(loader))
    module.eval()
    torch.testing.assert_close(got.features, module(2 * x).detach())
    assert torch.equal(got.label, torch.arange(29) % 3)


def test_duplicates_are_dropped_and_a_limit_is_kept():
    loader = [*batches(), batches()[0]]
    assert torch.equal(extract(net(), loader, of(loader)).index, torch.arange(29))
    assert torch.equal(extract(net(), loader, of(loader), limit=10).index, torch.arange(10))


def on_ranks(rank, world_size, sharded, limit, n):
    loader = batches(n)
    if sharded:
        loader = loader[rank::world_size]
    own = extract(net(), loader, of(loader, sharded), limit=limit)
    return len(own.index), gather_features(own)


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize(("limit", "n"), [(None, 29), (11, 29), (None, 5)])
def test_ranks_equal_one_process(ranks, sharded, limit, n):
    ((_, wanted),) = ranks(1, on_ranks, 1, sharded, limit, n)
    for world_size in (2, 3):  # 5 samples are two batches: the third rank has none
        results = ranks(world_size, on_ranks, world_size, sharded, limit, n)
        assert sum(count for count, _ in results) == len(wanted.index)
        for _, got in results:
            assert torch.equal(got.index, wanted.index)
            assert torch.equal(got.label, wanted.label)
            torch.testing.assert_close(got.features, wanted.features)


def test_wrong_values_are_named():
    loader = batches()
    with pytest.raises(ValueError, match="no 'embed'"):
        extract(net(), loader, of(loader), "embed")
    with pytest.raises(ValueError, match=r"must be \(B, D\), got \(4, 6, 1\)"):
        extract(net(), loader, of(loader), lambda view: view[:, :, None])
    with pytest.raises(ValueError, match="at least one batch, got none"):
        extract(net(), [], of([]))
    with pytest.raises(ValueError, match="got Tensor"):
        extract(net(), [torch.zeros(2, 3)], of([]))


def test_effective_rank_of_extracted_features_is_finite():
    loader = batches()
    assert 1 <= effective_rank(extract(net(), loader, of(loader)).features) <= 4
