"""Parameter groups: which parameters get weight decay, LARS adaptation or their own rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from sslzoo.optim.depth import depth_of, encoder_of

_TOKENS = re.compile(r"(?:^|\.)(?:cls_token|pos_embed|mask_token|reg_token)$")  # never decayed


def all_alike(module: nn.Module) -> list[dict[str, Any]]:
    """One group: every trainable parameter is decayed and adapted (MoCo, InstDisc)."""
    return [{"params": [p for p in module.parameters() if p.requires_grad]}]


def exempt_bias_and_norm(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: 1-D parameters (biases, norm scales) get neither decay nor adaptation.

    SimCLR, BYOL, Barlow Twins and DINO do so. The second group carries `weight_decay=0` and, for
    `LARS`, `adapt=False`; torch's own optimizers ignore `adapt`.
    """
    return _without_decay(module, lambda name, parameter: parameter.ndim <= 1)


def _without_decay(
    module: nn.Module, exempts: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """The trainable parameters in two groups, the exempt ones last; an empty group is left out."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (exempt if exempts(name, parameter) else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": exempt, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


def exempt_bias_norm_and_classifier(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups as in `exempt_bias_and_norm`, with the layer `classifier` exempt too.

    This is the rule of SimCLR's fine-tuning, whose list of exemptions includes `head_supervised`
    (google-research/simclr, tf2/model.py).

    Raises:
        ValueError: there is no such layer.
    """
    named = module.named_modules()
    heads = [child for name, child in named if name.rpartition(".")[2] == "classifier"]
    if not heads:
        raise ValueError(
            f"the module must have a layer named classifier, got {type(module).__name__} without it"
        )
    inside = {parameter for head in heads for parameter in head.parameters()}
    groups = exempt_bias_and_norm(module)
    decayed = [p for p in groups[0]["params"] if p not in inside]
    moved = [p for p in groups[0]["params"] if p in inside]
    exempt = {"params": [*moved, *groups[-1]["params"]], "weight_decay": 0.0, "adapt": False}
    return [{"params": decayed}, exempt] if decayed else [exempt]


class ConstantRateFor:
    """Groups that keep parts of a method at their base rate, whatever the schedule.

    SimSiam's predictor needs this (`--fix-pred-lr`). The parts get groups of their own, marked
    `constant_rate=True` for `Schedule`; torch's optimizers ignore and save the mark.

    Args:
        parts: names of the method's modules.
        groups: function that makes the groups to be split.
    """

    def __init__(
        self,
        parts: Sequence[str] = ("predictor",),
        groups: Callable[[nn.Module], list] = all_alike,
    ):
        self.parts, self.groups = list(parts), groups

    def __call__(self, module: nn.Module) -> list[dict[str, Any]]:
        """Make the groups, the constant ones last.

        Raises:
            ValueError: a part is not a module of the method.
        """
        return _split(module, self.parts, self.groups, {"constant_rate": True})


class ZeroRateFirst:
    """Groups whose parts have the rate 0 in the first epochs: DINOv2's last layers.

    The optimizer's averages move meanwhile, unlike those of a frozen module (`FreezeUntil`). The
    parts get groups of their own, marked `zero_epochs` for the schedule.

    Args:
        parts: names of the method's modules.
        epochs: duration in epochs (fractions allowed); 1 in DINOv2.
        groups: function that makes the groups to be split.

    Raises:
        ValueError: the duration is negative.
    """

    def __init__(
        self,
        parts: Sequence[str],
        epochs: float = 1.0,
        groups: Callable[[nn.Module], list] = exempt_bias_and_norm,
    ):
        if not epochs >= 0:
            raise ValueError(f"epochs must be at least 0, got {epochs}")
        self.parts, self.epochs, self.groups = list(parts), epochs, groups

    def __call__(self, module: nn.Module) -> list[dict[str, Any]]:
        """Make the groups, those of the parts last.

        Raises:
            ValueError: a part is not a module of the method.
        """
        return _split(module, self.parts, self.groups, {"zero_epochs": self.epochs})


def _split(
    module: nn.Module,
    parts: list[str],
    groups: Callable[[nn.Module], list],
    mark: dict[str, Any],
) -> list[dict[str, Any]]:
    """The groups, split into parameters of some parts, which get a mark and come last, and others.

    Raises:
        ValueError: a part is not a module of the method.
    """
    known = dict(module.named_modules())
    for name in parts:
        if name not in known:
            children = [child for child, _ in module.named_children()]
            raise ValueError(f"parts must be modules of the method {children}, got {name!r}")
    inside = {id(p) for name in parts for p in known[name].parameters()}
    made = groups(module)
    split = [{**g, "params": [p for p in g["params"] if id(p) not in inside]} for g in made]
    split += [{**g, "params": [p for p in g["params"] if id(p) in inside], **mark} for g in made]
    return [group for group in split if group["params"]]


class ExemptNamed:
    """Two groups, in which parameters get no decay if their names contain one of some words.

    Args:
        names: the words: ReSSL's code has "bn" and "bias"; SimMIM's has "pos_embed" and "cls_token"
            for a ViT, "absolute_pos_embed", "mask_token" and "relative_position_bias_table" for a
            Swin.
        vectors: whether 1-D parameters are exempt too, as in SimMIM.
    """

    def __init__(self, names: Sequence[str] = ("bn", "bias"), vectors: bool = False):
        self.names, self.vectors = list(names), vectors

    def __call__(self, module: nn.Module) -> list[dict[str, Any]]:
        """Make the groups, the exempt one last, with `adapt=False` as in `exempt_bias_and_norm`.

        Raises:
            ValueError: no parameter has a name with one of the words.
        """
        groups = _without_decay(module, self._exempts)
        if not groups or "adapt" not in groups[-1]:
            trained = [name for name, p in module.named_parameters() if p.requires_grad]
            raise ValueError(
                f"names must occur in the parameters of {type(module).__name__}, got {self.names}, "
                f"and parameters such as {trained[:3]}"
            )
        return groups

    def _exempts(self, name: str, parameter: nn.Parameter) -> bool:
        return any(word in name for word in self.names) or (self.vectors and parameter.ndim <= 1)


def exempt_bias_norm_and_prototypes(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups as in `exempt_bias_and_norm`, with the layer `prototypes` exempt too (MSN)."""
    return ExemptNamed(["prototypes"], vectors=True)(module)


def exempt_bias_norm_and_positions(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups as in `exempt_bias_and_norm`, with positions and class tokens too (CLIP)."""
    return ExemptNamed(["pos_embed", "cls_token"], vectors=True)(module)


class BiasAndNormRate:
    """Two groups as in `exempt_bias_and_norm`, with a separate rate for the exempt (Barlow Twins).

    Args:
        lr: base rate of the 1-D parameters; the others have the optimizer's.
    """

    def __init__(self, lr: float):
        if lr < 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        self.lr = lr

    def __call__(self, module: nn.Module) -> list[dict[str, Any]]:
        groups = exempt_bias_and_norm(module)
        return [{**group, "lr": self.lr} if "adapt" in group else group for group in groups]


class LayerDecay:
    """Layer-wise learning-rate decay, for fine-tuning and for going on from given weights.

    BEiT's rule as implemented in MAE (facebookresearch/mae at efb2a80, util/lr_decay.py): with B
    blocks, patch, class-token and position embeddings are layer 0, block i (from 0) is layer i + 1,
    everything else (norm, head) layer B + 1; layer l has `lr_scale` = rate ** (B + 1 - l), by which
    our schedules multiply the rate. 1-D parameters, class token and positions get no decay, nor
    what timm's `no_weight_decay` names. Of a method only the `backbone` has layers: heads have the
    full rate, and a teacher, which has no gradient, is in no group. `depth_of` says what the layers
    of ResNet, ConvNeXt, Swin and text encoders are.

    Args:
        rate: above 0 and at most 1; 0.65 (ViT-B) or 0.75 (ViT-L, ViT-H) in MAE's recipes.
        weight_decay: weight decay of the other parameters; None: the optimizer's.
        patch_scale: further factor of the patch projection's rate (`patch_embed`); 0.2 in DINOv2.
        decay_tokens: whether tokens and positions are decayed like weights, as in DINOv2.

    Raises:
        ValueError: the rate is outside (0, 1], or patch_scale negative.
    """

    def __init__(
        self,
        rate: float = 0.75,
        weight_decay: float | None = 0.05,
        patch_scale: float = 1.0,
        decay_tokens: bool = False,
    ):
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be in (0, 1], got {rate}")
        if not patch_scale >= 0:
            raise ValueError(f"patch_scale must be at least 0, got {patch_scale}")
        self.rate, self.weight_decay = rate, weight_decay
        self.patch_scale, self.decay_tokens = patch_scale, decay_tokens

    def __call__(self, module: nn.Module) -> list[dict[str, Any]]:
        """Make the groups of a method, a classifier or an encoder.

        Raises:
            ValueError: the layers of its encoder are not known, see `depth_of`.
        """
        prefix, encoder = encoder_of(module)
        depth = depth_of(encoder)
        spared = set() if self.decay_tokens else _spared(module)
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            own = depth.layers if name.startswith(prefix) else {}
            layer = own.get(name.removeprefix(prefix), depth.last)
            decayed = parameter.ndim > 1 and name not in spared
            patches = self.patch_scale != 1 and name.startswith(f"{prefix}patch_embed.")
            scale = self.rate ** (depth.last - layer)
            group = groups.setdefault(
                (layer, decayed, patches),
                {
                    "params": [],
                    **(decay if decayed else {"weight_decay": 0.0, "adapt": False}),
                    "lr_scale": scale * self.patch_scale if patches else scale,
                },
            )
            group["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]


def _spared(module: nn.Module) -> set[str]:
    """Names of the tokens and positions, and what timm's models list as not decayed."""
    spared = {name for name, _ in module.named_parameters() if _TOKENS.search(name)}
    for prefix, part in module.named_modules():
        if hasattr(part, "no_weight_decay"):
            named: Any = part.no_weight_decay()
            spared |= {f"{prefix}.{name}" if prefix else name for name in named}
    return spared
