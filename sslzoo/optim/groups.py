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
