"""Spearman equals scipy's, and the plain features are what they say."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sslzoo.batch import Tokens
from sslzoo.eval.similarity import bag_of_words, mean_of_tokens, pair_spearman, spearman

TEXT = Tokens(torch.tensor([[2, 7, 8, 7, 3], [2, 9, 3, 0, 0], [2, 3, 0, 0, 0]]),
              torch.tensor([5, 3, 2]))  # fmt: skip


@pytest.mark.parametrize("values", [3, 20, 10_000])  # few values: many ties
def test_equals_scipy(values: int) -> None:
    generator = torch.Generator().manual_seed(values)
    x, y = (torch.randint(values, (500,), generator=generator).double() for _ in range(2))
    y = y + x
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_values_worked_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.tensor([2.0, 1.0, 3.0])) == pytest.approx(0.5)  # 1 - 6 * 2 / 24
    assert spearman(x, torch.zeros(3)) == 0


def test_pairs_are_rows_side_by_side() -> None:
    angle = torch.tensor([0.0, 0.1, 0.0, 1.0, 0.0, 2.0])
    features = torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1, 7)[:, None]
    assert pair_spearman(features, torch.tensor([5.0, 5, 3, 3, 1, 1])) == pytest.approx(1)


def test_plain_features_leave_special_tokens_out() -> None:
    words = bag_of_words(TEXT, 10)
    assert words.nonzero().tolist() == [[0, 7], [0, 8], [1, 9]]
    assert words[0, 7:9].tolist() == [2, 1]
    table = torch.arange(10.0)[:, None] * torch.tensor([1.0, -1.0])
    wanted = torch.tensor([[22 / 3, -22 / 3], [9, -9], [0, 0]])
    torch.testing.assert_close(mean_of_tokens(TEXT, table), wanted)


def test_errors_name_what_they_got() -> None:
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        spearman(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        spearman(torch.tensor([1.0, torch.nan]), torch.zeros(2))
    with pytest.raises(ValueError, match="each pair's value twice"):
        pair_spearman(torch.zeros(4, 2), torch.tensor([1.0, 2, 3, 3]))
