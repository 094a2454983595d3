"""Evaluation of image-text methods during training: retrieval, and zero-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from sslzoo.batch import Batch, Tokens
from sslzoo.callbacks.evaluation import Evaluation, embed, eval_loaders, labeled_loaders, query_set
from sslzoo.callbacks.rehearsal import embed_first, first_batch, require
from sslzoo.checks import check_at_least
from sslzoo.eval.features import Features, collect, eval_mode, gather_features
from sslzoo.eval.zero_shot import (
    check_templates,
    class_embeddings,
    retrieval_recall,
    zero_shot_topk,
)
from sslzoo.sharding import whole

_MOST = 1 << 24  # captions of an image


class OnlineRetrieval(Evaluation):
    """Log `val/image_to_text_r<k>` and `val/text_to_image_r<k>` of the validation pairs.

    The data module is one of images with texts (`ImageTextFolder`), and the method has
    `embed_image` and `embed_text` (`CLIP`, `SigLIP`). All embeddings are in memory. Images whose
    captions all have no token are left out.

    Args:
        ks: the numbers of neighbors.
        every_n_epochs: training epochs between two evaluations; the last always has one.
    """

    reads_labels = True

    def __init__(self, ks: Sequence[int] = (1, 5, 10), every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs, features="embed_image")
        self.ks = list(ks)
        for k in self.ks:
            check_at_least("ks", k, 1)

    def metric_names(self) -> list[str]:
        ways = ("image_to_text", "text_to_image")
        return [f"val/{way}_r{k}" for way in ways for k in self.ks]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "OnlineRetrieval", "embed_image", "embed_text")
        loaders = eval_loaders(trainer, None, "OnlineRetrieval")
        _check_data(trainer, "OnlineRetrieval")
        first = first_batch(query_set(loaders, "OnlineRetrieval"))
        embed_first(trainer, pl_module, loaders, first, self.features)

        def texts(batch: Batch) -> Batch:
            ids, lengths = cast(Tokens, loaders.transform(batch).views[1])
            return batch._replace(views=[Tokens(ids[:, 0], lengths[:, 0])])

        embed_first(trainer, pl_module, loaders._replace(transform=texts), first, "embed_text")

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, None, "OnlineRetrieval")
        query = query_set(loaders, "OnlineRetrieval")
        parts: list[Features] = []

        def view(batch: Batch) -> Batch:
            """The view of the images, whose captions are embedded with them."""
            made = loaders.transform(batch)
            with trainer.precision_plugin.forward_context():
                parts.extend(_captions(cast(Any, pl_module).embed_text, made))
            return made

        of_images = loaders._replace(transform=view)
        images = gather_features(embed(trainer, pl_module, of_images, query, self.features))
        texts = gather_features(collect(parts, pl_module.device))
        owner = texts.index // _MOST
        told = torch.isin(images.index, owner)  # whether an image has a text
        owner = torch.searchsorted(images.index[told], owner)
        recalls = retrieval_recall(images.features[told], texts.features, owner, self.ks)
        return {f"val/{name}": value for name, value in recalls.items()}


def _captions(embed_text: Callable[[Tokens], Tensor], batch: Batch) -> list[Features]:
    """Embeddings of the captions that there are, at most as many at a time as images.

    The index of caption s of image i is i * _MOST + s.
    """
    ids, lengths = cast(Tokens, batch.views[1])  # (B, S, L), (B, S)
    image, number = (lengths > 0).nonzero().unbind(1)
    index = batch.index.to(image.device)[image] * _MOST + number
    few = Tokens(ids[image, number], lengths[image, number])
    rows = torch.arange(len(image), device=image.device).split(max(1, len(ids)))
    return [
        Features(embed_text(Tokens(*(part[of] for part in few))).float(), None, index[of])
        for of in rows
        if len(of)
    ]


class OnlineZeroShot(Evaluation):
    """Log `val/zero_shot_top<k>`: classification by the nearest embedding of a class's name.

    The data module is one of images with texts and classes; the method has `embed_image` and
    `embed_text`.

    Args:
        names: of the classes, in their order; None: the data module's, with spaces for underscores.
            No two may have the same tokens in a sentence.
        templates: sentences in which {} is replaced by the name; their embeddings are averaged.
        ks: the numbers of classes that count as right.
        every_n_epochs: training epochs between two evaluations; the last always has one.
    """

    reads_labels = True

    def __init__(
        self,
        names: Sequence[str] | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        ks: Sequence[int] = (1,),
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(every_n_epochs, features="embed_image")
        self.names = None if names is None else _texts_of("names", names)
        self.templates, self.ks = _texts_of("templates", templates), list(ks)
        check_templates(self.templates)
        for k in self.ks:
            check_at_least("ks", k, 1)

    def metric_names(self) -> list[str]:
        return [f"val/zero_shot_top{k}" for k in self.ks]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "OnlineZeroShot", "embed_image", "embed_text")
        loaders, query, num_classes = labeled_loaders(trainer, None, "OnlineZeroShot")
        _check_data(trainer, "OnlineZeroShot")
        names = self._names(trainer)
        if len(names) != num_classes:
            raise ValueError(
                f"names must be those of the {num_classes} classes, got {len(names)} names"
            )
        if max(self.ks, default=1) > num_classes:
            raise ValueError(f"ks must be at most the {num_classes} classes, got {max(self.ks)}")
        self._check_tokens(cast(Any, trainer).datamodule, names)
        embed_first(trainer, pl_module, loaders, first_batch(query), self.features)
        self._classes(trainer, pl_module)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders, query, _ = labeled_loaders(trainer, None, "OnlineZeroShot")
        classes = self._classes(trainer, pl_module)
        images = gather_features(embed(trainer, pl_module, loaders, query, self.features))
        found = zero_shot_topk(images.features, cast(Tensor, images.label), classes, self.ks)
        return {f"val/zero_shot_top{k}": value for k, value in found.items()}

    def _names(self, trainer: Trainer) -> list[str]:
        classes = cast(Any, trainer).datamodule.classes
        return self.names or [name.replace("_", " ") for name in classes]

    def _check_tokens(self, data: Any, names: list[str]) -> None:
        """Count what is cut, and refuse names that are the same to the tower.

        Raises:
            ValueError: two classes have the same tokens in a template.
        """
        sentences = [[t.replace("{}", name) for name in names] for t in self.templates]
        check_texts = getattr(data, "check_texts", None)
        if callable(check_texts):
            check_texts([text for each in sentences for text in each], "zero-shot")
        for template, texts in zip(self.templates, sentences, strict=True):
            ids, lengths = data.tokens(texts)
            first: dict[tuple[int, ...], str] = {}
            for row, length, name in zip(ids.tolist(), lengths.tolist(), names, strict=True):
                other = first.setdefault(tuple(row[:length]), name)
                if other is not name:
                    raise ValueError(
                        f"names must differ in the tokens of every template, got {other!r} and "
                        f"{name!r} with {template!r}; longer texts than max_length are cut"
                    )

    def _classes(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        data, module = cast(Any, trainer).datamodule, cast(Any, pl_module)
        names = self._names(trainer)

        def embed_text(texts: Any) -> Tensor:
            with trainer.precision_plugin.forward_context():
                moved = type(texts)(*(part.to(pl_module.device) for part in texts))
                return module.embed_text(moved)

        with torch.no_grad(), isolate_rng(), eval_mode(pl_module), whole(pl_module):
            return class_embeddings(embed_text, data.tokens, names, self.templates)


def _texts_of(name: str, texts: Sequence[str]) -> list[str]:
    """A list of different texts that are not empty."""
    given = [texts] if isinstance(texts, str) else list(texts)
    found = [text for text in given if isinstance(text, str) and text.strip()]
    if isinstance(texts, str) or not found or len({*found}) < len(given):
        raise ValueError(f"{name} must be a list of different texts, got {texts!r}")
    return found


def _check_data(trainer: Trainer, who: str) -> None:
    """Refuse a data module without texts, whose `tokens` makes those of a tower."""
    data = cast(Any, trainer).datamodule
    if not hasattr(data, "tokens"):
        raise ValueError(
            f"the data module must be one of images with texts for {who}, such as "
            f"sslzoo.data.ImageTextFolder, got {type(data).__name__}"
        )
