"""SimMIM equals the authors' models: maps, pixels, loss, gradients, groups, rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from sslzoo.backbones import SmallResNet, Swin, ViT, small_vit, timm_swin, timm_vit
from sslzoo.batch import Batch
from sslzoo.eval import Classifier
from sslzoo.eval.classifier import load_weights
from sslzoo.losses import masked_l1, window_normalize
from sslzoo.masks import UnitMasks
from sslzoo.methods import SimMIM
from sslzoo.optim import ExemptNamed, LayerDecay, RunLength, StepSchedule, WarmupCosine
from sslzoo.random import sample_keys
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks

FILES = ("vit", "vit_ape_rpb", "swin")


def backbone(hyper: dict[str, Any]) -> nn.Module:
    if "window" in hyper:
        return Swin(
            SwinTransformer(
                img_size=hyper["img"],
                patch_size=hyper["patch"],
                num_classes=0,
                embed_dim=hyper["embed_dim"],
                depths=tuple(hyper["depths"]),
                num_heads=tuple(hyper["num_heads"]),
                window_size=hyper["window"],
                drop_path_rate=0.0,
            )
        )
    net = Beit(
        img_size=hyper["img"],
        patch_size=hyper["patch"],
        num_classes=0,
        embed_dim=hyper["dim"],
        depth=hyper["depth"],
        num_heads=hyper["heads"],
        use_abs_pos_emb=hyper["use_ape"],
        use_rel_pos_bias=hyper["use_rpb"],
        use_shared_rel_pos_bias=hyper["use_shared_rpb"],
        init_values=hyper["init_values"],
    )
    return ViT(net, pool="mean", init="beit", mask_token=True)


def ours(name: str) -> str:
    """Our name of one of theirs: timm has a stage's merging at its beginning."""
    if ".downsample." in name:
        stage = int(name.split(".")[2])
        name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
    return name.replace("encoder.", "backbone.", 1)


def golden_method(z: dict[str, Any]) -> SimMIM:
    hyper = z["meta"]["hyper"]
    method = SimMIM(backbone(hyper), hyper["encoder_stride"], hyper["mask_ratio"])
    params = {k.removeprefix("param:"): v for k, v in z.items() if k.startswith("param:")}
    state = {ours(name): torch.tensor(value).float() for name, value in params.items()}
    method.load_state_dict(state)
    return method


@pytest.mark.parametrize("name", FILES)
def test_a_step_equals_the_authors(name: str) -> None:
    z = load(f"simmim/{name}.npz")
    method, view = golden_method(z), torch.tensor(z["img"]).float()
    mask = torch.tensor(z["mask"]).bool()
    assert_close_to_golden(method.backbone.forward_map(view, mask.flatten(1)), z["z"], 1e-5)
    pixels = method.reconstruct(view, mask)
    assert_close_to_golden(pixels, z["rec"], 1e-5)
    loss = masked_l1(pixels, view, mask)
    assert_close_to_golden(loss, z["loss"], 1e-6)
    loss.backward()
    for full, want in z.items():
        if full.startswith("grad:"):
            grad = method.get_parameter(ours(full.removeprefix("grad:"))).grad
            assert_close_to_golden(grad, want, 1e-5)


@pytest.mark.parametrize("name", ["swin192", "vit224", "odd"])
def test_masks_equal_the_authors(name: str) -> None:
    """Of the permutations that numpy drew; ours are keyed (deviation 1)."""
    z = load("simmim/masks.npz")
    size, unit, patch, ratio = z["meta"]["hyper"][name]
    masks = UnitMasks(unit, ratio)
    grid = masks.grid((size, size), patch)
    got = masks.patches(torch.tensor(z[f"perm_{name}"]), grid, unit // patch)
    assert got.tolist() == z[f"mask_{name}"].astype(bool).tolist()


def test_normalized_targets_equal_the_authors() -> None:
    z = load("simmim/norm_target.npz")
    hyper, x = z["meta"]["hyper"], torch.tensor(z["x"])
    for name, window in (("target", hyper["patch_size"]), ("target47", 47)):
        assert_close_to_golden(window_normalize(x, window), z[name], 2e-6)
    encoder = nn.Conv2d(3, 10, 8, 8)
    decoder = nn.Sequential(nn.Conv2d(10, 192, 1), nn.PixelShuffle(hyper["encoder_stride"]))
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"c": encoder}), "decoder": decoder})
    params = {k.removeprefix("param:"): v for k, v in z.items() if k.startswith("param:")}
    model.load_state_dict({name: torch.tensor(value).float() for name, value in params.items()})
    pixels = decoder(encoder(x))
    assert_close_to_golden(pixels, z["rec"], 1e-5)
    loss = masked_l1(pixels, x, torch.tensor(z["mask"]).bool(), hyper["patch_size"])
    assert_close_to_golden(loss, z["loss"], 1e-6)
    loss.backward()
    for name in params:
        assert_close_to_golden(model.get_parameter(name).grad, z[f"grad:{name}"], 1e-5)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_parameter_groups_equal_the_authors(kind: str) -> None:
    z, method = load("simmim/optim.npz"), golden_method(load(f"simmim/{kind}.npz"))
    assert {ours(name) for name in z[f"{kind}_names"]} == dict(method.named_parameters()).keys()
    exempt = ["pos_embed", "cls_token"] if kind == "vit" else ["absolute_pos_embed", "mask_token"]
    decayed, spared = ExemptNamed(exempt, vectors=True)(method)
    assert spared["weight_decay"] == 0
    undecayed = {id(p) for p in spared["params"]}
    for name, no_decay in zip(z[f"{kind}_names"], z[f"{kind}_no_decay"], strict=True):
        assert (id(method.get_parameter(ours(name))) in undecayed) == no_decay, name
    assert len(undecayed) + len(decayed["params"]) == len(z[f"{kind}_names"])


@pytest.mark.parametrize("kind", ["cosine", "multistep"])
def test_rates_equal_the_authors(kind: str) -> None:
    """Theirs are one step late (deviation 2)."""
    z = load("simmim/optim.npz")
    hyper = z["meta"]["hyper"]
    base, warmup = hyper["base_lr"], {"warmup_epochs": hyper["warmup_epochs"]}
    first = hyper["warmup_lr"] / base
    if kind == "cosine":
        end = hyper["min_lr"] / base
        curve: Any = WarmupCosine(**warmup, start_factor=first, end_factor=end, over_run=True)
    else:
        curve = StepSchedule(hyper["multisteps"], hyper["gamma"], **warmup, start_factor=first)
    per_epoch = hyper["iters_per_epoch"]
    run_length = RunLength(hyper["epochs"] * per_epoch, per_epoch)
    rates = [base * curve(step, run_length) for step in range(run_length.total_steps)]
    got = torch.tensor([rates[0], *rates], dtype=torch.float64)
    assert_close_to_golden(got, z[f"lr_{kind}"], 1e-12)


def test_deeper_blocks_of_a_beit_write_less_at_the_start() -> None:
    torch.manual_seed(0)
    shape = {"embed_dim": 256, "depth": 3, "num_heads": 4, "init_values": 0.1}
    bias = {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}
    vit = timm_vit(
        "beit_base_patch16_224", 32, 8, init="beit", mask_token=True, options={**shape, **bias}
    )
    for i, block in enumerate(vit.blocks, 1):
        for part, divisor in (
            (block.attn.proj, math.sqrt(2 * i)),
            (block.mlp.fc2, math.sqrt(2 * i)),
            (block.mlp.fc1, 1.0),
            (block.attn.qkv, 1.0),
        ):
            weight = part.weight.detach() * divisor
            assert float(weight.std()) == pytest.approx(0.01080, rel=0.02)  # cut at one deviation
            assert float(weight.abs().max()) == pytest.approx(0.02, rel=0.01)
    for table in (vit.mask_token, vit.cls_token, vit.patch_embed.proj.weight):
        assert 0 < table.detach().abs().max() <= 0.02
    assert vit.patch_embed.proj.bias.abs().max() == 0
    assert vit.rel_pos_bias.relative_position_bias_table.abs().max() == 0
    assert vit.pos_embed is None
    assert torch.equal(vit.blocks[0].gamma_1, torch.full((256,), 0.1))


def test_a_swin_has_layers_for_fine_tuning() -> None:
    swin = small_swin()
    groups = LayerDecay(0.5)(swin)
    rates = {id(p): group for group in groups for p in group["params"]}
    stem, deep = (
        rates[id(swin.get_parameter(name))]
        for name in ("patch_embed.proj.weight", "layers.1.blocks.1.mlp.fc1.weight")
    )
    assert stem["lr_scale"] < deep["lr_scale"] < 1
    table = rates[id(swin.get_parameter("layers.0.blocks.0.attn.relative_position_bias_table"))]
    assert table["weight_decay"] == 0


def test_fine_tuning_gives_each_block_the_shared_table(tmp_path: Path) -> None:
    sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "init_values": 0.1}
    name, bias = "beit_base_patch16_224", "rel_pos_bias.relative_position_bias_table"
    shared = {**sizes, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}
    options: dict[str, Any] = {"pool": "mean", "init": "beit", "mask_token": True}
    state = timm_vit(name, 16, 8, options=shared, **options).state_dict()
    state[bias] = torch.randn_like(state[bias])
    save_file(state, tmp_path / "encoder.safetensors")
    vit: Any = timm_vit(name, 16, 8, pool="mean_before_norm", init="beit", options=sizes)
    model = Classifier(vit, 3)
    load_weights(model, str(tmp_path / "encoder.safetensors"))
    for block in vit.blocks:
        assert torch.equal(block.attn.relative_position_bias_table, state[bias])
    assert torch.equal(vit.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
    swin = small_swin()
    save_file(swin.state_dict(), tmp_path / "swin.safetensors")
    other = Classifier(small_swin(mask_token=False), 3)
    load_weights(other, str(tmp_path / "swin.safetensors"))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(other.eval().backbone(x), swin.eval()(x))


def small_swin(mask_token: bool = True, **options: Any) -> Swin:
    sizes = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], **options}
    swin = timm_swin("swin_tiny_patch4_window7_224", 16, 2, mask_token=mask_token, options=sizes)
    assert isinstance(swin, Swin)
    return swin


def simmim(**options: Any) -> SimMIM:
    torch.manual_seed(0)
    return SimMIM(small_swin(), **{"mask_unit": 8, **options}).double()


def _loss(rank: int, counts: tuple[int, ...]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    view = torch.randn(6, 3, 16, 16, generator=draw, dtype=torch.float64).split(counts)[rank]
    method = simmim(target_window=5)
    loss = method.losses(Batch([view], torch.arange(6).split(counts)[rank]))["masked_l1"]
    loss.backward()
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "grads": grads}


@pytest.mark.parametrize("counts", [(3, 3), (1, 5)])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    one, results = _loss(0, (6,)), ranks(2, _loss, counts)
    mean = torch.stack([result["loss"] for result in results]).mean()
    torch.testing.assert_close(mean, one["loss"], rtol=1e-9, atol=0)
    for name, wanted in one["grads"].items():
        got = torch.stack([result["grads"][name] for result in results]).mean(0)
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-12)


def test_masks_are_the_samples_own_and_of_the_step() -> None:
    masks, keys = UnitMasks(8, 0.4), sample_keys(0, 0, torch.arange(64))
    drawn = masks(keys, (32, 48), 4)
    assert drawn.shape == (64, 8, 12)
    units = drawn.unflatten(2, (6, 2)).unflatten(1, (4, 2)).float().mean((2, 4))
    assert set(units.unique().tolist()) == {0.0, 1.0}, "whole units"
    assert set(units.sum((1, 2)).tolist()) == {10.0}, "ceil(24 * 0.4) of each image"
    assert torch.equal(masks(keys.rows(slice(5, 9)), (32, 48), 4), drawn[5:9])
    assert (drawn[0] != drawn[1]).any()


def test_unmasked_pixels_reach_the_map_and_masked_ones_do_not() -> None:
    method = simmim().eval()
    draw = torch.Generator().manual_seed(1)
    view = torch.randn(2, 3, 16, 16, generator=draw, dtype=torch.float64)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    moved = view.clone()
    moved[:, :, :8, :8] += 1
    assert torch.equal(method.reconstruct(moved, mask), method.reconstruct(view, mask))
    assert not torch.equal(method(moved), method(view))  # features see all pixels


def test_bad_input_is_refused() -> None:
    for name, value in (("mask_unit", [4]), ("mask_unit", 4.0), ("target_window", 3.0)):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got"):
            simmim(**{name: value})
    with pytest.raises(
        ValueError, match="mask_unit must be a multiple of the patch, 4 pixels, got 6"
    ):
        simmim(mask_unit=6)
    with pytest.raises(
        ValueError, match="mask_unit must divide the images' 16 x 16 pixels, got 12"
    ):
        simmim(mask_unit=12)
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\), got 1.0"):
        simmim(mask_ratio=1.0)
    with pytest.raises(
        ValueError, match=r"mask_ratio must leave one of the 4 units of 8 pixels, got 0\.9"
    ):
        simmim(mask_ratio=0.9)
    for window in (4, 1):
        with pytest.raises(ValueError, match=f"target_window must be an odd .* got {window}"):
            simmim(target_window=window)
    for net in (SmallResNet((4, 8)), small_vit(8, 4, 8, 1, 2), small_swin(False)):
        with pytest.raises(
            ValueError, match="backbone must be a ViT or a Swin with mask_token=True"
        ):
            SimMIM(net)
    with pytest.raises(ValueError, match=r"img_size must be a multiple of 8 pixels, .* got 20"):
        Swin(SwinTransformer(20, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=5))
    with pytest.raises(
        ValueError, match=r"net must be a timm SwinTransformer .* got a SmallResNet"
    ):
        Swin(SmallResNet((4, 8)))
    x = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="must have 16 x 16 pixels for this Swin, got 8 x 16"):
        small_swin()(x[:, :, :8])
    with pytest.raises(ValueError, match="mask_token of the Swin must be True"):
        small_swin(False).forward_map(x, torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="16x16 pixels of its patch grid"):
        simmim()._checked_losses(Batch([x[..., :8, :8]], torch.arange(2)))
    with pytest.raises(ValueError, match="warmup_steps and warmup_epochs must not both be set"):
        StepSchedule(warmup_steps=1, warmup_epochs=1)


@pytest.mark.parametrize("pool", ["mean_before_norm", "net", "token"])
def test_a_pooling_that_training_misses_is_refused(pool: Any) -> None:
    net = Beit(8, 4, embed_dim=16, depth=1, num_heads=2, init_values=0.1)
    what = "class token is not trained" if pool == "token" else r"in its pooling.*fc_norm\.weight"
    with pytest.raises(ValueError, match=what):
        SimMIM(ViT(net, pool=pool, init="beit", mask_token=True), mask_unit=4)
