"""Start weights: found by name, file, prefix and layout; adapted to the images; all or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked, resample_abs_pos_embed
from timm.models import beit, convnext, eva, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones import SmallResNet, ViT, small_vit, start_from, timm_backbone, timm_vit
from sslzoo.methods.base import frozen_copy
from sslzoo.trust import build
from sslzoo.zoo import load_start_weights
from sslzoo.zoo.converters import convert
from tests.golden import assert_close_to_golden, load

ZOO = "simclr-small_resnet-cifar10jpeg"
TINY: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


def vit(**options: Any) -> ViT:
    torch.manual_seed(1)
    sizes = {"img_size": 16, "patch_size": 4, "width": 24, "depth": 2, "num_heads": 3}
    made = small_vit(**(sizes | options))
    assert isinstance(made, ViT)
    return made


def net(**options: Any) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 4, "dynamic_img_size": True, **TINY}
    made = VisionTransformer(**(sizes | options))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def saved(tmp_path: Path, state: Any, name: str = "weights.pth") -> Path:
    torch.save(state, tmp_path / name)
    return tmp_path / name


def golden_state(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    z: dict[str, Any] = load(f"dinov2/{name}.npz")
    state = {k.removeprefix("param:"): torch.tensor(v) for k, v in z.items() if "param:" in k}
    return state, z


@pytest.mark.parametrize("name", ["vit_plain_offset", "vit_reg_antialias"])
@pytest.mark.parametrize("size", ["small", "rect", "big"])
def test_positions_are_resampled_as_the_authors_do(name: str, size: str, tmp_path: Path) -> None:
    """A net of another size that starts from the weights gives what the authors' net gives."""
    state, z = golden_state(name)
    x = torch.tensor(z[f"img_{size}"]).float()
    registers = name == "vit_reg_antialias"
    options: dict[str, Any] = {"reg_tokens": 2, "no_embed_class": True} if registers else {}
    sides = tuple(x.shape[2:])
    ours = ViT(net(img_size=sides, patch_size=8, init_values=0.1, **options))
    report = load_start_weights(ours, saved(tmp_path, state))
    grid = (sides[0] // 8, sides[1] // 8)
    how = "antialias" if registers else "dino"
    assert report.adapted == [f"pos_embed resampled from (4, 4) to {grid} patches ({how})"]
    assert report.left_out == ["mask_token"] or registers
    assert_close_to_golden(ours.pos_embed[:, -grid[0] * grid[1] :], z[f"pos_{size}"][:, 1:], 1e-5)
    assert_close_to_golden(ours(x), z[f"cls_{size}"], 1e-5)


@pytest.mark.parametrize("layout", [None, "dinov2_teacher"])
@pytest.mark.parametrize("name", ["vit_plain_offset", "vit_reg_antialias", "vit_swiglu"])
def test_training_checkpoints_of_dinov2_start_a_net(
    name: str, layout: str | None, tmp_path: Path
) -> None:
    """Their blocks are in chunks, and the heads are beside the backbone."""
    state, z = golden_state(name)
    chunked = {
        f"backbone.{key.replace('blocks.', 'blocks.0.', 1)}": value for key, value in state.items()
    }
    heads = {f"{head}.mlp.0.weight": torch.zeros(2, 2) for head in ("dino_head", "ibot_head")}
    registers = {"reg_tokens": 2, "no_embed_class": True} if "reg" in name else {}
    swiglu = {"mlp_ratio": 2 * 64 / 24, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    scale = {} if "swiglu" in name else {"init_values": 0.1}
    options: dict[str, Any] = {**registers, **scale, **(swiglu if "swiglu" in name else {})}
    ours = ViT(net(img_size=32, patch_size=8, **options), mask_token=True)
    path = saved(tmp_path, {"teacher": {**chunked, **heads}})
    report = load_start_weights(ours, path, layout=layout)
    assert (report.kept, report.adapted) == ([], [])
    x, mask = torch.tensor(z["img_native"]).float(), torch.tensor(z["masks"])
    assert_close_to_golden(ours(x), z["cls_native"], 1e-5)
    assert_close_to_golden(ours.forward_tokens(x, mask)[:, 0], z["cls_masked"], 1e-5)


def test_patch_filters_are_resized_by_the_pseudo_inverse(tmp_path: Path) -> None:
    """Larger filters give for enlarged patches what the filters gave for the patches."""
    theirs, ours = vit(), vit(img_size=32, patch_size=8)
    report = load_start_weights(ours, saved(tmp_path, theirs.state_dict()))
    assert report.adapted == [
        "patch_embed.proj.weight resized from (4, 4) to (8, 8) pixels by the pseudo-inverse"
    ]
    patch = torch.randn(5, 3, 4, 4)
    large = F.interpolate(patch, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        ours.patch_embed.proj(large), theirs.patch_embed.proj(patch), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("count", [1, 2, 4, 13])
def test_input_filters_are_adapted_by_name(count: int, tmp_path: Path) -> None:
    theirs = SmallResNet((8, 16))
    path, w = saved(tmp_path, theirs.state_dict()), theirs.stem.weight
    wanted = {
        "sum": (w.sum(1, keepdim=True) / count).expand(-1, count, -1, -1),
        "mean": w.mean(1, keepdim=True).expand(-1, count, -1, -1),
        "repeat": torch.stack([w[:, i % 3] for i in range(count)], 1) * 3 / count,
    }
    for how, filters in wanted.items():
        ours = SmallResNet((8, 16), in_chans=count)
        report = load_start_weights(ours, path, channels=how)  # type: ignore[arg-type]
        torch.testing.assert_close(ours.stem.weight, filters)
        text = f"stem.weight adapted from 3 to {count} channels ({how})"
        assert report.adapted == [text]
        assert text in str(report)
    gray = torch.rand(2, 1, 16, 16)
    ours = SmallResNet((8, 16), in_chans=count).eval()
    load_start_weights(ours, path, channels="sum")
    same = ours(gray.expand(-1, count, -1, -1)), theirs.eval()(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(*same)
    load_start_weights(ours, path)  # as timm
    timms = timm.models.adapt_input_conv(count, w.detach())
    torch.testing.assert_close(ours.stem.weight.detach(), timms)
    with pytest.raises(ValueError, match="channels must be one of"):
        load_start_weights(ours, path, channels="first")  # type: ignore[arg-type]


def test_what_is_asked_for_is_not_drawn_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, options = "vit_tiny_patch16_224", {"depth": 1}
    trained: Any = timm_vit(name, img_size=32, options=options, init="mae")
    path = str(saved(tmp_path, trained.state_dict()))
    ours: Any = timm_vit(name, 32, options=options, weights=path, positions="mae", mask_token=True)
    for key, value in trained.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert not ours.pos_embed.requires_grad
    teacher = frozen_copy(ours)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher(x), trained(x))
    bare: Any = timm_backbone(name, img_size=32, in_chans=2, options=options, weights=path)
    assert torch.equal(bare.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
    with pytest.raises(ValueError, match="weights must be None with pretrained=True, got"):
        timm_vit(name, 32, options=options, pretrained=True, weights=path)


def test_the_encoder_is_found_below_its_prefix(tmp_path: Path) -> None:
    theirs, other = vit().state_dict(), vit(init="mae").state_dict()

    def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{prefix}{name}": value for name, value in state.items()}

    head = {"head.mlp.0.weight": torch.zeros(3, 3)}
    files: dict[str, Any] = {
        "DINO": {
            "student": below("module.backbone.", other),
            "teacher": {**below("backbone.", theirs), **head},
            "epoch": 3,
        },
        "MoCo": {
            "state_dict": below("module.encoder_k.", other) | below("module.encoder_q.", theirs)
        },
        "timm": {"state_dict": other, "state_dict_ema": below("module.", theirs)},
        "flat": {**theirs, "head.weight": torch.zeros(10, 24), "head.bias": torch.zeros(10)},
        "Lightning": {
            "state_dict": below("backbone.", theirs) | below("projector.", {"a": torch.ones(1)}),
            "pytorch-lightning_version": "2.6.6",
        },
    }
    for kind, content in files.items():
        ours = vit(init="moco_v3")
        report = load_start_weights(ours, saved(tmp_path, content))
        assert all(torch.equal(ours.state_dict()[n], v) for n, v in theirs.items()), kind
        assert report.tensors == len(theirs)
        assert report.left_out == (["head.bias", "head.weight"] if kind == "flat" else [])


def test_zoo_entries_start_other_channels() -> None:
    ours = SmallResNet(in_chans=4)
    report = load_start_weights(ours, ZOO)
    assert report.adapted == ["stem.weight adapted from 3 to 4 channels (repeat)"]
    again: Any = start_from(SmallResNet(in_chans=4), ZOO)
    assert torch.equal(again.stem.weight, ours.stem.weight)


def test_a_file_never_asks_for_weights() -> None:
    """What a card or a checkpoint names is built, and nothing is read or fetched for it."""
    spec: Any = {
        "class_path": "sslzoo.backbones.timm_vit",
        "init_args": {
            "name": "vit_tiny_patch16_224",
            "img_size": 16,
            "options": {"depth": 1},
            "pretrained": True,
            "weights": "/etc/passwd",
        },
    }
    assert isinstance(build(spec, nn.Module, "card"), ViT)
    wrapped = {
        "class_path": "sslzoo.backbones.start_from",
        "init_args": {"backbone": spec, "weights": "https://localhost/x.pth"},
    }
    assert isinstance(build(wrapped, nn.Module, "card"), ViT)


# -- layouts, against timm's converters


def reverse_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of facebookresearch/dinov3 for a timm Eva's."""
    made: dict[str, Tensor] = {
        "mask_token": torch.zeros(1, 24),
        "rope_embed.periods": torch.ones(2),
    }
    for name, value in state.items():
        name = name.replace("reg_token", "storage_tokens").replace("gamma_", "ls")
        if name.endswith((".ls1", ".ls2")):
            name += ".gamma"
        if name.endswith("q_bias"):
            at = name.removesuffix("q_bias")
            parts = [value, torch.randn(24), state[f"{at}v_bias"]]
            made[f"{at}qkv.bias"] = torch.cat(parts)
            made[f"{at}qkv.bias_mask"] = torch.ones(72)
        elif not name.endswith("v_bias"):
            made[name] = value
    return made


def test_dinov3_is_timms(tmp_path: Path) -> None:
    options: Any = {"img_size": 16, "patch_size": 4, "init_values": 0.1, "num_reg_tokens": 4}
    options |= {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3"}
    torch.manual_seed(0)
    theirs = eva.Eva(**options, use_fc_norm=False, dynamic_img_size=True, **TINY)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    official = reverse_dinov3(theirs.state_dict())
    wanted = eva.checkpoint_filter_fn(dict(official), theirs)
    kept, dropped = convert(official, "dinov3")
    assert kept.keys() == wanted.keys() == theirs.state_dict().keys()
    assert all(torch.equal(kept[name], value) for name, value in wanted.items())
    assert len(dropped) == 2 + 2
    ours = ViT(eva.Eva(**options, use_fc_norm=False, dynamic_img_size=True, **TINY), init=None)
    load_start_weights(ours, saved(tmp_path, official))
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(ours.forward_tokens(x), theirs.eval().forward_features(x))


def convnext_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's state under the names of facebookresearch/ConvNeXt."""
    official: dict[str, Tensor] = {}
    for name, value in state.items():
        for ours, official_name in (
            ("stem.", "downsample_layers.0."),
            (".blocks.", "."),
            ("conv_dw", "dwconv"),
            ("mlp.fc", "pwconv"),
            ("head.norm.", "norm."),
        ):
            name = name.replace(ours, official_name)
        if ".downsample." in name:
            stage, _, rest = name.removeprefix("stages.").partition(".downsample.")
            name = f"downsample_layers.{stage}.{rest}"
        official[name] = value
    return official


def test_convnext_is_timms(tmp_path: Path) -> None:
    theirs = convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=0)
    official: dict[str, Tensor] = {
        "head.weight": torch.zeros(2, 16),
        "norms.3.bias": torch.ones(16),
        **convnext_names(theirs.state_dict()),
    }
    wanted = convnext.checkpoint_filter_fn(dict(official), theirs)
    kept, _ = convert(official, "convnext")
    assert kept.keys() == theirs.state_dict().keys() == {n for n in wanted if "head.fc" not in n}
    made = convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=0)
    load_start_weights(made, saved(tmp_path, {"model": official}))
    assert all(torch.equal(made.state_dict()[n], v) for n, v in theirs.state_dict().items())


def test_clip_is_timms(tmp_path: Path) -> None:
    theirs = net(pre_norm=True)
    official: dict[str, Tensor] = {"visual.proj": torch.zeros(24, 8), "logit_scale": torch.ones(1)}
    official["transformer.resblocks.0.ln_1.weight"] = torch.ones(8)  # the text tower
    for name, value in theirs.state_dict().items():
        for ours, official_name in (
            ("patch_embed.proj", "conv1"),
            ("norm_pre", "ln_pre"),
            ("qkv.", "in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("blocks.", "transformer.resblocks."),
            (".norm", ".ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            name = name.replace(ours, official_name)
        name = "ln_post." + name.removeprefix("norm.") if name.startswith("norm.") else name
        name = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}.get(name, name)
        flat = name in ("class_embedding", "positional_embedding")
        official[f"visual.{name}"] = (
            value[0, 0] if name[0] == "c" and flat else (value[0] if flat else value)
        )
    wanted = vision_transformer._convert_openai_clip(dict(official), theirs)
    kept, _ = convert(official, "clip")
    assert kept.keys() == theirs.state_dict().keys() == {n for n in wanted if "head" not in n}
    ours = ViT(net(pre_norm=True))
    load_start_weights(ours, saved(tmp_path, official))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b1"])
def test_efficientnet_names_are_timms(name: str, tmp_path: Path) -> None:
    """Both code bases define their layers in one order, so names are paired by position."""
    theirs = timm.create_model(name, num_classes=3)
    kinds = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    kinds |= {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    norms = {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    ends |= {"classifier": "_fc"}
    blocks = [f"{s}.{b}" for s, stage in enumerate(theirs.blocks) for b in range(len(stage))]
    official = {}
    for full, value in theirs.state_dict().items():
        module, _, last = full.rpartition(".")
        if not module.startswith("blocks."):
            official[f"{ends[module]}.{last}"] = value
            continue
        stage, block, inside = module.removeprefix("blocks.").split(".", 2)
        number = blocks.index(f"{stage}.{block}")
        names = kinds | norms | (first if stage == "0" else {})
        official[f"_blocks.{number}.{names[inside]}.{last}"] = value
    ours = timm_backbone(name, weights=str(saved(tmp_path, official)))
    x = torch.randn(1, 3, 64, 64)
    theirs.reset_classifier(0)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    with pytest.raises(ValueError, match="only its own names"):
        convert({**official, "_blocks.0._other.w": x}, "efficientnet")


@pytest.mark.parametrize("old", [True, False])
def test_transformers_names_are_ours(old: bool, tmp_path: Path) -> None:
    """ViT's names (old), and DINOv2's with LayerScale and registers."""
    options: Any = {} if old else {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1}
    theirs = net(**options)
    official: dict[str, Tensor] = {"embeddings.mask_token": torch.ones(1, 24)}
    renamed = (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("attn.proj", "attention.output.dense"),
        *((("norm1", "layernorm_before"), ("norm2", "layernorm_after")) if old else ()),
        *((("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")) if old else ()),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("blocks.", "encoder.layer."),
    )
    state = theirs.state_dict()
    for full, value in state.items():
        name = full
        for ours, official_name in renamed:
            name = name.replace(ours, official_name)
        if name.startswith("norm."):
            name = f"layernorm.{name.removeprefix('norm.')}"
        if "qkv" in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                official[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        elif name == "pos_embed":
            cls = torch.zeros(1, 0 if old else 1, 24)
            official["embeddings.position_embeddings"] = torch.cat([cls, value], 1)
        else:
            name = name.replace("reg_token", "register_tokens")
            official[f"embeddings.{name}" if "token" in name else name] = value
    made = ViT(net(**options), mask_token=True)
    load_start_weights(made, saved(tmp_path, official))
    assert all(torch.equal(made.state_dict()[n], v) for n, v in state.items())
    assert made.mask_token is not None
    assert made.mask_token.eq(1).all()


def test_timms_weights_go_through_its_own_loader(monkeypatch: Any) -> None:
    """At the size and channels they were trained with; then ours adapt them."""
    asked = {}
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            asked[name] = options
            torch.manual_seed(7)
        return create(name, img_size=options.pop("img_size", 32), depth=1, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    ours: Any = timm_vit("vit_tiny_patch16_224", (48, 32), in_chans=2, pretrained=True)
    assert asked == {"vit_tiny_patch16_224": {"num_classes": 1000}}
    torch.manual_seed(7)
    theirs = create("vit_tiny_patch16_224", img_size=32, depth=1)
    assert torch.equal(ours.blocks[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)
    assert ours.pos_embed.shape[1] == 1 + 3 * 2
    timms = resample_abs_pos_embed(theirs.pos_embed, [3, 2], [2, 2])
    assert not torch.equal(ours.pos_embed, timms)  # DINO's scale; resample="antialias" is timm's
    exact: Any = timm_vit("vit_tiny_patch16_224", (48, 32), pretrained=True, resample="antialias")
    torch.testing.assert_close(exact.pos_embed, timms)


# -- what does not fit


def unchanged(module: nn.Module, source: Any, match: str, **options: Any) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises((ValueError, OSError), match=match) as caught:
        load_start_weights(module, source, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 700, said
    assert all(torch.equal(module.state_dict()[n], v) for n, v in before.items())


def test_what_does_not_fit_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, vit().state_dict())
    unchanged(vit(width=36), path, r"weights must fit ViT, got .* \(1, 1, 24\) for \(1, 1, 36\)")
    unchanged(vit(depth=3), path, "no blocks.2.norm1.weight, no blocks.2.norm1.bias")
    unchanged(vit(depth=1), path, "blocks.1.* that it does not have")
    unchanged(ViT(net(reg_tokens=2)), path, "no reg_token.*pass a name without registers")
    registers = saved(tmp_path, net(reg_tokens=2).state_dict(), "registers.pth")
    unchanged(vit(), registers, "reg_token.*pass a name with registers")
    unchanged(vit(class_token=False, pool="mean"), path, "pass class_token=True")
    unchanged(vit(qkv_bias=False), path, "pass qkv_bias=True")
    unchanged(SmallResNet((8, 16)), path, "weights must fit SmallResNet")
    odd = vit().state_dict() | {"pos_embed": torch.zeros(1, 1 + 15, 24)}
    unchanged(
        vit(), saved(tmp_path, odd, "odd.pth"), "pos_embed .*pass the img_size of the weights"
    )
    nan = vit().state_dict()
    nan["norm.weight"] = nan["norm.weight"] * torch.nan
    unchanged(vit(), saved(tmp_path, nan, "nan.pth"), "must be finite, got NaN")
    unchanged(vit(), saved(tmp_path, {"epoch": 3}, "none.pth"), "must have tensors by name")
    unchanged(vit(), tmp_path / "nowhere.pth", "there is no file")
    unchanged(vit(), "dino-vits17", "must be an entry of the zoo or a file.*similar names")


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


def test_a_file_runs_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, {**vit().state_dict(), "extra": Command()})
    unchanged(vit(), path, "would execute|must")
    assert not (tmp_path / "RAN").exists()


def test_swins_own_names_go_through_timms_converter(tmp_path: Path) -> None:
    """timm has the downsampling at the beginning of a stage, its authors at the end."""
    sizes: Any = {"depths": (1, 1), "embed_dim": 8, "num_heads": (2, 2), "window_size": 2}
    sizes |= {"img_size": 16, "num_classes": 0}
    theirs = timm.models.SwinTransformer(**sizes)
    official = {"head.weight": torch.zeros(2, 16)}
    for name, value in theirs.state_dict().items():
        official[name.replace("layers.1.downsample", "layers.0.downsample")] = value
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4)
    ours = timm.models.SwinTransformer(**sizes)
    load_start_weights(ours, saved(tmp_path, {"model": official}))
    assert all(torch.equal(ours.state_dict()[n], v) for n, v in theirs.state_dict().items())


@pytest.mark.parametrize("size", [(24, 16), (32, 32)])
def test_relative_positions_are_interpolated(size: tuple[int, int], tmp_path: Path) -> None:
    options: Any = {"patch_size": 4, "use_rel_pos_bias": True, "use_abs_pos_emb": False, **TINY}
    theirs, ours = (beit.Beit(img_size=side, **options) for side in (16, size))
    for parameter in theirs.parameters():
        nn.init.ones_(parameter)
    report = load_start_weights(ViT(ours, "net", init=None), saved(tmp_path, theirs.state_dict()))
    table = ours.blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(table, torch.ones_like(table))
    assert len(report.adapted) == 2


@pytest.mark.parametrize("source", ["timm:vit_tiny_patch16_224", "hf-hub:timm/nowhere"])
def test_without_network_the_way_out_is_named(
    source: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    unchanged(vit(), source, r"weights of .* must be those of timm.*pass weights=FILE")
    with pytest.raises(OSError, match=r"must be in the Hub's cache.*weights=FILE"):
        timm_backbone("hf-hub:timm/nowhere")
