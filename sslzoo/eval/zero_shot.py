"""Evaluation of image and text towers: zero-shot classification, and retrieval both ways.

Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.
Reference code: mlfoundations/open_clip at 89fb801, src/open_clip/zero_shot_classifier.py.

Shapes: N images, M texts, C classes, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.checks import check_at_least

_BLOCK = 1 << 24  # similarities that exist at a time


@torch.no_grad()
def class_embeddings(
    embed_text: Callable[[Tokens], Tensor],
    tokens: Callable[[Sequence[str]], Tokens],
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> Tensor:
    """One embedding per class: the normalized mean over the templates. (C, D).

    Args:
        embed_text: `Tokens` (B, L) -> (B, D), such as `CLIP.embed_text`.
        tokens: texts -> `Tokens`, such as `ImageTextFolder.tokens`.
        names: of the classes, as they are to be read.
        templates: sentences in which {} is replaced by the name.

    Raises:
        ValueError: there is no name or template, or a template has no {}.
    """
    if not names or not templates:
        raise ValueError(f"names and templates must not be empty, got {names!r} and {templates!r}")
    check_templates(templates)
    rows = []
    for name in names:
        texts = tokens([template.replace("{}", name) for template in templates])
        z = F.normalize(embed_text(texts).float(), dim=-1)
        rows.append(F.normalize(z.mean(0), dim=0))
    return torch.stack(rows)


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template without a place for the name."""
    wrong = [template for template in templates if "{}" not in template]
    if wrong:
        raise ValueError(f"every template must have {{}} for the name, got {wrong[0]!r}")


def zero_shot_topk(
    images: Tensor, label: Tensor, classes: Tensor, ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Fraction of the images whose class is among the k nearest class embeddings, per k.

    A tie counts against the image, so that equal embeddings score 0. k is at most the number of
    classes.

    Args:
        images: (N, D), L2-normalized.
        label: (N,) in 0..C-1.
        classes: (C, D), see `class_embeddings`.
        ks: the numbers of classes.
    """
    scores = images.float() @ classes.float().T
    own = scores.gather(1, label[:, None])
    ahead = (scores >= own).sum(1) - 1
    return {k: (ahead < k).float().mean().item() for k in ks if k <= len(classes)}


def retrieval_recall(
    images: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at k both ways, such as `image_to_text_r1` and `text_to_image_r1`.

    An image is found if one of its texts is among the k texts that are nearest to it, a text if its
    image is among the k images nearest to it. A tie with another image's counts against it.

    Args:
        images: (N, D), L2-normalized.
        texts: (M, D), L2-normalized.
        owner: (M,) the image of each text, in 0..N-1; every image has one at least.
        ks: the numbers of neighbors.

    Raises:
        ValueError: the shapes do not fit, or an image has no text.
    """
    for k in ks:
        check_at_least("k", k, 1)
    if len(texts) != len(owner) or texts.shape[1:] != images.shape[1:]:
        raise ValueError(
            "images, texts and owner must be (N, D), (M, D) and (M,), got "
            f"{tuple(images.shape)}, {tuple(texts.shape)} and {tuple(owner.shape)}"
        )
    if len(owner.unique()) != len(images):
        raise ValueError(
            f"every image must have a text, got {len(owner.unique())} images with texts of "
            f"{len(images)}"
        )
    images, texts = images.float(), texts.float()
    found: dict[str, float] = {}
    of_image = _ranks(images, texts, torch.arange(len(images), device=owner.device), owner)
    of_text = _ranks(texts, images, owner, torch.arange(len(images), device=owner.device))
    for name, ranks in (("image_to_text", of_image), ("text_to_image", of_text)):
        found |= {f"{name}_r{k}": (ranks < k).float().mean().item() for k in ks}
    return found


def _ranks(query: Tensor, keys: Tensor, query_id: Tensor, key_id: Tensor) -> Tensor:
    """How many keys of others are as near as the nearest own key, per query."""
    ranks = []
    step = max(1, _BLOCK // len(keys))
    for start in range(0, len(query), step):
        scores = query[start : start + step] @ keys.T
        own = query_id[start : start + step, None] == key_id
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best) & ~own).sum(1))
    return torch.cat(ranks)
