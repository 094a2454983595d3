"""Mixing equals timm's on the same draws, and one process where ranks share a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm.data.mixup
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.distributed import rank, sum_over_ranks, world_size
from sslzoo.eval import Classifier, FineTune, Mixing
from tests.ranks import Ranks

N, CLASSES = 12, 5


def batch(size: int = N) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 9, 7, generator=draw)
    return images, torch.randint(CLASSES, (size,), generator=draw)


class Draws:
    """Numpy's global functions, from a generator of ours."""

    def __init__(self, seed: int, step: int) -> None:
        self.draw = np.random.default_rng((seed, step))

    def rand(self) -> float:
        return self.draw.random()

    def beta(self, a: float, b: float) -> float:
        return self.draw.beta(a, b)

    def randint(self, low: int, high: int, size: Any = None) -> int:
        assert (low, size) == (0, None)
        return int(self.draw.integers(high))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize("alphas", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_images_and_loss_equal_timms(
    step: int, alphas: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = batch()
    mixed = Mixing(*alphas, probability=0.7)(images, labels, 3, step)
    logits = torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(1))
    got = mixed.loss(lambda y: F.cross_entropy(logits, y, label_smoothing=0.1), labels)

    fake: Any = type("numpy", (), {"random": Draws(3, step)})
    for name in ("sqrt", "clip"):
        setattr(fake, name, staticmethod(getattr(np, name)))
    monkeypatch.setattr(timm.data.mixup, "np", fake)
    theirs = timm.data.mixup.Mixup(*alphas, prob=0.7, label_smoothing=0.1, num_classes=CLASSES)
    order = [*range(0, N, 2), *range(N - 1, 0, -2)]  # theirs mixes i with N - 1 - i
    wanted, targets = theirs(images[order].clone(), labels[order])
    torch.testing.assert_close(mixed.images[order], wanted)
    soft = torch.sum(-targets * F.log_softmax(logits[order], dim=-1), dim=-1).mean()
    torch.testing.assert_close(got, soft)


def test_shares_follow_their_distribution() -> None:
    images, labels = batch(2)
    shares = [Mixing(0.8, 0)(images, labels, 0, step).share for step in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.006)


def tuned(parts: int = 1, mine: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and gradient of this part of the batch."""
    torch.manual_seed(0)
    net = FineTune(Classifier(SmallResNet((4, 8)), CLASSES), "random", mixing=Mixing()).double()
    net.step = 2
    images, labels = (part.chunk(parts)[mine] for part in batch())
    index = torch.arange(N).chunk(parts)[mine]
    loss = net.losses(Batch([images.double()], index, labels))["cross_entropy"]
    loss.backward()
    weight = net.model.classifier.weight.grad
    assert weight is not None
    return loss.detach(), weight


def of_rank(_: int) -> tuple[Tensor, Tensor]:
    loss, gradient = tuned(world_size(), rank())
    return sum_over_ranks(loss) / world_size(), sum_over_ranks(gradient) / world_size()


def test_two_ranks_mix_as_one_process_does(ranks: Ranks) -> None:
    wanted = tuned()
    for got in ranks(2, of_rank):
        torch.testing.assert_close(got, wanted)


def test_what_cannot_be_mixed_is_refused() -> None:
    images, labels = batch(3)
    with pytest.raises(ValueError, match=r"even B on every rank, got \(3, 3, 9, 7\)"):
        Mixing()(images, labels, 0, 0)
    with pytest.raises(ValueError, match="at least 0 and not both 0, got 0 and 0"):
        Mixing(0, 0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 2 and 1"):
        Mixing(switch=2)
