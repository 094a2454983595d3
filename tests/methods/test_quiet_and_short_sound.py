"""Silence and clips shorter than a frame train every method of sound, and change no other clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslzoo.batch import Batch, Padded, UnitSequence
from sslzoo.methods import BYOLA, CPC, Data2Vec, HuBERT, Wav2Vec2
from tests.toys import build, data_like


def quiet(view: Any) -> Any:
    if isinstance(view, torch.Tensor):
        return torch.zeros_like(view)
    return view._replace(values=torch.zeros_like(view.values))


@pytest.mark.parametrize("cls", [BYOLA, CPC, Data2Vec, HuBERT, Wav2Vec2])
def test_silence_has_a_finite_loss_and_gradient(cls: Any) -> None:
    method, batch = build(cls)
    batch = data_like(batch, 4)
    batch = batch._replace(views=[quiet(view) for view in batch.views])
    loss = torch.stack(list(method.double().losses(batch).values())).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("cls", [Data2Vec, HuBERT, Wav2Vec2])
def test_a_clip_without_a_frame_or_a_mask_changes_nothing(cls: Any) -> None:
    method, batch = build(cls)
    view = data_like(batch, 4).views[0]
    values = view if isinstance(view, torch.Tensor) else view.values
    size = values.shape[1]
    kernel = method.backbone.frames.kernel

    def loss(lengths: list[int]) -> torch.Tensor:
        own = values[: len(lengths)], torch.tensor(lengths)
        given = UnitSequence(*own, view.units[: len(lengths)]) if cls is HuBERT else Padded(*own)
        terms = method.losses(Batch([given], torch.arange(len(lengths))))
        return torch.stack([terms[name] for name in sorted(terms) if name != "penalty"]).sum()

    method.double().eval()  # without dropout
    torch.manual_seed(0)
    wanted = loss([size, size])
    torch.manual_seed(0)
    torch.testing.assert_close(loss([size, size, kernel - 1]), wanted)
    assert loss([kernel - 1, size]).isfinite()
