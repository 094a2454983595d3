"""timm's models by name, and the weights that a backbone starts from."""

from __future__ import annotations

import difflib
import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from timm.layers import PatchEmbed
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.resnet import ResNet
from torch import Tensor, nn

from sslzoo.checks import as_side
from sslzoo.trust.hub_cache import folder_on_disk

Channels = Literal["sum", "mean", "repeat"]
HUB = "hf-hub:"
TOKENS = ("vision_transformer", "deit", "eva", "beit")  # timm's modules of what `ViT` takes
_SEVERAL = ("CoaT", "CrossVit", "EfficientViMDistilled", "EfficientViM")  # several maps at once
# Arguments of timm's with which it would load weights by itself.
_LOADING = {
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
}
_SCALE = "ls_init_value"  # of a ConvNeXt's layer scale
_MAP = 4  # dimensions of a feature map
_POOLED = (ResNet, ConvNeXt)  # their features are pooled from the map


def create(
    name: str, pretrained: bool, in_chans: int, options: dict[str, Any], tokens: bool = False
) -> Any:
    """Build a timm model without classifier and without its weights.

    Args:
        name: a timm name, also with a tag of weights (NAME.TAG), or hf-hub:OWNER/REPOSITORY, whose
            config is fetched with `pretrained`, and otherwise read from the Hub's cache.
        pretrained: whether its weights will be loaded, so that the network may be used.
        in_chans: channels of the input.
        options: further arguments of the model.
        tokens: whether the model is for a `ViT`.

    Raises:
        ValueError: the name does not exist, or the model does not take the arguments.
        OSError: the config cannot be fetched.
    """
    loading = sorted(_LOADING & options.keys())
    if loading:
        raise ValueError(
            f"options must not have {loading[0]}; use pretrained=True or weights= for weights"
        )
    source = hub_config(name, pretrained) if name.startswith(HUB) else name
    if source == name:
        bare = name.split(".")[0]
        if not timm.is_model(bare):
            close = difflib.get_close_matches(bare, timm.list_models(), 5, 0.5)
            raise ValueError(f"name must be a timm model, got {name!r}; similar names: {close}")
        room = timm.models.model_entrypoint(bare).__module__.rpartition(".")[2]
        if tokens and room not in TOKENS:
            raise ValueError(
                f"name must be a timm VisionTransformer, DeiT, Eva or BEiT, got {name!r} of timm's "
                f"{room}; timm_backbone takes it"
            )
        if tokens and room == "beit":  # its relative positions have one grid
            options = {key: value for key, value in options.items() if key != "dynamic_img_size"}
    try:
        net = timm.create_model(source, num_classes=0, in_chans=in_chans, **options)
    except (TypeError, AssertionError, KeyError) as error:
        given = {key: value for key, value in options.items() if value not in (None, 0.0)}
        raise ValueError(
            f"{name} must take the arguments {given} and in_chans={in_chans}, got an error of "
            f"timm's: {' '.join(str(error).split()):.200}"
        ) from error
    if options.get(_SCALE, 0.0) is None:  # timm takes its default for None
        for block in net.modules():
            if isinstance(block, ConvNeXtBlock):
                block.gamma = None
    return net


def hub_config(name: str, fetch: bool) -> str:
    """The timm name "local-dir:FOLDER" of a model on the Hugging Face Hub, by its config.

    Args:
        name: hf-hub:OWNER/REPOSITORY[@REVISION].
        fetch: whether the config may be downloaded.

    Raises:
        OSError: it is not in the cache, or cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        if not fetch:
            return f"local-dir:{folder_on_disk(repository, revision or None)}"
        path = hf_hub_download(repository, "config.json", revision=revision or None)
    except Exception as error:  # the Hub's errors have no common base
        reason = " ".join(str(error).split())
        raise OSError(
            f"the config of {name} must be in the Hub's cache or fetched with pretrained=True, got "
            f"{type(error).__name__}: {reason:.150}; or pass timm's name, and weights=FILE"
        ) from None
    return f"local-dir:{Path(path).parent}"


def start(
    module: nn.Module, name: str, pretrained: bool, weights: str | None, channels: Channels | None
) -> None:
    """Load the weights that were asked for, if any, into a new backbone.

    Raises:
        ValueError: both sources are given, or the weights do not fit.
        OSError: they cannot be found or fetched.
    """
    if pretrained and weights is not None:
        raise ValueError(f"weights must be None with pretrained=True, got {weights!r}")
    if not pretrained and weights is None:
        return
    source = weights if weights is not None else name if name.startswith(HUB) else f"timm:{name}"
    loading = importlib.import_module("sslzoo.zoo.start_weights")  # a higher import layer
    loading.load_start_weights(module, source, channels)


def start_from(
    backbone: nn.Module, weights: str | None = None, channels: Channels | None = None
) -> nn.Module:
    """A backbone of any class that starts from given weights.

    Args:
        backbone: the module that the weights fill.
        weights: a name in the zoo, a file, an address or a run directory; see
            `sslzoo.zoo.load_start_weights`. None: the backbone as it is.
        channels: see there.

    Raises:
        ValueError: the weights do not fit.
        OSError: they cannot be found or fetched.
    """
    start(backbone, "", False, weights, channels)
    return backbone


def with_features(net: Any) -> Any:
    """Give a timm model `forward_map`, and `forward_tokens` if it has tokens.

    ResNets and ConvNeXts also get `forward_from_map`, from the map to the features.

    Args:
        net: a timm model without classifier. It keeps its class, and its parameters their names.
    """
    net.map_features = net.num_features
    net.num_features = getattr(net, "head_hidden_size", None) or net.num_features
    if hasattr(net, "forward_intermediates") and type(net).__name__ not in _SEVERAL:
        net.forward_map = partial(_map, net)
    if isinstance(net, _POOLED):
        net.forward_from_map = partial(net.forward_head, pre_logits=True)
    embed: Any = getattr(net, "patch_embed", None)
    if isinstance(embed, PatchEmbed) and isinstance(getattr(net, "num_prefix_tokens", None), int):
        net.num_prefix = net.num_prefix_tokens
        net.patch_size, net.grid = as_side(embed.patch_size), as_side(embed.grid_size)
        net.forward_tokens = partial(_tokens, net)
    return net


def _tokens(net: Any, x: Tensor, mask: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
    """All tokens after the final norm. Shapes: (B, C, H, W) -> (B, R + L, D)."""
    for name, given in (("mask", mask), ("keep", keep)):
        if given is not None:
            raise ValueError(
                f"{name} must be None for a {type(net).__name__} of timm_backbone, got a tensor; "
                "timm_vit takes it for vision transformers"
            )
    return net.forward_features(x)  # type: ignore[no-any-return]


def _map(net: Any, x: Tensor) -> Tensor:
    """The feature map before the pooling. Shapes: (B, C, H, W) -> (B, map_features, h, w)."""
    found = net.forward_features(x)
    if found.dim() == _MAP:
        is_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        return found.permute(0, 3, 1, 2) if is_last else found
    last = {"indices": 1, "intermediates_only": True}
    try:
        (found,) = net.forward_intermediates(x, norm=True, **last)
    except (AssertionError, RuntimeError):  # nets without a norm before the pooling
        (found,) = net.forward_intermediates(x, **last)
    return found
