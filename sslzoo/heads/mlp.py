"""MLP heads: projectors and predictors, built from their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from sslzoo.norm import GlobalBatchNorm


class MLP(nn.Module):
    """Linear (- batch norm - ReLU - Linear)*, optionally with a batch norm after the last.

    Shapes: (B, sizes[0]) -> (B, sizes[-1]).

    Args:
        sizes: widths from input to output, at least two.
        bias: of every Linear but the last.
        last_bias: of the last Linear.
        norm: batch norm after each hidden Linear.
        last_norm: after the last Linear: "none", "full", "scale" (a scale and no offset,
            SimCLR's) or "plain" (neither, MoCo v3's).
        bn_groups: the global batch is normalised in this many groups; 1 is the whole of it.
        init_std: weights from N(0, init_std) (SimCLR: 0.01); None keeps torch's initialisation.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        bias: bool = True,
        last_bias: bool = True,
        norm: bool = True,
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
            if norm:
                layers.append(GlobalBatchNorm(narrow, groups=bn_groups))
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


def simclr_projector(in_dim: int, hidden_dim: int | None = None, out_dim: int = 128) -> nn.Module:
    """SimCLR v1's head: Linear-BN-ReLU-Linear-BN(scale only), no biases, weights N(0, 0.01).

    Args:
        in_dim: the backbone's `num_features`.
        hidden_dim: the input's width where None (2048 for ResNet-50).
        out_dim: 128 in the paper.
    """
    return MLP(
        [in_dim, hidden_dim or in_dim, out_dim],
        bias=False,
        last_bias=False,
        last_norm="scale",
        init_std=0.01,
    )


def byol_mlp(in_dim: int, hidden_dim: int = 4096, out_dim: int = 256) -> nn.Module:
    """BYOL's projector and predictor: Linear-BN-ReLU-Linear, no bias and no norm at the end."""
    return MLP([in_dim, hidden_dim, out_dim], last_bias=False)
