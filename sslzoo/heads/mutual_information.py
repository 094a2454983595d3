"""Heads of Deep InfoMax: encoders whose dot products are scores, and a discriminator.

Hjelm et al., ICLR 2019, https://arxiv.org/abs/1808.06670, appendix A.
Reference code: rdevon/DIM, commit bac4765, cortex_DIM/nn_modules/mi_networks.py and
cortex_DIM/functions/gradient_penalty.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.layers import GlobalBatchNorm


class MI1x1ConvNet(nn.Module):
    """Residual block of 1x1 convolutions, initialized to a noisy identity, then LayerNorm.

    Shapes: feature map (B, in_features, H, W) -> (B, out_features, H W); a vector (B, in_features)
    is a feature map of one location.

    Args:
        in_features: channels of the input.
        out_features: width of the encoding: 2048 in the code, 1024 for infoNCE.
        bn_groups: number of groups of the global batch that batch norm normalizes separately.
    """

    def __init__(self, in_features: int, out_features: int = 2048, bn_groups: int = 1):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.conv1 = nn.Conv1d(in_features, out_features, 1, bias=False)
        self.norm = GlobalBatchNorm(out_features, groups=bn_groups)
        self.conv2 = nn.Conv1d(out_features, out_features, 1)
        self.shortcut = nn.Conv1d(in_features, out_features, 1, bias=False)
        self.layer_norm = nn.LayerNorm(out_features)
        if out_features >= in_features:
            with torch.no_grad():
                weight = nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
                weight[:in_features, :, 0].fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), self.in_features, -1)
        y = self.conv2(self.norm(self.conv1(x)).relu()) + self.shortcut(x)
        return self.layer_norm(y.transpose(1, 2)).transpose(1, 2)


class MapEncoder(nn.Module):
    """Encoder of a whole feature map: the last layers of the paper's encoder, for DIM(G).

    Conv(256, 4x4, stride 2)-BN-ReLU, Linear(1024)-BN-ReLU, Linear. Shapes: (B, C, S, S), or the
    same flattened, -> (B, out_features).

    Args:
        map_features: C, 128 in the paper's CIFAR encoder.
        map_size: S, even; 8 in the paper's CIFAR encoder.
        out_features: width of the encoding; 2048 in the code.
        bn_groups: number of groups of the global batch that batch norm normalizes separately.
    """

    def __init__(
        self,
        map_features: int = 128,
        map_size: int = 8,
        out_features: int = 2048,
        bn_groups: int = 1,
    ):
        super().__init__()
        if map_size < 2 or map_size % 2:
            raise ValueError(f"map_size must be even and at least 2, got {map_size}")
        self.map_shape = (map_features, map_size, map_size)
        self.in_features = map_features * map_size**2
        self.out_features = out_features
        self.layers = nn.Sequential(
            nn.Conv2d(map_features, 256, 4, 2, 1, bias=False),
            GlobalBatchNorm(256, groups=bn_groups),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(256 * (map_size // 2) ** 2, 1024, bias=False),
            GlobalBatchNorm(1024, groups=bn_groups),
            nn.ReLU(inplace=True),
            nn.Linear(1024, out_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(len(x), *self.map_shape))


class PriorDiscriminator(nn.Module):
    """Discriminator of samples of the prior and features: (Linear-ReLU)*, Linear to a score.

    Shapes: (B, in_features) -> (B,).

    Args:
        in_features: D; 64 in the code.
        hidden_dims: widths of the hidden layers; 1000 and 200 in the code.
        penalty: weight of the gradient penalty in the discriminator's loss; 1 in the code.
    """

    def __init__(
        self, in_features: int, hidden_dims: Sequence[int] = (1000, 200), penalty: float = 1.0
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, 1
        self.penalty = penalty
        sizes = [in_features, *hidden_dims]
        self.hidden: Any = nn.ModuleList(
            nn.Linear(wide, narrow) for wide, narrow in zip(sizes, sizes[1:], strict=False)
        )
        self.last = nn.Linear(sizes[-1], 1)

    def forward(self, y: Tensor) -> Tensor:
        for layer in self.hidden:
            y = layer(y).relu()
        return self.last(y)[:, 0]

    def frozen(self, y: Tensor) -> Tensor:
        """The same scores without gradient to the parameters: for the encoder's loss."""
        for layer in self.hidden:
            y = F.linear(y, layer.weight.detach(), layer.bias.detach()).relu()
        return F.linear(y, self.last.weight.detach(), self.last.bias.detach())[:, 0]

    def input_gradient(self, y: Tensor) -> Tensor:
        """Gradient of the score by y, differentiable by the parameters. (B, D) -> (B, D).

        Written out, because `torch.autograd.grad` in the forward pass neither compiles nor works
        with DDP's hooks.
        """
        active = []
        for layer in self.hidden:
            y = layer(y)
            active.append(y > 0)
            y = y.relu()
        gradient = self.last.weight.expand(len(y), -1)
        for layer, mask in zip(reversed(self.hidden), reversed(active), strict=True):
            gradient = torch.where(mask, gradient, 0.0) @ layer.weight
        return gradient
