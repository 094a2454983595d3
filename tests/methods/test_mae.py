"""MAE equals the authors' model: tokens, pixels, loss, gradients, rates; masks and their errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.batch import Batch
from sslzoo.heads import MAEDecoder
from sslzoo.losses import masked_pixels
from sslzoo.methods import MAE
from sslzoo.methods.base import step_keys
from sslzoo.optim import RunLength, ScheduleLR, WarmupCosine
from tests.golden import assert_close_to_golden, load

# golden name -> ours, in the order in which they are tried
NAMES = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos_embed",
    "decoder_embed": "decoder.embed",
    "decoder_blocks": "decoder.blocks",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.predict",
}


def ours(name: str) -> str:
    for theirs, mine in NAMES.items():
        if name.startswith(theirs):
            return name.replace(theirs, mine)
    return f"backbone.{name}"


def golden_mae(z: dict[str, Any], normalize: bool) -> MAE:
    hyper = z["meta"]["hyper"]
    vit = small_vit(
        hyper["img_size"],
        hyper["patch_size"],
        hyper["embed_dim"],
        hyper["depth"],
        hyper["num_heads"],
        positions="mae",
        init="mae",
    )
    decoder = MAEDecoder(
        hyper["embed_dim"],
        hyper["img_size"] // hyper["patch_size"],
        hyper["patch_size"],
        hyper["decoder_embed_dim"],
        hyper["decoder_depth"],
        hyper["decoder_num_heads"],
    )
    method = MAE(vit, decoder, hyper["mask_ratio"], normalize)
    before = method.state_dict()
    weights = {
        ours(key.removeprefix("param:")): torch.tensor(value).float()
        for key, value in z.items()
        if key.startswith("param:")
    }
    for name in ("backbone.pos_embed", "decoder.pos_embed"):  # our own tables are theirs
        assert_close_to_golden(before[name], weights[name], 1e-6)
    method.load_state_dict(weights)
    return method


@pytest.mark.parametrize("name", ["forward", "forward_normpix"])
def test_tokens_pixels_loss_and_gradients(name: str) -> None:
    weights, z = load("mae/forward.npz"), load(f"mae/{name}.npz")
    method = golden_mae(weights, name == "forward_normpix")
    images = torch.tensor(weights["img"]).float()
    order = torch.tensor(z["noise"]).argsort(dim=1)
    assert torch.equal(order.argsort(dim=1), torch.tensor(z["ids_restore"]))
    kept = order[:, : method.num_kept]
    assert_close_to_golden(method.backbone.forward_tokens(images, keep=kept), z["latent"], 1e-5)
    pixels = method.reconstruct(images, order)
    assert_close_to_golden(pixels, z["pred"], 1e-5)
    loss = masked_pixels(pixels, images, order[:, method.num_kept :], 8, method.normalize_pixels)
    assert_close_to_golden(loss, z["loss"], 1e-5)
    loss.backward()
    grads = {key.removeprefix("grad:"): z[key] for key in z if key.startswith("grad:")}
    assert grads
    for theirs, wanted in grads.items():
        assert_close_to_golden(method.get_parameter(ours(theirs)).grad, wanted, 2e-5)


def test_rate_by_iteration() -> None:
    z = load("mae/schedule.npz")
    hyper = z["meta"]["hyper"]
    steps = z["epoch"] * 3
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=hyper["lr"])
    run_length = RunLength(hyper["epochs"] * 3, 3)
    schedule = ScheduleLR(optimizer, WarmupCosine(warmup_epochs=hyper["warmup_epochs"]), run_length)
    for step, wanted in zip(steps.round().astype(int), z["lr"], strict=True):
        ours = hyper["lr"] * schedule.schedule(int(step), run_length)
        assert ours == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def toy(mask_ratio: float = 0.75, grid: int = 4, **options: Any) -> MAE:
    torch.manual_seed(0)
    vit = small_vit(2 * grid, 2, width=16, depth=1, num_heads=2, positions="mae", init="mae")
    decoder = MAEDecoder(16, grid, patch_size=2, width=8, depth=1, num_heads=2)
    return MAE(vit, decoder, mask_ratio, **options)


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.5, 8), (0.7, 4), (0.9, 1)])
def test_the_kept_share_is_rounded_down(ratio: float, kept: int) -> None:
    assert toy(ratio).num_kept == kept


def test_what_is_removed_is_not_seen() -> None:
    method, x = toy(), images()
    order = step_keys(method, Batch([x], torch.arange(4))).permutation("mask", 16)
    removed = torch.ones(4, 16).scatter(1, order[:, :4], 0.0).reshape(4, 1, 4, 4)
    hidden = removed.repeat_interleave(2, 2).repeat_interleave(2, 3).bool()
    other = torch.where(hidden, torch.rand_like(x), x)
    torch.testing.assert_close(method.reconstruct(x, order), method.reconstruct(other, order))


def test_masks_are_the_samples_own_and_change_with_the_step() -> None:
    method = toy()
    four = step_keys(method, Batch([images()], torch.arange(4))).permutation("mask", 16)
    two = step_keys(method, Batch([images(2)], torch.tensor([3, 1]))).permutation("mask", 16)
    assert torch.equal(four[[3, 1]], two)
    assert len({tuple(row) for row in four.tolist()}) == 4
    method.step = 1
    later = step_keys(method, Batch([images()], torch.arange(4))).permutation("mask", 16)
    assert not torch.equal(four, later)


def test_every_patch_is_removed_equally_often() -> None:
    method = toy()
    n = 4000
    order = step_keys(method, Batch([torch.zeros(n)], torch.arange(n))).permutation("mask", 16)
    kept = order[:, :4].flatten().bincount(minlength=16) / n
    assert (kept - 0.25).abs().max() < 4 * (0.25 * 0.75 / n) ** 0.5


def test_half_precision_is_close() -> None:
    method, data = toy(), Batch([images()], torch.arange(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.losses(data)["masked_pixels"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, method.losses(data)["masked_pixels"], rtol=0.02, atol=0.02)


def test_features_are_the_class_token_of_the_whole_image() -> None:
    method, x = toy(), images()
    torch.testing.assert_close(method(x), method.backbone.forward_tokens(x)[:, 0])


def test_wrong_parts_are_refused() -> None:
    decoder = MAEDecoder(16, 4, 2, 8, 1, 2)
    with pytest.raises(ValueError, match="got SmallResNet"):
        MAE(SmallResNet((8, 16)), decoder)
    with pytest.raises(ValueError, match=r"\(16, 2, 4\), got \(16, 4, 2\)"):
        MAE(small_vit(8, 4, width=16, depth=1, num_heads=2), decoder)
    with pytest.raises(ValueError, match=r"of the 16 patches, got 0\.99, which keeps 0"):
        toy(0.99)
    with pytest.raises(ValueError, match="a class token"):
        MAE(small_vit(8, 2, 16, 1, 2, class_token=False, pool="mean"), decoder)
    with pytest.raises(ValueError, match="multiple of num_heads 4, got 10"):
        MAEDecoder(16, 4, 2, width=10, num_heads=4)


def test_images_that_are_not_square_are_reconstructed_patch_by_patch() -> None:
    torch.manual_seed(0)
    vit = small_vit((4, 6), 2, width=16, depth=1, num_heads=2, positions="mae", init="mae")
    method = MAE(vit, MAEDecoder(16, (2, 3), 2, width=8, depth=1, num_heads=2), 0.5)
    assert (method.num_patches, method.num_kept, method.takes.size) == (6, 3, (4, 6))
    x = torch.rand(4, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    batch = Batch([x], torch.arange(4))
    order = step_keys(method, batch).permutation("mask", 6)
    pixels, errors = method.reconstruct(x, order), []
    for image in range(4):
        for patch in order[image, 3:].tolist():
            row, column = 2 * (patch // 3), 2 * (patch % 3)
            target = x[image, :, row : row + 2, column : column + 2].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((pixels[image, patch] - target).square().mean())
    torch.testing.assert_close(method.losses(batch)["masked_pixels"], torch.stack(errors).mean())
    with pytest.raises(ValueError, match="must have the 4x6 pixels"):
        method.takes.check(Batch([x.mT], torch.arange(4)), "MAE")
