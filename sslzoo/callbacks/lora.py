"""LoRA: train low-rank additions to the linear layers of an encoder, through peft.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022,
https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sslzoo.callbacks.freeze import with_teacher
from sslzoo.checks import check_at_least, check_interval, check_positive
from sslzoo.sharding import refuse_sharding

_ADAPTER = "default"  # peft's name
_OWN = re.compile(r"(?:lora_\w+|base_layer)\.")  # what peft adds to the names of a layer


class LoRA(Callback):
    """Freeze an encoder, and train additions of low rank to its linear layers.

    The layers are wrapped before the optimizer is made, and so are those of the teacher's copy,
    which `EMA` moves. `state_dict` of the method has merged weights with their plain names, so
    checkpoints, `encoder()`, export and the zoo need no peft; the factors and the frozen weights
    are in the callback's state, from which a run resumes. At the end of the run, the layers are
    plain again, with merged weights.

    Args:
        rank: r, the rank of each addition.
        alpha: additions are multiplied by alpha / r; None: 2 r.
        layers: last parts of the names of the linear layers, such as ["qkv", "proj"]; None: all.
        dropout: dropout probability of the additions' input.
        module: name of the encoder within the method.

    Raises:
        ValueError: peft is not installed, or no linear layer has such a name.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        layers: Sequence[str] | None = None,
        dropout: float = 0.0,
        module: str = "backbone",
    ) -> None:
        check_at_least("rank", rank, 1)
        check_interval("dropout", dropout, 0, 1, "[)")
        self.alpha = 2.0 * rank if alpha is None else alpha
        check_positive("alpha", self.alpha)
        self.rank, self.dropout, self.module = rank, dropout, module
        self.layers = None if layers is None else list(layers)
        self._wrapped: list[tuple[nn.Module, list[str]]] = []  # encoder and names of its layers
        self._frozen: list[nn.Parameter] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharding(trainer.strategy, "LoRA", "merges whole weights")
        if stage == "fit":
            self.wrap(pl_module)

    def wrap(self, method: nn.Module) -> None:
        """Wrap the layers; without a Trainer, call it before the optimizer is made."""
        inject, config = _peft()
        self.merge()  # of a run that failed
        encoder, *teachers = with_teacher(method, self.module)
        wrapped = [name for name, part in encoder.named_modules() if hasattr(part, "base_layer")]
        if wrapped:
            raise ValueError(
                f"layers must not be wrapped already for LoRA, got {wrapped[0]}, such as of a run "
                "that failed; call `merge()` of its LoRA"
            )
        names = self._names(encoder)
        given = config(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=names,
        )
        trained = [p for p in encoder.parameters() if p.requires_grad]
        modes = {part: part.training for part in method.modules()}
        for part in (encoder, *teachers):
            inject(given, part, adapter_name=_ADAPTER)
            self._wrapped.append((part, names))
            for name in names:
                _keep_plain_names(part.get_submodule(name))
        self._frozen = [p for p in trained if not p.requires_grad]
        factors = {n: p for n, p in encoder.named_parameters() if "lora_" in n}
        for part in teachers:
            part.requires_grad_(False)
            own = dict(part.named_parameters())
            with torch.no_grad():
                for name, factor in factors.items():
                    own[name].copy_(factor)
        for part in method.modules():  # what peft adds is in train mode
            part.training = modes.get(part, part.training)

    def _names(self, encoder: nn.Module) -> list[str]:
        inside = {
            f"{name}.{inner}"
            for name, part in encoder.named_modules()
            if isinstance(part, nn.MultiheadAttention)  # it reads weights and calls no layer
            for inner, _ in part.named_modules()
        }
        linear = [
            name
            for name, part in encoder.named_modules()
            if type(part) is nn.Linear and name not in inside
        ]
        last = [name.rpartition(".")[2] for name in linear]
        wanted = last if self.layers is None else self.layers
        names = [name for name, end in zip(linear, last, strict=True) if end in wanted]
        if not names:
            raise ValueError(
                f"layers must name linear layers of {type(encoder).__name__}, which has "
                f"{sorted(set(last)) or 'none'}, got {self.layers}"
            )
        return names

    def state_dict(self) -> dict[str, Any]:
        """Factors and frozen weights of each wrapped layer of student and teacher."""
        return {
            f"{number}.{name}.{own}": value.detach()
            for number, (part, names) in enumerate(self._wrapped)
            for name in names
            for own, value in part.get_submodule(name).named_parameters()
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for number, (part, names) in enumerate(self._wrapped):
            for name in names:
                for own, value in part.get_submodule(name).named_parameters():
                    value.copy_(state_dict[f"{number}.{name}.{own}"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the wrapped layers by plain ones with merged weights."""
        for part, names in self._wrapped:
            for name in names:
                layer: Any = part.get_submodule(name)
                plain = layer.base_layer
                plain.weight.copy_(_merged(layer))
                parent, _, last = name.rpartition(".")
                setattr(part.get_submodule(parent), last, plain)
            del part.peft_config  # which peft leaves on a module
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._wrapped, self._frozen = [], []


def _peft() -> tuple[Any, Any]:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            "peft must be installed for LoRA, got no such package; run: pip install 'sslzoo[lora]'"
        ) from error
    return inject_adapter_in_model, LoraConfig


def _merged(layer: Any) -> Tensor:
    weight: Tensor = layer.base_layer.weight + layer.get_delta_weight(_ADAPTER)
    return weight


def _keep_plain_names(layer: nn.Module) -> None:
    """Let a wrapped layer save merged weights, and load plain ones, under the plain names."""

    def save(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if _OWN.match(name.removeprefix(prefix))]:
            value = state.pop(name)
            own = name.removeprefix(prefix)
            if own.startswith("base_layer."):
                weight = own == "base_layer.weight"
                state[prefix + own.removeprefix("base_layer.")] = (
                    _merged(layer).detach() if weight else value
                )

    def load(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            state[f"{prefix}base_layer.{name.removeprefix(prefix)}"] = state.pop(name)
        for own, value in layer.named_parameters():
            if "lora_" in own:  # an addition of 0
                fresh = torch.zeros_like(value) if "lora_B" in own else value.detach().clone()
                state[prefix + own] = fresh

    layer.register_state_dict_post_hook(save)
    layer.register_load_state_dict_pre_hook(load)
