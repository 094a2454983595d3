"""Methods that read labels: they say so, they need them, and the option changes the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.methods import MarginContrastive, SSLMethod, SupCon, Triplet


def _method(cls: Any, **options: Any) -> SSLMethod:
    torch.manual_seed(0)
    return cls(SmallResNet((8, 16)), nn.Linear(16, 8), **options)


def _batch(label: Tensor | None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(6, 3, 8, 8, generator=generator) for _ in range(2)]
    return Batch(views, torch.arange(6), label)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (SupCon, {}),
        (MarginContrastive, {"uses_labels": True}),
        (Triplet, {"uses_labels": True, "mining": "hard"}),
    ],
)
def test_labels_are_wanted_and_matter(cls: Any, options: Any) -> None:
    method = _method(cls, **options)
    assert method.uses_labels
    with pytest.raises(ValueError, match=rf"one class per sample, for {cls.__name__}, got None"):
        method.losses(_batch(None))
    with pytest.raises(ValueError, match=r"got \(6, 2\)"):
        method.losses(_batch(torch.zeros(6, 2)))
    (one,) = method.losses(_batch(torch.tensor([0, 0, 1, 1, 2, 2]))).values()
    (two,) = method.losses(_batch(torch.tensor([0, 1, 2, 0, 1, 2]))).values()
    assert one != two


@pytest.mark.parametrize("cls", [MarginContrastive, Triplet])
def test_every_image_its_own_label_is_the_mode_without(cls: Any) -> None:
    (want,) = _method(cls).losses(_batch(None)).values()
    (got,) = _method(cls, uses_labels=True).losses(_batch(torch.arange(6))).values()
    assert torch.equal(got, want)


def test_points_of_the_margin_loss_are_normalized_unless_told_otherwise() -> None:
    (small,) = _method(MarginContrastive, margin=100.0).losses(_batch(None)).values()
    assert small > (100 - 2) ** 2 / 4  # no two points are more than 2 apart
    method = _method(MarginContrastive, margin=100.0, normalize=False)
    method.projector.weight.data *= 1e4  # type: ignore[union-attr,operator]
    (large,) = method.losses(_batch(None)).values()
    assert not torch.isclose(large, small)
