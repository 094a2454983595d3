"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.eval.linear import _fit, _Standardize, linear_probe, regress


def make(n, width, num_classes, noise=3.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(num_classes, width, generator=g)
    labels = torch.randint(num_classes, (n,), generator=g).sort().values
    return center[labels] + noise * torch.randn(n, width, generator=g), labels


def split(x, y):
    return x[::2], y[::2], x[1::2], y[1::2]


def test_weights_equal_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = make(400, 10, 4)
    x = _Standardize(x)(x)
    l2 = 1e-2
    start = torch.zeros(11, 4)
    ours = _fit(x, y, l2, start, 200, F.cross_entropy)
    theirs = linear_model.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=2000)
    theirs.fit(x.numpy(), y.numpy())
    torch.testing.assert_close(
        ours[:-1].T, torch.tensor(theirs.coef_).float(), rtol=1e-3, atol=1e-3
    )


def test_accuracy_is_scikit_learns_at_its_best():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = make(1600, 30, 5)
    train, labels, test, truth = split(x, y)
    ours = linear_probe(train, labels, test, truth, 5)
    best = 0.0
    for l2 in (1e-4, 1e-3, 1e-2, 1e-1):
        model = linear_model.LogisticRegression(C=1 / (l2 * len(train)), max_iter=1000)
        model.fit(_Standardize(train)(train).numpy(), labels.numpy())
        best = max(best, model.score(_Standardize(train)(test).numpy(), truth.numpy()))
    assert ours == pytest.approx(best, abs=0.012)


def test_two_calls_give_the_same_and_touch_no_random_state():
    data = split(*make(300, 8, 3))
    before = torch.get_rng_state()
    assert linear_probe(*data, 3) == linear_probe(*data, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_scale_and_constant_dimensions_do_not_matter():
    train, labels, test, truth = split(*make(300, 8, 3))
    wanted = linear_probe(train, labels, test, truth, 3, 1e-2)

    def spoil(x):
        return torch.cat([x * 1000 + 5, torch.full((len(x), 3), 7.3)], dim=1)

    assert linear_probe(spoil(train), labels, spoil(test), truth, 3, 1e-2) == pytest.approx(
        wanted, abs=0.01
    )


@pytest.mark.slow
def test_quickstart_size_takes_seconds():
    for width in (784, 512):
        x, y = make(5000, width, 10, noise=6.0)
        start = time.perf_counter()
        linear_probe(x[:4000], y[:4000], x[4000:], y[4000:], 10)
        assert time.perf_counter() - start < 10


def test_wrong_values_are_named():
    x, y = make(20, 4, 3)
    with pytest.raises(ValueError, match=r"training set: labels must be in 0\.\.1, got 0\.\.2"):
        linear_probe(x, y, x, y, 2)
    with pytest.raises(ValueError, match=r"test set: .* got \(20, 4\) and \(19,\)"):
        linear_probe(x, y, x, y[1:], 3)


@pytest.mark.parametrize(("count", "inside"), [(100, 1), (70000, 2)])
def test_a_small_set_is_fitted_with_one_thread_and_the_number_is_restored(count: int, inside: int):
    seen, before = set(), torch.get_num_threads()

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        raise KeyError("an error in the fit")

    x, y = make(count, 4, 2)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError):
            regress(x, y, x[:5], 2, [1e-2], 3, loss, lambda *_: 0.0)
        assert (seen, torch.get_num_threads()) == ({inside}, 2)
    finally:
        torch.set_num_threads(before)
