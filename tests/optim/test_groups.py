"""Layer decay: MAE's rule for a timm ViT, wherever it stands, and rates that follow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sslzoo.backbones import SmallResNet, SmallTransformer, small_vit, timm_backbone
from sslzoo.methods import SSLMethod
from sslzoo.optim import LayerDecay, RunLength, ScheduleLR, WarmupCosine, depth_of
from tests.toys import build, every_method


def vit(num_classes: int = 3) -> VisionTransformer:
    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=num_classes
    )


def by_name(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group for group in groups for p in group["params"]}


# Layers of a net with three blocks, by the rule of util/lr_decay.py, written out.
LAYERS = {
    "cls_token": 0,
    "pos_embed": 0,
    "patch_embed.proj.weight": 0,
    "patch_embed.proj.bias": 0,
    "blocks.0.attn.qkv.weight": 1,
    "blocks.1.norm1.bias": 2,
    "blocks.2.mlp.fc2.weight": 3,
    "norm.weight": 4,
    "head.weight": 4,
    "head.bias": 4,
}
UNDECAYED = {"cls_token", "pos_embed"}


@pytest.mark.parametrize("inside", [False, True])
def test_rates_and_decay_by_layer(inside: bool) -> None:
    net: nn.Module = nn.ModuleDict({"backbone": vit()}) if inside else vit()
    found = by_name(net, LayerDecay(0.5, 0.05)(net))
    assert len(found) == len(list(net.parameters())), "every parameter, once"
    for name, layer in LAYERS.items():
        full = f"backbone.{name}" if inside else name
        group, parameter = found[full], net.get_parameter(full)
        assert group["lr_scale"] == 0.5 ** (4 - layer), name
        wanted = 0.0 if parameter.ndim == 1 or name in UNDECAYED else 0.05
        assert group["weight_decay"] == wanted, name


def test_a_head_beside_the_backbone_has_the_full_rate() -> None:
    net = nn.ModuleDict({"backbone": small_vit(8, 4, 8, 2, 2), "head": nn.Linear(8, 3)})
    found = by_name(net, LayerDecay(0.5)(net))
    assert found["head.weight"]["lr_scale"] == 1.0
    assert found["backbone.blocks.1.norm2.weight"]["lr_scale"] == 0.5


def test_maes_new_norm_has_the_full_rate_and_positions_the_smallest() -> None:
    net = small_vit(8, 4, 8, 2, 2, pool="mean_before_norm")
    found = by_name(net, LayerDecay(0.5, 0.05)(net))
    assert not any(name.startswith("norm.") for name in found)
    for name in ("fc_norm.weight", "fc_norm.bias"):
        assert (found[name]["lr_scale"], found[name]["weight_decay"]) == (1.0, 0.0)
    assert (found["pos_embed"]["lr_scale"], found["pos_embed"]["weight_decay"]) == (0.125, 0.0)


def test_frozen_parameters_are_in_no_group() -> None:
    net = small_vit(8, 4, 8, 2, 2, positions="mae")
    assert "pos_embed" not in by_name(net, LayerDecay()(net))


def test_schedules_multiply_by_the_layers_scale_and_after_a_resume() -> None:
    def build() -> tuple[torch.optim.Optimizer, ScheduleLR]:
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(LayerDecay(0.5)(vit()), lr=0.1)
        return optimizer, ScheduleLR(optimizer, WarmupCosine(warmup_epochs=2), RunLength(10, 1))

    optimizer, schedule = build()
    for _ in range(3):
        optimizer.step()
        schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert rates == pytest.approx(
        [0.1 * scale * schedule.schedule(3, RunLength(10, 1)) for scale in scales]
    )
    again, resumed = build()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert [group["lr"] for group in again.param_groups] == rates


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="Linear without them"):
        LayerDecay()(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"\(0, 1\], got 1\.5"):
        LayerDecay(1.5)


def layers(net: nn.Module) -> dict[int, set[str]]:
    """The first two parts of the names in each layer."""
    found: dict[int, set[str]] = {}
    depth = depth_of(net)
    for name, layer in depth.layers.items():
        found.setdefault(layer, set()).add(".".join(name.split(".")[:2]))
    found.setdefault(depth.last, set())
    return found


def test_timms_nets_have_the_layers_of_their_matcher() -> None:
    with torch.device("meta"):
        resnet = layers(timm_backbone("resnet18"))
        swin = layers(timm_backbone("swin_tiny_patch4_window7_224"))
        convnext = layers(timm_backbone("convnext_tiny"))
        efficientnet = layers(timm_backbone("efficientnet_lite0"))
    assert resnet[0] == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert [resnet[i] for i in (1, 2, 8, 9)] == [{"layer1.0"}, {"layer1.1"}, {"layer4.1"}, set()]
    assert {name.split(".")[0] for name in swin[0]} == {"patch_embed"}
    assert swin[max(swin)] == {"norm.weight", "norm.bias"}
    assert {name.split(".")[0] for name in convnext[0]} == {"stem"}
    assert len(convnext) == 1 + 18 + 1
    assert len(efficientnet) > 10


def test_text_encoders_and_our_own_nets_have_layers() -> None:
    text = layers(SmallTransformer(20, width=8, depth=2, heads=2))
    assert "token_embedding.weight" in text[0]
    assert text[1] == {"blocks.0"}
    assert text[3] == {"norm.weight", "norm.bias"}
    small = layers(SmallResNet((8, 16, 32)))
    assert small[0] == {"stem.weight", "bn.weight", "bn.bias"}
    assert [small[i] for i in (1, 2, 3)] == [{"blocks.0"}, {"blocks.1"}, set()]
    bert = nn.ModuleDict(
        {
            "embeddings": nn.Embedding(3, 4),
            "encoder": nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])}),
            "pooler": nn.Linear(4, 4),
        }
    )
    assert list(layers(bert)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cls", every_method(), ids=lambda cls: cls.__name__)
def test_groups_of_every_method_have_heads_at_the_full_rate(cls: type[SSLMethod]) -> None:
    method, _ = build(cls)
    method.backbone = small_vit(8, 4, 8, 2, 2)
    found = by_name(method, LayerDecay(0.5, None)(method))
    assert found.keys() == {name for name, p in method.named_parameters() if p.requires_grad}
    assert found["backbone.blocks.0.mlp.fc1.weight"]["lr_scale"] == 0.25
    heads = {name: group for name, group in found.items() if not name.startswith("backbone.")}
    assert all(group["lr_scale"] == 1.0 for group in heads.values())
    assert not any(name.startswith("teacher_") for name in found)
