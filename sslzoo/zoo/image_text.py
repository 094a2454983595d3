"""Released image and text towers as our CLIP and SigLIP, sizes read from the file's shapes.

Names of mlfoundations/open_clip at 89fb801 (also OpenAI's) and of Hugging Face's transformers 5.14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from timm.layers import get_act_layer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslzoo.backbones.text_tower import Activation, TextTransformer
from sslzoo.backbones.vit import ViT
from sslzoo.checks import check_choice
from sslzoo.methods import CLIP, SigLIP
from sslzoo.trust import fill, undrawn
from sslzoo.zoo.safe_read import check_finite, read, tensors_by_name

# Attention heads by width, of the released models: 64 channels per head but in the largest.
_HEADS = {
    "heads": {
        384: 6, 512: 8, 768: 12, 896: 14, 1024: 16,
        1152: 16, 1280: 16, 1408: 16, 1536: 16, 1664: 16, 1792: 16,
    },
    "text_heads": {256: 4, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 20},
}  # fmt: skip
_GEMMA = 256_000  # ids of SigLIP 2, which pads with 0

# Names of open_clip's native towers, of its timm trunk with SigLIP's text, and of transformers, as
# patterns whose first match renames.
_OPEN_CLIP = {
    r"^visual\.class_embedding$": "backbone.cls_token",
    r"^visual\.positional_embedding$": "backbone.pos_embed",
    r"^visual\.proj$": "projector.weight",
    r"^visual\.conv1\.": "backbone.patch_embed.proj.",
    r"^visual\.ln_pre\.": "backbone.norm_pre.",
    r"^visual\.ln_post\.": "backbone.norm.",
    r"^visual\.transformer\.resblocks\.": "backbone.blocks.",
    r"^visual\.trunk\.": "backbone.",
    r"^(?:text\.)?transformer\.resblocks\.": "text_backbone.blocks.",
    r"^(?:text\.)?token_embedding\.": "text_backbone.token_embedding.",
    r"^(?:text\.)?positional_embedding$": "text_backbone.pos_embed",
    r"^(?:text\.)?ln_final\.": "text_backbone.norm.",
    r"^(?:text\.)?text_projection$": "text_projector.weight",
    r"^(?:text\.)?text_projection\.": "text_projector.",
    r"^logit_scale$": "log_scale",
    r"^logit_bias$": "bias",
}
_TRANSFORMERS = {
    r"^vision_model\.embeddings\.class_embedding$": "backbone.cls_token",
    r"^vision_model\.embeddings\.position_embedding\.weight$": "backbone.pos_embed",
    r"^vision_model\.embeddings\.patch_embedding\.": "backbone.patch_embed.proj.",
    r"^vision_model\.pre_layrnorm\.": "backbone.norm_pre.",
    r"^vision_model\.post_layernorm\.": "backbone.norm.",
    r"^vision_model\.encoder\.layers\.": "backbone.blocks.",
    r"^vision_model\.head\.": "backbone.attn_pool.",
    r"^visual_projection\.": "projector.",
    r"^text_model\.encoder\.layers\.": "text_backbone.blocks.",
    r"^text_model\.embeddings\.token_embedding\.": "text_backbone.token_embedding.",
    r"^text_model\.embeddings\.position_embedding\.weight$": "text_backbone.pos_embed",
    r"^text_model\.final_layer_norm\.": "text_backbone.norm.",
    r"^text_model\.head\.": "text_projector.",
    r"^text_projection\.": "text_projector.",
    r"^logit_scale$": "log_scale",
    r"^logit_bias$": "bias",
}
_INSIDE = {
    ".ln_": ".norm", ".layer_norm": ".norm", ".self_attn.": ".attn.",
    ".attn.in_proj_": ".attn.qkv.", ".attn.out_proj.": ".attn.proj.",
    ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.",
    ".attn_pool.probe": ".attn_pool.latent", ".attn_pool.layernorm.": ".attn_pool.norm.",
}  # fmt: skip
# Buffers and constants that released files may have besides.
_OTHERS = re.compile(r"attn_mask$|position_ids$|^(input_resolution|context_length|vocab_size)$")
_PARTS = re.compile(r"^(.+\.blocks\.\d+\.attn)\.([qkv])_proj\.(weight|bias)$")


def load_image_text(
    path: str | Path,
    activation: Activation | None = None,
    heads: int | None = None,
    text_heads: int | None = None,
    pad: int | None = None,
) -> CLIP:
    """Build a `CLIP` or `SigLIP` from a file of released weights.

    A file with a bias of the logits is a SigLIP. The file is read without running code from it.

    Args:
        path: a .safetensors, or a file of `torch.save` with tensors by name (not TorchScript).
        activation: of both towers; None: "gelu_tanh" for a SigLIP of transformers and a SigLIP 2,
            else "gelu". OpenAI's weights, among others, have "quick_gelu"; no file says so.
        heads: attention heads of the image tower; None: those of the released models of its width.
        text_heads: of the text tower, likewise.
        pad: id of a SigLIP's padding, which its text tower reads; None: 0 for the 256,000 ids of
            SigLIP 2, else 1.

    Returns:
        The method in evaluation mode, with `embed_image` and `embed_text`.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the names or shapes are not those of such a model, no released model has its
            width and `heads` is None, a weight is not finite, or the file would run code.
    """
    where = str(path)
    state, of_transformers = converted(read(Path(path)), where)
    check_finite(state, f"the weights of {where}")
    kind: Literal["clip", "siglip"] = "siglip" if "bias" in state else "clip"
    second = len(state.get("text_backbone.token_embedding.weight", ())) == _GEMMA
    if activation is None:
        tanh = kind == "siglip" and (of_transformers or second)
        activation = "gelu_tanh" if tanh else "gelu"
    if pad is None:
        pad = int(kind == "siglip" and not second)
    check_choice("activation", activation, ("gelu", "quick_gelu", "gelu_tanh"))
    with undrawn():
        method = _build(state, kind, activation, (heads, text_heads), pad, where)
    fill(method, state, where)
    return method.eval()


def converted(saved: Any, where: str) -> tuple[dict[str, Tensor], bool]:
    """The file's tensors under our names and in our shapes, and whether transformers named them.

    Raises:
        ValueError: names that are of no known form.
    """
    for key in ("state_dict", "model"):
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    state = tensors_by_name(saved, f"the image and text towers of {where}")
    bare = "module." if state and all(name.startswith("module.") for name in state) else ""
    names = {name.removeprefix(bare): value for name, value in state.items()}
    of_transformers = any(name.startswith("vision_model.") for name in names)
    patterns = _TRANSFORMERS if of_transformers else _OPEN_CLIP
    found: dict[str, Tensor] = {}
    unknown = []
    for name, value in names.items():
        if _OTHERS.search(name):
            continue
        given = [(p, ours) for p, ours in patterns.items() if re.search(p, name)]
        if not given:
            unknown.append(name)
            continue
        ours = re.sub(given[0][0], given[0][1], name, count=1)
        for theirs, inside in _INSIDE.items():
            ours = ours.replace(theirs, inside)
        found[ours] = _shaped(name, ours, value)
    if unknown or not found:
        raise ValueError(
            f"{where} must have the image and text towers of open_clip or transformers, got "
            f"{len(unknown)} other names, such as {unknown[:3]}"
        )
    return _pooled(_joined(found)), of_transformers


def _shaped(theirs: str, ours: str, value: Tensor) -> Tensor:
    value = value.float()
    if theirs in ("visual.proj", "text_projection", "text.text_projection"):
        return value.T.contiguous()  # stored as (in, out)
    if ours in ("backbone.cls_token", "backbone.pos_embed"):
        return value.reshape(1, -1, value.shape[-1])
    return value.reshape(1) if ours in ("log_scale", "bias") else value


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix, as ours."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        match = _PARTS.match(name)
        if match is None:
            joined[name] = value
        else:
            parts.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2]] = value
    for name, three in parts.items():
        joined[name] = torch.cat([three[part] for part in "qkv" if part in three])
    return joined


def _pooled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention pooling of transformers, one packed matrix, as timm's q and kv."""
    start = "backbone.attn_pool."
    for end in ("weight", "bias"):
        packed = state.pop(f"{start}attention.in_proj_{end}", None)
        out = state.pop(f"{start}attention.out_proj.{end}", None)
        if packed is not None and out is not None:
            width = len(packed) // 3
            state[f"{start}q.{end}"], state[f"{start}kv.{end}"] = packed.split([width, 2 * width])
            state[f"{start}proj.{end}"] = out
    return state


def _build(
    state: dict[str, Tensor],
    kind: str,
    activation: Activation,
    heads: tuple[int | None, int | None],
    pad: int,
    where: str,
) -> CLIP:
    """The method whose shapes are those of the tensors."""
    try:
        patch = state["backbone.patch_embed.proj.weight"]
        positions, ids = (
            state["backbone.pos_embed"],
            state["text_backbone.token_embedding.weight"],
        )
        length = len(state["text_backbone.pos_embed"])
        towers = ("backbone", "text_backbone")
        hidden = [len(state[f"{tower}.blocks.0.mlp.fc1.weight"]) for tower in towers]
    except KeyError as error:
        raise ValueError(f"{where} must have the tensor {error.args[0]}, got none") from None
    width, text_width = len(patch), ids.shape[1]
    token = "backbone.cls_token" in state
    side = round((positions.shape[1] - token) ** 0.5)
    pooled = any(name.startswith("backbone.attn_pool.") for name in state)
    eps = 1e-6 if kind == "siglip" else 1e-5
    act: Any = get_act_layer(activation)
    net = VisionTransformer(
        img_size=side * patch.shape[2],
        patch_size=patch.shape[2],
        in_chans=patch.shape[1],
        embed_dim=width,
        depth=_count(state, "backbone.blocks."),
        num_heads=_heads("heads", heads[0], width, where),
        mlp_ratio=hidden[0] / width,
        num_classes=0,
        class_token=token,
        global_pool="map" if pooled else "token" if token else "avg",
        pre_norm="backbone.norm_pre.weight" in state,
        norm_layer=cast(Any, partial(nn.LayerNorm, eps=eps)),
        act_layer=act,
        dynamic_img_size=True,
    )
    text = TextTransformer(
        len(ids),
        text_width,
        _count(state, "text_backbone.blocks."),
        _heads("text_heads", heads[1], text_width, where),
        length,
        pool="last" if kind == "siglip" else "end",
        causal=kind == "clip",
        activation=activation,
        eps=eps,
        pad=pad,
        hidden=hidden[1],
    )
    projector = _projection(state, "projector", width)
    text_projector = _projection(state, "text_projector", text_width)
    vit = ViT(net, pool="net" if pooled else "token", init=None)
    made = SigLIP if kind == "siglip" else CLIP
    return made(vit, text, projector, text_projector)


def _heads(name: str, given: int | None, width: int, where: str) -> int:
    """The attention heads of a tower, which no file says."""
    found = _HEADS[name].get(width) if given is None else given
    if found is None or found < 1 or width % found:
        raise ValueError(
            f"{name} must be given for {where}, a divisor of its width {width}, which no known "
            f"released model has, got {given}"
            if given is None
            else f"{name} must divide the width {width} of {where}, got {given}"
        )
    return found


def _count(state: Mapping[str, Tensor], start: str) -> int:
    return 1 + max(
        (int(name.removeprefix(start).split(".")[0]) for name in state if name.startswith(start)),
        default=-1,
    )


def _projection(state: Mapping[str, Tensor], name: str, width: int) -> nn.Module:
    weight = state.get(f"{name}.weight")
    if weight is None:
        return nn.Identity()
    return nn.Linear(width, len(weight), bias=f"{name}.bias" in state)
