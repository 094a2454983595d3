"""Replace the batch norms of a network by global batch norms, or by group norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from timm.layers import StdConv2d
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslzoo.layers.batch_norm import GlobalBatchNorm

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_WITH_ACTIVATION = (BatchNormAct2d, SyncBatchNormAct)


def convert_batch_norm(module: nn.Module, groups: int = 1) -> nn.Module:
    """Replace every batch norm of `module` by a `GlobalBatchNorm`, in place.

    Parameters, buffers, their names and the mode are kept, as is the activation of timm's
    BatchNormAct2d.

    Args:
        module: any network.
        groups: groups of the global batch, see `GlobalBatchNorm`.

    Returns:
        `module`, or its replacement if it is a batch norm.

    Raises:
        ValueError: a batch norm is of an unknown class.
    """
    return _convert(module, partial(_global, groups=groups), {})


def convert_to_group_norm(module: nn.Module, groups: int = 16) -> nn.Module:
    """Replace batch norm by group norm and standardize the convolutions' weights, in place.

    Richemond et al., "BYOL works even without batch statistics", 2020,
    https://arxiv.org/abs/2010.10241. Every torch.nn.Conv2d becomes timm's StdConv2d, whose filters
    have mean 0 and variance 1 (Qiao et al., 2019, https://arxiv.org/abs/1903.10520). Parameters and
    their names are kept, running statistics are dropped.

    Args:
        module: any network, before it is given to an optimizer.
        groups: groups of channels; it must divide the channels of every batch norm.

    Returns:
        `module`, or its replacement if it is a batch norm or a convolution.

    Raises:
        ValueError: a batch norm has an activation, or its channels are not a multiple of `groups`.
    """
    return _convert(module, partial(_batch_independent, groups=groups), {})


def _convert(
    module: nn.Module,
    replace: Callable[[nn.Module], nn.Module],
    done: dict[nn.Module, nn.Module],
) -> nn.Module:
    if module not in done:
        done[module] = replace(module)
        if done[module] is module:
            for name, child in module._modules.items():
                if child is not None:
                    setattr(module, name, _convert(child, replace, done))
    return done[module]


def _batch_independent(old: nn.Module, groups: int) -> nn.Module:
    if type(old) is nn.Conv2d:
        conv = StdConv2d(
            old.in_channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.dilation,
            old.groups,
            bias=False,
            device="meta",  # no random initialization, since the weights are the old ones
        )
        conv.weight, conv.bias = old.weight, old.bias
        return conv.train(old.training)
    if not isinstance(old, _BatchNorm):
        return old
    acts = getattr(old, "drop", None) is not None or getattr(old, "act", None) is not None
    if type(old) not in (*_PLAIN, GlobalBatchNorm) or acts:
        known = "torch's or a GlobalBatchNorm without activation"
        raise ValueError(f"a batch norm must be {known}, got {type(old).__qualname__}")
    if old.num_features % groups:
        raise ValueError(f"groups must divide the {old.num_features} channels, got {groups}")
    norm = nn.GroupNorm(groups, old.num_features, old.eps, affine=False)
    norm.affine, norm.weight, norm.bias = old.affine, old.weight, old.bias
    return norm.train(old.training)


def _global(old: nn.Module, groups: int) -> nn.Module:
    if not isinstance(old, _BatchNorm):
        return old
    if type(old) not in (*_PLAIN, *_WITH_ACTIVATION, GlobalBatchNorm):
        known = "torch's, timm's BatchNormAct2d or a GlobalBatchNorm"
        raise ValueError(f"a batch norm must be {known}, got {type(old).__qualname__}")
    new = GlobalBatchNorm(
        old.num_features,
        old.eps,
        old.momentum,
        affine=False,
        track_running_stats=False,
        groups=groups,
        drop=getattr(old, "drop", None),
        act=getattr(old, "act", None),
    )
    new.affine, new.track_running_stats = old.affine, old.track_running_stats
    new.weight, new.bias = old.weight, old.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        new.register_buffer(name, getattr(old, name))
    return new.train(old.training)
