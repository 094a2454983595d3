"""Memory plan: what a config's training step needs per rank, computed without memory.

Networks, optimizer and one step of the losses are run on the meta device, which has shapes and no
numbers. Units are bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from lightning import LightningModule
from torch import Tensor

import sslzoo.data
from sslzoo.batch import Batch
from sslzoo.callbacks import PerBlock
from sslzoo.distributed import imagined_ranks
from sslzoo.optim import all_alike
from sslzoo.random import sample_keys
from sslzoo.runs.encoders import build_data
from sslzoo.sharding import blocks_of
from sslzoo.trainable import Trainable
from sslzoo.transforms import Views
from sslzoo.trust import build, undrawn


class MemoryPlan(NamedTuple):
    """Bytes per rank of one training step.

    Attributes:
        parameters: trained parameters.
        gradients: their gradients.
        optimizer: the optimizer's state.
        teacher: parameters that are not trained, a teacher's mostly.
        buffers: memories, centers and statistics, which every rank holds whole.
        gathered: whole parameters that a sharded step holds besides: those in no block, and twice
            the largest block; 0 without sharding.
        activations: what the forward pass keeps for the backward pass, in the types of the config's
            modules, thus without mixed precision, which about halves it.
    """

    parameters: int
    gradients: int
    optimizer: int
    teacher: int
    buffers: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum. Temporary tensors, and the libraries' own memory, come on top."""
        return sum(self)


def memory_plan(
    config: dict[str, Any],
    ranks: int = 1,
    sharded: bool = True,
    batch_size: int | None = None,
    checkpointing: bool = False,
    where: str = "the config",
) -> MemoryPlan:
    """Plan the memory of a config of images.

    Args:
        config: `model` and `data`, parsed.
        ranks: number of ranks.
        sharded: whether parameters are sharded (`FullyShard`), otherwise every rank has them whole.
        batch_size: samples of all ranks; None: the config's.
        checkpointing: whether blocks are recomputed (`PerBlock`).
        where: the config, for errors.

    Raises:
        ValueError: the config is not of images, or a number is below 1.
    """
    section = _filled(config["data"])
    size = batch_size or section["init_args"].get("batch_size", 256)
    if min(ranks, size // max(1, ranks)) < 1:
        raise ValueError(
            f"batch_size must be at least the number of ranks, 1 or more, got {size} and {ranks}"
        )
    with undrawn(), torch.device("meta"):
        method = cast(Trainable, build(config["model"], LightningModule, where))
    batch = _batch(build_data(section, where), method, -(-size // ranks), where)
    with imagined_ranks(ranks):
        return plan_of(method, batch, ranks if sharded else 1, checkpointing)


def plan_of(
    method: Trainable, batch: Batch, shards: int = 1, checkpointing: bool = False
) -> MemoryPlan:
    """Plan the memory of a method that is on the meta device.

    Args:
        method: it takes one step, in place.
        batch: this rank's batch, on the meta device.
        shards: number of ranks that share the parameters.
        checkpointing: see `memory_plan`.
    """
    trained = [p for p in method.parameters() if p.requires_grad]
    kept = [p for p in method.parameters() if not p.requires_grad]
    blocks = blocks_of(method)
    gathered = 0
    if shards > 1:
        inside = {p for block in blocks for p in block.parameters()}
        gathered = _bytes(p for p in method.parameters() if p not in inside)
        gathered += 2 * max((_bytes(block.parameters()) for block in blocks), default=0)
    activations = _activations(method, batch, checkpointing)
    if method._optimizer is None:
        raise ValueError(f"{type(method).__name__} must have an optimizer, got None")
    optimizer = method._optimizer(all_alike(method))  # groups do not change sizes
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = sum(
        _bytes([value], shards if value.shape == parameter.shape else 1)
        for parameter, values in optimizer.state.items()
        for value in values.values()
        if isinstance(value, Tensor)
    )
    weights = _bytes(trained, shards)
    return MemoryPlan(
        weights,
        weights,
        state,
        _bytes(kept, shards),
        _bytes(method.buffers()),
        gathered,
        activations,
    )


def _bytes(tensors: Iterable[Tensor], shards: int = 1) -> int:
    """Bytes on the rank with the largest shards: whole rows, as FSDP2 shards them."""
    total = 0
    for x in tensors:
        rows = x.shape[0] if x.ndim else 1
        share = x.numel() if shards == 1 or not x.ndim or not rows else x.numel() // rows
        total += share * x.element_size() * (1 if share == x.numel() else -(-rows // shards))
    return total


def _activations(method: Trainable, batch: Batch, checkpointing: bool) -> int:
    """Bytes of what the losses keep for the backward pass, each storage once."""
    known = {x.untyped_storage()._cdata for x in (*method.parameters(), *method.buffers())}
    held: list[Tensor] = []  # alive, so that no other storage takes its place

    def pack(x: Tensor) -> Tensor:
        held.append(x)
        return x

    blocks = PerBlock()
    if checkpointing:
        blocks.apply(method)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            terms = method.losses(batch)
    finally:
        blocks.remove()
    storages = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in held}
    del terms
    return sum(size for key, size in storages.items() if key not in known)


def _filled(section: dict[str, Any]) -> dict[str, Any]:
    """The config's data, with a name where the folder or file is given by the command."""
    arguments = dict(section.get("init_args", {}))
    known = getattr(sslzoo.data, section["class_path"].rpartition(".")[2], None)
    for name in {"root", "file"} & set(inspect.signature(known).parameters if known else arguments):
        arguments[name] = arguments.get(name) or "unused"
    return {**section, "init_args": arguments}


def _batch(data: Any, method: Trainable, rows: int, where: str) -> Batch:
    """A batch of `rows` samples by the transform of a data module of images, on the meta device."""
    transform = getattr(data, "transform", None)
    if not isinstance(transform, Views) or method.takes.kind not in ("any", "images"):
        raise ValueError(
            f"data of {where} must be a module of images alone, got {type(data).__name__} for "
            f"{type(method).__name__}"
        )
    channels = sum(transform.split) if transform.split else getattr(data, "channels", None) or 3
    image = torch.randint(0, 256, (1, channels, 40, 40), dtype=torch.uint8)
    keys = sample_keys(0, 0, torch.zeros(1, dtype=torch.int64))
    shown, boxes = transform(image, keys), transform.draw_boxes(keys, 40, 40)
    index = torch.arange(rows, device="meta")
    return Batch(
        [view.to("meta").expand(rows, *view.shape[1:]) for view in shown],
        index,
        index % 2,
        None if boxes is None else boxes.to("meta").expand(rows, *boxes.shape[1:]),
    )
