"""Keyed draws: the same for any split, independent between purposes, of the right law."""

from __future__ import annotations

import pytest
import torch

from sslzoo.random import Keys, run_keys, run_permutation, run_seed, run_uniform, sample_keys
from tests.no_sync import DEVICE, syncs


def _keys(n: int = 4000, seed: int = 0, epoch: int = 0) -> Keys:
    return sample_keys(seed, epoch, torch.arange(n))


def _splitmix64(state: int) -> int:
    """The next output of the published generator, in Python's integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_bits_are_splitmix64s() -> None:
    folded = Keys(torch.tensor([123456789])).fold("x").key
    states = [(folded.item() + i * 0x9E3779B97F4A7C15) % (1 << 64) for i in range(3)]
    bits = Keys(torch.tensor([123456789])).bits("x", 3)[0]
    assert [b % (1 << 64) for b in bits.tolist()] == [_splitmix64(s) for s in states]


def test_the_draws_never_change() -> None:
    keys = sample_keys(1, 2, torch.tensor([0, 7]))  # a change here changes every run
    assert keys.bits("crop", 1).flatten().tolist() == [-3603836841486993717, 3139876221476035246]


def test_a_sample_draws_the_same_in_any_batch() -> None:
    index = torch.tensor([5, 3, 99, 0])
    together = sample_keys(3, 1, index)
    for draw in (
        lambda keys: keys.uniform("a", 2, 3),
        lambda keys: keys.normal("a", 3),
        lambda keys: keys.permutation("a", 6),
        lambda keys: keys.integers("a", 10, 2),
        lambda keys: keys.bernoulli("a", 0.5),
    ):
        alone = [draw(sample_keys(3, 1, index[i : i + 1])) for i in range(4)]
        assert torch.equal(draw(together), torch.cat(alone))


@pytest.mark.parametrize("other", ["seed", "epoch", "sample", "view", "purpose", "place"])
def test_draws_for_different_ends_are_independent(other: str) -> None:
    base = _keys().uniform("a", 2)
    different = {
        "seed": _keys(seed=1).uniform("a", 2),
        "epoch": _keys(epoch=1).uniform("a", 2),
        "sample": sample_keys(0, 0, torch.arange(1, 4001)).uniform("a", 2),
        "view": _keys().fold("view", 1).uniform("a", 2),
        "purpose": _keys().uniform("b", 2),
        "place": base.flip(1),
    }[other]
    correlation = torch.corrcoef(torch.stack([base[:, 0], different[:, 0]]))[0, 1]
    assert abs(correlation) < 0.06  # four deviations


def test_seed_and_epoch_do_not_mix() -> None:
    assert not torch.equal(_keys(seed=1, epoch=2).key, _keys(seed=2, epoch=1).key)
    assert not torch.equal(_keys(seed=0, epoch=1).key, _keys(seed=1, epoch=0).key)


def test_uniform_and_normal_have_their_law() -> None:
    uniform = _keys(50_000).uniform("u")
    assert 0 <= uniform.min() < 1e-3
    assert 1 - 1e-3 < uniform.max() < 1
    counts = torch.histc(uniform, 20, 0, 1)
    assert ((counts - 2500).square() / 2500).sum() < 50  # chi-squared, 19 degrees: p < 2e-4
    bounded = _keys().uniform("u", low=-2, high=3)
    torch.testing.assert_close(bounded, 5 * _keys().uniform("u") - 2)
    normal = _keys(50_000).normal("n")
    assert normal.isfinite().all()
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert abs(normal.pow(4).mean() - 3) < 0.2


def test_integers_bernoulli_and_permutations() -> None:
    integers = _keys(9000).integers("i", 9)
    assert (torch.bincount(integers, minlength=9) - 1000).abs().max() < 150
    assert _keys(1).integers("i", 1, 4).tolist() == [[0] * 4]
    assert _keys().integers("i", 1 << 31).min() >= 0
    assert abs(_keys(9000).bernoulli("b", 0.3).float().mean() - 0.3) < 0.02
    permutation = _keys(300).permutation("p", 5)
    assert torch.equal(permutation.sort(1).values, torch.arange(5).expand(300, 5))
    assert abs((permutation[:, 0] == 0).float().mean() - 0.2) < 0.1


@pytest.mark.parametrize("high", [0, -1, (1 << 31) + 1])
def test_a_bound_out_of_range_is_named(high: int) -> None:
    with pytest.raises(ValueError, match=f"got {high}"):
        _keys(1).integers("i", high)


def test_tensors_fold_row_by_row() -> None:
    keys, steps = _keys(3), torch.tensor([4, 5, 4])
    folded = keys.fold(steps).key
    for i, step in enumerate(steps.tolist()):
        assert folded[i] == keys.fold(step).key[i]


def test_run_keys_and_the_runs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_keys(1, "sampler", 3).permutation("p", 9).shape == (1, 9)
    assert run_keys(1, "sampler", 3).key != run_keys(1, "sampler", 4).key
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert run_seed() == 5


def _on_fake_cuda() -> None:
    keys = sample_keys(0, 1, torch.zeros(4, dtype=torch.int64, device=DEVICE)).fold("view", 1)
    keys.uniform("u", 2, low=1, high=2)
    keys.normal("n")
    keys.integers("i", 7)
    keys.bernoulli("b", 0.5)
    keys.permutation("p", 5)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_host_numbers_are_those_of_run_keys() -> None:
    for seed, step in ((0, 0), (3, 17), (2**31, 100_000)):
        wanted = run_keys(seed, "purpose", step).uniform("size").item()
        assert run_uniform("size", seed, "purpose", step) == wanted


@pytest.mark.parametrize("n", [1, 2, 17])
def test_a_permutation_on_the_host_is_the_devices(n: int) -> None:
    wanted = run_keys(7, "masks", 3).permutation("crops", n)[0].tolist()
    assert run_permutation("crops", n, 7, "masks", 3) == wanted
