"""MLP heads: projectors and predictors, built from their widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from sslzoo.checks import check_choice
from sslzoo.layers import GlobalBatchNorm

HiddenNorm = bool | Literal["group", "layer"]
Activation = Literal["relu", "gelu"]


def _hidden_norm(norm: HiddenNorm, width: int, bn_groups: int) -> list[nn.Module]:
    if norm == "group":
        if width % 16 or width == 16:  # a group of one value has no variance
            raise ValueError(
                "the hidden width must be a multiple of 16 above 16 for the 16 groups of norm "
                f"'group', got {width}"
            )
        return [nn.GroupNorm(16, width)]
    if norm == "layer":
        return [nn.LayerNorm(width)]
    if norm not in (True, False):
        raise ValueError(f"norm must be true, false, 'group' or 'layer', got {norm!r}")
    return [GlobalBatchNorm(width, groups=bn_groups)] if norm else []


class MLP(nn.Module):
    """Linear (- batch norm - ReLU - Linear)*, optionally with a final batch norm.

    Shapes: (B, sizes[0]) -> (B, sizes[-1]).

    Args:
        sizes: widths from input to output, at least two.
        bias: whether the Linears except for the last have a bias.
        last_bias: whether the last Linear has a bias.
        norm: norm after each hidden Linear: batch norm (True), none (False), "group" (16 groups)
            or "layer".
        last_norm: batch norm after the last Linear: "none", "full", "scale" (without offset,
            SimCLR's) or "plain" (without scale and offset, MoCo v3's).
        bn_groups: number of groups of the global batch that batch norm normalizes separately.
        init_std: standard deviation of the initial weights (0.01 in SimCLR), with zero biases;
            None: torch's initialization.
        activation: "relu" or "gelu" (MSN's), after each hidden layer.
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
        activation: Activation = "relu",
    ):
        super().__init__()
        check_choice("activation", activation, get_args(Activation))
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two positive numbers, got {list(sizes)}")
        self.in_features, self.out_features = sizes[0], sizes[-1]
        layers: list[nn.Module] = []
        for wide, narrow in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers.append(nn.Linear(wide, narrow, bias=bias))
            layers += _hidden_norm(norm, narrow, bn_groups)
            layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.GELU())
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
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def first(self, num_layers: int) -> nn.Sequential:
        """The first layers with their norms and ReLUs: (B, sizes[0]) -> (B, sizes[num_layers]).

        They share this head's parameters. SimCLR v2 fine-tunes from `first(1)`.

        Args:
            num_layers: 0 (the identity) up to the number of all layers.
        """
        starts = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Linear)]
        if not 0 <= num_layers <= len(starts):
            raise ValueError(f"num_layers must be in 0..{len(starts)}, got {num_layers}")
        return self.layers[: [*starts, len(self.layers)][num_layers]]


def simclr_projector(in_dim: int, hidden_dim: int | None = None, out_dim: int = 128) -> nn.Module:
    """SimCLR v1's head: Linear-BN-ReLU-Linear-BN(scale only), no biases, weights N(0, 0.01).

    Args:
        in_dim: the backbone's `num_features`.
        hidden_dim: width of the hidden layer; None: in_dim (2048 for ResNet-50).
        out_dim: 128 in the paper.
    """
    return _simclr_head([in_dim, hidden_dim or in_dim, out_dim])


def simclr_v2_projector(in_dim: int, num_layers: int = 3, out_dim: int = 128) -> nn.Module:
    """SimCLR v2's head: (Linear-BN-ReLU)*-Linear-BN(scale only), no biases, weights N(0, 0.01).

    With two layers it is version 1's, `simclr_projector(in_dim)`.

    Args:
        in_dim: the backbone's `num_features`, and the width of the hidden layers.
        num_layers: 3 in the paper.
        out_dim: 128 in the paper.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    return _simclr_head([in_dim] * num_layers + [out_dim])


def _simclr_head(sizes: Sequence[int]) -> nn.Module:
    return MLP(sizes, bias=False, last_bias=False, last_norm="scale", init_std=0.01)


def byol_mlp(
    in_dim: int, hidden_dim: int = 4096, out_dim: int = 256, norm: HiddenNorm = True
) -> nn.Module:
    """BYOL's projector or predictor: Linear-BN-ReLU-Linear, the last one without bias.

    Args:
        in_dim: the backbone's `num_features`, or the projector's `out_dim`.
        hidden_dim: 4096 in the paper.
        out_dim: 256 in the paper.
        norm: see `MLP`; "group" is BYOL without batch statistics.
    """
    return MLP([in_dim, hidden_dim, out_dim], last_bias=False, norm=norm)


def simsiam_projector(
    in_dim: int, hidden_dim: int | None = None, out_dim: int = 2048, num_layers: int = 3
) -> nn.Module:
    """SimSiam's projector: (Linear-BN-ReLU)*-Linear-BN, no biases, last norm not affine.

    As in the code, only the last Linear has a bias, which is frozen because the norm removes it.

    Args:
        in_dim: the backbone's `num_features`.
        hidden_dim: width of the hidden layers; None: in_dim (2048 for ResNet-50).
        out_dim: 2048 in the paper.
        num_layers: 3 in the paper, 2 on CIFAR-10.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    hidden = [hidden_dim or in_dim] * (num_layers - 1)
    head = MLP([in_dim, *hidden, out_dim], bias=False, last_norm="plain")
    last = head.layers[-2]
    assert isinstance(last, nn.Linear)
    last.bias.requires_grad_(False)
    return head


def simsiam_predictor(dim: int = 2048, hidden_dim: int = 512) -> nn.Module:
    """SimSiam's predictor, a bottleneck: Linear-BN-ReLU-Linear, the last with bias.

    Args:
        dim: width of projection and prediction, 2048 in the paper.
        hidden_dim: 512 in the paper.
    """
    return MLP([dim, hidden_dim, dim], bias=False)


def lejepa_projector(
    in_dim: int, embedding_dim: int = 512, hidden_dim: int = 2048, out_dim: int = 16
) -> nn.Module:
    """LeJEPA's head: a Linear to the embedding, then Linear-BN-ReLU twice and a Linear.

    Args:
        in_dim: the backbone's `num_features`.
        embedding_dim: 512 in the code.
        hidden_dim: 2048 in the code.
        out_dim: D; 16 in MINIMAL.md, 64 to 1024 in the paper's ablations.
    """
    head = MLP([embedding_dim, hidden_dim, hidden_dim, out_dim])
    head.layers.insert(0, nn.Linear(in_dim, embedding_dim))
    head.in_features = in_dim
    return head
