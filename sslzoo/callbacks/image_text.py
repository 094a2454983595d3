"""Evaluation of image-text methods during training: retrieval, and zero-shot classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from sslzoo.batch import Batch
from sslzoo.callbacks.evaluation import Evaluation, embed, eval_loaders, labeled_loaders, query_set
from sslzoo.callbacks.rehearsal import embed_first, first_batch, require
from sslzoo.eval.features import eval_mode, gather_features
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.zero_shot import class_embeddings, retrieval_recall, zero_shot_topk
from sslzoo.sharding import whole


class OnlineRetrieval(Evaluation):
    """Log `val/image_to_text_r<k>` and `val/text_to_image_r<k>` of the validation pairs.

    The data module is one of images with texts (`ImageTextFolder`), and the method has
    `embed_image` and `embed_texts` (`CLIP`, `SigLIP`). All embeddings are in memory. Images whose
    captions all have no token are left out.

    Args:
        ks: the numbers of neighbors.
        every_n_epochs: training epochs between two evaluations; the last always has one.
    """

    reads_labels = True

    def __init__(self, ks: Sequence[int] = (1, 5, 10), every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs, features="embed_image")
        self.ks = list(ks)

    def metric_names(self) -> list[str]:
        ways = ("image_to_text", "text_to_image")
        return [f"val/{way}_r{k}" for way in ways for k in self.ks]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "OnlineRetrieval", "embed_image", "embed_texts")
        loaders = eval_loaders(trainer, None, "OnlineRetrieval")
        _check_data(trainer, "OnlineRetrieval")
        first = first_batch(query_set(loaders, "OnlineRetrieval"))
        embed_first(trainer, pl_module, loaders, first, self.features)
        embed_first(trainer, pl_module, _texts(loaders), first, "embed_texts")

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders = eval_loaders(trainer, None, "OnlineRetrieval")
        query = query_set(loaders, "OnlineRetrieval")
        images = gather_features(embed(trainer, pl_module, loaders, query, self.features))
        texts = gather_features(embed(trainer, pl_module, _texts(loaders), query, "embed_texts"))
        captions = texts.features.unflatten(1, (-1, images.features.shape[1]))  # (N, S, D)
        given = captions.ne(0).any(2)
        told = given.any(1)  # whether an image has a text
        captions, given = captions[told], given[told]
        owner = given.nonzero()[:, 0]
        recalls = retrieval_recall(images.features[told], captions[given], owner, self.ks)
        return {f"val/{name}": value for name, value in recalls.items()}


class OnlineZeroShot(Evaluation):
    """Log `val/zero_shot_top<k>`: classification by the nearest embedding of a class's name.

    The data module is one of images with texts and classes; the method has `embed_image` and
    `embed_text`.

    Args:
        names: of the classes, in their order; None: the data module's, with spaces for underscores.
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
        self.names = None if names is None else list(names)
        self.templates, self.ks = list(templates), list(ks)

    def metric_names(self) -> list[str]:
        return [f"val/zero_shot_top{k}" for k in self.ks]

    def rehearse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "OnlineZeroShot", "embed_image", "embed_text")
        loaders, query, num_classes = labeled_loaders(trainer, None, "OnlineZeroShot")
        _check_data(trainer, "OnlineZeroShot")
        embed_first(trainer, pl_module, loaders, first_batch(query), self.features)
        classes = self._classes(trainer, pl_module)
        if len(classes) != num_classes:
            raise ValueError(
                f"names must be those of the {num_classes} classes, got {len(classes)} names"
            )

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        loaders, query, _ = labeled_loaders(trainer, None, "OnlineZeroShot")
        classes = self._classes(trainer, pl_module)
        images = gather_features(embed(trainer, pl_module, loaders, query, self.features))
        found = zero_shot_topk(images.features, cast(Tensor, images.label), classes, self.ks)
        return {f"val/zero_shot_top{k}": value for k, value in found.items()}

    def _classes(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        data, module = cast(Any, trainer).datamodule, cast(Any, pl_module)
        names = self.names or [name.replace("_", " ") for name in data.classes]

        def embed_text(texts: Any) -> Tensor:
            with trainer.precision_plugin.forward_context():
                moved = type(texts)(*(part.to(pl_module.device) for part in texts))
                return module.embed_text(moved)

        with torch.no_grad(), isolate_rng(), eval_mode(pl_module), whole(pl_module):
            return class_embeddings(embed_text, data.tokens, names, self.templates)


def _check_data(trainer: Trainer, who: str) -> None:
    """Refuse a data module without texts, whose `tokens` makes those of a tower."""
    data = cast(Any, trainer).datamodule
    if not hasattr(data, "tokens"):
        raise ValueError(
            f"the data module must be one of images with texts for {who}, such as "
            f"sslzoo.data.ImageTextFolder, got {type(data).__name__}"
        )


def _texts(loaders: EvalLoaders) -> EvalLoaders:
    """The same loaders, whose view is that of the texts."""
    view = loaders.transform

    def texts(batch: Batch) -> Batch:
        made = view(batch)
        return made._replace(views=made.views[1:])

    return loaders._replace(transform=texts)
