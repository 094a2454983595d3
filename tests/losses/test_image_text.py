"""CLIP's and SigLIP's losses against slow references, the official arrays, and on ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.losses import clip_loss, siglip_loss
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, Largest, value_and_gradients
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

LOSSES = {"clip": clip_loss, "siglip": siglip_loss}


def rows(n: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 5, generator=draw, dtype=torch.float64), dim=-1)


def data(name: str, n: int = 6) -> list[Tensor]:
    """Images, texts, the log of the scale, and for SigLIP the bias."""
    scalars = [torch.tensor(2.1, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)]
    return [rows(n, 0), rows(n, 1), *scalars[: 1 + (name == "siglip")]]


def clip_reference(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * images @ texts.T
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_reference(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    total = images.new_zeros(())
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = log_scale.exp() * (image * text).sum() + bias
            total = total - F.logsigmoid(logit if i == j else -logit)
    return total / len(images)


def set_block(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setitem(sys.modules["sslzoo.losses.image_text"]._BLOCK, "cpu", entries)


REFERENCES: dict[str, Callable[..., Tensor]] = {"clip": clip_reference, "siglip": siglip_reference}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("block", [1, 13, 1 << 20])
def test_value_and_gradient_are_the_references(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block(monkeypatch, block)
    tensors = data(name)
    got = value_and_gradients(LOSSES[name], tensors, len(tensors))
    torch.testing.assert_close(got, value_and_gradients(REFERENCES[name], tensors, len(tensors)))


def test_hand_worked_values() -> None:
    e, zero = torch.eye(2, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    assert clip_loss(e, e, zero).item() == pytest.approx(math.log(1 + math.exp(-1)))
    value = siglip_loss(e, e, zero, zero - 1)  # logits 0 of the own text and -1 of the other
    assert value.item() == pytest.approx(math.log(2) + math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("name", LOSSES)
def test_the_logits_are_not_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_block(monkeypatch, 1 << 10)
    images, texts, *scalars = data(name, 200)
    with Largest() as largest:
        LOSSES[name](images.requires_grad_(), texts.requires_grad_(), *scalars).backward()
    assert largest.numel <= 2 * 200 * 5


def _on_rank(
    rank: int, name: str, tensors: list[Tensor], counts: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    parts = [x.split(counts)[rank] if x.ndim else x for x in tensors]
    return value_and_gradients(LOSSES[name], parts, len(parts))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("counts", COUNTS)
def test_ranks_equal_one(ranks: Ranks, name: str, counts: tuple[int, ...]) -> None:
    tensors = data(name)
    one, wanted = value_and_gradients(LOSSES[name], tensors, len(tensors))
    results = ranks(len(counts), _on_rank, name, tensors, counts)
    mean = torch.stack([value for value, _ in results]).mean()
    torch.testing.assert_close(mean, one, rtol=1e-7, atol=1e-12)
    for i, want in enumerate(wanted):
        every = [grads[i] for _, grads in results]
        got = torch.cat(every) / len(counts) if want.ndim else torch.stack(every).mean()
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    half = [x.to(dtype) for x in data(name)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = value_and_gradients(LOSSES[name], half, len(half))
    want, wanted = value_and_gradients(LOSSES[name], [x.float() for x in half], len(half))
    assert torch.equal(got, want)
    for grad, full in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, full.to(dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_costs_nothing_and_no_host_synchronization(name: str) -> None:
    with torch.no_grad():
        assert not LOSSES[name](*data(name)).requires_grad

    def on_fake_cuda() -> Tensor:
        tensors = [torch.randn(x.shape, device=DEVICE, requires_grad=True) for x in data(name)]
        return LOSSES[name](*tensors)

    assert syncs(on_fake_cuda) == []


@pytest.mark.parametrize("name", LOSSES)
def test_other_shapes_are_refused(name: str) -> None:
    images, texts, *scalars = data(name)
    with pytest.raises(ValueError, match=r"images and texts must .* got \(6, 5\) and \(5, 5\)"):
        LOSSES[name](images, texts[:5], *scalars)


def arrays(z: dict[str, Any], name: str) -> list[Tensor]:
    found = ["image_features", "text_features", "logit_scale"]
    return [torch.tensor(z[key]) for key in found + ["logit_bias"] * (name == "siglip")]


GRADS = ["grad_image", "grad_text", "grad_logit_scale", "grad_logit_bias"]


@pytest.mark.parametrize("name", LOSSES)
def test_golden(name: str) -> None:
    z = load(f"{name}/{name}_loss_1rank.npz")
    tensors = arrays(z, name)
    value, grads = value_and_gradients(LOSSES[name], tensors, len(tensors))
    assert_close_to_golden(value, z["loss"], 1e-6)
    for grad, key in zip(grads, GRADS, strict=False):
        assert_close_to_golden(grad, z[key], 2e-6)
    logits = tensors[2].exp() * tensors[0] @ tensors[1].T
    if name == "siglip":
        assert_close_to_golden(value, z["loss_chunk4"], 1e-6)
        assert_close_to_golden(logits + tensors[3], z["logits"], 1e-6)
        assert np.array_equal(z["labels"], 2 * np.eye(6) - 1)
        negatives = tensors[2].exp() * tensors[0] @ torch.tensor(z["text_features_other"]).T
        every = F.softplus(negatives + tensors[3]).sum() / 6
        assert_close_to_golden(every, z["loss_neg"], 1e-6)
        return
    assert_close_to_golden(logits, z["logits_per_image"], 1e-6)
    assert_close_to_golden(logits.T, z["logits_per_text"], 1e-6)
    # One number that is added to all logits changes nothing but them.
    assert_close_to_golden(value, z["loss_bias"], 1e-6)
    assert abs(float(z["grad_logit_bias"])) < 1e-6
    for grad, key in zip(grads, GRADS, strict=False):
        assert_close_to_golden(grad, z[f"{key}_bias"], 5e-6)
    for key, want in (("image", logits), ("text", logits.T)):
        assert_close_to_golden(want + z["meta"]["hyper"]["logit_bias"], z[f"logits_per_{key}_bias"])


@pytest.mark.parametrize(("name", "size"), [("clip", 2), ("siglip", 2), ("siglip", 3)])
def test_golden_on_ranks(ranks: Ranks, name: str, size: int) -> None:
    """CLIP: local_loss and gather_with_grad; SigLIP: each exchange of the code, and one process."""
    z = load(f"{name}/{name}_loss_{size}rank.npz")
    tensors = arrays(z, name)
    results = ranks(size, _on_rank, name, tensors, (len(tensors[0]) // size,) * size)
    groups = ["L1G1"] if name == "clip" else [k[:-5] for k in z if k.endswith(":loss")]
    for group in groups:
        if group == "one_process":
            value, grads = value_and_gradients(LOSSES[name], tensors, len(tensors))
            results = [(value, grads)]
        for rank, (value, grads) in enumerate(results):
            mine = (lambda key: z[key]) if group == "one_process" else (lambda key: z[key][rank])  # noqa: B023
            assert_close_to_golden(value, mine(f"{group}:loss"), 1e-6)
            for grad, key in zip(grads, GRADS, strict=False):
                assert_close_to_golden(grad, mine(f"{group}:{key}"), 5e-6)
    if name == "siglip":
        assert groups[-1] == "one_process"


def test_golden_of_the_codes_other_forms(ranks: Ranks) -> None:
    """What its defaults give: the whole loss on each rank, without gradients of other ranks."""
    z = load("clip/clip_loss_2rank.npz")
    images, texts, log_scale = arrays(z, "clip")
    results = ranks(2, _on_rank, "clip", [images, texts, log_scale], (6, 6))
    one, grads = value_and_gradients(clip_loss, [images, texts, log_scale], 3)
    for group, factor in (("L0G0", 1), ("L0G1", 2)):
        for rank in range(2):
            own = slice(6 * rank, 6 * rank + 6)
            assert_close_to_golden(one, z[f"{group}:loss"][rank], 1e-6)
            assert_close_to_golden(factor * grads[0][own], z[f"{group}:grad_image"][rank], 5e-6)
            assert_close_to_golden(factor * grads[1][own], z[f"{group}:grad_text"][rank], 5e-6)
            assert_close_to_golden(grads[2], z[f"{group}:grad_logit_scale"][rank], 5e-6)
            assert_close_to_golden(results[rank][0], z["L1G0:loss"][rank], 1e-6)
            assert_close_to_golden(results[rank][1][2], z["L1G0:grad_logit_scale"][rank], 5e-6)
            assert z["L1G0:labels"][rank].tolist() == list(range(6 * rank, 6 * rank + 6))
