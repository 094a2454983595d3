"""data2vec's losses equal fairseq's, a slow reference, and themselves on ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.losses import average_targets, masked_regression, normalize_targets, spread
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import COUNTS, assert_ranks_equal_one, value_and_gradients
from tests.losses.test_wav2vec2 import linear
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

AUDIO, VISION = load("data2vec/audio.npz"), load("data2vec/vision.npz")
# How our options say what the code's do; without a norm of the layers over the batch or time, its
# states are (T, B, D), so that "instance" of the mean is over the batch (`transposed`).
NORMS: dict[str, tuple[str, str]] = {
    "instance_layer": ("instance", "none"),
    "layer_layer": ("layer", "none"),
    "instance_and_targets": ("instance", "layer"),
    "batch_layer": ("batch", "none"),
    "none": ("none", "none"),
}
TRANSPOSED = {"group_layer": ("group", "none"), "instance_targets": ("none", "instance")}


@pytest.mark.parametrize("form", ["mse", "smooth"])
@pytest.mark.parametrize("name", [*NORMS, *TRANSPOSED])
def test_equals_fairseq_for_speech(name: str, form: str) -> None:
    z, how = AUDIO, AUDIO["meta"]["hyper"]
    hidden = torch.from_numpy(z["hidden"])[-how["average_top_k_layers"] :]
    transposed = name in TRANSPOSED
    norms: Any = (TRANSPOSED if transposed else NORMS)[name]
    targets = average_targets(hidden.unbind(), *norms, transposed=transposed)
    mask = torch.from_numpy(z["mask"])
    assert_close_to_golden(targets[mask], z[f"{name}_{form}:target"])
    features = torch.from_numpy(z["features"]).requires_grad_()
    token = torch.from_numpy(z["mask_emb"]).requires_grad_()
    final = linear(z, "final_proj:")
    x = torch.where(mask[..., None], token, features)
    predictions = final(torch.tanh(linear(z, "encoder:lin.")(x)))
    beta = how["loss_beta"][form == "smooth"]
    value = masked_regression(predictions, targets, mask, how["loss_scale"], beta)
    loss = value * int(z[f"{name}_{form}:sample_size"])
    assert_close_to_golden(loss, z[f"{name}_{form}:loss"])
    assert_close_to_golden(spread(targets, mask), z[f"{name}_{form}:target_var"])
    assert_close_to_golden(spread(predictions, mask), z[f"{name}_{form}:pred_var"])
    loss.backward()
    for part, grad in (
        ("features", features.grad),
        ("mask_emb", token.grad),
        ("final_proj_weight", final.weight.grad),
    ):
        assert_close_to_golden(grad, z[f"{name}_{form}:grad_{part}"])


@pytest.mark.parametrize("form", ["mse", "smooth"])
@pytest.mark.parametrize("name", ["instance_layer", "layer_layer", "none"])
def test_equals_fairseq_for_images(name: str, form: str) -> None:
    z, how = VISION, VISION["meta"]["hyper"]
    hidden = torch.from_numpy(z["hidden"])[-how["average_top_k_layers"] :]
    layer_norm, norm = NORMS[name]
    targets = average_targets(hidden.unbind(), layer_norm, norm)  # type: ignore[arg-type]
    mask = torch.from_numpy(z["mask"]).flatten(1).bool()
    assert_close_to_golden(targets[mask], z[f"{name}_{form}:target"])
    patches = torch.from_numpy(z["patches"]).requires_grad_()
    token = torch.from_numpy(z["mask_emb"]).requires_grad_()
    x = torch.where(mask[..., None], token, patches)
    predictions = torch.tanh(linear(z, "encoder:lin.")(x))
    beta = how["loss_beta"][form == "smooth"]
    value = masked_regression(predictions, targets, mask, how["D"] ** -0.5, beta)
    loss = value * int(z[f"{name}_{form}:sample_size"])
    assert_close_to_golden(loss, z[f"{name}_{form}:loss"])
    loss.backward()
    assert_close_to_golden(patches.grad, z[f"{name}_{form}:grad_patches"])
    assert_close_to_golden(token.grad, z[f"{name}_{form}:grad_mask_emb"])


@pytest.mark.parametrize("norm", ["layer", "instance", "batch", "group"])
def test_padding_is_in_no_statistic(norm: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, generator=generator).double()
    real = torch.arange(7) < torch.tensor([[7], [4]])
    got = normalize_targets(x, norm, real)
    if norm == "batch":
        wanted = [(x[0] - x[real].mean(0)), (x[1, :4] - x[real].mean(0))]
        wanted = [y / (x[real].var(0, correction=0) + 1e-5).sqrt() for y in wanted]
    else:
        wanted = [normalize_targets(x[:1], norm)[0], normalize_targets(x[1:, :4], norm)[0]]
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1, :4], wanted[1])


def transposed_loss(p: Tensor, layers: Tensor, masked: Tensor) -> Tensor:
    targets = average_targets(layers.unbind(1), "group", "instance", transposed=True)
    return masked_regression(p, targets.detach(), masked, 0.5, 0.7)


@pytest.mark.parametrize("counts", COUNTS[1:3])
def test_transposed_norms_on_ranks_are_those_of_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, transposed_loss, data(), 1, counts)


def loss(p: Tensor, layers: Tensor, masked: Tensor) -> Tensor:
    targets = average_targets(layers.unbind(1), "batch", "layer")
    return masked_regression(p, targets.detach(), masked, 0.5, 0.7)


def reference(p: Tensor, layers: Tensor, masked: Tensor) -> Tensor:
    """Number by number."""
    targets = []
    for k in range(layers.shape[1]):
        flat = layers[:, k].flatten(0, 1)
        normed = (layers[:, k] - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()
        targets.append(normed)
    t = torch.stack(targets).mean(0)
    t = (t - t.mean(2, keepdim=True)) / (t.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    terms = []
    for n, i in masked.nonzero().tolist():
        for a, b in zip(p[n, i], t[n, i], strict=True):
            d = (a - b).abs()
            terms.append(d**2 / 2 / 0.7 if d < 0.7 else d - 0.35)
    return torch.stack(terms).sum() * 0.5 / masked.sum()


def data(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(n, 5, 3, generator=generator).double()
    layers = torch.randn(n, 2, 5, 3, generator=generator).double()
    return [p, layers, torch.rand(n, 5, generator=generator) < 0.5]


def test_value_and_gradient_are_the_references() -> None:
    got = value_and_gradients(loss, data(), 1)
    torch.testing.assert_close(got, value_and_gradients(reference, data(), 1))


@pytest.mark.parametrize("counts", COUNTS[1:3])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    assert_ranks_equal_one(ranks, loss, data(), 1, counts)


def _spread_on_rank(rank: int) -> Tensor:
    p, _, masked = data()
    part = slice(0, 4) if rank == 0 else slice(4, 6)
    return spread(p[part], masked[part])


def test_spread_on_ranks_is_that_of_one(ranks: Ranks) -> None:
    p, _, masked = data()
    wanted = (p[masked].var(0) + 1e-6).sqrt().mean()
    torch.testing.assert_close(spread(p, masked), wanted)
    torch.testing.assert_close(torch.stack(ranks(2, _spread_on_rank)), wanted.expand(2))


def test_nothing_masked_gives_0_and_half_precision_is_computed_in_float32() -> None:
    p, layers, masked = data()
    assert loss(p, layers, torch.zeros_like(masked)) == 0
    half = p.bfloat16(), layers.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(*half, masked)
    assert torch.equal(got, loss(half[0].float(), half[1].float(), masked))


def _on_fake_cuda() -> Tensor:
    p = torch.randn(2, 5, 3, device=DEVICE, requires_grad=True)
    return loss(
        p, torch.randn(2, 2, 5, 3, device=DEVICE), torch.ones(2, 5, device=DEVICE, dtype=torch.bool)
    )


def test_no_host_synchronization() -> None:
    assert syncs(_on_fake_cuda) == []


def test_wrong_arguments_are_named() -> None:
    p, layers, masked = data()
    with pytest.raises(ValueError, match=r"\(6, 5, 3\) and \(6, 4, 3\)"):
        masked_regression(p, p[:, :4], masked, 1.0)
    with pytest.raises(ValueError, match=r"norm must be one of .* got 'channel'"):
        average_targets(layers.unbind(1), "channel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"layer_norm must be .* with transposed, got 'batch'"):
        average_targets(layers.unbind(1), "batch", transposed=True)
