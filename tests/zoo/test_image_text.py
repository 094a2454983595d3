"""Released image and text towers by file: open_clip's arrays, transformers' models, bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.methods import CLIP, SigLIP
from sslzoo.zoo import load_image_text
from tests.golden import assert_close_to_golden, load

TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 7}
VISION = {**TEXT, "image_size": 12, "patch_size": 4}


def golden_state(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    z = load(f"clip/model_{name}.npz")
    return z, {
        key.removeprefix("init:"): torch.tensor(z[key]) for key in z if key.startswith("init:")
    }


def written(folder: Path, state: dict[str, Tensor], name: str = "weights.safetensors") -> Path:
    path = folder / name
    if name.endswith("safetensors"):
        save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("name", ["clip", "siglip_style"])
def test_open_clips_files_give_its_embeddings(tmp_path: Path, name: str, file: str) -> None:
    z, state = golden_state(name)
    path, clip = written(tmp_path, state, file), name == "clip"
    method = load_image_text(path, "quick_gelu" if clip else None, heads=2, text_heads=2)
    assert type(method) is (CLIP if clip else SigLIP)
    for part in method.modules():  # released SigLIPs have 1e-6
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-5
    text = torch.tensor(z["text"])
    lengths = text.argmax(1) + 1 if clip else torch.full((4,), text.shape[1])
    with torch.no_grad():
        assert_close_to_golden(method.embed_image(torch.tensor(z["image"])), z["image_features"])
        assert_close_to_golden(method.embed_text(Tokens(text, lengths)), z["text_features"])
    assert method.log_scale.item() == pytest.approx(float(z["init:logit_scale"]))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_models_give_the_same_embeddings(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    prefix = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    special = {"bos_token_id": 1, "eos_token_id": 19, "pad_token_id": 1}
    options = {"projection_dim": 8} if kind == "clip" else {}
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**TEXT, **special}, vision_config=VISION, **options
    )
    theirs = getattr(transformers, f"{prefix}Model")(config).eval()
    for parameter in theirs.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.1)
    activation = "quick_gelu" if kind == "clip" else None
    method = load_image_text(written(tmp_path, theirs.state_dict()), activation, 2, 2)
    image = torch.rand(3, 3, 12, 12)
    ids = torch.tensor([[3, 4, 5, 19, 1, 1, 1], [3, 4, 5, 6, 7, 8, 19], [9, 19, 1, 1, 1, 1, 1]])
    lengths = torch.tensor([4, 7, 2])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=image)
        ours = method.embed_image(image), method.embed_text(Tokens(ids, lengths))
    torch.testing.assert_close(ours[0], wanted.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], wanted.text_embeds, rtol=1e-4, atol=1e-5)


def test_the_largest_released_models_have_wider_heads(tmp_path: Path) -> None:
    """ViT-H's 16 heads of 80 channels, beside bigG's text with 20 of 64."""
    transformers = pytest.importorskip("transformers")
    wide = {"hidden_size": 1280, "num_hidden_layers": 1, "intermediate_size": 16}
    text = {**TEXT, **wide, "num_attention_heads": 20, "eos_token_id": 19}
    vision = {**VISION, **wide, "num_attention_heads": 16}
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    ).eval()
    for parameter in theirs.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.1)
    method = load_image_text(written(tmp_path, theirs.state_dict()), "quick_gelu")
    image, ids = torch.rand(2, 3, 12, 12), torch.tensor([[3, 4, 5, 6, 7, 8, 19]])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=image)
        ours = method.embed_image(image), method.embed_text(Tokens(ids, torch.tensor([7])))
    torch.testing.assert_close(ours[0], wanted.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], wanted.text_embeds, rtol=1e-4, atol=1e-5)


def test_a_width_of_no_released_model_needs_its_heads(tmp_path: Path) -> None:
    path = written(tmp_path, golden_state("clip")[1])
    with pytest.raises(ValueError, match=r"^heads must be given .* of its width \d+, which no"):
        load_image_text(path)
    with pytest.raises(ValueError, match=r"^text_heads must be given"):
        load_image_text(path, heads=2)
    with pytest.raises(ValueError, match=r"^text_heads must divide the width \d+ of .*, got 7"):
        load_image_text(path, heads=2, text_heads=7)


def test_siglip_2_pads_with_0(tmp_path: Path) -> None:
    _, state = golden_state("siglip_style")
    assert load_image_text(written(tmp_path, state), None, 2, 2).text_backbone.pad == 1
    assert load_image_text(written(tmp_path, state), None, 2, 2, pad=3).text_backbone.pad == 3
    name = next(name for name in state if name.endswith("token_embedding.weight"))
    state[name] = torch.zeros(256_000, state[name].shape[1])
    second = load_image_text(written(tmp_path, state), None, 2, 2)
    assert second.text_backbone.pad == 0
    assert type(second.text_backbone.blocks[0].mlp.act).__name__ == "GELUTanh"


def test_timms_trunk_with_siglips_text_is_read(tmp_path: Path) -> None:
    """The names of open_clip's SigLIP."""
    import timm

    trunk = timm.create_model(
        *("vit_base_patch16_siglip_224",), img_size=32, embed_dim=128, depth=1, num_heads=2,
        num_classes=0,
    ).eval()  # fmt: skip
    _, native = golden_state("siglip_style")
    state = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    state |= {f"text.{k}": v for k, v in native.items() if not k.startswith(("visual", "logit"))}
    state |= {"logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor([-9.0])}
    state["text.text_projection.weight"] = torch.randn(128, 16)
    state["text.text_projection.bias"] = torch.randn(128)
    method = load_image_text(written(tmp_path, state), heads=2, text_heads=2)
    assert isinstance(method, SigLIP)
    assert method.bias.item() == -9
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(trunk(image), dim=1)
        torch.testing.assert_close(method.embed_image(image), wanted, rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    _, state = golden_state("clip")
    state["logit_scale"] = torch.tensor(torch.nan)
    with pytest.raises(ValueError, match=r"the weights of .* must be finite, .* in 'log_scale'"):
        load_image_text(written(tmp_path, state), heads=2, text_heads=2)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    _, state = golden_state("clip")
    with pytest.raises(ValueError, match=r"1 other names, such as .'head.weight'"):
        load_image_text(written(tmp_path, {**state, "head.weight": torch.ones(2, 2)}))
    short = {k: v for k, v in state.items() if k != "positional_embedding"}
    with pytest.raises(ValueError, match=r"must have the tensor text_backbone.pos_embed, got none"):
        load_image_text(written(tmp_path, short))
    less = {k: v for k, v in state.items() if k != "transformer.resblocks.0.ln_1.bias"}
    with pytest.raises(ValueError, match=r"blocks.0.norm1.bias"):
        load_image_text(written(tmp_path, less), heads=2, text_heads=2)
    with pytest.raises(FileNotFoundError):
        load_image_text(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="activation must be"):
        load_image_text(written(tmp_path, state), "relu")  # type: ignore[arg-type]
