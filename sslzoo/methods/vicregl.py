"""VICRegL: self-supervised learning of local visual features.

Bardes, Ponce and LeCun, NeurIPS 2022, https://arxiv.org/abs/2210.01571.
Reference code: facebookresearch/VICRegL at 803ae4c.

Deviations:
    1. The position of a location is the center of its cell for a feature map of any size; the
       code's grids are 7 x 7 for large and 3 x 3 for small crops (224 and 96 pixels at stride 32).
    2. There is no classifier in the method (but the callback OnlineLinear); the code trains one on
       the detached features of the first view and adds its cross entropy to the loss.
    3. fast_vc_reg=1, whose loss is a vector in the code and cannot be trained, does not exist.
    4. Half precision is bfloat16 in our recipes, float16 with a loss scaler in the code; the
       distances of matches are computed in float32.
"""

from __future__ import annotations

import math
from typing import Any, cast

from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.checks import check_interval, check_whole
from sslzoo.losses import crop_centers, vicregl_global, vicregl_local
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class VICRegL(SSLMethod):
    """VICReg of whole crops, and of their locations matched by position and by feature.

    Args:
        backbone: with `forward_map` (B, C, H, W) -> (B, map_features, h, w) and `forward_from_map`,
            from the map to num_features: a ResNet or ConvNeXt of `timm_backbone`, `cifar_resnet` or
            `SmallResNet`.
        projector: the paper's expander, num_features -> D: three Linears of width 8192, the last
            without bias, with batch norm (ResNet) or layer norm (ConvNeXt) and ReLU between.
        map_projector: likewise per location, map_features -> C, of width 512.
        alpha: weight of the global terms; that of the local ones is 1 - alpha. 0.75 and 0.9 in the
            paper.
        invariance_weight: lambda; 25 in the paper.
        variance_weight: mu; 25 in the paper.
        covariance_weight: nu; 1 in the paper.
        num_matches: matches by position that are kept of the first and of the second view of a
            pair; (20, 4) in the paper, for maps of 7 x 7 and 3 x 3.
        match_all_features: whether all locations are matched by feature, as in the code's commands;
            False: as many as by position.
        flip_grid: whether positions in a flipped crop are mirrored, as its pixels are. The code's
            default ignores the flip, so that its positions in flipped crops are wrong.
        optimizer: see `SSLMethod`; LARS (ResNet) or AdamW (ConvNeXt) in the paper.
        schedule: see `SSLMethod`; 10 epochs of warm-up, then a cosine to a thousandth.
        parameter_groups: see `SSLMethod`; biases and norms are not decayed in the code.

    The first two views are the large crops, and views come with their boxes:
    `transforms.vicregl_views()`, or any transform with `boxes=True`.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MLP
        >>> heads = [MLP([16, 32, dim], bias=False, last_bias=False) for dim in (8, 6)]
        >>> method = VICRegL(SmallResNet((8, 16)), *heads, num_matches=(5, 3))
        >>> views = [torch.rand(4, 3, size, size) for size in (8, 8, 4)]
        >>> boxes = torch.tensor([[0, 3, 20, 17, 0], [5, 0, 15, 21, 1], [8, 9, 6, 7, 0]])
        >>> batch = Batch(views, index=torch.arange(4), boxes=boxes.expand(4, 3, 5))
        >>> list(method.losses(batch))
        ['invariance', 'variance', 'covariance', 'local_invariance', 'local_variance', \
'local_covariance']
    """

    takes = ViewSpec(2, alike=2, kind="images", boxes=True, large_first=True)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        map_projector: nn.Module,
        alpha: float = 0.75,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        num_matches: tuple[int, int] = (20, 4),
        match_all_features: bool = True,
        flip_grid: bool = False,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)
        _check_map(backbone, map_projector)
        check_interval("alpha", alpha, 0, 1)
        for name, weight in (
            ("invariance_weight", invariance_weight),
            ("variance_weight", variance_weight),
            ("covariance_weight", covariance_weight),
        ):
            check_interval(name, weight, 0, math.inf, "[)")
        if not isinstance(num_matches, tuple | list) or len(num_matches) != 2:
            raise ValueError(f"num_matches must be two numbers from 1, got {num_matches}")
        for number in num_matches:
            check_whole("each of num_matches", number, 1)
        self.projector, self.map_projector = projector, map_projector
        self.alpha, self.num_matches = alpha, (num_matches[0], num_matches[1])
        self.invariance_weight, self.variance_weight = invariance_weight, variance_weight
        self.covariance_weight = covariance_weight
        self.match_all_features, self.flip_grid = match_all_features, flip_grid

    def embed(self, view: View) -> Tensor:
        """Global embedding. (B, C, H, W) -> (B, D)."""
        return self.projector(self.backbone(view))

    def embed_both(self, view: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Global embedding (B, D), local ones (B, h w, C), and the grid (h, w)."""
        m = cast(Any, self.backbone).forward_map(view)  # (B, map_features, h, w)
        z = self.projector(cast(Any, self.backbone).forward_from_map(m))
        local = self.map_projector(m.flatten(2).transpose(1, 2).flatten(0, 1))
        return z, local.unflatten(0, (len(m), -1)), (m.shape[2], m.shape[3])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z, maps, grids = zip(*(self.embed_both(view) for view in batch.views), strict=True)
        boxes = cast(Tensor, batch.boxes).unbind(1)
        centers = [crop_centers(*one, self.flip_grid) for one in zip(boxes, grids, strict=True)]
        whole = vicregl_global(z)
        local = vicregl_local(maps, centers, self.num_matches, self.match_all_features)
        a = self.alpha
        return {
            "invariance": a * self.invariance_weight * whole.invariance,
            "variance": a * self.variance_weight * whole.variance,
            "covariance": a * self.covariance_weight * whole.covariance,
            "local_invariance": (1 - a) * self.invariance_weight * local.invariance,
            "local_variance": (1 - a) * self.variance_weight * local.variance,
            "local_covariance": (1 - a) * self.covariance_weight * local.covariance,
        }


def _check_map(backbone: nn.Module, map_projector: nn.Module) -> None:
    for name in ("map_features", "forward_map", "forward_from_map"):
        if getattr(backbone, name, None) is None:
            raise ValueError(
                "backbone must have map_features, forward_map and forward_from_map (timm_backbone "
                "of a ResNet or ConvNeXt, cifar_resnet, SmallResNet), got "
                f"{type(backbone).__name__} without {name}"
            )
    width = getattr(map_projector, "in_features", None)
    if width != backbone.map_features:
        raise ValueError(
            f"map_projector must have in_features {backbone.map_features}, the channels of the "
            f"backbone's feature map, got {width}"
        )
