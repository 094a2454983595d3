"""Features of a network's inner layers, pooled to a common size, for probes of each layer.

Zhang, Isola and Efros, Colorful Image Colorization, ECCV 2016, https://arxiv.org/abs/1603.08511:
feature maps are resized to about 9,000 values before the linear classifier; InstDisc (CVPR 2018,
https://arxiv.org/abs/1805.01978) reports conv1 to conv5 so.
Shapes: B images, C channels, maps (B, C, h, w), tokens (B, L, D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_KNOWN: tuple[tuple[str, ...], ...] = (
    ("maxpool", "layer1", "layer2", "layer3", "layer4"),  # conv1 to conv5 of a ResNet
    ("relu", "layer1", "layer2", "layer3", "layer4"),
    ("act1", "layer1", "layer2", "layer3", "layer4"),
)


def layer_names(encoder: nn.Module) -> list[str]:
    """The layers that a paper would probe: a ResNet's five stages, or each of `blocks`.

    Raises:
        ValueError: the encoder is of neither kind.
    """
    have = {name for name, _ in encoder.named_modules()}
    for names in _KNOWN:
        if have.issuperset(names):
            return list(names)
    blocks = [name for name in have if name.startswith("blocks.") and name.count(".") == 1]
    stem = [name for name in ("relu",) if name in have]
    if blocks:
        return [*stem, *sorted(blocks, key=lambda name: int(name.split(".")[1]))]
    children = [name for name, _ in encoder.named_children()]
    raise ValueError(
        "layers must be given as names of the encoder's modules, since it is neither a ResNet nor "
        f"has blocks, got none; its parts are {children}"
    )


def pooled(output: Tensor, most: int) -> Tensor:
    """One vector per sample of at most `most` values, unless it has more channels.

    Maps are averaged over a square grid, tokens over all positions.
    Shapes: (B, C, h, w), (B, L, D) or (B, D) -> (B, values).
    """
    if output.ndim == 4:
        side = max(1, math.isqrt(most // output.shape[1]))
        grid = (min(side, output.shape[2]), min(side, output.shape[3]))
        return F.adaptive_avg_pool2d(output, grid).flatten(1)
    if output.ndim == 3:
        return output.mean(1)
    return output


class Layers:
    """Function from a view to the pooled outputs of several layers.

    Args:
        encoder: the network, whose forward pass is run.
        names: names of its modules.
        most: see `pooled`.

    Raises:
        ValueError: a name is not that of a module.
    """

    def __init__(self, encoder: nn.Module, names: Sequence[str], most: int = 9000):
        parts = dict(encoder.named_modules())
        missing = [name for name in names if name not in parts or not name]
        if missing or not names:
            raise ValueError(
                f"layers must be names of the encoder's modules, got {missing or 'none'}"
            )
        self.encoder, self.most = encoder, most
        self.parts = [parts[name] for name in names]

    def __call__(self, view: Any) -> list[Tensor]:
        found: dict[int, Tensor] = {}

        def keep(number: int) -> Any:
            def hook(module: nn.Module, given: Any, output: Tensor) -> None:
                found[number] = pooled(output, self.most)

            return hook

        hooks = [part.register_forward_hook(keep(i)) for i, part in enumerate(self.parts)]
        try:
            self.encoder(view)
        finally:
            for handle in hooks:
                handle.remove()
        return [found[i] for i in range(len(self.parts))]
