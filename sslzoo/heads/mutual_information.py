"""Heads of Deep InfoMax: encoders whose dot product scores a pair, and the prior's discriminator.

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
    """A residual net of 1x1 convolutions that starts as a noisy copy of its input, then LayerNorm.

    Shapes: a map (B, in_features, H, W) -> (B, out_features, H W); a vector (B, in_features) is
    a map of one place.

    Args:
        in_features: channels of the input.
        out_features: units of the encoding: 2048 in the code, 1024 for infoNCE.
        bn_groups: the global batch is normalized in this many groups; 1 is the whole of it.
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
    """Encodes a whole feature map: the last layers of the paper's encoder, for global DIM.

    Conv(256, 4x4, stride 2)-BN-ReLU, Linear(1024)-BN-ReLU, Linear. Shapes: (B, C, S, S), or the
    same flattened, -> (B, out_features).

    Args:
        map_features: C, 128 in the paper's CIFAR encoder.
        map_size: S, even; 8 there.
        out_features: units of the encoding; 2048 in the code.
        bn_groups: the global batch is normalized in this many groups; 1 is the whole of it.
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
            raise ValueError(f"MapEncoder wants a map of even size, got {map_size}")
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
    """Tells draws of the prior from features: Linear-ReLU, ..., Linear to a score.

    Shapes: (B, in_features) -> (B,).

    Args:
        in_features: D.
        hidden_dims: the code has 1000 and 200.
        penalty: weight of the mean squared slope in the discriminator's loss; 1 in the code.
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
        """The same scores, with no gradient to the parameters: what the features are moved by."""
        for layer in self.hidden:
            y = F.linear(y, layer.weight.detach(), layer.bias.detach()).relu()
        return F.linear(y, self.last.weight.detach(), self.last.bias.detach())[:, 0]

    def slope(self, y: Tensor) -> Tensor:
        """Gradient of the score by y, differentiable by the parameters. (B, D) -> (B, D).

        Written out, since a graph inside the forward pass would neither compile nor run under
        DDP's hooks.
        """
        active = []
        for layer in self.hidden:
            y = layer(y)
            active.append(y > 0)
            y = y.relu()
        slope = self.last.weight.expand(len(y), -1)
        for layer, mask in zip(reversed(self.hidden), reversed(active), strict=True):
            slope = torch.where(mask, slope, 0.0) @ layer.weight
        return slope
