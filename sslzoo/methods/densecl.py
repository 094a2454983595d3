"""DenseCL: dense contrastive learning for self-supervised visual pre-training.

Wang, Zhang, Shen, Kong and Li, CVPR 2021, https://arxiv.org/abs/2011.09157.
Reference code: WXinlong/DenseCL at b64bbb6.

Deviations:
    1. The shuffle is a keyed permutation of the global batch; the code broadcasts torch.randperm of
       rank 0.
    2. Batch norm "per GPU" is `bn_groups` of the backbone, for any number of GPUs; running
       statistics average over groups, the code saves those of rank 0.
    3. The queues are updated after the optimizer step, with the keys of all micro-batches of a
       gradient accumulation; the code updates them in the forward pass.
    4. The queues may have any size; the code requires a multiple of the global batch.
    5. The default temperature is 0.2, that of the authors' configs; the default of the code's head
       is 0.1.
    6. There is no `num_grid`; the code's option pools the dense projections but not the map by
       which they are matched, so that it fails unless it is the map's own side.
    7. Half precision is bfloat16 in our recipes; the code has none.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import check_pooling
from sslzoo.batch import Batch, ViewSpec
from sslzoo.callbacks.ema import EMA
from sslzoo.callbacks.memory import CommitMemory
from sslzoo.checks import check_interval, check_positive
from sslzoo.layers import encode_shuffled
from sslzoo.layers.precision import l2_normalize
from sslzoo.losses import dense_info_nce, dense_matches, info_nce
from sslzoo.memory import Queue
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    frozen_copy,
    output_dim,
    step_permutation,
)
from sslzoo.optim import Schedule, all_alike, as_schedule


class Dense(NamedTuple):
    """What an encoder makes of B images whose feature map has S positions.

    Attributes:
        vector: (B, D) normalized global projections.
        grid: (B, S, E) normalized dense projections.
        pooled: (B, E) normalized means of the dense projections before they are normalized.
        features: (B, S, C) the backbone's map.
    """

    vector: Tensor
    grid: Tensor
    pooled: Tensor
    features: Tensor


class DenseCL(SSLMethod):
    """Contrast images as MoCo does, and each position of the map with its match in the other view.

    Args:
        backbone: f, whose `forward_map` (B, C, H, W) -> (B, num_features, h, w) is its map before
            the pooling; its `bn_groups` stands for the number of GPUs, 8 in the paper.
        projector: num_features -> D of the pooled map: Linear-ReLU-Linear of widths 2048 and 128 in
            the paper.
        dense_projector: num_features -> E at each position: 1x1 convolutions of the same widths in
            the paper, here Linears.
        queue_size: K of both queues; 65536 in the paper. One has global keys, the other the pooled
            dense keys, one per image.
        temperature: tau; 0.2 in the authors' configs.
        momentum: m of the key encoder at each optimizer step; 0.999 in the paper.
        dense_weight: lambda, the weight of the dense term; the global term has 1 - lambda; 0.5 in
            the paper.
        shuffle: whether keys are computed on a permutation of the global batch, see `MoCo`.
        optimizer: see `SSLMethod`; SGD in the paper.
        schedule: see `SSLMethod`; a cosine by epoch in the paper.
        parameter_groups: see `SSLMethod`; all parameters are decayed in the code.

    Example:
        >>> from sslzoo.backbones import SmallResNet
        >>> backbone = SmallResNet((8, 16), bn_groups=2)
        >>> method = DenseCL(backbone, nn.Linear(16, 8), nn.Linear(16, 6), queue_size=20)
        >>> views = [torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)]
        >>> batch = Batch(views, index=torch.arange(4))
        >>> list(method.losses(batch))
        ['global', 'dense']
    """

    takes = ViewSpec(2, 2, kind="images")

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        dense_projector: nn.Module,
        queue_size: int = 65536,
        temperature: float = 0.2,
        momentum: Schedule | float = 0.999,
        dense_weight: float = 0.5,
        shuffle: bool = True,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        _check_backbone(backbone)
        check_positive("temperature", temperature)
        check_interval("dense_weight", dense_weight, 0, 1)
        self.queue = Queue(queue_size, output_dim(backbone, projector))
        self.dense_queue = Queue(queue_size, output_dim(backbone, dense_projector))
        self.projector, self.dense_projector = projector, dense_projector
        self.key_backbone, self.key_projector = frozen_copy(backbone), frozen_copy(projector)
        self.key_dense_projector = frozen_copy(dense_projector)
        self.temperature, self.momentum = temperature, as_schedule(momentum, "momentum")
        self.dense_weight, self.shuffle = dense_weight, shuffle

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [
            (self.backbone, self.key_backbone),
            (self.projector, self.key_projector),
            (self.dense_projector, self.key_dense_projector),
        ]

    def configure_callbacks(self) -> list[Callback]:
        return [EMA(self.momentum, when="before_forward"), CommitMemory()]

    def embed(self, view: Tensor) -> Tensor:
        """L2-normalized global queries. (B, C, H, W) -> (B, D)."""
        return self.queries(view).vector

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        v1, v2 = batch.views
        q, k, T, weight = self.queries(v1), self.keys(v2), self.temperature, self.dense_weight
        whole = info_nce(q.vector, k.vector, self.queue.read(), T)
        matches = dense_matches(q.features, k.features)  # (B, S)
        dense = dense_info_nce(q.grid, k.grid, matches, self.dense_queue.read(), T)
        self.queue.stage(k.vector)
        self.dense_queue.stage(k.pooled)
        return {"global": (1 - weight) * whole, "dense": weight * dense}

    def queries(self, view: Tensor) -> Dense:
        """Encode by the trained network. Shapes: (B, C, H, W), see `Dense`."""
        return _encode(self.backbone, self.projector, self.dense_projector, view)

    @torch.no_grad()
    def keys(self, view: Tensor) -> Dense:
        """Encode by the momentum network, with batch norm over shuffled groups. See `Dense`."""

        def encode(rows: Tensor) -> Dense:
            heads = self.key_projector, self.key_dense_projector
            return _encode(self.key_backbone, *heads, rows)

        if not self.shuffle:
            return encode(view)
        return Dense(*encode_shuffled(encode, view, step_permutation(self, "keys", view.device)))


def _encode(
    backbone: nn.Module, projector: nn.Module, dense_projector: nn.Module, view: Tensor
) -> Dense:
    m = cast(Any, backbone).forward_map(view)  # (B, C, h, w)
    if m.shape[2] * m.shape[3] < 2:
        raise ValueError(
            "the feature map must have more than one position to match, got 1 x 1 of views of "
            f"{view.shape[2]} x {view.shape[3]} pixels; use larger views or a backbone of smaller "
            "stride"
        )
    features = m.flatten(2).transpose(1, 2)  # (B, S, C)
    grid = dense_projector(features.flatten(0, 1)).unflatten(0, features.shape[:2])  # (B, S, E)
    vector, pooled = projector(m.mean((2, 3))), grid.mean(1)
    return Dense(l2_normalize(vector), l2_normalize(grid), l2_normalize(pooled), features)


def _check_backbone(backbone: nn.Module) -> None:
    """Refuse a backbone whose map is not what its features are pooled from."""
    name = type(backbone).__name__
    if not callable(getattr(backbone, "forward_map", None)):
        raise ValueError(
            "backbone must have forward_map, (B, C, H, W) -> (B, num_features, h, w), as "
            f"timm_backbone, cifar_resnet with a map and SmallResNet have, got {name} without it"
        )
    if getattr(backbone, "pool", None) == "token":
        raise ValueError(
            "backbone must pool its map, since the class token would not be trained, got pool "
            f"'token' of {name}; set pool: mean"
        )
    check_pooling(backbone)
    channels, width = (getattr(backbone, key, None) for key in ("map_features", "num_features"))
    if channels not in (None, width):
        raise ValueError(
            "map_features of the backbone must be its num_features, since the map is pooled to "
            f"the features, got {channels} and {width}"
        )
    blocks: Any = getattr(backbone, "blocks", ())
    if getattr(backbone, "map_block", len(blocks)) != len(blocks):
        raise ValueError(
            "map_block of the backbone must be its last block, since others would not be trained, "
            f"got {backbone.map_block} of {len(blocks)}"
        )
