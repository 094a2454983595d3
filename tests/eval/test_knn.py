"""The kNN classifier: golden, exact ties, ranks, tiles."""

from __future__ import annotations

import pytest
import torch

from sslzoo.eval.knn import classify, knn_accuracies, knn_predict, knn_top1, search
from tests.golden import assert_close_to_golden, load

SETTINGS = [(1, 0.07), (20, 0.07), (20, 0.5), (50, 0.1)]


def reference_votes(query, bank, labels, num_classes, k, temperature):
    """Sorts everything in float64, votes one neighbor at a time."""
    query = torch.nn.functional.normalize(query.double(), dim=1)
    bank = torch.nn.functional.normalize(bank.double(), dim=1)
    votes = torch.zeros(len(query), num_classes, dtype=torch.float64)
    for i, row in enumerate(query @ bank.T):
        for j in row.argsort(descending=True, stable=True)[:k]:
            votes[i, labels[j]] += (row[j] / temperature).exp()
    return votes


def make(n, m, width, num_classes, seed=0):
    g = torch.Generator().manual_seed(seed)
    center = torch.randn(num_classes, width, generator=g)
    labels = torch.randint(num_classes, (n + m,), generator=g)
    x = center[labels] + 2 * torch.randn(n + m, width, generator=g)
    return x[:n], labels[:n], x[n:], labels[n:]


@pytest.mark.parametrize("setting", ["k20_T0.07", "k5_T0.07", "k200_T0.07", "k20_T0.5"])
def test_dino_golden(setting):
    a = load("knn/knn_classifier.npz")
    k, temperature = int(setting[1 : setting.index("_")]), float(setting.split("T")[1])
    test, train = torch.tensor(a["test_features"]), torch.tensor(a["train_features"])
    labels, truth = torch.tensor(a["train_labels"]), torch.tensor(a["test_labels"])
    votes = knn_predict(test, train, labels, 7, k, temperature)
    assert_close_to_golden(votes, a[f"votes_{setting}"])
    order = votes.argsort(dim=1, descending=True)[:, :5]
    # the authors' sort orders classes without any vote arbitrarily: compare where there are votes
    voted = votes.gather(1, order) > 0
    assert torch.equal(order[voted], torch.tensor(a[f"pred_{setting}"])[voted])
    top1 = knn_top1(test, truth, train, labels, 7, [(k, temperature)])[0]
    top5 = (order == truth[:, None]).logical_and(voted).any(1).double().mean().item()
    assert top1 * 100 == pytest.approx(float(a[f"top_{setting}"][0]))
    their_top5 = torch.tensor(a[f"pred_{setting}"]).eq(truth[:, None]).logical_and(voted)
    assert top5 == their_top5.any(1).double().mean().item()
    if voted.all():
        assert top5 * 100 == pytest.approx(float(a[f"top_{setting}"][1]))


@pytest.mark.parametrize("setting", ["k20_s0.07", "k5_s0.1", "k100_s0.07"])
def test_instdisc_golden(setting):
    a = load("instdisc/knn.npz")
    k, temperature = int(setting[1 : setting.index("_")]), float(setting.split("s")[1])
    test, memory = torch.tensor(a["test_features"]), torch.tensor(a["memory"])
    labels, truth = torch.tensor(a["train_labels"]), torch.tensor(a["test_labels"])
    num_classes = a[f"votes_{setting}"].shape[1]
    votes = knn_predict(test, memory, labels, num_classes, k, temperature)
    assert_close_to_golden(votes, a[f"votes_{setting}"])
    order = votes.argsort(dim=1, descending=True)[:, :5]
    voted = votes.gather(1, order) > 0
    assert torch.equal(order[voted], torch.tensor(a[f"pred_{setting}"])[voted])
    top1 = knn_top1(test, truth, memory, labels, num_classes, [(k, temperature), (1, 0.07)])
    assert top1 == pytest.approx([float(a[f"top1_{setting}"]), float(a["nn_top1"])])


@pytest.mark.parametrize("small", [0, classify.SMALL])
def test_votes_equal_a_full_sort(monkeypatch, small):
    monkeypatch.setattr(classify, "SMALL", small)
    query, _, bank, labels = make(37, 1501, 24, 5)
    for k, temperature in SETTINGS:
        votes = knn_predict(query, bank, labels, 5, k, temperature)
        wanted = reference_votes(query, bank, labels, 5, k, temperature)
        torch.testing.assert_close(votes, wanted, rtol=1e-4, atol=0)
        assert torch.equal(votes.argmax(1), wanted.argmax(1))


def test_hand_worked_votes():
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    votes = knn_predict(torch.tensor([[5.0, 0.0]]), bank, torch.tensor([1, 0, 1]), 2, 2, 0.5)
    # neighbors: row 0 (similarity 1, class 1), row 1 (similarity 0, class 0)
    torch.testing.assert_close(votes, torch.tensor([[1.0, 7.38905609893065]]).double())


@pytest.mark.parametrize("small", [0, classify.SMALL])
def test_equal_similarities_go_by_bank_index(monkeypatch, small):
    monkeypatch.setattr(classify, "SMALL", small)
    g = torch.Generator().manual_seed(1)
    row = torch.randn(1, 40, generator=g)
    bank = row.repeat(3000, 1) * torch.rand(3000, 1, generator=g).add(0.5)  # one direction
    index = torch.randperm(3000, generator=g) + 7
    labels = (index == 7).long() + 2 * (index == 8).long()
    votes = knn_predict(row, bank, labels, 3, 1, 0.07, index)
    assert votes.argmax(1).item() == 1
    votes = knn_predict(row, bank, labels, 3, 2, 0.07, index)
    assert (votes[0] > 0).tolist() == [False, True, True]


def test_duplicate_indices_count_once():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    labels, index = torch.tensor([0, 0, 1, 1]), torch.tensor([4, 4, 9, 2])
    votes = knn_predict(bank[:1], bank, labels, 2, 3, 1.0, index)
    once = knn_predict(bank[:1], bank[1:], labels[1:], 2, 3, 1.0, index[1:])
    assert torch.equal(votes, once)


@pytest.mark.parametrize("small", [0, classify.SMALL])
@pytest.mark.parametrize(("query_tile", "bank_tile", "block"), [(7, 33, 96), (512, 100, 320)])
@pytest.mark.parametrize("fewer", [1, 8])
def test_any_tile_size_gives_the_same(monkeypatch, small, query_tile, bank_tile, block, fewer):
    query, _, bank, labels = make(101, 997, 16, 11)
    bank[500:600] = bank[400:500]  # exact ties across tiles
    wanted = [knn_predict(query, bank, labels, 11, k, t) for k, t in SETTINGS]
    for name, value in [("QUERY_TILE", query_tile), ("BANK_TILE", bank_tile), ("BLOCK", block)]:
        monkeypatch.setattr(search, name, value)
    if fewer > 1:  # as on an accelerator
        for module in (classify, search):
            monkeypatch.setattr(module, "at_once", lambda tile, device: tile * fewer)
        monkeypatch.setattr(search, "_groups", far_apart)
        monkeypatch.setattr(search, "_product_columns", lambda columns, device: columns)
    monkeypatch.setattr(classify, "SMALL", small)
    for (k, t), votes in zip(SETTINGS, wanted, strict=True):
        got = knn_predict(query, bank, labels, 11, k, t)
        assert torch.equal(got.argmax(1), votes.argmax(1))
        torch.testing.assert_close(got, votes, rtol=1e-4, atol=0)


def far_apart(values, size):
    """The groups of an accelerator."""
    return values.unflatten(1, (size, -1)).mT


@pytest.mark.parametrize("groups", [search._groups, far_apart])
@pytest.mark.parametrize("k", [1, 30, 200])  # two stages of groups, two, one
def test_groups_hold_the_largest(monkeypatch, groups, k):
    monkeypatch.setattr(search, "_groups", groups)
    values = torch.randn(40, 4096, generator=torch.Generator().manual_seed(0))
    column = search._largest(values, k)
    wanted = values.topk(k).values
    assert torch.equal(values.gather(1, column).sort(descending=True).values, wanted)
    assert all(len(set(row)) == k for row in column.tolist())


def test_an_exact_search_is_bitwise_the_same_for_any_tile(monkeypatch):
    query, _, bank, labels = make(65, 700, 300, 4)
    wanted = knn_predict(query, bank, labels, 4, 30, 0.07)
    for name, value in [("QUERY_TILE", 5), ("BANK_TILE", 17), ("BLOCK", 64)]:
        monkeypatch.setattr(search, name, value)
    assert torch.equal(knn_predict(query, bank, labels, 4, 30, 0.07), wanted)


def test_a_collapsed_encoder_gets_the_exact_answer(monkeypatch):
    g = torch.Generator().manual_seed(2)
    bank = torch.ones(800, 64) + 1e-4 * torch.randn(800, 64, generator=g)
    query = torch.ones(50, 64) + 1e-4 * torch.randn(50, 64, generator=g)
    labels = torch.randint(3, (800,), generator=g)
    exact = knn_predict(query, bank, labels, 3, 20, 0.07)
    monkeypatch.setattr(classify, "SMALL", 0)
    assert torch.equal(knn_predict(query, bank, labels, 3, 20, 0.07).argmax(1), exact.argmax(1))


def test_the_float32_error_bound_holds():
    g = torch.Generator().manual_seed(3)
    for width in (8, 128, 2048):
        for sign in (False, True):
            x = torch.randn(300, width, generator=g)
            grid = search.on_grid(x.abs() if sign else x)
            error = (grid @ grid.T).double() - grid.double() @ grid.double().T
            assert error.abs().max() < search.float32_error(width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_left_as_they_were(dtype):
    x = torch.randn(20, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    knn_predict(x, x, torch.arange(20) % 3, 3, 4)
    assert torch.equal(x, kept)


def sharded(rank, world_size, small, query, truth, bank, labels, settings):
    """Uneven shards: rank r has the chunks r, r + W, ... of 13 samples; tiles of 7 queries."""
    before = classify.SMALL, search.QUERY_TILE
    classify.SMALL, search.QUERY_TILE = small, 7
    try:

        def own(x):
            chunks = [c for i, c in enumerate(x.split(13)) if i % world_size == rank]
            return torch.cat([x[:0], *chunks])

        index = own(torch.arange(len(bank)))
        mine = own(torch.arange(len(query)))
        args = (own(bank), own(labels), 11)
        top1 = knn_top1(own(query), own(truth), *args, settings, index)
        votes = [knn_predict(own(query), *args, k, t, index) for k, t in settings]
        return top1, mine, votes
    finally:
        classify.SMALL, search.QUERY_TILE = before


@pytest.mark.parametrize("small", [0, classify.SMALL])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process(ranks, world_size, small):
    query, truth, bank, labels = make(61, 487, 16, 11)
    bank[200:300] = bank[100:200]
    wanted = knn_top1(query, truth, bank, labels, 11, SETTINGS)
    results = ranks(world_size, sharded, world_size, small, query, truth, bank, labels, SETTINGS)
    for top1, mine, votes in results:
        assert top1 == wanted
        for (k, t), got in zip(SETTINGS, votes, strict=True):
            one = knn_predict(query, bank, labels, 11, k, t)[mine]
            assert torch.equal(got.argmax(1), one.argmax(1))


def test_a_rank_may_have_nothing(ranks):
    query, truth, bank, labels = make(9, 12, 8, 11)  # one chunk of 13: the second rank is empty
    wanted = knn_top1(query, truth, bank, labels, 11, [(5, 0.07)])
    for top1, _, _ in ranks(2, sharded, 2, 0, query, truth, bank, labels, [(5, 0.07)]):
        assert top1 == wanted


def test_it_leaves_the_matmul_precision_as_it_was(monkeypatch):
    monkeypatch.setattr(classify, "SMALL", 0)
    query, _, bank, labels = make(9, 40, 8, 3)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        knn_predict(query, bank, labels, 3, 5, 0.07)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32, torch.int64])
def test_labels_of_any_dtype(dtype):
    query, truth, bank, labels = make(9, 40, 8, 3)
    wanted = knn_top1(query, truth, bank, labels, 3, [(5, 0.07)])
    got = knn_top1(query, truth.to(dtype), bank, labels.to(dtype), 3, [(5, 0.07)])
    assert got == wanted


def test_wrong_values_are_named():
    query, _, bank, labels = make(9, 40, 8, 3)
    with pytest.raises(ValueError, match=r"k must be at most 40 .* got 41"):
        knn_predict(query, bank, labels, 3, 41)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        knn_predict(query, bank, labels, 3, 0)
    with pytest.raises(ValueError, match="temperature must be at least"):
        knn_predict(query, bank, labels, 3, 5, 0.0)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        knn_predict(query, bank, labels, 2, 5)
    bank[3, 2] = torch.nan
    with pytest.raises(ValueError, match="bank features must be finite"):
        knn_predict(query, bank, labels, 3, 5)
    with pytest.raises(ValueError, match=r"labels must be .*, got \(40, 3\)"):
        knn_predict(query, bank, torch.zeros(40, 3), 3, 5)


@pytest.mark.parametrize("spread", [1e-2, 1e-3])
def test_rescored_candidates_are_the_exact_neighbors(monkeypatch, spread):
    """Features that nearly coincide: float32 cannot order them, their candidates are rescored."""
    g = torch.Generator().manual_seed(0)
    x = 1 + spread * torch.randn(3064, 96, generator=g)
    query, rows = search.on_grid(x[:64]), search.on_grid(x[64:])
    bank = search.Bank(rows, torch.arange(3000) % 7, torch.arange(3000))
    wanted = search.search(query, bank, 21, exact=True)
    plain = search.search(query, bank, 21, exact=False)
    assert not torch.equal(plain.key, wanted.key), "float32 alone is not enough here"
    near = search.search(query, bank, 37, exact=False)
    found, sure = search.rescore(query, bank, near, 21)
    assert sure.float().mean() > 0.9 or spread < 1e-2
    assert torch.equal(found.key[sure], wanted.key[sure])
    assert torch.equal(found.label[sure], wanted.label[sure])
    monkeypatch.setattr(classify, "SMALL", 0)
    mixed = classify._neighbors(query, bank, 7, [(20, 0.07)])
    assert torch.equal(mixed.key[:, :20].sort().values, wanted.key[:, :20].sort().values)


@pytest.mark.parametrize("setting", ["k20_T0.07", "k5_T0.07", "k200_T0.07", "k20_T0.5"])
def test_top5_equals_dinos(setting):
    a = load("knn/knn_classifier.npz")
    k, temperature = int(setting[1 : setting.index("_")]), float(setting.split("T")[1])
    names = ("test_features", "test_labels", "train_features", "train_labels")
    data = [torch.tensor(a[name]) for name in names]
    (got,) = knn_accuracies(*data, 7, [(k, temperature)])
    assert [100 * x for x in got] == pytest.approx(a[f"top_{setting}"].tolist())


@pytest.mark.parametrize("small", [0, classify.SMALL])
def test_accuracies_are_those_of_a_sort_of_all_votes(monkeypatch, small):
    monkeypatch.setattr(classify, "SMALL", small)
    query, truth, bank, labels = make(40, 300, 8, 11)
    bank[100:200] = bank[200:300]  # ties
    settings = [(1, 0.07), (3, 0.1), (20, 0.07), (50, 0.5)]
    got = knn_accuracies(query, truth, bank, labels, 11, settings, (1, 2, 5, 20))
    for (k, temperature), row in zip(settings, got, strict=True):
        votes = reference_votes(query, bank, labels, 11, k, temperature)
        for top, value in zip((1, 2, 5, 20), row, strict=True):
            hits = 0
            for sample in range(40):
                order = sorted(range(11), key=lambda c: (-votes[sample, c].item(), c))
                hits += int(truth[sample]) in order[: min(top, k)]
            assert value == pytest.approx(hits / 40)
    alone = knn_top1(query, truth, bank, labels, 11, settings)
    assert [row[0] for row in got] == alone


def test_fewer_classes_than_five_are_all_right_and_unknown_ones_never():
    query, truth, bank, labels = make(9, 40, 8, 3)
    assert knn_accuracies(query, truth, bank, labels, 3, [(9, 0.07)], (5,)) == [[1.0]]
    truth[4] = 3
    assert knn_accuracies(query, truth, bank, labels, 3, [(9, 0.07)], (5,)) == [[8 / 9]]
    with pytest.raises(ValueError, match=r"tops must be numbers of at least 1, got \[0\]"):
        knn_accuracies(query, truth, bank, labels, 3, [(9, 0.07)], (0,))


def _accuracies(rank, query, truth, bank, labels):
    own = slice(rank, None, 2)
    index = torch.arange(len(bank))[own]
    data = query[own], truth[own], bank[own], labels[own]
    return knn_accuracies(*data, 11, SETTINGS, bank_index=index)


def test_top5_of_two_ranks_is_that_of_one(ranks):
    query, truth, bank, labels = make(61, 87, 16, 11)
    wanted = knn_accuracies(query, truth, bank, labels, 11, SETTINGS)
    assert ranks(2, _accuracies, query, truth, bank, labels) == [wanted, wanted]
