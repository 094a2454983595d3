"""Converters: turn other code bases' checkpoints into the state of our encoders.

Our backbones have timm's parameter names, which for ResNets are torchvision's. A layout therefore
states where the encoder is in the file, and which name prefixes to change and to omit. Every
name in a file must be either converted or listed as omitted; any other is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslzoo.zoo.safe_read import ByolState, tensors_by_name
from sslzoo.zoo.speech_names import speech_encoder

# Blocks per stage of a ResNet, by their total number.
_STAGES = {
    sum(stages): stages for stages in ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3))
}


@dataclass(frozen=True)
class Layout:
    """Layout of an encoder in a checkpoint file.

    Args:
        code: the code base that writes these files.
        part: keys that lead to the state, from the outermost; alternatives are written "a|b".
        keep: prefix of the encoder's names -> its replacement. A common prefix "module." (of
            DataParallel) is removed first.
        drop: prefixes of the names to omit; None: all that `keep` does not match.
        inside: other replacements anywhere in the encoder's names.
        translate: state -> (the encoder's state, omitted names), instead of `keep` and `drop`.
    """

    code: str
    part: tuple[str, ...] = ()
    keep: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    drop: tuple[str, ...] | None = ()
    inside: tuple[str, str] = ("", "")
    translate: Callable[[Any], tuple[dict[str, Tensor], list[str]]] | None = None


def convert(saved: Any, layout: str, path: str = "the file") -> tuple[dict[str, Tensor], list[str]]:
    """Extract the encoder's state from a checkpoint, with the names that were omitted.

    Args:
        saved: the result of `safe_read.read`.
        layout: one of `LAYOUTS`.
        path: the file, for the error.

    Raises:
        ValueError: the layout does not exist, or the file does not have it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {sorted(LAYOUTS)}, got {layout!r}")
    how = LAYOUTS[layout]
    try:
        state = _part(saved, how.part, layout)
        if how.translate is not None:
            kept, dropped = how.translate(state)
        else:
            kept, dropped = _renamed(state, how, layout)
    except ValueError as error:
        raise ValueError(f"{path} cannot be converted: {error}") from None
    if not kept:
        names = [str(name) for name in list(state)[:3]]
        raise ValueError(
            f"{path} must have an encoder in the layout {layout!r}, got the names {names}"
        )
    return kept, dropped


def _part(saved: Any, keys: tuple[str, ...], layout: str) -> Any:
    for key in keys:
        present = [k for k in key.split("|") if isinstance(saved, Mapping) and k in saved]
        if not present:
            names = list(saved)[:5] if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"a {layout!r} checkpoint must have {key!r}, got {names}")
        saved = saved[present[0]]
    return saved


def _renamed(state: Any, how: Layout, layout: str) -> tuple[dict[str, Tensor], list[str]]:
    state = tensors_by_name(state, f"a {layout!r} checkpoint")
    bare = "module." if state and all(name.startswith("module.") for name in state) else ""
    kept, dropped, unknown = {}, [], []
    for full, value in state.items():
        name = full.removeprefix(bare)
        start = next((s for s in how.keep if name.startswith(s)), None)
        if how.drop and name.startswith(how.drop):
            dropped.append(full)
        elif start is not None:
            kept[(how.keep[start] + name[len(start) :]).replace(*how.inside)] = value
        elif how.drop is None:
            dropped.append(full)
        else:
            unknown.append(full)
    if unknown:
        raise ValueError(
            f"a {layout!r} checkpoint must have only names of the encoder and of known other "
            f"parts, got {len(unknown)} others, such as {unknown[:3]}"
        )
    return kept, dropped


# -- lightly: a torchvision ResNet as Sequential(*children)[:-1], or under its own names

_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Its own ResNet for CIFAR has neither max-pool nor ReLU among them, and other shortcuts.
_CIFAR_CHILDREN = {"0": "conv1", "1": "bn1", **{str(i + 1): f"layer{i}" for i in range(1, 5)}}


def _lightly(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    kept, dropped = _renamed(state, Layout("lightly", keep={"backbone.": ""}, drop=None), "lightly")
    if any(name.startswith("4.") for name in kept):
        children = _CIFAR_CHILDREN if any(name.startswith("2.") for name in kept) else _CHILDREN
        first = {name: name.partition(".") for name in kept}
        unknown = sorted({a for a, _, _ in first.values()} - children.keys())
        if unknown:
            raise ValueError(
                f"the children of lightly's ResNet must be {sorted(children)}, got {unknown}"
            )
        kept = {
            f"{children[a]}.{rest.replace('shortcut.', 'downsample.')}": kept[name]
            for name, (a, _, rest) in first.items()
        }
    dropped += [name for name in kept if name.startswith("fc.")]
    return {name: value for name, value in kept.items() if not name.startswith("fc.")}, dropped


# -- SimCLR: TensorFlow's variables, numbered in the order in which the network was built

_TF_NAME = re.compile(
    r"(?:^|/)(?:sync_)?(conv2d|batch_normalization)(?:_(\d+))?/"
    r"(kernel|gamma|beta|moving_mean|moving_variance)$"
)
_TF_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_TF_BASE = ("base_model/", "resnet/")


def _simclr_layers(convs: list[Tensor]) -> tuple[list[str], list[str]]:
    """Our names of the convolutions and batch norms, in the order of TensorFlow's numbers."""
    deep = convs[0].shape[-1] == 3  # the stem of three convolutions, which comes with SK
    stem = ["conv1.0", "conv1.3", "conv1.6"] if deep else ["conv1"]
    norms = ["conv1.1", "conv1.4", "bn1"] if deep else ["bn1"]
    wide = sum(kernel.shape[-1] == 3 for kernel in convs) - (3 if deep else 0)
    if wide not in _STAGES:
        raise ValueError(f"a SimCLR ResNet must have {sorted(_STAGES)} blocks, got {wide}")
    # Selective kernels: one convolution gives two streams, so it is twice as wide as the block.
    pooled = deep
    names = list(stem)
    for stage, blocks in enumerate(_STAGES[wide], 1):
        for i in range(blocks):
            at = f"layer{stage}.{i}"
            if i == 0:
                first = 1 if pooled else 0  # after the pooling
                names.append(f"{at}.downsample.{first}")
                norms.append(f"{at}.downsample.{first + 1}")
            if deep:
                mixing = f"{at}.conv2.mixing"
                names += [f"{at}.conv1", f"{at}.conv2.conv", f"{mixing}.0", f"{mixing}.3"]
                norms += [f"{at}.bn1", f"{at}.conv2.bn", f"{mixing}.1"]
            else:
                names += [f"{at}.conv1", f"{at}.conv2"]
                norms += [f"{at}.bn1", f"{at}.bn2"]
            names.append(f"{at}.conv3")
            norms.append(f"{at}.bn3")
    return names, norms


def _simclr(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    numbered: dict[str, dict[int, dict[str, tuple[str, np.ndarray]]]] = {
        "conv2d": {},
        "batch_normalization": {},
    }
    dropped, unknown = [], []
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"a SimCLR checkpoint must have variables by name, got a {type(state).__name__}"
        )
    for name, value in state.items():
        match = _TF_NAME.search(name)
        if name.startswith(_TF_BASE) and match:
            layer = numbered[match[1]].setdefault(int(match[2] or 0), {})
            layer[match[3]] = (name, value)
        elif name.startswith(_TF_BASE) and not name.endswith(("/Momentum", "/LARSOptimizer")):
            unknown.append(name)
        else:
            dropped.append(name)  # heads, global_step, the optimizer's slots
    if unknown or not numbered["conv2d"]:
        raise ValueError(
            f"SimCLR's variables must be convolutions and batch norms under {_TF_BASE}, got "
            f"{(unknown or list(state))[:3]}"
        )
    convs, norms = (
        [layers[i] for i in sorted(layers)]
        for layers in (numbered["conv2d"], numbered["batch_normalization"])
    )
    kernels = [_oihw(layer.get("kernel", ("", None))[1]) for layer in convs]
    names, norm_names = _simclr_layers(kernels)
    if (len(names), len(norm_names)) != (len(convs), len(norms)):
        raise ValueError(
            f"a SimCLR ResNet must have {len(names)} convolutions and {len(norm_names)} batch "
            f"norms, got {len(convs)} and {len(norms)}"
        )
    kept = {f"{name}.weight": kernel for name, kernel in zip(names, kernels, strict=True)}
    for name, layer in zip(norm_names, norms, strict=True):
        for theirs, (_, value) in layer.items():
            kept[f"{name}.{_TF_NORM[theirs]}"] = _flat(value)
    return kept, dropped


def _oihw(kernel: Any) -> Tensor:
    """Transpose a kernel (H, W, in, out) -> (out, in, H, W)."""
    tensor = _numbers(kernel)
    if tensor.dim() != 4:
        raise ValueError(f"a kernel must be (H, W, in, out), got {tuple(tensor.shape)}")
    return tensor.permute(3, 2, 0, 1).contiguous()


def _flat(values: Any) -> Tensor:
    return _numbers(values).flatten()


def _numbers(values: Any) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"weights must be an array of numbers, got a {type(values).__name__}")
    return torch.tensor(array)


# -- BYOL: Haiku's parameters and state, {module: {name: array}}

_HK_BLOCK = re.compile(
    r"block_group_(\d+)/~/block_(\d+)/~/"
    r"(shortcut_conv|shortcut_batchnorm|conv(?=_)|batchnorm(?=_))(?:_(\d+))?$"
)
_HK_ARRAY = {"w": "weight", "scale": "weight", "offset": "bias"}
_HK_STATE = {"/~/mean_ema": "running_mean", "/~/var_ema": "running_var"}


def _haiku_layer(module: str) -> str | None:
    """Our name of an encoder module; None for a module of a head."""
    root, _, inside = module.partition("/~/")
    if not root.startswith("res_net"):
        return None
    if inside in ("initial_conv", "initial_batchnorm"):
        return {"initial_conv": "conv1", "initial_batchnorm": "bn1"}[inside]
    match = _HK_BLOCK.match(inside)
    if not match:
        raise ValueError(f"a module must be one of BYOL's ResNet, got {module!r}")
    at = f"layer{int(match[1]) + 1}.{match[2]}"
    if match[3] in ("shortcut_conv", "shortcut_batchnorm"):
        return f"{at}.downsample.{0 if match[3] == 'shortcut_conv' else 1}"
    kind = {"conv": "conv", "batchnorm": "bn"}[match[3]]
    return f"{at}.{kind}{int(match[4]) + 1}"


def _byol(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    if not isinstance(state, ByolState):
        raise ValueError(f"BYOL's state must have online_params, got a {type(state).__name__}")
    for modules in (state.online_params, state.online_state):
        if not isinstance(modules, Mapping) or not all(
            isinstance(module, str) and isinstance(arrays, Mapping)
            for module, arrays in modules.items()
        ):
            raise ValueError("BYOL's state must be arrays by module and name, got other values")
    kept: dict[str, Tensor] = {}
    dropped = []
    for module, arrays in state.online_params.items():
        layer = _haiku_layer(module)
        for name, value in arrays.items():
            if layer is None:
                dropped.append(f"{module}||{name}")
            elif name in _HK_ARRAY:
                kept[f"{layer}.{_HK_ARRAY[name]}"] = _oihw(value) if name == "w" else _flat(value)
            else:
                raise ValueError(
                    f"BYOL's {module!r} must have {sorted(_HK_ARRAY)} only, got {name!r}"
                )
    for module, arrays in state.online_state.items():
        ending = next((e for e in _HK_STATE if module.endswith(e)), "")
        layer = _haiku_layer(module.removesuffix(ending)) if ending else None
        for name, value in arrays.items():
            if layer is None or name != "average":  # counter and hidden are the average's inputs
                dropped.append(f"{module}||{name}")
            else:
                kept[f"{layer}.{_HK_STATE[ending]}"] = _flat(value)
    return kept, dropped


# -- CMC: one network per view

_CMC_VIEWS = ("encoder.module.l_to_ab.", "encoder.module.ab_to_l.")
_CMC_ALEXNET = {f"conv_block_{i + 1}.": f"low.{i}." for i in range(5)}
_CMC_ALEXNET |= {"fc6.": "high.1.", "fc7.": "high.2."}  # high.0 flattens


# -- vision transformers: timm's names for those of DINOv2, DINOv3 and CLIP

_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")  # of training checkpoints: blocks.CHUNK.BLOCK


def _dinov2(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Registers have no position, so timm's class token contains its own (no_embed_class)."""
    state = dict(tensors_by_name(state, "a DINOv2 checkpoint"))
    dropped = [name for name in ("mask_token",) if state.pop(name, None) is not None]
    registers, cls, positions = (
        state.get(name) for name in ("register_tokens", "cls_token", "pos_embed")
    )
    if registers is not None and cls is not None and positions is not None:
        state["reg_token"] = state.pop("register_tokens")
        # In float32, since a sum of halves is rounded.
        state["cls_token"] = cls.float() + positions[:, :1].float()
        state["pos_embed"] = positions[:, 1:]
    swiglu = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    kept = {}
    for full, value in state.items():
        name = _CHUNK.sub(r"blocks.\1.", full)
        for theirs, ours in swiglu.items():
            name = name.replace(theirs, ours)
        kept[name] = value
    return kept, dropped


def _dinov2_teacher(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """A training checkpoint has the heads, too, and blocks in chunks."""
    layout = Layout("dinov2", keep={"backbone.": ""}, drop=("dino_head.", "ibot_head."))
    backbone, heads = _renamed(state, layout, "dinov2_teacher")
    kept, dropped = _dinov2(backbone)
    return kept, [*(f"backbone.{name}" for name in dropped), *heads]


def _dinov3(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The biases of the keys are masked in the authors' code, and timm's Eva has none."""
    kept, dropped = {}, []
    renamed = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    swiglu = {".mlp.w1.": ".mlp.fc1_g.", ".mlp.w2.": ".mlp.fc1_x.", ".mlp.w3.": ".mlp.fc2."}
    for full, value in tensors_by_name(state, "a DINOv3 checkpoint").items():
        if full.endswith((".periods", ".bias_mask", "mask_token")) or "local_cls_norm" in full:
            dropped.append(full)
        elif full.endswith("attn.qkv.bias"):
            at, (q, _, v) = full.removesuffix("qkv.bias"), value.chunk(3)
            kept[f"{at}q_bias"], kept[f"{at}v_bias"] = q, v
        else:
            name = full
            for theirs, ours in (renamed | swiglu).items():
                name = name.replace(theirs, ours)
            kept[name] = value
    return kept, dropped


def _convnext(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The names of facebookresearch/ConvNeXt, whose linear layers are 1 x 1 or linear in timm.

    Its last norm is after the pooling. VICRegL's, without layer scale, have it before.
    """
    tensors, kept, dropped = tensors_by_name(state, "a ConvNeXt checkpoint"), {}, []
    last = "head.norm." if any("gamma" in name for name in tensors) else "norm_pre."
    for full, value in tensors.items():
        if full.startswith(("norms.", "head.")):  # norms.3 is norm again
            dropped.append(full)
            continue
        name = full.replace("downsample_layers.0.", "stem.")
        name = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        name = re.sub(r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample.", name)
        name = name.replace("dwconv", "conv_dw").replace("pwconv", "mlp.fc")
        kept[re.sub(r"^norm\.", last, name)] = value
    return kept, dropped


_SIMMIM_OTHERS = ("mask_token", "relative_position_index", "attn_mask", "relative_coords_table")
_SWIN_MERGING = re.compile(r"^layers\.(\d+)\.downsample\.")


def _simmim(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The authors' Swin merges patches at a stage's end, timm's at the next one's beginning."""
    kept, dropped = {}, []
    for full, value in tensors_by_name(state, "a SimMIM checkpoint").items():
        name = full.removeprefix("encoder.")
        if full.startswith(("decoder.", "head.")) or name.endswith(_SIMMIM_OTHERS):
            dropped.append(full)
        else:
            moved = _SWIN_MERGING.sub(lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
            kept[moved] = value
    return kept, dropped


def _vicregl(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone of a whole checkpoint, a ResNet under torchvision's names or a ConvNeXt."""
    heads = ("projector.", "maps_projector.", "classifier.")
    own, dropped = _renamed(state, Layout("", keep={"backbone.": ""}, drop=heads), "vicregl")
    if not any("dwconv" in name for name in own):
        return own, dropped
    kept, more = _convnext(own)
    return kept, [*dropped, *more]


_CLIP = {
    "conv1.": "patch_embed.proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "transformer.resblocks.": "blocks.",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    ".ln_": ".norm",
    ".in_proj_": ".qkv.",
    ".out_proj.": ".proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def _clip(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The image tower of OpenAI's and open_clip's names; the text tower is omitted."""
    kept, dropped = {}, []
    state = tensors_by_name(state, "a CLIP checkpoint")
    tower = "visual." if any(name.startswith("visual.") for name in state) else ""
    for full, value in state.items():
        name = full.removeprefix(tower)
        if not full.startswith(tower) or name == "proj":
            dropped.append(full)
            continue
        for theirs, ours in _CLIP.items():
            name = name.replace(theirs, ours)
        if name in ("cls_token", "pos_embed"):
            value = value.reshape(1, -1, value.shape[-1])
        kept[name] = value
    return kept, dropped


_HF_LAYER = {
    r"^(?:vit\.|dinov2\.|dinov2_with_registers\.)": "",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.": "",
    r"^encoder\.layer\.": "blocks.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"(blocks\.\d+)\.output\.dense\.": r"\1.mlp.fc2.",
    r"\.layer_scale(\d)\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.w12.",
    r"\.mlp\.weights_out\.": ".mlp.w3.",
    r"^layernorm\.": "norm.",
}
_HF_QKV = re.compile(r"\.attention\.attention\.(query|key|value)\.")


def _transformers(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """ViT, ViTMAE, DINO and DINOv2 of transformers, with q, k and v joined."""
    found, dropped = {}, []
    for full, value in tensors_by_name(state, "a checkpoint of transformers").items():
        name = full
        for theirs, ours in _HF_LAYER.items():
            name = re.sub(theirs, ours, name)
        if name.startswith(("decoder.", "pooler.", "classifier.")):
            dropped.append(full)
        else:
            found[name] = value
    joined: dict[str, Tensor] = {}
    for name, value in found.items():
        match = _HF_QKV.search(name)
        if match is None:
            joined[name] = value
        elif match[1] == "query":
            parts = [name.replace("query", part) for part in ("query", "key", "value")]
            lacking = [part for part in parts if part not in found]
            if lacking:
                raise ValueError(f"a checkpoint of transformers must have {lacking[0]!r}, got none")
            joined[_HF_QKV.sub(".attn.qkv.", name)] = torch.cat([found[part] for part in parts])
    kept, more = _dinov2(joined)
    return kept, [*dropped, *more]


# -- EfficientNet: timm's names for blocks that are numbered through all stages

_EN_BLOCK = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")
_EN_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
}
_EN_INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# Blocks without expansion, those of the first stage.
_EN_FIRST = {**_EN_INSIDE, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _efficientnet(state: Any) -> tuple[dict[str, Tensor], list[str]]:
    """A stage ends where the width of the projections changes."""
    state = tensors_by_name(state, "an EfficientNet checkpoint")
    widths: dict[int, int] = {}
    for name, value in state.items():
        match = _EN_BLOCK.fullmatch(name)
        if match and match[2] == "_project_conv":
            widths[int(match[1])] = len(value)
    at: dict[int, str] = {}
    stage, place = -1, 0
    for number in sorted(widths):
        if widths[number] != widths.get(number - 1):
            stage, place = stage + 1, 0
        at[number] = f"blocks.{stage}.{place}"
        place += 1
    kept, dropped = {}, []
    for name, value in state.items():
        first, _, rest = name.partition(".")
        match = _EN_BLOCK.fullmatch(name)
        if first == "_fc":
            dropped.append(name)
        elif first in _EN_ENDS:
            kept[f"{_EN_ENDS[first]}.{rest}"] = value
        elif match and int(match[1]) in at and match[2] in _EN_INSIDE:
            expands = f"_blocks.{match[1]}._expand_conv.weight" in state
            inside = (_EN_INSIDE if expands else _EN_FIRST)[match[2]]
            kept[f"{at[int(match[1])]}.{inside}.{match[3]}"] = value
        else:
            raise ValueError(f"an EfficientNet must have only its own names, got {name!r}")
    return kept, dropped


LAYOUTS: dict[str, Layout] = {
    "moco": Layout(
        "facebookresearch/moco",
        ("state_dict",),
        {"encoder_q.": ""},
        ("encoder_q.fc.", "encoder_k.", "queue"),
    ),
    "moco_v3": Layout(
        "facebookresearch/moco-v3",
        ("state_dict",),
        {"base_encoder.": ""},
        ("base_encoder.fc.", "base_encoder.head.", "momentum_encoder.", "predictor."),
    ),
    "densecl": Layout("WXinlong/DenseCL, backbones alone", ("state_dict",)),
    "densecl_full": Layout(
        "WXinlong/DenseCL, whole checkpoints",
        ("state_dict",),
        {"encoder_q.0.": ""},
        ("encoder_q.1.", "encoder_k.", "backbone.", "queue"),
    ),
    "ressl": Layout(
        "KyleZheng1997/ReSSL",
        ("model",),
        {"encoder_q.net.": ""},
        ("encoder_q.head.", "encoder_k.", "queue"),
    ),
    "simmim": Layout("microsoft/SimMIM, pre-trained and fine-tuned", ("model",), translate=_simmim),
    "simsiam": Layout(
        "facebookresearch/simsiam",
        ("state_dict",),
        {"encoder.": ""},
        ("encoder.fc.", "predictor."),
    ),
    "swav": Layout("facebookresearch/swav", drop=("projection_head.", "prototypes.")),
    "barlow_vicreg": Layout(
        "facebookresearch/barlowtwins and vicreg, whole checkpoints",
        ("model",),
        {"backbone.": ""},
        ("projector.", "bn."),
    ),
    "dino_teacher": Layout(
        "facebookresearch/dino, whole checkpoints", ("teacher",), {"backbone.": ""}, ("head.",)
    ),
    "bare": Layout("facebookresearch/barlowtwins, vicreg, VICRegL and dino, backbones alone"),
    "ibot": Layout("bytedance/ibot, backbones alone", ("state_dict",), drop=("head.",)),
    "mae": Layout("facebookresearch/mae", ("model",), drop=("decoder_", "mask_token")),
    "ijepa": Layout("facebookresearch/ijepa", ("target_encoder",)),
    "msn": Layout("facebookresearch/msn", ("target_encoder",), drop=("fc.",)),
    "vicregl": Layout(
        "facebookresearch/VICRegL, whole checkpoints", ("model",), translate=_vicregl
    ),
    "dinov2": Layout("facebookresearch/dinov2, backbones alone", translate=_dinov2),
    "dinov2_teacher": Layout(
        "facebookresearch/dinov2, training checkpoints", ("teacher",), translate=_dinov2_teacher
    ),
    "dinov3": Layout("facebookresearch/dinov3, vision transformers", translate=_dinov3),
    "convnext": Layout(
        "facebookresearch/ConvNeXt, and VICRegL's and dinov3's ConvNeXts", translate=_convnext
    ),
    "clip": Layout("openai/CLIP and open_clip, image towers", translate=_clip),
    "transformers": Layout("Hugging Face's ViT and DINOv2", translate=_transformers),
    "efficientnet": Layout("lukemelas/EfficientNet-PyTorch and its forks", translate=_efficientnet),
    "instdisc": Layout("zhirongw/lemniscate.pytorch", ("state_dict",), drop=("fc.",)),
    "invaspread": Layout(
        "mangye16/Unsupervised_Embedding_Learning",
        ("net",),
        drop=("linear.",),
        inside=(".shortcut.", ".downsample."),
    ),
    "cmc": Layout(
        "HobbitLong/CMC",
        ("model",),
        {view: f"towers.{i}." for i, view in enumerate(_CMC_VIEWS)},
        tuple(f"{view}fc." for view in _CMC_VIEWS),
    ),
    "cmc_alexnet": Layout(
        "HobbitLong/CMC, its AlexNet",
        ("model",),
        {
            f"{view}{theirs}": f"towers.{i}.{ours}"
            for i, view in enumerate(_CMC_VIEWS)
            for theirs, ours in _CMC_ALEXNET.items()
        },
        tuple(f"{view}fc8." for view in _CMC_VIEWS),
    ),
    "cpc_audio": Layout(
        "facebookresearch/CPC_audio, the hub's file and training checkpoints",
        ("weights|gEncoder",),
        {
            "gEncoder.conv": "encoder.convs.",
            "gEncoder.batchNorm": "encoder.norms.",
            "gAR.baseNet.": "context.",
        },
    ),
    "fairseq_speech": Layout(
        "facebookresearch/fairseq: wav2vec 2.0, HuBERT and data2vec",
        ("model",),
        translate=speech_encoder,
    ),
    "transformers_speech": Layout(
        "Hugging Face's Wav2Vec2, Hubert and Data2VecAudio", translate=speech_encoder
    ),
    "simclr": Layout("google-research/simclr, TensorFlow 1 and 2", translate=_simclr),
    "byol": Layout("deepmind/deepmind-research, byol", ("experiment_state",), translate=_byol),
    "torchvision": Layout("torchvision's own names", drop=("fc.", "heads.")),
    "lightly": Layout("lightly-ai/lightly", ("state_dict",), translate=_lightly),
    "solo_learn": Layout(
        "vturrisi/solo-learn", ("state_dict",), {"backbone.": "", "encoder.": ""}, None
    ),
    "stable_pretraining": Layout(
        "galilai-group/stable-pretraining",
        ("state_dict",),
        {"backbone.": "", "model.backbone.": ""},
        None,
    ),
}

# Layouts that a file's names reveal, each by a piece of a name; the first that fits counts.
REVEALED = {
    "dinov3": "storage_tokens",
    "transformers": "encoder.layer.0.",
    "transformers_speech": "pos_conv_embed.",
    "clip": "transformer.resblocks.0.",
    "convnext": "dwconv.",
    "efficientnet": "_depthwise_conv.",
    "dinov2": "mask_token",
}
