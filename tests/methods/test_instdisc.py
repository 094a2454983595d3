"""InstDisc: the sampled softmax equals the code that has it, and its default is NCE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.memory import commit_memories
from sslzoo.methods import InstDisc
from tests.golden import assert_close_to_golden, load
from tests.toys import Pooled


class Given(nn.Identity):
    """A backbone or head that changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = self.in_features = self.out_features = width


@pytest.mark.parametrize("name", ["insdis", "insdis_softmax"])
def test_golden_step_of_cmcs_instance_discrimination(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load(f"cmc/{name}.npz")
    hyper = golden["meta"]["hyper"]
    method = InstDisc(
        Given(6),
        Given(6),
        hyper["n_data"],
        hyper["K"],
        hyper["T"],
        hyper["momentum"],
        softmax=hyper["use_softmax"],
    )
    start, index = (torch.from_numpy(golden[key]) for key in ("memory_before", "idx"))
    method.bank.overwrite(torch.arange(len(start)), start)
    monkeypatch.setattr(method.bank, "sample", lambda *_: index)
    f = torch.from_numpy(golden["x"]).requires_grad_()
    (loss,) = method.losses(Batch([f], torch.from_numpy(golden["y"]))).values()
    loss.backward()
    assert_close_to_golden(loss.flatten(), golden["loss"].reshape(1))
    wanted, x = torch.from_numpy(golden["grad_x"]), f.detach()
    assert_close_to_golden(f.grad, wanted - (wanted * x).sum(1, keepdim=True) * x)
    commit_memories(method)
    assert_close_to_golden(method.bank.rows, golden["memory_after"])


@pytest.mark.parametrize(
    ("options", "term"),
    [
        ({}, "nce"),
        ({"softmax": True}, "softmax"),
        ({"num_negatives": 0}, "softmax"),
        ({"num_negatives": 0, "softmax": True}, "softmax"),
    ],
)
def test_terms(options: dict[str, Any], term: str) -> None:
    torch.manual_seed(0)
    given = {"num_negatives": 5, "temperature": 0.5} | options
    method = InstDisc(Pooled(6), nn.Linear(6, 4), bank_size=9, **given)
    x, index = torch.rand(3, 3, 4, 4), torch.tensor([2, 0, 8])
    terms = method.losses(Batch([x], index))
    assert list(terms) == [term]
    if term == "softmax":
        drawn = every(method, index) if given["num_negatives"] == 0 else sampled(method, index)
        logits = (method.embed(x)[:, None] * method.bank.rows[drawn]).sum(2) / 0.5
        torch.testing.assert_close(terms[term], F.cross_entropy(logits, torch.zeros(3).long()))


def every(method: InstDisc, index: Tensor) -> Tensor:
    others = [[own, *(i for i in range(9) if i != own)] for own in index.tolist()]
    return torch.tensor(others)


def sampled(method: InstDisc, index: Tensor) -> Tensor:
    from sslzoo.methods.base import step_keys

    keys = step_keys(method, Batch([index[:, None]], index))
    return method.bank.sample(index, keys, method.num_negatives)
