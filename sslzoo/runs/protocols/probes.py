"""Protocols that train a probe on random crops of the training set, with the encoder frozen."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn

from sslzoo.backbones import ViT
from sslzoo.data.datamodule import SampleDataModule
from sslzoo.data.image.datamodule import ImageDataModule
from sslzoo.data.image.image_set import TrainCrops
from sslzoo.data.loader import EvalLoader
from sslzoo.eval.classifier import LastBlocks
from sslzoo.eval.protocols.accuracy import classification
from sslzoo.eval.protocols.attentive import AttentiveProbe
from sslzoo.eval.protocols.layers import Layers, layer_names
from sslzoo.eval.protocols.probe import (
    Outputs,
    Pass,
    Training,
    linear_classifier,
    probe_scores,
    train_probes,
)
from sslzoo.random import run_keys
from sslzoo.runs.protocols.base import Protocol, Subject
from sslzoo.runs.results import Metrics
from sslzoo.transforms.image.color_space import ColorSpace
from sslzoo.transforms.image.crop import RandomResizedCrop
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.layout import Op
from sslzoo.transforms.image.normalize import normalize_ops
from sslzoo.transforms.image.resample import Interpolation
from sslzoo.transforms.image.views import View, Views


def training_view(view: EvalView, interpolation: Interpolation, flip: bool) -> Views:
    """Random resized crop (area 0.08 to 1) and flip, at the evaluation view's size and colors.

    Args:
        view: the evaluation view.
        interpolation: filter of the crop.
        flip: whether half of the crops are flipped.
    """
    ops: list[Op] = [] if view.space == "rgb" else [ColorSpace(view.space)]
    ops += normalize_ops(view.mean, view.std)
    chance = 0.5 if flip else 0.0
    crop = RandomResizedCrop(view.size, (0.08, 1.0), interpolation=interpolation, flip=chance)
    return Views([View(crop, ops)])


def shuffled_pass(
    data: SampleDataModule, epoch: int, seed: int, interpolation: Interpolation, flip: bool
) -> Pass:
    """A shuffled pass over the bank: random crops of images, the evaluation view of other data.

    Args:
        data: the data module, set up.
        epoch: order and crops are functions of it and the seed.
        seed: see above.
        interpolation: see `training_view`.
        flip: see `training_view`.
    """
    sets = data.sets
    bank = sets.train if sets.bank is None else sets.bank
    order = run_keys(seed, "probe", epoch).permutation("order", len(bank))[0]
    made = copy.copy(data)
    if isinstance(made, ImageDataModule):
        made.transform = training_view(made.eval_view, interpolation, flip)
        made._seed = seed
        crops = TrainCrops(made.transform, seed, torch.tensor(epoch))
        source = bank.cropped(crops, keep_size=False)
    else:
        source = made.eval_source(bank)
    loader = EvalLoader(source, made.eval_batch_size, made._workers(bank), order=order)
    if isinstance(made, ImageDataModule):
        return Pass(loader, lambda batch: made.train_views(batch, epoch))
    return Pass(loader, made.eval_views)


@dataclass(frozen=True)
class Probe(Protocol):
    """Base of the protocols that train probes.

    Args:
        training: optimizer, rate and length; see `Training`.
        interpolation: filter of the random crops.
        flip: whether half of the crops are flipped; False for digits and text.
    """

    training: Training = field(default_factory=Training)
    interpolation: Interpolation = "bilinear"
    flip: bool = True

    @abstractmethod
    def make(
        self, encoder: nn.Module, num_classes: int, example: Any
    ) -> tuple[Outputs, list[tuple[str, nn.Module]]]:
        """What the probes read of a view, and the probes by the prefix of their metrics.

        Args:
            encoder: the frozen encoder.
            num_classes: C.
            example: a view, for the shapes.
        """

    def __call__(self, subject: Subject, seed: int = 0) -> Metrics:
        data, loaders = subject.data, subject.loaders()
        if not isinstance(data, SampleDataModule):
            raise ValueError(
                "the data module must be a SampleDataModule for a probe that is trained on random "
                f"crops, got {type(data).__name__}"
            )
        if loaders.query is None:
            raise ValueError("the data must have a query set (validation or test), got none")
        sets = data.sets
        bank = sets.train if sets.bank is None else sets.bank
        example = self._example(subject, data, bank)
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(seed)
            outputs, named = self.make(subject.encoder, subject.num_classes(), example)
        probes = [probe.to(subject.device) for _, probe in named]
        train_probes(
            subject.encoder,
            outputs,
            probes,
            lambda epoch: shuffled_pass(data, epoch, seed, self.interpolation, self.flip),
            len(bank),
            self.training,
            subject.device,
        )
        query = Pass(loaders.query, loaders.transform)
        scores, labels = probe_scores(subject.encoder, outputs, probes, query, subject.device)
        figures: Metrics = {}
        for (prefix, _), score in zip(named, scores, strict=True):
            figures |= {f"{prefix}{n}": v for n, v in classification(score, labels).items()}
        return figures

    def _example(self, subject: Subject, data: SampleDataModule, bank: Any) -> Any:
        """The view of the first two samples."""
        batch = data.eval_source(bank).__getitems__([0, min(1, len(bank) - 1)])
        return data.eval_views(move_data_to_device(batch, subject.device)).views[0]


def _width(outputs: Outputs, example: Any) -> list[int]:
    return [output.shape[-1] for output in outputs(example)]


def class_tokens(encoder: nn.Module, num_blocks: int, mean_patches: bool, x: Tensor) -> Tensor:
    """`LastBlocks` of a `ViT`, or the same of a timm VisionTransformer.

    Args:
        encoder: the network, with a class token.
        num_blocks: number of last blocks whose class tokens are concatenated.
        mean_patches: whether the mean of the last block's patches is appended.
        x: (B, C, H, W).

    Raises:
        ValueError: the encoder does not give its blocks' tokens.
    """
    if isinstance(encoder, ViT):
        return LastBlocks(encoder, num_blocks, mean_patches)(x)
    give: Any = getattr(encoder, "get_intermediate_layers", None)
    if give is None:
        raise ValueError(
            "the encoder must give the tokens of its blocks (get_intermediate_layers, as timm's "
            f"VisionTransformer), got {type(encoder).__name__}; use num_blocks 0 for its features"
        )
    blocks = give(x, n=num_blocks, return_prefix_tokens=True, norm=True)
    parts = [prefix[:, 0] for _, prefix in blocks]
    return torch.cat([*parts, blocks[-1][0].mean(1)] if mean_patches else parts, dim=1)


@dataclass(frozen=True)
class LinearProbe(Probe):
    """Linear classifier on an encoder's features, trained as a paper does.

    Args:
        num_blocks: of a ViT with a class token: number of last blocks whose class tokens are
            concatenated (DINO); 0: the encoder's own features, as of any other network.
        mean_patches: whether the mean of the last block's patch tokens is appended to them.
        norm: whether a batch norm without scale and shift precedes the classifier (MAE).
        init_std: standard deviation of the classifier's initial weights.
    """

    num_blocks: int = 0
    mean_patches: bool = False
    norm: bool = False
    init_std: float = 0.01

    def make(
        self, encoder: nn.Module, num_classes: int, example: Any
    ) -> tuple[Outputs, list[tuple[str, nn.Module]]]:
        read: Callable[[Any], Tensor] = encoder
        if self.num_blocks and getattr(encoder, "cls_token", None) is not None:
            read = partial(class_tokens, encoder, self.num_blocks, self.mean_patches)

        def outputs(view: Any) -> list[Tensor]:
            return [read(view)]

        (width,) = _width(outputs, example)
        return outputs, [("", linear_classifier(width, num_classes, self.init_std, self.norm))]


@dataclass(frozen=True)
class Attentive(Probe):
    """Attentive probe on the tokens of a ViT, or the positions of a network's feature map.

    Args:
        complete: see `AttentiveProbe`.
        num_heads: attention heads; None: those of the ViT, or one per 64 channels of a map.
    """

    complete: bool = True
    num_heads: int | None = None

    def make(
        self, encoder: nn.Module, num_classes: int, example: Any
    ) -> tuple[Outputs, list[tuple[str, nn.Module]]]:
        tokens = getattr(encoder, "forward_tokens", None)
        maps = getattr(encoder, "forward_map", None)
        if tokens is None and maps is None:
            raise ValueError(
                "the encoder must have forward_tokens or forward_map for an attentive probe, got "
                f"{type(encoder).__name__} without them"
            )

        def outputs(view: Any) -> list[Tensor]:
            if tokens is not None:
                return [tokens(view)]
            assert maps is not None
            return [maps(view).flatten(2).transpose(1, 2)]

        (width,) = _width(outputs, example)
        heads = self.num_heads
        if heads is None:
            blocks: Any = getattr(encoder, "blocks", None)
            own = None if tokens is None or not blocks else getattr(blocks[0], "attn", None)
            heads = int(getattr(own, "num_heads", 0)) or (width // 64 if width % 64 == 0 else 1)
        return outputs, [("", AttentiveProbe(width, num_classes, heads, 4.0, self.complete))]


@dataclass(frozen=True)
class LayerProbes(Probe):
    """A linear classifier on each of several layers, trained side by side.

    Args:
        layers: names of the encoder's modules; None: conv1 to conv5 of a ResNet, or each block.
        most: see `layers.pooled`.
        norm: whether a batch norm without scale and shift precedes each classifier.
    """

    layers: Sequence[str] | None = None
    most: int = 9000
    norm: bool = True

    def make(
        self, encoder: nn.Module, num_classes: int, example: Any
    ) -> tuple[Outputs, list[tuple[str, nn.Module]]]:
        names = layer_names(encoder) if self.layers is None else self.layers
        outputs = Layers(encoder, names, self.most)
        probes = [
            linear_classifier(width, num_classes, 0.01, self.norm)
            for width in _width(outputs, example)
        ]
        stages = len(names) == 5 and names[-1] == "layer4"
        prefixes = [f"conv{i}_" for i in range(1, 6)] if stages else [f"{n}_" for n in names]
        return outputs, list(zip(prefixes, probes, strict=True))
