"""The Gumbel quantizer equals fairseq's on its draws, forward and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sslzoo.heads import GumbelQuantizer
from sslzoo.losses import perplexity
from tests.golden import assert_close_to_golden, load


def golden() -> tuple[GumbelQuantizer, dict[str, Any]]:
    z = load("wav2vec2/gumbel_quantizer.npz")
    how = z["meta"]["hyper"]
    groups = how["groups"]
    quantizer = GumbelQuantizer(
        how["dim"], how["num_vars"], groups, how["vq_dim"], how["combine_groups"]
    )
    entries = torch.from_numpy(z["param:vars"]).reshape(quantizer.entries.shape)
    quantizer.entries.data.copy_(entries)
    quantizer.logits.weight.data.copy_(torch.from_numpy(z["param:weight_proj.weight"]))
    quantizer.logits.bias.data.copy_(torch.from_numpy(z["param:weight_proj.bias"]))
    return quantizer, z


def test_training_equals_fairseq() -> None:
    quantizer, z = golden()
    x = torch.from_numpy(z["x"]).requires_grad_()
    draws = torch.from_numpy(z["exponential"]).reshape(*x.shape[:2], quantizer.groups, -1)
    out = quantizer(x, float(z["train:temp"]), draws)
    assert_close_to_golden(out.values, z["train:x"])
    assert torch.equal(out.codes, torch.from_numpy(z["train:targets"]))
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    soft = perplexity(out.probabilities, real)
    assert_close_to_golden(soft, z["train:prob_perplexity"])
    one_hot = torch.nn.functional.one_hot(out.chosen, quantizer.num_entries).float()
    assert_close_to_golden(perplexity(one_hot, real), z["train:code_perplexity"])
    (torch.from_numpy(z["cotangent"]) * out.values).sum().add(soft).backward()
    assert_close_to_golden(x.grad, z["grad_x"])
    assert_close_to_golden(
        quantizer.entries.grad.reshape(z["grad:vars"].shape),
        z["grad:vars"],
    )
    assert_close_to_golden(quantizer.logits.weight.grad, z["grad:weight_proj.weight"])
    assert_close_to_golden(quantizer.logits.bias.grad, z["grad:weight_proj.bias"])


def test_evaluation_equals_fairseq() -> None:
    quantizer, z = golden()
    out = quantizer(torch.from_numpy(z["x"]))
    assert_close_to_golden(out.values, z["eval:x"])
    assert torch.equal(out.codes, torch.from_numpy(z["eval:targets"]))


@pytest.mark.parametrize("share", [False, True])
def test_entries_of_codes(share: bool) -> None:
    quantizer = GumbelQuantizer(3, 4, 2, 6, share)
    codes = quantizer.codes_of(torch.tensor([0, 7, 15]))
    assert codes.tolist() == [[0, 0], [1, 3], [3, 3]]
    second = quantizer.entries[0 if share else 1]
    wanted = torch.cat([quantizer.entries[0, 1], second[3]])
    torch.testing.assert_close(quantizer.pick(codes)[1], wanted)
    draws = torch.ones(5, 2, 4)
    out = quantizer(torch.randn(5, 3), 0.5, draws)
    assert torch.equal(out.codes, out.chosen)
    torch.testing.assert_close(out.values, quantizer.pick(out.codes))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of groups 2, got 5"):
        GumbelQuantizer(3, out_features=5)
