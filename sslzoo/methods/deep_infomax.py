"""Deep InfoMax: learning deep representations by mutual information estimation and maximization.

Hjelm, Fedorov, Lavoie-Marchildon, Grewal, Bachman, Trischler and Bengio, ICLR 2019,
https://arxiv.org/abs/1808.06670.
Reference code: rdevon/DIM, commit bac4765.

Deviations:
    1. The Donsker-Varadhan bound is the paper's formula. The code applies its mask of images along
       the axes of locations: it only runs with equal numbers of images, locations and summaries,
       and then its value differs (3.230 instead of 0.021 with five of each, see
       `losses.dim_donsker_varadhan`).
    2. One optimizer updates all networks in one step; in the code each network has its own
       optimizer and loss. The discriminator's term has detached features and the encoder's term
       detached parameters, so that the gradients are the same.
    3. One `summary_head` serves the local and the global term; the code has one per term. This
       matters only if both weights are above 0.
    4. `forward` returns the backbone's features (the paper's "fc"); the paper also evaluates the
       last convolution and Y (`embed`).
    5. Batch norm is over the global batch; the code runs on one GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from sslzoo.batch import Batch, View, ViewSpec
from sslzoo.heads import MI1x1ConvNet, PriorDiscriminator
from sslzoo.losses import dim_fenchel_dual, discriminator_loss, generator_loss, gradient_penalty
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, SSLMethod, output_dim, step_keys
from sslzoo.optim import Schedule, all_alike
from sslzoo.random import Keys


class DeepInfoMax(SSLMethod):
    """Maximize the mutual information of an image's summary and its feature map.

    The objective is the paper's equation 8: alpha times the global term, beta times the local term
    (the mean over locations), gamma times the adversarial prior.

    Args:
        backbone: f after C, with `forward_map` (B, C, H, W) -> (B, map_features, h, w), the
            paper's C, and `forward_from_map`, from the feature map to num_features.
        projector: num_features -> Y, the summary E(x): one Linear to 64 in the code.
        summary_head: psi, encodes Y: (B, 64) -> (B, D) (`heads.MI1x1ConvNet`; one Linear in the
            code's DIM(G)).
        local_head: phi of the local term, feature map -> (B, D, h w) (`heads.MI1x1ConvNet`).
        global_head: phi of the global term, feature map -> (B, D) (`heads.MapEncoder`).
        discriminator: separates the prior U(0, 1) from sigmoid(Y) (`heads.PriorDiscriminator`).
            If the last three arguments are None, the method is DIM(L) with a local head and a
            discriminator of the code's sizes.
        bound: the mutual information bound, as a loss of phi and psi: `losses.dim_fenchel_dual`
            (Jensen-Shannon), `losses.dim_info_nce` or `losses.dim_donsker_varadhan`.
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

    takes = ViewSpec(1, 1, kind="images")

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
        _check_backbone(backbone)
        output_dim(backbone, projector, summary_head)
        if local_head is None and global_head is None and discriminator is None:
            if local_weight > 0:
                channels = cast(Any, backbone).map_features
                local_head = MI1x1ConvNet(channels, cast(Any, summary_head).out_features)
            if prior_weight > 0:
                discriminator = PriorDiscriminator(cast(Any, projector).out_features)
        _check_term("local", local_head, local_weight)
        _check_term("global", global_head, global_weight)
        _check_term("prior", discriminator, prior_weight)
        if local_head is None and global_head is None:
            raise ValueError(
                "local_weight or global_weight must be above 0: without both terms there is "
                "nothing to maximize, got 0 and 0"
            )
        _check_widths(backbone, projector, summary_head, local_head, global_head, discriminator)
        self.projector, self.summary_head = projector, summary_head
        self.local_head, self.global_head = local_head, global_head
        self.discriminator = discriminator
        self.bound = bound
        self.local_weight, self.global_weight = local_weight, global_weight
        self.prior_weight = prior_weight

    def embed(self, view: View) -> Tensor:
        """The summary Y. (B, C, H, W) -> (B, 64)."""
        return self.projector(self.backbone(view))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        alpha, beta = self.global_weight, self.local_weight
        c, y = self.encode(batch.views[0])  # C_psi(x) and E_psi(x): (B, C, h, w), (B, Y)
        psi = _vector(self.summary_head(y))  # (B, D, 1)
        terms: dict[str, Tensor] = {}
        if self.local_head is not None:
            terms["local"] = beta * self.bound(self.local_head(c), psi)  # phi: (B, D, h w)
        if self.global_head is not None:
            terms["global"] = alpha * self.bound(_vector(self.global_head(c)), psi)
        if self.discriminator is not None:
            terms |= self.prior_matching(self.discriminator, y, step_keys(self, batch))
        return terms

    def encode(self, x: View) -> tuple[Tensor, Tensor]:
        """Feature map C(x) and summary E(x) = f(C(x)). (B, C, h, w) and (B, Y)."""
        backbone: Any = self.backbone
        c = backbone.forward_map(x)
        return c, self.projector(backbone.forward_from_map(c))

    def prior_matching(self, d: PriorDiscriminator, y: Tensor, keys: Keys) -> dict[str, Tensor]:
        """Adversarial terms: d separates U(0, 1) from sigmoid(Y), the encoder matches it."""
        gamma = self.prior_weight
        fake = y.sigmoid()  # (B, Y)
        real, detached = keys.uniform("prior", y.shape[1]).to(fake.dtype), fake.detach()
        penalty = gradient_penalty(d.input_gradient(real))
        penalty = penalty + gradient_penalty(d.input_gradient(detached))
        return {
            "prior": gamma * generator_loss(d.frozen(fake)),
            "discriminator": discriminator_loss(d(real), d(detached)) + d.penalty / 2 * penalty,
        }


def _vector(x: Tensor) -> Tensor:
    """Encodings of whole images, (B, D) or (B, D, 1), as (B, D, 1)."""
    return x.flatten(1)[:, :, None]


def _check_backbone(backbone: nn.Module) -> None:
    for name in ("map_features", "forward_map", "forward_from_map"):
        if getattr(backbone, name, None) is None:
            raise ValueError(
                "backbone must have map_features, forward_map and forward_from_map (SmallResNet, "
                "dim_convnet, staged_cifar_resnet or a Staged of your own), got "
                f"{type(backbone).__name__} without {name}"
            )


def _check_term(name: str, module: nn.Module | None, weight: float) -> None:
    if weight < 0 or (module is not None) != (weight > 0):
        got = "None" if module is None else type(module).__name__
        raise ValueError(
            f"the {name} term must have both a module and a {name}_weight above 0, or neither, got "
            f"{got} and {weight}"
        )


def _check_widths(
    backbone: Any,
    projector: Any,
    summary_head: Any,
    local_head: Any,
    global_head: Any,
    discriminator: Any,
) -> None:
    if local_head is not None and local_head.in_features != backbone.map_features:
        raise ValueError(
            f"local_head must have in_features {backbone.map_features}, the channels of the "
            f"backbone's feature map, got {local_head.in_features}"
        )
    for head in (local_head, global_head):
        if head is not None and head.out_features != summary_head.out_features:
            raise ValueError(
                f"{type(head).__name__} must have out_features {summary_head.out_features}, those "
                f"of summary_head, since scores are dot products, got {head.out_features}"
            )
    if discriminator is not None and discriminator.in_features != projector.out_features:
        raise ValueError(
            f"discriminator must have in_features {projector.out_features}, the width of the "
            f"projector, got {discriminator.in_features}"
        )
