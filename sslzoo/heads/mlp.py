"""MLP heads: projectors and predictors, built from their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sslzoo.layers import GlobalBatchNorm

HiddenNorm = bool | Literal["group", "layer"]


def _hidden_norm(norm: HiddenNorm, width: int, bn_groups: int) -> list[nn.Module]:
    if norm == "group":
        if width % 16 or width == 16:  # a group of one value has no variance
            raise ValueError(f"16 groups of two or more wanted, got a hidden width of {width}")
        return [nn.GroupNorm(16, width)]
    if norm == "layer":
        return [nn.LayerNorm(width)]
    if norm not in (True, False):
        raise ValueError(f"norm is true, false, 'group' or 'layer', got {norm!r}")
    return [GlobalBatchNorm(width, groups=bn_groups)] if norm else []


class MLP(nn.Module):
    """Linear (- batch norm - ReLU - Linear)*, optionally with a batch norm after the last.

    Shapes: (B, sizes[0]) -> (B, sizes[-1]).

    Args:
        sizes: widths from input to output, at least two.
        bias: of every Linear but the last.
        last_bias: of the last Linear.
        norm: after each hidden Linear: batch norm (True), none (False), "group" (16 groups) or
            "layer".
        last_norm: after the last Linear: "none", "full", "scale" (a scale and no offset,
            SimCLR's) or "plain" (neither, MoCo v3's).
        bn_groups: the global batch is normalized in this many groups; 1 is the whole of it.
        init_std: weights from N(0, init_std) (SimCLR: 0.01); None keeps torch's initialization.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        bias: bool = True,
        last_bias: bool = True,
        norm: HiddenNorm = True,
        last_norm: Literal["none", "full", "scale", "plain"] = "none",
        bn_groups: int = 1,
        init_std: float | None = None,
    ):
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"MLP wants at least two positive sizes, got {list(sizes)}")
        self.in_features, self.out_features = sizes[0], sizes[-1]
        layers: list[nn.Module] = []
        for wide, narrow in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers.append(nn.Linear(wide, narrow, bias=bias))
            layers += _hidden_norm(norm, narrow, bn_groups)
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias=last_bias))
        if last_norm != "none":
            last = GlobalBatchNorm(sizes[-1], affine=last_norm != "plain", groups=bn_groups)
            if last_norm == "scale":
                last.register_parameter("bias", None)
            layers.append(last)
        self.layers = nn.Sequential(*layers)
        if init_std is not None:
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def first(self, num_layers: int) -> nn.Sequential:
        """The first layers, each with its norm and ReLU: (B, sizes[0]) -> (B, sizes[num_layers]).

        They are this head's own modules and not copies. SimCLR v2 fine-tunes from `first(1)`.

        Args:
            num_layers: 0 for none (the identity) up to all of them.
        """
        starts = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Linear)]
        if not 0 <= num_layers <= len(starts):
            raise ValueError(f"the head has {len(starts)} layers, got the first {num_layers}")
        return self.layers[: [*starts, len(self.layers)][num_layers]]


def simclr_projector(in_dim: int, hidden_dim: int | None = None, out_dim: int = 128) -> nn.Module:
    """SimCLR v1's head: Linear-BN-ReLU-Linear-BN(scale only), no biases, weights N(0, 0.01).

    Args:
        in_dim: the backbone's `num_features`.
        hidden_dim: the input's width where None (2048 for ResNet-50).
        out_dim: 128 in the paper.
    """
    return _simclr_head([in_dim, hidden_dim or in_dim, out_dim])


def simclr_v2_projector(in_dim: int, num_layers: int = 3, out_dim: int = 128) -> nn.Module:
    """SimCLR v2's head: (Linear-BN-ReLU)*-Linear-BN(scale only), no biases, weights N(0, 0.01).

    Two layers are version 1's, `simclr_projector(in_dim)`.

    Args:
        in_dim: the backbone's `num_features`, and the width of the hidden layers.
        num_layers: 3 in the paper.
        out_dim: 128 in the paper.
    """
    if num_layers < 1:
        raise ValueError(f"the head has at least 1 layer, got {num_layers}")
    return _simclr_head([in_dim] * num_layers + [out_dim])


def _simclr_head(sizes: Sequence[int]) -> nn.Module:
    return MLP(sizes, bias=False, last_bias=False, last_norm="scale", init_std=0.01)


def byol_mlp(
    in_dim: int, hidden_dim: int = 4096, out_dim: int = 256, norm: HiddenNorm = True
) -> nn.Module:
    """BYOL's projector and predictor: Linear-BN-ReLU-Linear, no bias and no norm at the end.

    Args:
        in_dim: the backbone's `num_features`, or the projector's `out_dim`.
        hidden_dim: 4096 in the paper.
        out_dim: 256 in the paper.
        norm: see `MLP`; "group" without batch statistics.
    """
    return MLP([in_dim, hidden_dim, out_dim], last_bias=False, norm=norm)


def simsiam_projector(
    in_dim: int, hidden_dim: int | None = None, out_dim: int = 2048, num_layers: int = 3
) -> nn.Module:
    """SimSiam's projector: (Linear-BN-ReLU)*-Linear-BN without scale and offset, no biases.

    As in the code, the last Linear alone has a bias, which is frozen: the norm takes it out again.

    Args:
        in_dim: the backbone's `num_features`.
        hidden_dim: the input's width where None (2048 for ResNet-50).
        out_dim: 2048 in the paper.
        num_layers: 3 in the paper, 2 on CIFAR-10.
    """
    if num_layers < 1:
        raise ValueError(f"the projector has at least 1 layer, got {num_layers}")
    hidden = [hidden_dim or in_dim] * (num_layers - 1)
    head = MLP([in_dim, *hidden, out_dim], bias=False, last_norm="plain")
    last = head.layers[-2]
    assert isinstance(last, nn.Linear)
    last.bias.requires_grad_(False)
    return head


def simsiam_predictor(dim: int = 2048, hidden_dim: int = 512) -> nn.Module:
    """SimSiam's predictor, a bottleneck: Linear-BN-ReLU-Linear, a bias at the end alone.

    Args:
        dim: of projection and prediction, 2048 in the paper.
        hidden_dim: 512 in the paper.
    """
    return MLP([dim, hidden_dim, dim], bias=False)
