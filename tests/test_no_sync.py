"""The counter of synchronizations sees those that exist."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.no_sync import DEVICE, syncs


def _leaf() -> Tensor:
    return torch.randn(4, 3, device=DEVICE, requires_grad=True)


def _clean() -> Tensor:
    return (torch.nn.functional.linear(_leaf(), torch.eye(3, device=DEVICE)).relu() ** 2).sum()


def _item() -> Tensor:
    x = _leaf()
    return x.sum() * x.detach().sum().item()


def _truth() -> Tensor:
    x = _leaf()
    return x.sum() if x.detach().sum() > 0 else -x.sum()


def _mask() -> Tensor:
    x = _leaf()
    return x[x.detach() > 0].sum()


def _copy() -> Tensor:
    return _leaf().cpu().sum()


def _constant() -> Tensor:
    return _leaf().sum() * torch.ones(3).to(DEVICE).sum()


class _InBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sum()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.max().item() * torch.ones_like(x)


def _in_backward() -> Tensor:
    return _InBackward.apply(_leaf() * 2)


def test_a_clean_step_has_none() -> None:
    assert syncs(_clean) == []


@pytest.mark.parametrize("step", [_item, _truth, _mask, _copy, _constant, _in_backward])
def test_a_synchronizing_step_has_some(step) -> None:
    assert syncs(step) != []
