"""Sharding: parameters, gradients and optimizer state split over the ranks (FSDP2).

Zhao et al., PyTorch FSDP, VLDB 2023, https://arxiv.org/abs/2304.11277; its second version,
`torch.distributed.fsdp.fully_shard`. Each transformer block is one unit, of students and teachers
alike, and the rest of a module another. A unit is gathered when it is used and freed again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from sslzoo.atomic_write import check_target, exchange, part_of, recover, remove, save_tensors
from sslzoo.distributed import broadcast_
from sslzoo.trust import is_folder_of_shards, outline
from sslzoo.trust.shards import EXTRA, WITH_EXTRA, read_index, version_of

# What is called from outside and uses parameters that are in no block.
_ENTRIES = ("training_step", "losses", "predict_step")
_OF_WHOLE_TENSORS = (torch.optim.Adafactor, torch.optim.LBFGS, torch.optim.Rprop)
_whole: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # units that `whole` has gathered


class FullyShard(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with all ranks in one data-parallel group.

    A checkpoint is the file that one process or DDP would save, which any of them can go on from,
    or a folder, which is written and read by all ranks at once; `sslzoo consolidate` makes such a
    file of it. Either can be resumed with another number of ranks. Only tensors and plain values
    are read.

    Args:
        save_distributed_checkpoint: whether to save folders.
        process_group_backend: backend of the collectives; None: nccl on GPUs, gloo on processors.
    """

    def __init__(
        self, save_distributed_checkpoint: bool = False, process_group_backend: str | None = None
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )
        self._shards: Path | None = None  # the folder that is being loaded
        self._version: Any = None  # of that folder

    # Parameters are sharded in `configure_model`, so a run is restored in the order of DDP: the
    # data module and the clock before loaders and optimizers are made.
    restore_checkpoint_after_setup = property(lambda self: False)  # type: ignore[assignment]
    lightning_restore_optimizer = property(lambda self: True)  # type: ignore[assignment]

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, _OF_WHOLE_TENSORS):
                raise ValueError(
                    "the optimizer must be another one for FullyShard, which shards its tensors, "
                    f"got {type(optimizer).__name__}, which needs whole ones"
                )

    def training_step(self, *args: Any, **options: Any) -> Any:
        assert self.lightning_module is not None
        _as_on_rank_0(self.lightning_module)
        return super().training_step(*args, **options)

    def validation_step(self, *args: Any, **options: Any) -> Any:
        assert self.lightning_module is not None
        _as_on_rank_0(self.lightning_module)
        return super().validation_step(*args, **options)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._saved(self.lightning_module.state_dict())  # type: ignore[no-any-return]

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._saved(getattr(optimizer, "_optimizer", optimizer).state_dict())  # type: ignore[no-any-return]

    def _saved(self, state: Any) -> Any:
        """A state whose tensors are whole, on rank 0 alone, unless a folder is saved."""
        if self._save_distributed_checkpoint:
            return state
        if isinstance(state, dict):
            return {name: self._saved(value) for name, value in state.items()}
        if isinstance(state, DTensor):
            whole = full(state.detach())
            return whole.cpu() if self.is_global_zero else whole.new_empty(0)
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        if not is_folder_of_shards(path):
            check_target(path)
        plain = dict(checkpoint)
        tensors: dict[str, Any] = {"state_dict": plain.pop("state_dict"), WITH_EXTRA: True}
        plain["optimizer_states"] = []
        for number, state in enumerate(checkpoint.get("optimizer_states", [])):
            split = {
                parameter: {n: v for n, v in values.items() if isinstance(v, Tensor)}
                for parameter, values in state["state"].items()
            }
            tensors[f"optimizer_{number}"] = {"state": split}
            rest = {
                parameter: {n: v for n, v in values.items() if not isinstance(v, Tensor)}
                for parameter, values in state["state"].items()
            }
            plain["optimizer_states"].append({**state, "state": rest})
        part = part_of(path)
        try:
            if self.is_global_zero:
                remove(part)
                part.mkdir(parents=True)
                save_tensors(plain, part / EXTRA, path)
            self.barrier()
            save(tensors, checkpoint_id=part)
            self.barrier()
            if self.is_global_zero:
                exchange(part, path)
        except CheckpointException as error:  # it is no Exception, and names every rank
            raise OSError(f"{path} could not be written: {_first(error)}") from error
        finally:
            if self.is_global_zero:
                remove(part)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        recover(path.parent)
        self._shards = path if is_folder_of_shards(path) else None
        if self._shards is not None:
            self._version = self.broadcast(version_of(path))
            return outline(path)
        return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only is not False)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        saved = checkpoint["state_dict"]
        if self._shards is not None:
            named = {name: torch.empty_like(value) for name, value in own.items() if name in saved}
            self._read_into({"state_dict": named}, self._shards)
            saved = {**saved, **named}
        module.load_state_dict({n: _placed(v, own.get(n)) for n, v in saved.items()}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for number, optimizer in enumerate(self.optimizers):
            given = checkpoint["optimizer_states"][number]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            keys = [key for group in given["param_groups"] for key in group["params"]]
            like = dict(zip(keys, parameters, strict=False))
            state = {
                key: {n: _placed(v, _shaped(v, like.get(key))) for n, v in values.items()}
                for key, values in given["state"].items()
            }
            if self._shards is not None:
                named = {
                    str(key): {n: v for n, v in values.items() if isinstance(v, Tensor)}
                    for key, values in state.items()
                }
                self._read_into({f"optimizer_{number}": {"state": named}}, self._shards)
            optimizer.load_state_dict({**given, "state": state})

    def _read_into(self, tensors: dict[str, Any], folder: Path) -> None:
        """Fill tensors from a folder, of which each rank reads its own shards.

        Raises:
            ValueError: the folder is another one than `load_checkpoint` read.
        """
        load(tensors, storage_reader=_Reader(folder))
        self.barrier()
        if self.broadcast(version_of(folder)) != self._version:
            raise ValueError(
                f"{folder} must stay as it is while it is loaded, but another run replaced it"
            )


def _first(error: CheckpointException) -> str:
    """The first rank's error, or the system's behind it, on one line."""
    first = next(iter(error.failures.values()))[0]
    return " ".join(str(first.__context__ or first).split())


def _shaped(value: Any, parameter: Tensor | None) -> Tensor | None:
    """The parameter if a value of its optimizer state has its shape, and is sharded like it."""
    same = isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape
    return parameter if same and value.ndim else None


def _placed(value: Any, like: Tensor | None) -> Any:
    """A whole tensor as the shards of another one; without values if it has none."""
    if not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    if value.is_meta:
        blank: Tensor = torch.empty_like(value, device="cpu")
        if not isinstance(like, DTensor):
            return blank
        return torch.empty_like(like, dtype=value.dtype).detach()
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


class _Reader(FileSystemReader):
    """torch's reader, with an index that names no code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        storage: dict[MetadataIndex, Any] = {}
        described: dict[str, Any] = {}
        for name, stored in read_index(Path(self.path)).items():
            if stored.dtype is None:
                continue
            parts = enumerate(stored.parts)
            storage |= {
                MetadataIndex(name, p.offset, i): _StorageInfo(p.file, p.start, p.length)
                for i, p in parts
            }
            described[name] = TensorStorageMetadata(
                TensorProperties(dtype=stored.dtype),
                torch.Size(stored.size),
                [
                    ChunkStorageMetadata(torch.Size(p.offset), torch.Size(p.size))
                    for p in stored.parts
                ],
            )
        return Metadata(described, None, storage, StorageMeta(load_id=self.load_id))


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a module and of its parts, such as a student and a teacher.

    A block is a child of a `ModuleList` or `Sequential` and has an attention inside, but no other
    block: in timm's ViTs and Swins, encoders of transformers, and our encoders of speech and text,
    decoders and predictors.
    """
    children = [
        child
        for parent in module.modules()
        if isinstance(parent, nn.ModuleList | nn.Sequential)
        for child in parent
    ]
    found = {child: None for child in children if _attends(child)}
    outer = {
        block for block in found if any(part in found for part in block.modules() if part != block)
    }
    return [block for block in found if block not in outer]


def _attends(module: nn.Module) -> bool:
    """Whether an attention is inside a module, which is more than an attention."""
    return not _is_attention(module) and any(
        _is_attention(part) or hasattr(part, "qkv") or hasattr(part, "attend")
        for part in module.modules()
    )


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "attention" in name or "attn" in name


def shard(module: LightningModule) -> None:
    """Shard a module over the data-parallel ranks of its trainer's strategy, once.

    All ranks begin with the weights and buffers of rank 0. Convolutions are stored contiguously.

    Raises:
        ValueError: two blocks, or a block and the rest, share a parameter.
    """
    if isinstance(module, FSDPModule):
        return
    mesh: Any = module.device_mesh
    blocks = blocks_of(module)
    _check_untied(module, blocks)
    _same_on_all_ranks(module, module.trainer.strategy.root_device)
    for unit in (*blocks, module):
        kind = type(unit)
        fully_shard(unit, mesh=mesh["data_parallel"])
        # The new class has the name of the old one, which errors, checks and records show.
        for name in ("__module__", "__name__", "__qualname__"):
            setattr(type(unit), name, getattr(kind, name))
    for entry in _ENTRIES:
        if hasattr(module, entry):
            register_fsdp_forward_method(module, entry)


def _check_untied(module: nn.Module, blocks: list[nn.Module]) -> None:
    """Refuse a parameter that two blocks, or a block and the rest, share."""
    modules = module.named_modules(remove_duplicate=False)
    within = {f"{name}.": part for name, part in modules if part in blocks}
    seen: dict[Tensor, tuple[nn.Module, str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        unit = next((block for start, block in within.items() if name.startswith(start)), module)
        first, known = seen.setdefault(parameter, (unit, name))
        if first is not unit:
            raise ValueError(
                f"blocks must have parameters of their own for FullyShard, got {name}, which is "
                f"also {known}; use another strategy"
            )


@torch.no_grad()
def _same_on_all_ranks(module: nn.Module, device: torch.device) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()  # channels last cannot be sharded
        tensor.copy_(broadcast_(tensor.detach().to(device)))


@torch.no_grad()
def _as_on_rank_0(module: nn.Module) -> None:
    """Overwrite the buffers that DDP would with rank 0's, before each step as it does.

    A user's network may have buffers that follow this rank's samples alone.
    """
    ignored = getattr(module, "_ddp_params_and_buffers_to_ignore", ())
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for name, buffer in module.named_buffers():
        if name not in ignored:
            by_type.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_type.values():
        flat = broadcast_(torch.cat([buffer.flatten() for buffer in buffers]))
        parts = zip(buffers, flat.split([b.numel() for b in buffers]), strict=True)
        torch._foreach_copy_(buffers, [part.view_as(buffer) for buffer, part in parts])


def is_sharded(module: nn.Module) -> bool:
    """Whether a module or a part of it has been sharded."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def refuse_sharding(strategy: Any, who: str, why: str) -> None:
    """Refuse a strategy that shards, for a callback that it would break.

    Raises:
        ValueError: names the callback and the reason.
    """
    if isinstance(strategy, FullyShard):
        raise ValueError(
            f"{who} must be omitted with {type(strategy).__name__}, which shards parameters, since "
            f"it {why}"
        )


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; other tensors themselves."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All ranks' parts of a sharded tensor, a collective; other tensors themselves."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Free what was gathered for a forward pass without a backward pass."""
    if isinstance(module, FSDPModule) and module not in _whole:
        module.reshard()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Context manager in which all parameters of a sharded module are gathered, for evaluation.

    Entering is a collective; inside, ranks may compute on different numbers of batches. Parameters
    must not change inside. Other modules are left as they are.
    """
    units = [part for part in module.modules() if isinstance(part, FSDPModule)]
    units = [unit for unit in units if unit not in _whole]
    if isinstance(module, FSDPModule):
        module._get_fsdp_state()._lazy_init()  # else a block would be taken for the root
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
        _whole.add(unit)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for unit in units:
            _whole.discard(unit)  # type: ignore[arg-type]
            unit.reshard()
            unit.set_reshard_after_forward(unit is not module, recurse=False)
