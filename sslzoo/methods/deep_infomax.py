"""Deep InfoMax: learning deep representations by mutual information estimation and maximization.

Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler and Bengio, ICLR 2019,
https://arxiv.org/abs/1808.06670.
Reference code: rdevon/DIM, commit bac4765.

Deviations:
    1. The Donsker-Varadhan bound is the paper's formula; the code's is another value, where it
       runs at all (`losses.dim_donsker_varadhan`).
    2. One optimizer step for everything; in the code each network's optimizer steps by itself,
       on a loss of its own. The discriminator's term sees detached features, the encoder's goes
       through detached parameters, so that the gradients are the same.
    3. One `summary_head` serves the local and the global term; the code has one for each (it
       matters only where both weights are above 0).
    4. `forward` gives the backbone's features (the paper's "fc"); the paper also evaluates the
       last convolution and Y (`embed`).
    5. Batch norm in the encodings and the encoder is over the global batch, as theirs on one GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from sslzoo.batch import Batch, View
from sslzoo.heads import MI1x1ConvNet, PriorDiscriminator
from sslzoo.losses import dim_fenchel_dual, discriminator_loss, generator_loss, gradient_penalty
from sslzoo.methods.base import (
    GroupsFactory,
    OptimizerFactory,
    SSLMethod,
    output_dim,
    step_keys,
)
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys


class DeepInfoMax(SSLMethod):
    """A summary of the image tells its own places from those of other images.

    Args:
        backbone: with `forward_map` (B, C, H, W) -> (B, map_features, h, w), the paper's local
            features, and `forward_from_map` to the features.
        projector: num_features -> Y, the summary: one Linear to 64 in the code.
        summary_head: psi, encodes Y: (B, 64) -> D numbers each (`heads.MI1x1ConvNet`; one Linear
            in the code's DIM(G)).
        local_head: phi of the local term: the map -> (B, D, h w) (`heads.MI1x1ConvNet`).
        global_head: phi of the global term: the map -> (B, D) (`heads.MapEncoder`).
        discriminator: of the prior U(0, 1) on sigmoid(Y) (`heads.PriorDiscriminator`). Without any
            of the last three the method is DIM(L), with a local head and a discriminator of the
            code's sizes.
        bound: a loss of the encodings: `losses.dim_fenchel_dual` (Jensen-Shannon),
            `losses.dim_info_nce` or `losses.dim_donsker_varadhan`.
        local_weight: beta; DIM(L) has 1, DIM(G) 0.
        global_weight: alpha; DIM(L) has 0, DIM(G) 1 (reported).
        prior_weight: gamma; 0.1 for DIM(L) in the repository's README, 1 for DIM(G) (reported).
        optimizer: see `SSLMethod`; Adam at 1e-4 in the code.
        schedule: see `SSLMethod`; none in the code.
        parameter_groups: see `SSLMethod`; nothing is decayed in the code.

    Example:
        >>> import torch
        >>> from sslzoo.backbones import SmallResNet
        >>> from sslzoo.heads import MapEncoder, MI1x1ConvNet
        >>> method = DeepInfoMax(
        ...     SmallResNet((8, 16), map_block=1),
        ...     projector=nn.Linear(16, 6),
        ...     summary_head=MI1x1ConvNet(6, 8),
        ...     local_head=MI1x1ConvNet(16, 8),
        ...     global_head=MapEncoder(16, 4, 8),
        ...     discriminator=PriorDiscriminator(6, (16, 8)),
        ...     global_weight=0.5,
        ... )
        >>> batch = Batch([torch.rand(4, 3, 8, 8)], index=torch.arange(4))
        >>> list(method.losses(batch))
        ['local', 'global', 'prior', 'discriminator']
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        summary_head: nn.Module,
        local_head: nn.Module | None = None,
        global_head: nn.Module | None = None,
        discriminator: PriorDiscriminator | None = None,
        bound: Callable[[Tensor, Tensor], Tensor] = dim_fenchel_dual,
        local_weight: float = 1.0,
        global_weight: float = 0.0,
        prior_weight: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = all_alike,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        _check_maps(backbone)
        output_dim(backbone, projector, summary_head)
        if local_head is None and global_head is None and discriminator is None:
            maps, summary, units = (cast(Any, m) for m in (backbone, projector, summary_head))
            if local_weight > 0:
                local_head = MI1x1ConvNet(maps.map_features, units.out_features)
            if prior_weight > 0:
                discriminator = PriorDiscriminator(summary.out_features)
        self.projector, self.summary_head = projector, summary_head
        self.local_head = _with_weight("local", local_head, local_weight)
        self.global_head = _with_weight("global", global_head, global_weight)
        _with_weight("prior", discriminator, prior_weight)
        self.discriminator = discriminator
        _check_encodings(backbone, projector, summary_head, local_head, global_head, discriminator)
        if local_head is None and global_head is None:
            raise ValueError("nothing to maximize: local_weight and global_weight are both 0")
        self.bound = bound
        self.local_weight, self.global_weight = local_weight, global_weight
        self.prior_weight = prior_weight

    def embed(self, view: View) -> Tensor:
        """The summary Y. (B, C, H, W) -> (B, 64)."""
        return self.projector(self.backbone(view))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        backbone: Any = self.backbone
        m = backbone.forward_map(batch.views[0])  # (B, C, h, w)
        y = self.projector(backbone.forward_from_map(m))  # (B, Y)
        psi = _one_place(self.summary_head(y))  # (B, D, 1)
        terms: dict[str, Tensor] = {}
        if self.local_head is not None:
            terms["local"] = self.local_weight * self.bound(self.local_head(m), psi)
        if self.global_head is not None:
            phi = _one_place(self.global_head(m))
            terms["global"] = self.global_weight * self.bound(phi, psi)
        if self.discriminator is not None:
            terms |= self.prior(self.discriminator, y, step_keys(self, batch))
        return terms

    def prior(self, d: PriorDiscriminator, y: Tensor, keys: Keys) -> dict[str, Tensor]:
        """sigmoid(Y) is to look like U(0, 1) to d, which learns to tell them apart."""
        fake = y.sigmoid()
        real, seen = keys.uniform("prior", y.shape[1]).to(fake.dtype), fake.detach()
        penalty = gradient_penalty(d.slope(real)) + gradient_penalty(d.slope(seen))
        return {
            "prior": self.prior_weight * generator_loss(d.frozen(fake)),
            "discriminator": discriminator_loss(d(real), d(seen)) + d.penalty / 2 * penalty,
        }


def _one_place(x: Tensor) -> Tensor:
    """Encodings of whole images, (B, D) or (B, D, 1), as (B, D, 1)."""
    return x.flatten(1)[:, :, None]


def _check_maps(backbone: nn.Module) -> None:
    for name in ("map_features", "forward_map", "forward_from_map"):
        if getattr(backbone, name, None) is None:
            raise ValueError(
                "DeepInfoMax wants a backbone with map_features, forward_map and "
                "forward_from_map (SmallResNet, dim_convnet, staged_cifar_resnet or a Staged of "
                f"your own), {type(backbone).__name__} has no {name}"
            )


def _with_weight(name: str, head: nn.Module | None, weight: float) -> nn.Module | None:
    if weight < 0 or (head is not None) != (weight > 0):
        has = "none" if head is None else type(head).__name__
        raise ValueError(
            f"the {name} term's module and a {name}_weight above 0 come together, got {has} and "
            f"{weight}"
        )
    return head


def _check_encodings(
    backbone: Any,
    projector: Any,
    summary_head: Any,
    local_head: Any,
    global_head: Any,
    discriminator: Any,
) -> None:
    if local_head is not None and local_head.in_features != backbone.map_features:
        raise ValueError(
            f"local_head takes {local_head.in_features} features and the backbone's map has "
            f"{backbone.map_features}"
        )
    for head in (local_head, global_head):
        if head is not None and head.out_features != summary_head.out_features:
            raise ValueError(
                f"scores are dot products: {type(head).__name__} gives {head.out_features} "
                f"features and summary_head {summary_head.out_features}"
            )
    if discriminator is not None and discriminator.in_features != projector.out_features:
        raise ValueError(
            f"the discriminator takes {discriminator.in_features} features and the projector "
            f"gives {projector.out_features}"
        )
