"""ViT with the parts of released nets: DINOv2 equals its authors', each family equals timm's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslzoo.backbones import ViT, timm_backbone, timm_vit
from sslzoo.backbones.vit import resample_positions
from sslzoo.zoo import load_start_weights
from tests.golden import assert_close_to_golden, load

SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


def dinov2(name: str, tmp_path: Any) -> tuple[ViT, dict[str, Any]]:
    """Our ViT, filled from a file with the authors' names."""
    z = load(f"dinov2/{name}.npz")
    hyper = z["meta"]["hyper"]
    swiglu: dict[str, Any] = {"mlp_ratio": 2 * 64 / 24, "mlp_layer": SwiGLUPacked}
    registers = hyper.get("num_register_tokens", 0)
    net = VisionTransformer(
        img_size=hyper["img_size"],
        patch_size=hyper["patch_size"],
        init_values=hyper["init_values"],
        reg_tokens=registers,
        no_embed_class=registers > 0,
        dynamic_img_size=True,
        **SIZES,
        **(swiglu | {"act_layer": nn.SiLU} if "ffn_layer" in hyper else {}),
    )
    vit = ViT(net, mask_token=True)
    start = "param:"
    state = {
        key.removeprefix(start): torch.tensor(value)
        for key, value in z.items()
        if key.startswith(start)
    }
    torch.save(state, tmp_path / "dinov2.pth")
    report = load_start_weights(vit, tmp_path / "dinov2.pth")
    assert (report.left_out, report.kept, report.adapted) == ([], [], [])
    return vit.eval(), z


@pytest.mark.parametrize("name", ["vit_plain_offset", "vit_reg_antialias", "vit_swiglu"])
def test_dinov2_is_the_authors(name: str, tmp_path: Any) -> None:
    vit, z = dinov2(name, tmp_path)
    for size in ("native", "small", "rect", "big"):
        x = torch.tensor(z[f"img_{size}"]).float()
        tokens = vit.forward_tokens(x)
        assert_close_to_golden(vit(x), z[f"cls_{size}"], 1e-5)
        assert_close_to_golden(tokens[:, vit.num_prefix :], z[f"patch_{size}"], 1e-5)
        if vit.num_prefix > 1:
            assert_close_to_golden(tokens[:, 1 : vit.num_prefix], z[f"reg_{size}"], 1e-5)
    x, mask = torch.tensor(z["img_native"]).float(), torch.tensor(z["masks"])
    masked = vit.forward_tokens(x, mask)
    assert_close_to_golden(masked[:, 0], z["cls_masked"], 1e-5)
    assert_close_to_golden(masked[:, vit.num_prefix :], z["patch_masked"], 1e-5)
    blocks = vit.forward_blocks(torch.tensor(z["img_rect"]).float(), 2)
    for number, tokens in enumerate(blocks):
        patches = tokens[:, vit.num_prefix :].unflatten(1, (3, 6)).permute(0, 3, 1, 2)
        assert_close_to_golden(patches, z[f"inter{number}_patch"], 1e-5)
        assert_close_to_golden(tokens[:, 0], z[f"inter{number}_cls"], 1e-5)


SMALL: dict[str, Any] = {"img_size": (16, 24), "patch_size": 8, **SIZES}
DYNAMIC = {**SMALL, "dynamic_img_size": True}
ROPE = {**DYNAMIC, "use_rot_pos_emb": True, "use_abs_pos_emb": False, "init_values": 0.1}
NETS: dict[str, Any] = {
    "registers": (VisionTransformer, {**DYNAMIC, "reg_tokens": 2, "no_embed_class": True}),
    "registers with positions": (VisionTransformer, {**DYNAMIC, "reg_tokens": 2}),
    "CLIP": (VisionTransformer, {**DYNAMIC, "pre_norm": True}),
    "SigLIP": (VisionTransformer, {**DYNAMIC, "global_pool": "map", "class_token": False}),
    "mean": (VisionTransformer, {**DYNAMIC, "global_pool": "avg"}),
    "no positions": (VisionTransformer, {**DYNAMIC, "pos_embed": "none", "reg_tokens": 1}),
    "distilled": (VisionTransformerDistilled, DYNAMIC),
    "DINOv3": (Eva, {**ROPE, "rope_type": "dinov3", "num_reg_tokens": 2, "use_fc_norm": False}),
    "EVA02": (Eva, {**ROPE, "use_abs_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True}),
    "EVA": (Eva, {**DYNAMIC, "global_pool": "token"}),
    "mixed": (Eva, {**ROPE, "rope_type": "mixed", "class_token": False}),
    "attention": (Eva, {**ROPE, "global_pool": "map", "use_pre_transformer_norm": True}),
    "BEiT": (Beit, {**SMALL, "use_rel_pos_bias": True, "use_abs_pos_emb": False}),
    "shared bias": (Beit, {**SMALL, "use_shared_rel_pos_bias": True, "global_pool": "token"}),
}


def pair(name: str, **options: Any) -> tuple[Any, ViT]:
    """A net of timm's with random weights, and ours with the same."""
    torch.manual_seed(0)
    kind, arguments = NETS[name]
    nets = [kind(**arguments).eval() for _ in range(2)]
    for parameter in nets[0].parameters():
        nn.init.normal_(parameter, std=0.3)
    nets[1].load_state_dict(nets[0].state_dict())
    return nets[0], ViT(nets[1], "net", init=None, **options).eval()


@pytest.mark.parametrize("name", NETS)
def test_a_family_is_timms(name: str) -> None:
    net, vit = pair(name, resample="antialias")
    assert vit.state_dict().keys() == net.state_dict().keys()
    sizes = [(16, 24)] if isinstance(net, Beit) else [(16, 24), (24, 8)]
    for size in sizes:
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(vit(x), net(x))
        torch.testing.assert_close(vit.forward_tokens(x), net.forward_features(x))
        wanted = net.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(vit.forward_map(x), wanted)
    vit(torch.randn(2, 3, 16, 24)).square().sum().backward()
    assert [n for n, p in vit.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", [name for name, (kind, _) in NETS.items() if kind is not Beit])
def test_kept_patches_keep_their_positions(name: str) -> None:
    """The order of the kept patches changes nothing but the order of the tokens."""
    _, vit = pair(name, mask_token=True)
    x, order = torch.randn(2, 3, 16, 24), torch.tensor([[3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 4, 5]])
    tokens, kept = vit.forward_tokens(x), vit.forward_tokens(x, keep=order)
    patches = tokens[:, vit.num_prefix :].gather(1, order[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(kept[:, vit.num_prefix :], patches)
    torch.testing.assert_close(kept[:, : vit.num_prefix], tokens[:, : vit.num_prefix])
    few = vit.forward_tokens(x, keep=order[:, :2])
    assert few.shape == (2, vit.num_prefix + 2, 24)
    everything = vit.forward_tokens(x, mask=torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(everything[0], everything[1])


def test_what_a_net_cannot_do_is_one_sentence() -> None:
    _, vit = pair("BEiT", mask_token=True)
    assert vit.forward_tokens(torch.randn(2, 3, 16, 24), torch.ones(2, 6) > 0).shape == (2, 7, 24)
    with pytest.raises(ValueError, match=r"keep must be None for a BEiT.*got \(2, 1\)"):
        vit.forward_tokens(torch.randn(2, 3, 16, 24), keep=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"16 x 24 pixels for a BEiT.*got 24 x 24; pass img_size"):
        vit(torch.randn(2, 3, 24, 24))
    _, vit = pair("DINOv3")
    with pytest.raises(ValueError, match="multiples of the patch, 8 pixels, got 20 x 24"):
        vit(torch.randn(2, 3, 20, 24))
    with pytest.raises(ValueError, match=r"positions must be 'learned' .* got 'mae'"):
        ViT(NETS["DINOv3"][0](**NETS["DINOv3"][1]), positions="mae")
    with pytest.raises(ValueError, match="pool must be a mean without a class token"):
        ViT(NETS["SigLIP"][0](**NETS["SigLIP"][1]), pool="token")


def test_another_pooling_takes_the_norm_of_the_net() -> None:
    net, _ = pair("mean")
    vit = ViT(net, "token", init=None)
    assert vit.norm is net.fc_norm
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(vit(x), net.fc_norm(net.forward_features(x)[:, 0]))


def test_names_choose_their_family() -> None:
    with torch.device("meta"):
        found = {
            name: timm_vit(name, **options)
            for name, options in {
                "vit_small_patch14_reg4_dinov2": {"img_size": (56, 28), "in_chans": 13},
                "vit_base_patch16_siglip_224": {},
                "vit_small_patch16_dinov3": {"pool": "token", "mask_token": True},
                "beit_base_patch16_224": {"img_size": 32},
                "deit_tiny_distilled_patch16_224": {"options": {"init_values": 0.1}},
            }.items()
        }
    assert {n: (v.num_prefix, v.grid, v.patch_size, v.pool) for n, v in found.items()} == {
        "vit_small_patch14_reg4_dinov2": (5, (4, 2), 14, "token"),
        "vit_base_patch16_siglip_224": (0, 14, 16, "net"),
        "vit_small_patch16_dinov3": (5, 16, 16, "token"),
        "beit_base_patch16_224": (1, 2, 16, "net"),
        "deit_tiny_distilled_patch16_224": (2, 14, 16, "net"),
    }
    with pytest.raises(ValueError, match=r"must take the arguments .*'class_token': True.*Beit"):
        timm_vit("beit_base_patch16_224", class_token=True)


MAPS = {
    "resnet18": (512, 1),
    "convnext_atto": (320, 1),
    "swin_tiny_patch4_window7_224": (192, 7),
    "mobilenetv3_small_050": (288, 1),
    "vit_tiny_patch16_224": (192, 14),
}


@pytest.mark.parametrize("name", MAPS)
def test_timm_backbones_have_maps(name: str) -> None:
    tiny: Any = {"depths": (1, 1, 1, 1), "embed_dim": 24} if "swin" in name else {}
    net: Any = timm_backbone(name, options=tiny).eval()
    wanted = timm.create_model(name, num_classes=0, **tiny).eval()
    wanted.load_state_dict(net.state_dict())
    width, side = MAPS[name]
    x = torch.rand(2, 3, *(2 * (224 if side > 1 else 32,)))
    with torch.no_grad():
        features, found = net(x), net.forward_map(x)
        torch.testing.assert_close(features, wanted(x))
    assert features.shape == (2, net.num_features)
    assert found.shape == (2, net.map_features, side, side) == (2, width, side, side)


def test_tokens_of_a_timm_backbone() -> None:
    net: Any = timm_backbone("vit_tiny_patch16_224", img_size=32)
    x = torch.rand(2, 3, 32, 32)
    assert net.forward_tokens(x).shape == (2, 1 + 4, 192)
    assert (net.num_prefix, net.grid, net.patch_size) == (1, 2, 16)
    with pytest.raises(ValueError, match="keep must be None for a VisionTransformer of timm_back"):
        net.forward_tokens(x, keep=torch.zeros(2, 1, dtype=torch.int64))


def test_the_positions_of_every_golden_size() -> None:
    for name, how in (("vit_plain_offset", "dino"), ("vit_reg_antialias", "antialias")):
        z: dict[str, Any] = load(f"dinov2/{name}.npz")
        table: Tensor = torch.tensor(z["param:pos_embed"]).float()
        for size, grid in (("small", (2, 2)), ("rect", (3, 6)), ("big", (5, 5))):
            moved = resample_positions(table[:, 1:], *grid, how=how)  # type: ignore[arg-type]
            assert_close_to_golden(torch.cat([table[:, :1], moved], 1), z[f"pos_{size}"], 1e-6)


@pytest.mark.parametrize("name", ["DINOv3"])
def test_no_graph_break(name: str) -> None:
    _, vit = pair(name)
    x = torch.randn(2, 3, 16, 24)
    compiled = torch.compile(vit.forward_tokens, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), vit.forward_tokens(x))


def test_a_copy_of_a_timm_backbone_uses_its_own_weights() -> None:
    net: Any = timm_backbone("resnet18", in_chans=1).eval()
    x, wanted = torch.rand(2, 1, 32, 32), net.forward_map(torch.rand(2, 1, 32, 32)).shape
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other.forward_map(x), net.forward_map(x))
        nn.init.zeros_(other.conv1.weight)
        assert other.forward_map(x).shape == wanted
        assert not torch.equal(other.forward_map(x), net.forward_map(x))
