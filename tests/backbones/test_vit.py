"""ViT equals the authors' ViTs: features, tokens, gradients, positions; masks and kept patches."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslzoo.backbones import ViT, small_vit, timm_vit, without_drop_path
from sslzoo.backbones.vit import resample_positions
from sslzoo.layers import sincos_positions
from tests import plain_transformer as plain
from tests.golden import assert_close_to_golden, load


def toy(**options: Any) -> ViT:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2}
    vit = small_vit(**(sizes | options))
    assert isinstance(vit, ViT)
    return vit


def tensors(z: dict[str, Any], group: str) -> dict[str, Tensor]:
    """Arrays of one group, by the names that follow it."""
    start = f"{group}:"
    return {k.removeprefix(start): torch.tensor(v) for k, v in z.items() if k.startswith(start)}


def golden_vit(z: dict[str, Any], group: str, prefix: str = "", **options: Any) -> ViT:
    """A ViT with the file's sizes and weights; what is not the encoder's is left out."""
    hyper = z["meta"]["hyper"]
    size = hyper["img_size"]
    vit = ViT(
        VisionTransformer(
            img_size=size[0] if isinstance(size, list) else size,
            patch_size=hyper["patch_size"],
            embed_dim=hyper["embed_dim"],
            depth=hyper["depth"],
            num_heads=hyper["num_heads"],
            num_classes=0,
            dynamic_img_size=True,
        ),
        **options,
    )
    weights = {
        name.removeprefix(prefix): value.float()
        for name, value in tensors(z, group).items()
        if name.startswith(prefix)
    }
    wanted = vit.state_dict()
    vit.load_state_dict({name: value for name, value in weights.items() if name in wanted})
    return vit


def test_dino_features_tokens_and_interpolation() -> None:
    z = load("dino/vit_multicrop.npz")
    vit = golden_vit(z, "param", "backbone.")
    for i in range(4):
        crop = torch.tensor(z[f"crop{i}"]).float()
        assert_close_to_golden(vit(crop), z[f"feat{i}"], 1e-5)
    tokens = vit.forward_tokens(torch.tensor(z["crop0"]).float())
    assert_close_to_golden(tokens, z["tokens0"], 1e-5)
    assert_close_to_golden(vit(torch.tensor(z["rect"]).float()), z["rect_feat"], 1e-5)
    small = resample_positions(vit.pos_embed[:, 1:], 2, 2)
    assert_close_to_golden(torch.cat([vit.pos_embed[:, :1], small], 1), z["pos_small"], 1e-5)


def test_moco_v3_features_and_gradients() -> None:
    z = load("mocov3/vit_forward.npz")
    vit = golden_vit(z, "param", positions="moco_v3", init="moco_v3", freeze_patches=True)
    frozen = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert frozen == set(z["meta"]["hyper"]["no_grad"])
    head = nn.Linear(24, 7)
    head.load_state_dict(
        {k.removeprefix("head."): v for k, v in tensors(z, "param").items() if "head." in k}
    )
    out = head(vit(torch.tensor(z["x"])))
    assert_close_to_golden(out, z["out"], 1e-5)
    out.square().sum().backward()
    for name, wanted in tensors(z, "grad").items():
        ours = head if name.startswith("head.") else vit
        parameter = ours.get_parameter(name.removeprefix("head."))
        assert_close_to_golden(parameter.grad, wanted, 2e-5)


def test_moco_v3_positions() -> None:
    z = load("mocov3/vit_forward.npz")
    vit = toy(img_size=32, patch_size=8, width=24, positions="moco_v3")
    assert_close_to_golden(vit.pos_embed, z["pos_embed"], 1e-5)
    assert not vit.pos_embed.requires_grad
    z = load("mocov3/sincos.npz")  # their grid of (h, w) is listed as one of (w, h)
    for h, w, dim in ((2, 3, 16), (3, 2, 8)):
        assert_close_to_golden(
            sincos_positions(w, h, dim, "row"), z[f"pos_h{h}_w{w}_d{dim}"][0, 1:], 1e-5
        )


def test_mae_positions() -> None:
    z = load("mae/sincos.npz")
    for dim, grid in ((16, 3), (24, 4)):
        vit = toy(img_size=4 * grid, width=dim, positions="mae")
        assert_close_to_golden(vit.pos_embed[0], z[f"pos_d{dim}_g{grid}"], 1e-6)


def test_positions_worked_by_hand() -> None:
    table = sincos_positions(1, 2, 4)  # column 1: sin 1, cos 1; row 0: sin 0, cos 0
    wanted = torch.tensor([[0, 1, 0, 1], [0.841471, 0.540302, 0, 1]])
    torch.testing.assert_close(table, wanted)


def test_own_size_is_not_resampled_and_others_keep_their_grid() -> None:
    vit = toy()
    assert vit.forward_tokens(torch.rand(2, 3, 8, 8)).shape == (2, 1 + 4, 8)
    assert vit.forward_tokens(torch.rand(2, 3, 12, 20)).shape == (2, 1 + 15, 8)
    constant = torch.ones(1, 4, 8)
    torch.testing.assert_close(resample_positions(constant, 3, 5), torch.ones(1, 15, 8))


@pytest.mark.parametrize("class_token", [True, False])
def test_kept_patches_are_encoded_as_if_alone(class_token: bool) -> None:
    vit = toy(class_token=class_token, pool="mean")
    x = torch.rand(2, 3, 8, 8)
    keep = torch.tensor([[2, 0], [1, 3]])
    tokens = vit.forward_tokens(x, keep=keep)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for b in range(2):  # slowly: patch by patch, then the blocks
        rows = [
            vit.patch_embed.proj(patches[b, i][None]).flatten() + vit.pos_embed[0, class_token + i]
            for i in keep[b].tolist()
        ]
        rows = [vit.cls_token[0, 0] + vit.pos_embed[0, 0], *rows] if class_token else rows
        alone = vit.norm(vit.blocks(torch.stack(rows)[None]))
        torch.testing.assert_close(tokens[b], alone[0])


def test_all_kept_in_order_is_everything() -> None:
    vit, x = toy(), torch.rand(2, 3, 8, 8)
    everything = torch.arange(4).expand(2, 4)
    torch.testing.assert_close(vit.forward_tokens(x, keep=everything), vit.forward_tokens(x))


def test_masked_patches_do_not_matter_and_their_token_learns() -> None:
    vit = toy(mask_token=True)
    x, mask = torch.rand(2, 3, 8, 8), torch.tensor([[True, False, False, False], [False] * 4])
    other = x.clone()
    other[0, :, :4, :4] = 9.0
    torch.testing.assert_close(vit.forward_tokens(x, mask), vit.forward_tokens(other, mask))
    torch.testing.assert_close(vit.forward_tokens(x, mask)[1], vit.forward_tokens(x)[1])
    vit.forward_tokens(x, mask).square().sum().backward()
    assert vit.mask_token.grad.abs().max() > 0


def test_pooling() -> None:
    x = torch.rand(2, 3, 8, 8)
    vit = toy()
    torch.testing.assert_close(vit(x), vit.forward_tokens(x)[:, 0])
    vit.pool = "mean"
    torch.testing.assert_close(vit(x), vit.forward_tokens(x)[:, 1:].mean(1))


def test_the_mean_before_a_new_norm_equals_timms() -> None:
    vit, x = toy(pool="mean_before_norm"), torch.rand(3, 3, 8, 8)
    assert isinstance(vit.fc_norm, nn.LayerNorm)
    nn.init.normal_(vit.fc_norm.weight)
    nn.init.normal_(vit.fc_norm.bias)
    reference = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0,
        global_pool="avg",
    )  # fmt: skip
    reference.load_state_dict(vit.state_dict())
    torch.testing.assert_close(vit(x), reference(x))
    assert vit.fc_norm.eps == reference.fc_norm.eps == 1e-6
    vit(x).square().sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None] == []


def test_a_new_norm_is_not_taken_from_pre_training() -> None:
    trained, vit = toy(positions="mae"), toy(pool="mean_before_norm")
    nn.init.normal_(trained.norm.weight)
    taken = vit.taken_from(trained.state_dict())
    assert taken.keys() == vit.state_dict().keys()
    assert "norm.weight" not in taken
    assert torch.equal(taken["fc_norm.weight"], torch.ones(8))
    assert torch.equal(taken["pos_embed"], trained.pos_embed)
    again = {name: x + 1 for name, x in vit.state_dict().items()}
    assert all(vit.taken_from(again)[name] is x for name, x in again.items()), (
        "a net of the same kind is taken whole"
    )
    everything = toy(pool="mean").taken_from(dict(trained.state_dict()))
    assert all(torch.equal(everything[name], x) for name, x in trained.state_dict().items())


def test_drop_path_is_the_students_alone() -> None:
    student = toy(drop_path_rate=0.9, depth=3)
    teacher = without_drop_path(copy.deepcopy(student))
    x = torch.rand(16, 3, 8, 8)
    assert not torch.equal(student(x), student(x))
    assert torch.equal(teacher(x), teacher(x))
    torch.testing.assert_close(teacher(x), student.eval()(x))


def test_timm_names_and_moco_v3s_twelve_heads() -> None:
    with torch.device("meta"):
        small = timm_vit("vit_small_patch16_224", num_heads=12)
        base = timm_vit("vit_base_patch16_224", img_size=96)
    assert (small.num_features, small.blocks[0].attn.num_heads, small.grid) == (384, 12, 14)
    assert (base.num_features, base.grid, base.num_prefix) == (768, 6, 1)
    assert sum(p.numel() for p in small_vit().parameters()) == pytest.approx(1.2e6, rel=0.02)


def test_the_subset_form_of_drop_path_has_one_rate_and_is_the_students_alone() -> None:
    student = toy(drop_path_rate=0.5, depth=3, drop_path="subset", layer_scale=0.1)
    teacher = without_drop_path(copy.deepcopy(student))
    x = torch.rand(16, 3, 8, 8)
    assert [block.subset_rate for block in student.blocks] == [0.5] * 3
    assert not torch.equal(student(x), student(x))
    assert torch.equal(teacher(x), teacher(x))
    torch.testing.assert_close(teacher(x), student.eval()(x))
    with pytest.raises(ValueError, match=r"drop_path must be one of"):
        toy(drop_path="batch")


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_registers_have_no_position_and_swiglu_the_authors_width(layer_scale: Any) -> None:
    vit = toy(registers=2, swiglu=True, width=24, init="dinov2", layer_scale=layer_scale)
    assert (vit.num_prefix, vit.pos_embed.shape) == (3, (1, 1 + 4, 24))
    assert vit.blocks[0].mlp.fc1.out_features == 2 * 64
    assert isinstance(vit.blocks[0].mlp.act, nn.SiLU)
    assert vit.cls_token.abs().max() < 1e-5
    assert vit.reg_token.abs().max() < 1e-5
    scales = [p for name, p in vit.named_parameters() if name.endswith("gamma")]
    assert all(torch.equal(p, torch.full_like(p, 0.1)) for p in scales)
    assert len(scales) == (0 if layer_scale is None else 4)
    tokens = vit._embed(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(tokens[:, 1:3], vit.reg_token.expand(2, -1, -1))
    torch.testing.assert_close(tokens[0, 0], (vit.cls_token + vit.pos_embed[:, :1])[0, 0])
    with torch.device("meta"):
        giant = timm_vit("vit_small_patch16_224", swiglu=True, registers=4, drop_path="subset")
    assert giant.blocks[0].mlp.fc1.out_features == 2 * 1024
    assert giant.pos_embed.shape == (1, 197, 384)
    with pytest.raises(ValueError, match="registers must be at least 0, got -1"):
        toy(registers=-1)
    with pytest.raises(ValueError, match="class_position must be False for a net without class"):
        toy(registers=1, class_token=False, pool="mean")


@pytest.mark.parametrize("init", ["dino", "dinov2", "moco_v3", "mae", "ijepa"])
def test_initialization(init: Any) -> None:
    torch.manual_seed(0)
    vit = small_vit(init=init)
    qkv, fc2 = vit.blocks[3].attn.qkv.weight, vit.blocks[3].mlp.fc2.weight
    std = {
        "dino": (0.02, 0.02, None),
        "dinov2": (0.02, 0.02, None),
        "moco_v3": ((2 / (128 + 128)) ** 0.5, (2 / 640) ** 0.5, (2 / (48 + 128)) ** 0.5),
        "mae": ((2 / (128 + 384)) ** 0.5, (2 / 640) ** 0.5, (2 / (48 + 128)) ** 0.5),
        "ijepa": (0.02, 0.02, 0.02),
    }[init]
    for weight, wanted in zip((qkv, fc2, vit.patch_embed.proj.weight), std, strict=True):
        assert wanted is None or weight.std().item() == pytest.approx(wanted, rel=0.05)
    assert all(p.abs().max() == 0 for n, p in vit.blocks.named_parameters() if "fc1.bias" in n)


def test_half_precision_stays_close() -> None:
    vit, x = toy(mask_token=True, positions="mae"), torch.rand(4, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = vit.forward_tokens(x, torch.rand(4, 9) < 0.5)
    assert half.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = vit(x)
    torch.testing.assert_close(half.float(), vit(x), rtol=0.1, atol=0.1)


def test_no_graph_break() -> None:
    vit = toy(mask_token=True)
    x = torch.rand(2, 3, 8, 8)
    for arguments in (
        {"x": x, "mask": torch.rand(2, 4) < 0.5},
        {"x": torch.rand(2, 3, 12, 12), "keep": torch.tensor([[0, 5], [1, 2]])},
    ):
        compiled = torch.compile(vit.forward_tokens, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**arguments), vit.forward_tokens(**arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool must be one of .* got 'max'"),
        ({"class_token": False}, "got 'token'"),
        ({"positions": "sin"}, "got 'sin'"),
        ({"init": "xavier"}, "got 'xavier'"),
        ({"width": 6, "positions": "mae"}, "multiple of 4 .* got 6"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**options)


def test_what_is_left_out_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_drop"):
        ViT(VisionTransformer(img_size=32, depth=1, patch_drop_rate=0.5, dynamic_img_size=True))
    with pytest.raises(ValueError, match=r"dynamic_img_size .* must be True"):
        ViT(VisionTransformer(img_size=32, depth=1))
    with pytest.raises(ValueError, match="got 'vit_tiny_patch3'"):
        timm_vit("vit_tiny_patch3")
    with pytest.raises(ValueError, match=r"mask_token .* must be True"):
        toy().forward_tokens(torch.rand(1, 3, 8, 8), mask=torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be a timm VisionTransformer"):
        timm_vit("swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("options", [{}, {"mlp_ratio": 1.5, "qkv_bias": False}])
@pytest.mark.parametrize("size", [(8, 16), (16, 8), 8])
def test_any_size_and_blocks_are_those_written_by_hand(size: Any, options: dict[str, Any]) -> None:
    vit = toy(img_size=size, **options).double()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    height, width = (size, size) if isinstance(size, int) else size
    x, state = torch.randn(2, 3, height, width, dtype=torch.float64), vit.state_dict()
    embed = state["patch_embed.proj.weight"].flatten(1)
    tokens = plain.patches(x, 4) @ embed.T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(2, -1, -1), tokens], 1) + state["pos_embed"]
    wanted = plain.norm(plain.blocks(tokens, state, 2, 1e-6), state, "norm", 1e-6)
    torch.testing.assert_close(vit.forward_tokens(x), wanted)
    hidden = int(8 * options.get("mlp_ratio", 4))
    assert state["blocks.0.mlp.fc1.weight"].shape == (hidden, 8)
    assert ("blocks.0.attn.qkv.bias" in state) == options.get("qkv_bias", True)
    sides = (height // 4, width // 4)
    assert vit.grid == (sides[0] if sides[0] == sides[1] else sides)


@pytest.mark.parametrize("positions", ["mae", "moco_v3"])
def test_fixed_positions_of_a_grid_that_is_not_square(positions: Any) -> None:
    vit = toy(img_size=(8, 12), positions=positions)
    for row in range(2):
        for column in range(3):
            first, second = (column, row) if positions == "mae" else (row, column)
            angles = [at * f for at in (first, second) for f in (1.0, 0.01)]
            wanted = [function(a) for i in (0, 2) for function in (math.sin, math.cos)
                      for a in angles[i : i + 2]]  # fmt: skip
            got = vit.pos_embed[0, 1 + row * 3 + column]
            torch.testing.assert_close(got, torch.tensor(wanted))


def test_positions_of_a_grid_that_is_not_square_move_along_their_sides() -> None:
    """A ramp along one side stays a ramp along that side."""
    rows = torch.arange(4.0)[:, None].expand(4, 2).reshape(1, 8, 1)
    moved = resample_positions(rows, 8, 3, (4, 2)).view(8, 3)
    torch.testing.assert_close(moved, moved[:, :1].expand(8, 3))
    assert (moved[:, 0].diff() > 0).all()
    vit = toy(img_size=(16, 8))
    assert vit(torch.rand(2, 3, 16, 8)).shape == vit(torch.rand(2, 3, 8, 16)).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": (8, 0)}, r"img_size must be .*, got \(8, 0\)"),
        ({"img_size": (8, 8, 8)}, r"img_size must be .*, got \(8, 8, 8\)"),
        ({"img_size": 8.0}, r"img_size must be .*, got 8\.0"),
        ({"img_size": (8, 10)}, r"img_size must be a multiple .*, got \(8, 10\)"),
        ({"img_size": 10}, "img_size must be a multiple .*, got 10"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio must be above 0, got 0\.0"),
        ({"mlp_ratio": math.nan}, "mlp_ratio must be above 0, got nan"),
        ({"mlp_ratio": 0.1}, r"mlp_ratio must be .* at least 1 / 8, .* got 0\.1"),
        ({"num_heads": 3}, "width must be a multiple of num_heads 3, got 8"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_wrong_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**options)


def test_timm_names_take_the_same() -> None:
    with torch.device("meta"):
        vit = timm_vit("vit_tiny_patch16_224", (64, 128), mlp_ratio=2.0, qkv_bias=False)
    assert vit.grid == (4, 8)
    assert vit.blocks[0].mlp.fc1.out_features == 384
    assert vit.blocks[0].attn.qkv.bias is None


@pytest.mark.parametrize(("patch", "channels"), [(2, [8]), (4, [4, 8]), (16, [1, 2, 4, 8])])
def test_a_conv_stem_is_its_convolutions(patch: int, channels: list[int]) -> None:
    """MoCo v3's: 3 x 3 of stride 2 from D / 8 channels on, for patches of 16 pixels."""
    vit = toy(img_size=2 * patch, patch_size=patch, stem="conv", init="moco_v3").double()
    x = torch.randn(3, 3, 2 * patch, 2 * patch, dtype=torch.float64)
    state, h = vit.patch_embed.proj.state_dict(), x
    for i, width in enumerate(channels):
        h = nn.functional.conv2d(h, state[f"{3 * i}.weight"], stride=2, padding=1)
        assert h.shape[1] == width
        h = (h - h.mean((0, 2, 3), keepdim=True)) / (
            h.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        h = h.relu()
    weight = state[f"{3 * len(channels)}.weight"]
    h = nn.functional.conv2d(h, weight, state[f"{3 * len(channels)}.bias"])
    torch.testing.assert_close(vit.patch_embed(x).permute(0, 3, 1, 2), h)
    vit(x).square().sum().backward()
    assert all(p.grad is not None for p in vit.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "mlp"}, "stem must be one of .* got 'mlp'"),
        ({"stem": "conv", "freeze_patches": True}, "freeze_patches must be False .* got True"),
        ({"stem": "conv", "patch_size": 6, "img_size": 12}, "patch_size must be .* got 6 and 8"),
        ({"stem": "conv", "patch_size": 1}, "patch_size must be .* got 1 and 8"),
        (
            {"stem": "conv", "patch_size": 32, "img_size": 64, "num_heads": 1},
            "patch_size must be .* got 32 and 8",
        ),
    ],
)
def test_other_stems_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**options)
