"""Build networks without random initial values, where a file replaces them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_INITIALIZING = {
    *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_, torch.Tensor.clamp_),
    *(torch.Tensor.mul_, torch.Tensor.add_, torch.Tensor.zero_, torch.Tensor.fill_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.constant_),
}


class undrawn(TorchFunctionMode):  # noqa: N801 - used as a function, like torch.no_grad
    """Skip what fills parameters in place, and on the meta device any tensor.

    Parameters have arbitrary values within it, and must be filled. On the meta device a
    draw takes a millisecond, and in memory draws take most of the time of building a large network.
    The state of torch's generator is the same after it as before.

    Example:
        >>> with undrawn(), torch.device("meta"):
        ...     net = nn.Linear(1000, 1000)
    """

    def __enter__(self) -> undrawn:
        self._state = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.set_rng_state(self._state)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _INITIALIZING:
            tensor: torch.Tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
            if isinstance(tensor, nn.Parameter):
                if func is torch.Tensor.normal_:  # torch's trunc_normal_ draws until all are small
                    return torch.Tensor.zero_(tensor)
                return tensor
        return func(*args, **(kwargs or {}))
