"""Host synchronizations of a step, counted on fake cuda tensors: no GPU is needed.

Fake tensors have a device and no data, so a read of a value on the host fails or is seen here.
The autograd engine asks torch's build for a real device, hence the walk of the graph by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "cuda"
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
_COPIES = {"_to_copy", "copy_"}


class _Recorder(TorchDispatchMode):
    """Names of the operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        boolean = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in _READS or boolean:
            self.found.append(name)
        out = func(*args, **kwargs)
        if name in _COPIES and not kwargs.get("non_blocking", False):
            source = args[1] if name == "copy_" else args[0]
            if source.device.type != out.device.type:
                self.found.append(f"{name} {source.device.type} -> {out.device.type}")
        return out


class Operations(TorchDispatchMode):
    """How many operations a device would be given, and how many bytes the largest results have."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in ("device", "empty", "empty_like", "new_empty")):
            self.count += 1
            if isinstance(out, Tensor):
                self.largest = max(self.largest, out.numel() * out.element_size())
        return out


def fake(x: Tensor, device: str = DEVICE) -> Tensor:
    """A fake tensor of the same form; inside a FakeTensorMode."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)


def fake_tensors(module: nn.Module, device: str = DEVICE) -> None:
    """Put fake tensors in the place of the module's own; inside a FakeTensorMode."""
    made: dict[int, nn.Parameter] = {}  # a parameter that two modules share stays one
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in made:
                wanted = parameter.requires_grad
                made[id(parameter)] = nn.Parameter(fake(parameter, device), wanted)
            part._parameters[name] = made[id(parameter)]
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = fake(buffer, device)


def _backward(loss: Tensor) -> None:
    """What loss.backward() would run, without the engine; gradients are not kept."""
    order: list[Any] = []
    seen: set[Any] = set()

    def visit(node: Any) -> None:
        if node is None or node in seen:
            return
        seen.add(node)
        for following, _ in node.next_functions:
            visit(following)
        order.append(node)

    visit(loss.grad_fn)
    grads: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in reversed(order):
        if "AccumulateGrad" in node.name() or node not in grads:
            continue
        incoming = grads.pop(node)
        inputs = [incoming.get(i) for i in range(len(node._input_metadata))]
        out = node.apply(*inputs) if hasattr(node, "apply") else node(*inputs)
        results = out if isinstance(out, tuple) else (out,)
        for (following, slot), grad in zip(node.next_functions, results, strict=False):
            if following is not None and grad is not None:
                # As the engine does: what was broadcast forwards is summed backwards.
                grad = grad.sum_to_size(following._input_metadata[slot].shape)
                slots = grads.setdefault(following, {})
                wanted = following._input_metadata[slot].shape  # the engine undoes broadcasts
                grad = grad if grad.shape == wanted else grad.sum_to_size(wanted)
                slots[slot] = slots[slot] + grad if slot in slots else grad


def syncs(
    step: Callable[..., Tensor | None], *args: Any, make: Callable[..., Any] | None = None
) -> list[str]:
    """Synchronizing operations in `step(*args)` and, where it gives a loss, in its backward.

    Args:
        step: makes its own tensors, on `DEVICE`.
        args: passed on; no tensors.
        make: where given, `step(make(*args))` is run and what `make` does is not counted:
            it builds a module, under `torch.device(DEVICE)`.
    """
    # Each operation of a fake mode asks for devices, which takes an eighth of the time.
    with mock.patch("torch.cuda.is_available", return_value=False), FakeTensorMode():
        if make is not None:
            with torch.device(DEVICE):
                args = (make(*args),)
        with _Recorder() as recorder:
            try:
                loss = step(*args)
                if loss is not None:
                    _backward(loss)
            except Exception as error:
                name = type(error).__name__
                if not name.startswith(("DataDependent", "DynamicOutput")):
                    raise
                recorder.found.append(str(error))
    return recorder.found
