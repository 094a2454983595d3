"""Zero-shot classification and retrieval, on embeddings worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.batch import Tokens
from sslzoo.eval import zero_shot
from sslzoo.eval.zero_shot import class_embeddings, retrieval_recall, zero_shot_topk


def test_class_embeddings_are_normalized_means_of_normalized_texts() -> None:
    vectors = {"a cat": [3.0, 0], "the cat": [0, 1.0], "a dog": [0, 2.0], "the dog": [0, 5.0]}
    told: list[str] = []

    def tokens(texts: Sequence[str]) -> Tokens:
        told.extend(texts)
        return Tokens(torch.arange(len(told) - len(texts), len(told))[:, None], torch.ones(1))

    def embed(tokens: Tokens) -> Tensor:
        return torch.tensor([vectors[told[i]] for i in tokens.ids[:, 0]])

    found = class_embeddings(embed, tokens, ["cat", "dog"], ["a {}", "the {}"])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"every template must have {} for the name, got 'a cat'"):
        class_embeddings(embed, tokens, ["cat"], ["a cat"])
    with pytest.raises(ValueError, match="names and templates must not be empty"):
        class_embeddings(embed, tokens, [], ["a {}"])


def test_topk_counts_ties_against_the_image() -> None:
    images, label = torch.eye(3), torch.tensor([0, 1, 1])
    assert zero_shot_topk(images, label, torch.eye(3), (1, 2, 5)) == {
        1: pytest.approx(2 / 3),
        2: pytest.approx(2 / 3),
    }
    same = torch.ones(3, 3)
    assert zero_shot_topk(same, label, same, (1, 2, 3)) == {1: 0.0, 2: 0.0, 3: 1.0}


def test_recall_by_hand() -> None:
    """Image 0 has two texts, one of them at the place of image 1's."""
    images = torch.eye(2)
    texts = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [0.2, 1.0]]), dim=1)
    found = retrieval_recall(images, texts, torch.tensor([0, 0, 1]), (1, 2))
    assert found == {
        "image_to_text_r1": 0.5,  # image 1 is nearer to the second text of image 0
        "image_to_text_r2": 1.0,
        "text_to_image_r1": pytest.approx(2 / 3),
        "text_to_image_r2": 1.0,
    }


def test_recall_equals_a_sort_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(7, 4, generator=draw), dim=1)
    owner = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5, 6])
    texts = F.normalize(images[owner] + torch.randn(9, 4, generator=draw), dim=1)
    scores = images @ texts.T
    for block in (1, 1 << 20):
        monkeypatch.setattr(zero_shot, "_BLOCK", block)
        found = retrieval_recall(images, texts, owner, (1, 3))
        for k in (1, 3):
            near = owner[scores.topk(k).indices]
            hit = (near == torch.arange(7)[:, None]).any(1).float().mean().item()
            assert found[f"image_to_text_r{k}"] == pytest.approx(hit)
            near = scores.T.topk(k).indices
            hit = (near == owner[:, None]).any(1).float().mean().item()
            assert found[f"text_to_image_r{k}"] == pytest.approx(hit)


def test_collapsed_embeddings_find_nothing() -> None:
    same = torch.ones(5, 3)
    assert set(retrieval_recall(same, same, torch.arange(5), (1, 4)).values()) == {0.0}


def test_wrong_input_is_refused() -> None:
    images, texts = torch.eye(3), torch.eye(3)
    with pytest.raises(ValueError, match="every image must have a text, got 2 images"):
        retrieval_recall(images, texts, torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"must be \(N, D\), \(M, D\) and \(M,\), got"):
        retrieval_recall(images, texts[:2], torch.arange(3))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retrieval_recall(images, texts, torch.arange(3), (0,))
