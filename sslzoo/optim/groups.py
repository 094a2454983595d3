"""Parameter groups: which parameters a recipe exempts from weight decay and LARS adaptation."""

from __future__ import annotations

from typing import Any

from torch import nn


def all_alike(module: nn.Module) -> list[dict[str, Any]]:
    """One group: every trainable parameter is decayed and adapted (MoCo, InstDisc)."""
    return [{"params": [p for p in module.parameters() if p.requires_grad]}]


def exempt_bias_and_norm(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: 1-D parameters (biases, norm scales) get neither decay nor adaptation.

    The rule of SimCLR, BYOL, Barlow Twins and DINO. The second group carries
    `weight_decay=0` and, for `LARS`, `adapt=False`; torch's own optimizers ignore `adapt`.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (exempt if parameter.ndim <= 1 else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": exempt, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


def exempt_bias_norm_and_classifier(module: nn.Module) -> list[dict[str, Any]]:
    """As `exempt_bias_and_norm`, and the layer called `classifier` is exempt too.

    The rule of SimCLR's fine-tuning, whose list of exemptions has `head_supervised`
    (google-research/simclr, tf2/model.py).
    """
    named = module.named_modules()
    heads = [child for name, child in named if name.rpartition(".")[2] == "classifier"]
    if not heads:
        raise ValueError(f"{type(module).__name__} has no layer called classifier to exempt")
    inside = {parameter for head in heads for parameter in head.parameters()}
    groups = exempt_bias_and_norm(module)
    decayed = [p for p in groups[0]["params"] if p not in inside]
    moved = [p for p in groups[0]["params"] if p in inside]
    exempt = {"params": [*moved, *groups[-1]["params"]], "weight_decay": 0.0, "adapt": False}
    return [{"params": decayed}, exempt] if decayed else [exempt]
