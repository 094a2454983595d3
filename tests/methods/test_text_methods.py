"""CLEAR and SimCSE: what their losses are made of, from their parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.backbones import SmallTransformer
from sslzoo.batch import Batch, Tokens
from sslzoo.heads import MLP, MLMHead, TanhHead
from sslzoo.masks.token import mask_tokens
from sslzoo.methods import CLEAR, SimCSE
from sslzoo.methods.base import step_keys


def backbone(dropout: float = 0.1) -> SmallTransformer:
    torch.manual_seed(0)
    return SmallTransformer(20, width=8, depth=1, heads=2, max_length=9, dropout=dropout)


def clear(mlm_weight: float = 1.0, dropout: float = 0.1) -> CLEAR:
    return CLEAR(
        backbone(dropout), MLP([8, 8, 4], norm=False), MLMHead(8, 20), mlm_weight=mlm_weight
    ).double()


def texts(views: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 3, 7, 5])
    made = [Tokens(torch.randint(20, (4, 9), generator=generator), lengths) for _ in range(views)]
    return Batch(made, torch.arange(4))


def slow_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, (torch.arange(len(z)) + len(z1)) % len(z))


def test_clear_is_nt_xent_and_the_weighted_language_model() -> None:
    batch = texts(3)
    for weight in (1.0, 0.3):
        method = clear(weight, dropout=0.0)
        terms = method.losses(batch)
        z1, z2 = (method.projector(method.backbone(view)) for view in batch.views[:2])
        torch.testing.assert_close(terms["nt_xent"], slow_nt_xent(z1, z2, 0.1))
        text = batch.views[2]
        hidden = mask_tokens(text, step_keys(method, batch), 4, 20)
        logits = method.mlm_head(method.backbone.forward_tokens(hidden.tokens))
        rows = [
            F.cross_entropy(logits[row, place], text.ids[row, place])
            for row in range(4)
            for place, real in zip(hidden.positions[row].tolist(), hidden.real[row], strict=True)
            if real
        ]
        assert len(rows) == 4  # one word of each sentence
        torch.testing.assert_close(terms["mlm"], weight * torch.stack(rows).mean())


def test_without_the_language_model_two_views_are_enough() -> None:
    assert list(clear(mlm_weight=0).losses(texts(2))) == ["nt_xent"]


def test_masks_change_with_the_step_and_so_does_dropout() -> None:
    for method, batch in ((clear(), texts(3)), (simcse(), texts(1))):
        first = method.losses(batch)
        assert all(torch.equal(first[name], again) for name, again in method.losses(batch).items())
        method.step = 1
        assert all(not torch.equal(first[k], other) for k, other in method.losses(batch).items())


def simcse(dropout: float = 0.1) -> SimCSE:
    return SimCSE(backbone(dropout), TanhHead(8)).double()


def test_simcse_is_the_authors_cross_entropy() -> None:
    method, batch = simcse(), texts(1)
    keys = step_keys(method, batch)
    z1, z2 = (
        torch.tanh(method.projector.dense(method.backbone(batch.views[0], keys.fold("view", v))))
        for v in (0, 1)
    )
    assert not torch.allclose(z1, z2)  # by dropout alone
    similarity = F.cosine_similarity(z1[:, None], z2[None], dim=2) / 0.05
    wanted = F.cross_entropy(similarity, torch.arange(4))
    torch.testing.assert_close(method.losses(batch)["info_nce"], wanted)


def test_simcse_without_dropout_has_two_equal_views() -> None:
    method, batch = simcse(dropout=0.0), texts(1)
    keys = step_keys(method, batch)
    views = [method.embed(batch.views[0], keys.fold("view", v)) for v in (0, 1)]
    assert torch.equal(*views)


def test_simcse_takes_pairs_of_sentences_and_no_head() -> None:
    method, batch = SimCSE(backbone(0.0), nn.Identity()).double(), texts(2)
    z1, z2 = (F.normalize(method.backbone(view)) for view in batch.views)
    wanted = F.cross_entropy(z1 @ z2.T / 0.05, torch.arange(4))
    torch.testing.assert_close(method.losses(batch)["info_nce"], wanted)


def test_clear_wants_a_text_backbone() -> None:
    plain = nn.Linear(8, 8)
    plain.num_features = 8
    with pytest.raises(ValueError, match="forward_tokens and token_embedding, got Linear"):
        CLEAR(plain, MLP([8, 4]), MLMHead(8, 20))
