"""Start a backbone from weights that exist: found, converted, adapted and loaded, or refused.

The module's own names and shapes decide. A file's names are tried as they are, below a prefix, and
in the layouts of `converters.REVEALED`; what differs only because the images do is adapted:

- position embeddings to another grid, by the resampling of the module (`ViT.resample`),
- tables of relative positions to another window, as in microsoft/Swin-Transformer,
- patch filters to another patch size, by the pseudo-inverse of the resizing of patches (Beyer et
  al., FlexiViT, CVPR 2023, https://arxiv.org/abs/2212.08013),
- input filters to another number of channels.

Everything else must fit. Nothing is copied before all of it does.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
from timm.layers import resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones.timm_models import HUB, Channels
from sslzoo.backbones.vit import ViT, resample_positions
from sslzoo.checks import check_choice
from sslzoo.run_folder import RunFolder
from sslzoo.trust import fill, hyper_parameters, module_of, shell
from sslzoo.zoo.build import complete, under
from sslzoo.zoo.cache import is_url
from sslzoo.zoo.converters import REVEALED, convert
from sslzoo.zoo.load import encoder_of, is_checkpoint
from sslzoo.zoo.safe_read import read, tensors_by_name
from sslzoo.zoo.weights_file import locate

TIMM = "timm:"
# Parts of a file that hold the encoder, the one that its authors evaluate first.
_PARTS = (
    *("teacher", "target_encoder", "model_ema", "state_dict_ema", "ema"),
    *("model", "state_dict", "net", "module", "encoder", "student"),
)
# Networks of one file by what their prefix contains, the one that its authors evaluate first.
_PREFERRED = ("teacher", "target", "ema", "encoder_q", "base_encoder", "backbone", "student")
# Beginnings of names that no encoder here has: classifiers, and what only pre-training needs.
_LEFT_OUT = (
    *("head.", "head_dist.", "fc.", "classifier.", "heads.", "last_linear.", "attn_pool."),
    *("mask_token", "decoder", "projection_head.", "prototypes.", "rope_embed."),
)
_BUFFERS = ("relative_position_index", "attn_mask")  # of old files, which the nets compute
_CONV, _TABLE = 4, 2  # dimensions of filters, and of tables of relative positions


@dataclass
class Loaded:
    """What `load_start_weights` loaded.

    Args:
        source: the source as given.
        tensors: number of tensors that were filled.
        adapted: adaptations, one sentence each.
        left_out: names of the file that the module does not have.
        kept: names of the module that the file does not have; they keep their initial values.
    """

    source: str
    tensors: int = 0
    adapted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.tensors} tensors from {self.source}", *self.adapted]
        for what, names in (("left out", self.left_out), ("new", self.kept)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{what}: {', '.join(names[:3])}{more}")
        return "; ".join(parts)


def load_start_weights(
    module: nn.Module,
    source: str | os.PathLike[str],
    channels: Channels | None = None,
    layout: str | None = None,
    sha256: str | None = None,
) -> Loaded:
    """Load released or own weights into a backbone, adapted to its images; all or nothing.

    Args:
        module: the backbone, such as from `timm_vit` or `timm_backbone`.
        source: a name in the zoo; a file (.safetensors, a torch file, a checkpoint of ours) or a
            run directory; an address (https://, hf://OWNER/REPOSITORY/PATH); timm:NAME or
            hf-hub:OWNER/REPOSITORY for timm's own loader.
        channels: how input filters are adapted to C channels from C0. "sum": each channel gets the
            sum of the filters, times 1 / C, so that images with equal channels give the same
            features; "mean": their mean, unscaled; "repeat": the filters in turn, times C0 / C.
            None: "sum" for one channel, otherwise "repeat", as timm does.
        layout: layout of the encoder in the file, one of `sslzoo.zoo.LAYOUTS`; None: the card's, or
            found by the names.
        sha256: see `sslzoo.load`.

    Returns:
        What was loaded, adapted and left out.

    Raises:
        ValueError: the weights do not fit; the sentence lists the first mismatches and the argument
            that would help. The module is unchanged.
        OSError: they cannot be found or fetched.
    """
    if channels is not None:
        check_choice("channels", channels, get_args(Channels))
    where = str(source)
    candidates, grid = _states(source, module, layout, sha256)
    state, report = _best(module, candidates, grid, channels, where)
    fill(module, complete(state, module, repr(where)), where)
    return report


# -- the states of a source


def _states(
    source: str | os.PathLike[str], module: nn.Module, layout: str | None, sha256: str | None
) -> tuple[list[dict[str, Tensor]], tuple[int, int] | None]:
    """States by name that may fit, in the order to try, and the grid of their positions."""
    text = os.fspath(source)
    if text.startswith((TIMM, HUB)):
        return [_of_timm(text)], None
    if not is_url(text) and Path(text).is_dir():
        text = str(RunFolder(Path(text)).checkpoint_file)
    found = locate(text, sha256)
    saved, path = read(found.path), str(found.path)
    layout = layout or (found.card.layout if found.card else None)
    if layout is not None:
        return [{**_mask_token(saved), **convert(saved, layout, path)[0]}], None
    if is_checkpoint(saved):
        if "_class_path" in hyper_parameters(saved, path):
            encoder: Any = encoder_of(module_of(saved, path), found.path, train=False)
            return [encoder.state_dict()], _grid_of(encoder)
        if any(name.startswith("backbone.") for name in saved.get("state_dict", ())):
            return [under(saved, "backbone.", path)], None
    card = found.card
    built = None if card is None else shell(card.backbone, nn.Module, path)
    own = _unwrapped(saved, path)
    candidates = _below_prefixes(own, module)
    return [*candidates, *_renamed(candidates), *_by_timm(module, own)], _grid_of(built)


def _renamed(candidates: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The candidates that have the names of a known layout, in timm's names."""
    made = []
    for state in candidates:
        layout = next((k for k, part in REVEALED.items() if any(part in n for n in state)), None)
        if layout is not None:
            made.append({**_mask_token(state), **convert(state, layout)[0]})
    return made


def _by_timm(module: nn.Module, state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The state in a timm net's names, by the converter that timm has for its authors' files."""
    room = type(module).__module__
    convert_names = getattr(sys.modules[room], "checkpoint_filter_fn", None)
    if convert_names is None or not room.startswith("timm.models."):
        return []
    try:
        made = convert_names(dict(state), module)
        return [dict(tensors_by_name(made, "the file"))]
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError, AssertionError):
        return []  # it is not a file of those authors


def _mask_token(saved: Any) -> dict[str, Tensor]:
    """The mask token, which layouts omit since few encoders have it."""
    if not isinstance(saved, Mapping):
        return {}
    named = [saved, *(part for part in saved.values() if isinstance(part, Mapping))]
    found = [
        part[name]
        for part in named
        for name in part
        if isinstance(name, str) and name.endswith("mask_token")
    ]
    return {"mask_token": found[0]} if found else {}


def _grid_of(encoder: Any) -> tuple[int, int] | None:
    """Rows and columns of a vision transformer's positions."""
    return encoder._grid if isinstance(encoder, ViT) else None


def _of_timm(source: str) -> dict[str, Tensor]:
    """The weights that timm's loader gives, for the model as it was trained.

    The model has its own classifier, so that timm refuses a file that does not fit.
    """
    name = source.removeprefix(TIMM)
    try:
        if name.startswith(HUB):
            config = timm.models.load_model_config_from_hf(name.removeprefix(HUB))[0]
        else:
            found = timm.models.get_pretrained_cfg(name)
            config = {} if found is None or not found.has_weights else found.to_dict()
        if not config:
            close = timm.list_pretrained(f"{name.partition('.')[0]}*")[:5]
            raise RuntimeError(f"timm has no weights of that name; it has {close}")
        classes = config.get("num_classes")
        net: Any = timm.create_model(name, pretrained=True, num_classes=classes)
    except Exception as error:  # the loaders of timm, torch and the Hub have no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        told = "; without network, pass weights=FILE, a file that you have"
        kind = OSError if not isinstance(error, RuntimeError) else ValueError
        raise kind(
            f"weights of {name} must be those of timm or the Hugging Face Hub, got "
            f"{type(error).__name__}: {reason:.150}{told}"
        ) from None
    heads = net.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return {
        name: value
        for name, value in net.state_dict().items()
        if not name.startswith(tuple(f"{head}." for head in heads))
    }


def _unwrapped(saved: Any, path: str) -> dict[str, Tensor]:
    """The innermost dictionary of tensors by name, through the entries of `_PARTS`."""
    while isinstance(saved, Mapping):
        tensors = {k: v for k, v in saved.items() if isinstance(k, str) and isinstance(v, Tensor)}
        inner = next((k for k in _PARTS if isinstance(saved.get(k), Mapping)), None)
        if tensors and (inner is None or len(tensors) > 1):
            return tensors
        if inner is None:
            break
        saved = saved[inner]
    names = list(saved)[:5] if isinstance(saved, Mapping) else type(saved).__name__
    raise ValueError(f"{path!r} must have tensors by name, got {names!r:.200}; pass layout=")


def _below_prefixes(state: Mapping[str, Tensor], module: nn.Module) -> list[dict[str, Tensor]]:
    """The parts of a state below each prefix that has names of the module, best first."""
    own = module.state_dict()
    first = next((name for name in own if name.endswith("weight")), "")
    anchors = [first, "blocks.0.", "layer1.0.", "stages.0.", "layers.0.", "features.0."]
    anchors += ["cls_token", "class_embedding", "resblocks.0.", "downsample_layers.0."]
    found: list[str] = [""]
    for name in state:
        for anchor in anchors:
            start, middle, _ = name.partition(anchor) if anchor else ("", "", "")
            if middle and start not in found and (not start or start.endswith(".")):
                found.append(start)
    for full in [p for p in found if p.endswith("transformer.")]:  # CLIP's
        found.append(full.removesuffix("transformer."))

    def rank(prefix: str) -> tuple[int, int]:
        names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        order = [i for i, word in enumerate(_PREFERRED) if word in prefix] or [len(_PREFERRED)]
        return -len(names & own.keys()), order[0]

    ordered = sorted(dict.fromkeys(found), key=rank)
    return [
        {name.removeprefix(p): value for name, value in state.items() if name.startswith(p)}
        for p in ordered
    ]


# -- fitting


def _best(
    module: nn.Module,
    candidates: list[dict[str, Tensor]],
    grid: tuple[int, int] | None,
    channels: Channels | None,
    where: str,
) -> tuple[dict[str, Tensor], Loaded]:
    """The first state that fits; otherwise the error of the one with the fewest mismatches."""
    failed: list[tuple[int, str]] = []
    for state in candidates:
        tensors_by_name(state, repr(where))
        report = Loaded(where)
        adapted, wrong, hints = _fitted(module, state, grid, channels, report)
        if not wrong:
            report.tensors = len(adapted) - len(report.kept)
            return adapted, report
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        advice = f"; {'; '.join(dict.fromkeys(hints))}" if hints else ""
        text = (
            f"weights must fit {type(module).__name__}, got {where!r} with "
            f"{', '.join(wrong[:3])}{more}{advice}"
        )
        failed.append((len(wrong), text))
    raise ValueError(min(failed)[1])


def _fitted(
    module: nn.Module,
    state: Mapping[str, Tensor],
    grid: tuple[int, int] | None,
    channels: Channels | None,
    report: Loaded,
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The state under the module's names and in its shapes; what differs; and what would help."""
    own, given = module.state_dict(), state.keys()
    state = module.taken_from(state) if isinstance(module, ViT) else dict(state)
    report.left_out += [n for n in given - state.keys() if n.startswith(_LEFT_OUT)]
    for ours, theirs in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        moved = {n: n.replace(theirs, ours, 1) for n in state if n.startswith(theirs)}
        if moved and not moved.keys() & own.keys() and set(moved.values()) <= own.keys():
            state = {moved.get(name, name): value for name, value in state.items()}
            report.adapted.append(f"{theirs[:-1]} became {ours[:-1]}, since the pooling differs")
    counts = {n for n in own if n.endswith(".num_batches_tracked")}
    optional = counts | {"mask_token"}
    result, wrong, hints = {}, [], []
    for name, target in own.items():
        if name not in state:
            if name in optional:
                result[name] = target
                report.kept += [name] if name == "mask_token" else []
            else:
                wrong.append(f"no {name}")
            continue
        value, problem = _shaped(module, name, state[name], target, grid, channels, report)
        if problem is None:
            result[name] = value
        else:
            wrong.append(f"{name} {tuple(state[name].shape)} for {tuple(target.shape)}")
            hints += [problem] if problem else []
    for name in state.keys() - own.keys():
        if name.startswith(_LEFT_OUT) or name.endswith(_BUFFERS):
            report.left_out.append(name)
        else:
            wrong.append(f"{name} that it does not have")
    report.left_out.sort()
    return result, wrong, hints + _advice(module, state, own)


def _advice(module: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Arguments that would help, from the names alone."""
    told = []
    here, there = own.keys() - state.keys(), state.keys() - own.keys()
    if not own.keys() & state.keys():
        return ["build the architecture that the weights are for"]
    if any("reg_token" in n for n in here):
        told.append("pass a name without registers")
    if any("reg_token" in n or "register_tokens" in n for n in there):
        told.append("pass a name with registers (reg4)")
    if "cls_token" in here or "cls_token" in there:
        told.append(f"pass class_token={'cls_token' in there}")
    if any("q_bias" in n or "qkv.bias" in n for n in here | there):
        told.append(f"pass qkv_bias={any('bias' in n for n in there)}")
    if any(n.startswith("fc_norm.") for n in here | there):
        told.append("pass pool='net'")
    return told


def _shaped(
    module: nn.Module,
    name: str,
    value: Tensor,
    target: Tensor,
    grid: tuple[int, int] | None,
    channels: Channels | None,
    report: Loaded,
) -> tuple[Tensor, str | None]:
    """A tensor in the module's shape, and None; or the tensor, and what would help."""
    last = name.rpartition(".")[2]
    positions = last == "pos_embed" and target.dim() == 3 and value.shape[::2] == target.shape[::2]
    if positions:
        return _positions(module, value, target, grid, report)
    if value.shape == target.shape:
        return value, None
    if last == "mask_token" and value.numel() == target.numel():
        return value.reshape(target.shape), None
    table = "relative_position_bias_table" in name and value.dim() == _TABLE
    if table and value.shape[1] == target.shape[1]:
        window = module.get_submodule(name.rpartition(".")[0]).window_size
        return _relative(name, value, target, window, report)
    if value.dim() != _CONV or target.dim() != _CONV or value.shape[0] != target.shape[0]:
        return value, _width_hint(value, target)
    if value.shape[2:] != target.shape[2:]:
        if "patch_embed" not in name:
            return value, ""
        old, new = (tuple(t.shape[2:]) for t in (value, target))
        report.adapted.append(f"{name} resized from {old} to {new} pixels by the pseudo-inverse")
        value = resample_patch_embed(value.float(), list(new))
    if value.shape[1] != target.shape[1]:
        groups = getattr(module.get_submodule(name.rpartition(".")[0]), "groups", 1)
        if groups != 1:
            return value, ""
        value = _channels(value, target.shape[1], channels, name, report)
    return value, None


def _width_hint(value: Tensor, target: Tensor) -> str:
    same = value.dim() == target.dim()
    return "pass the name (or width) of the same architecture" if same else ""


def _positions(
    module: nn.Module,
    value: Tensor,
    target: Tensor,
    grid: tuple[int, int] | None,
    report: Loaded,
) -> tuple[Tensor, str | None]:
    """Position embeddings on the module's grid."""
    embed: Any = getattr(module, "patch_embed", None)
    new: tuple[int, int] | None = getattr(embed, "grid_size", None)
    if new is None:
        return value, None if value.shape == target.shape else "pass the img_size of the weights"
    prefix = target.shape[1] - new[0] * new[1]
    count = value.shape[1] - prefix
    old = grid or (math.isqrt(max(count, 0)),) * 2
    known = old[0] * old[1] == count
    if value.shape == target.shape and (old == new or not known):
        return value, None
    if prefix < 0 or not known:
        return value, "pass the img_size of the weights, whose positions are not of a square grid"
    how: Literal["dino", "antialias"] = getattr(module, "resample", "antialias")
    before, table = value.float().tensor_split([prefix], dim=1)
    moved = torch.cat([before, resample_positions(table, *new, old, how)], dim=1)
    report.adapted.append(f"pos_embed resampled from {old} to {tuple(new)} patches ({how})")
    return moved, None


def _relative(
    name: str, value: Tensor, target: Tensor, window: Any, report: Loaded
) -> tuple[Tensor, str | None]:
    """A table of relative positions (N, heads) for another window, as Swin's authors resample it.

    The entries after those of the window are BEiT's for the class token.
    """
    new = [2 * int(side) - 1 for side in window]
    extra = len(target) - new[0] * new[1]
    side = math.isqrt(max(len(value) - extra, 0))
    if side * side != len(value) - extra:
        return value, "pass the img_size of the weights, whose window is not a square"
    table, rest = value.float().tensor_split([side * side])
    square = table.T.reshape(1, -1, side, side)
    moved = F.interpolate(square, new, mode="bicubic", align_corners=False)
    report.adapted.append(f"{name} resampled to a window of {tuple(window)}")
    return torch.cat([moved.flatten(2)[0].T, rest]), None


def _channels(
    filters: Tensor, count: int, channels: Channels | None, name: str, report: Loaded
) -> Tensor:
    """Input filters (O, C0, h, w) for `count` channels; see `load_start_weights`."""
    given = filters.shape[1]
    channels = channels or ("sum" if count == 1 else "repeat")
    wide = filters.float()
    if channels == "repeat":
        made = wide.repeat(1, -(-count // given), 1, 1)[:, :count] * (given / count)
    elif channels == "mean":
        made = wide.mean(1, keepdim=True).expand(-1, count, -1, -1)
    else:
        made = wide.sum(1, keepdim=True).expand(-1, count, -1, -1) / count
    report.adapted.append(f"{name} adapted from {given} to {count} channels ({channels})")
    return made.contiguous()
