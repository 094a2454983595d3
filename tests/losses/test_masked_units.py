"""HuBERT's loss equals fairseq's, a slow reference, and itself on ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.heads import UnitHead
from sslzoo.losses import feature_penalty, masked_units
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.losses.test_wav2vec2 import linear
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

FILES = ["loss_one_set", "loss_two_sets_untied"]


@pytest.mark.parametrize("name", FILES)
def test_equals_fairseq(name: str) -> None:
    z = load(f"hubert/{name}.npz")
    how = z["meta"]["hyper"]
    head = UnitHead(
        how["D"], how["num_classes"], how["final_dim"], how["untie_final_proj"], how["logit_temp"]
    )
    head.project = linear(z, "final_proj:")
    head.embeddings.data.copy_(torch.from_numpy(z["label_embs"]))
    features = torch.from_numpy(z["features"]).requires_grad_()
    mask, padding = (torch.from_numpy(z[part]) for part in ("mask", "padding_mask"))
    x = features.mT
    masked_x = torch.where(mask[..., None], torch.from_numpy(z["mask_emb"]), x)
    logits = head(torch.tanh(linear(z, "encoder:lin.")(masked_x)))
    sets = range(len(how["num_classes"]))
    frames = x.shape[1]
    units = torch.stack([torch.from_numpy(z[f"labels{i}"])[:, :frames] for i in sets], dim=1)
    masked, unmasked = mask & ~padding, ~mask & ~padding
    weights = how["pred_nomask_weight"], how["pred_masked_weight"]
    value = masked_units(logits, units, masked, unmasked, *weights)
    for i in sets:
        true = logits[i].gather(2, units[:, i, :, None])
        for where, part in ((masked, "masked"), (unmasked, "unmasked")):
            theirs = torch.from_numpy(z[f"logits_{part}{i}"])
            assert_close_to_golden(true[where], theirs[:, :1].numpy())
            finite = theirs[:, 1:].isfinite()
            assert_close_to_golden(logits[i][where][finite], theirs[:, 1:][finite].numpy())
    size = int(z["sample_size"])
    loss = size * value
    penalty = feature_penalty(x, torch.ones_like(mask))
    assert_close_to_golden(penalty, z["features_pen"])
    if how["loss_weights"]:
        loss = loss + how["loss_weights"][0] * penalty * size
    assert_close_to_golden(loss, z["loss"])
    loss.backward()
    assert_close_to_golden(features.grad, z["grad_features"])
    assert_close_to_golden(head.embeddings.grad, z["grad_label_embs"])
    assert_close_to_golden(head.project.weight.grad, z["grad_final_proj:weight"])
    assert_close_to_golden(head.project.bias.grad, z["grad_final_proj:bias"])


def loss(a: Tensor, b: Tensor, units: Tensor, masked: Tensor, unmasked: Tensor) -> Tensor:
    return masked_units([a, b], units, masked, unmasked, 0.5, 2.0)


def reference(a: Tensor, b: Tensor, units: Tensor, masked: Tensor, unmasked: Tensor) -> Tensor:
    """One frame after the other."""
    total, count = a.new_zeros(()), 0
    for n, t in (masked | unmasked).nonzero().tolist():
        count += bool(units[n, 0, t] >= 0)
        for number, logits in enumerate((a, b)):
            if units[n, number, t] >= 0:
                term = -logits[n, t].log_softmax(0)[units[n, number, t]]
                total = total + term * (2.0 if masked[n, t] else 0.5)
    return total / count


def data(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 5, c, generator=generator).double() for c in (4, 3))
    units = torch.randint(-1, 3, (n, 2, 5), generator=generator)
    kind = torch.randint(0, 3, (n, 5), generator=generator)
    return [a, b, units, kind == 0, kind == 1]


def test_value_and_gradients_are_the_references() -> None:
    got = value_and_gradients(loss, data(), 2)
    torch.testing.assert_close(got, value_and_gradients(reference, data(), 2))


@pytest.mark.parametrize("counts", COUNTS[1:3])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, data(), 2, counts)


def test_unmasked_frames_of_weight_0_do_not_count() -> None:
    a, _, units, masked, unmasked = data()
    value = masked_units([a], units[:, :1], masked, unmasked)
    nobody = torch.zeros_like(unmasked)
    assert value == masked_units([a], units[:, :1], masked, nobody)
    assert masked_units([a], units[:, :1], nobody, nobody) == 0


def test_half_precision_is_computed_in_float32() -> None:
    a, b, *rest = data()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(a.bfloat16(), b.bfloat16(), *rest)
    assert torch.equal(got, loss(a.bfloat16().float(), b.bfloat16().float(), *rest))


def _on_fake_cuda() -> Tensor:
    logits = torch.randn(2, 5, 4, device=DEVICE, requires_grad=True)
    masked = torch.ones(2, 5, dtype=torch.bool, device=DEVICE)
    units = torch.zeros(2, 1, 5, dtype=torch.long, device=DEVICE)
    return masked_units([logits], units, masked, ~masked)


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_shapes_are_named() -> None:
    a, b, units, masked, unmasked = data()
    wrong: Any = units[:, :1]
    with pytest.raises(ValueError, match=r"units \(n, S, T\).*\(6, 1, 5\)"):
        loss(a, b, wrong, masked, unmasked)
