"""PerBlock: activation checkpointing and torch.compile of each transformer block.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.checkpoint import checkpoint

from sslzoo.callbacks.temporary import Temporary
from sslzoo.sharding import blocks_of, is_sharded


class PerBlock(Temporary):
    """Recompute or compile every transformer block of a module, of students and teachers alike.

    Parameters keep their names, and draws of dropout and drop path are those of the plain blocks.
    The blocks are those of `sslzoo.sharding.blocks_of`, which are also what `FullyShard` shards.
    At the end of the run they are plain again, unless they are sharded.

    Args:
        checkpointing: whether a block keeps its inputs only, and computes its activations a second
            time in the backward pass: a third more computation for memory that grows with the
            inputs of the blocks instead of all activations.
        compile: whether blocks are compiled, by `backend`.
        backend: see `torch.compile`; "inductor" needs a C++ compiler, or Triton on a GPU.

    Raises:
        ValueError: neither is asked for; at the start of fit, the module has no blocks.
    """

    def __init__(
        self, checkpointing: bool = True, compile: bool = False, backend: str = "inductor"
    ) -> None:
        if not checkpointing and not compile:
            raise ValueError("checkpointing or compile must be True for PerBlock, got neither")
        self.checkpointing, self.compile, self.backend = checkpointing, compile, backend
        self._plain: dict[nn.Module, type[nn.Module]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not is_sharded(pl_module):  # a second fit of a sharded module
            self.apply(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not is_sharded(pl_module):
            self.remove()

    def apply(self, module: nn.Module) -> None:
        """Change the blocks; without a Trainer, call it before the module is sharded or copied."""
        blocks = blocks_of(module)
        if not blocks:
            raise ValueError(
                f"the module must have transformer blocks for PerBlock, got {type(module).__name__}"
                " without them"
            )
        made: dict[type[nn.Module], type[nn.Module]] = {}
        for block in blocks:
            kind = type(block)
            self._plain[block] = kind
            block.__class__ = made[kind] = made.get(kind) or self._changed(kind)

    def remove(self) -> None:
        """Make the blocks plain again."""
        for block, kind in self._plain.items():
            block.__class__ = kind
        self._plain.clear()

    def _changed(self, kind: type[nn.Module]) -> type[nn.Module]:
        """A subclass of a block's class with another `forward`, and the same name."""
        forward: Callable[..., Any] = kind.forward
        if self.compile:
            # Inductor's own generator would make other draws than the plain block.
            options: Any = {"fallback_random": True} if self.backend == "inductor" else None
            forward = torch.compile(forward, backend=self.backend, options=options)
        if self.checkpointing:
            forward = _recomputed(forward)
        space = {"forward": forward, "__module__": kind.__module__}
        return type(kind.__name__, (kind,), {**space, "__qualname__": kind.__qualname__})


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def recomputed(self: nn.Module, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(self, *args, **options)

        def positional(*given: Any) -> Any:
            named = dict(zip(options, given[len(args) :], strict=True))
            return forward(self, *given[: len(args)], **named)

        # `checkpoint` keeps the generators of the devices of positional arguments alone.
        return checkpoint(positional, *args, *options.values(), use_reentrant=False)

    return recomputed
