"""DINO's head: an MLP to a normalized bottleneck, and a weight-normalized last layer.

Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294, appendix C.
Reference code: facebookresearch/dino at 7c446df, vision_transformer.py, DINOHead, whose
parameter names are kept.

Shapes: B rows, D width of the bottleneck, K prototypes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.checks import check_choice, check_whole
from sslzoo.layers import GlobalBatchNorm
from sslzoo.layers.precision import no_autocast


class Prototypes(nn.Module):
    """Weight-normalized Linear without bias: the logits are z . g v / |v|.

    Computes in float32 at least, also under autocast. Shapes: (..., D) -> (..., K).

    Args:
        in_features: D.
        out_features: K.
        fixed_length: whether the lengths g are frozen at 1.
    """

    def __init__(self, in_features: int, out_features: int, fixed_length: bool = True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=not fixed_length)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.uniform_(self.weight_v, -(in_features**-0.5), in_features**-0.5)

    def forward(self, z: Tensor) -> Tensor:
        v, g = self.weight_v, self.weight_g
        with no_autocast(z):
            # The factor is applied to the logits: normalized prototypes may be the larger tensor.
            length = torch.linalg.vector_norm(v, dim=1)
            wide = torch.promote_types(z.dtype, v.dtype)
            return F.linear(z.to(wide), v.to(wide)) * (g[:, 0] / length)


def _linear(wide: int, narrow: int) -> nn.Linear:
    layer = nn.Linear(wide, narrow)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class DINOHead(nn.Module):
    """(Linear - [norm] - GELU)*, Linear, normalize, prototypes. (B, in_dim) -> (B, K).

    Args:
        in_dim: the backbone's `num_features`.
        out_dim: K; 65536 in DINO, 8192 in iBOT.
        hidden_dim: width of the hidden layers; 2048 in the paper.
        bottleneck_dim: D; 256 in the paper.
        num_layers: layers of the MLP; 3 in the code.
        norm: whether batch norm follows each hidden Linear, or "layer" for layer norm, as iBOT's
            norm_in_head allows; False in the code.
        norm_last_layer: freeze the prototypes' lengths at 1, as the code does by default; by its
            help text, False is better but only stable for ViT-S.
        bn_groups: number of groups of the global batch that batch norm normalizes separately.
        activation: "gelu", or "relu", as iBOT's act_in_head allows.

    Raises:
        ValueError: for a size below 1, or an unknown norm or activation.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        norm: bool | Literal["layer"] = False,
        norm_last_layer: bool = True,
        bn_groups: int = 1,
        activation: Literal["gelu", "relu"] = "gelu",
    ):
        super().__init__()
        for name, value in (("out_dim", out_dim), ("num_layers", num_layers)):
            check_whole(name, value, 1)
        sizes = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        if num_layers < 1 or min(*sizes, out_dim) < 1:
            raise ValueError(
                "all widths and num_layers must be at least 1, got "
                f"{sizes} in {num_layers} layers and out_dim {out_dim}"
            )
        check_choice("norm", norm, (False, True, "layer"))
        check_choice("activation", activation, ("gelu", "relu"))
        self.in_features, self.out_features = in_dim, out_dim
        layers: list[nn.Module] = []
        for wide, narrow in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers.append(_linear(wide, narrow))
            if norm == "layer":
                layers.append(nn.LayerNorm(narrow))
            elif norm:
                layers.append(GlobalBatchNorm(narrow, groups=bn_groups))
            layers.append(nn.GELU() if activation == "gelu" else nn.ReLU())
        layers.append(_linear(sizes[-2], sizes[-1]))
        self.mlp = nn.Sequential(*layers)
        self.last_layer = Prototypes(bottleneck_dim, out_dim, fixed_length=norm_last_layer)

    def bottleneck(self, x: Tensor) -> Tensor:
        """L2-normalized bottleneck, in float32 at least. (..., in_dim) -> (..., D)."""
        z = self.mlp(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(self.bottleneck(x))
