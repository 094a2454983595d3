"""The heads equal the authors', forward and running statistics, and refuse bad sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslzoo.backbones import GlobalBatchNorm
from sslzoo.heads import MLP, byol_mlp, simclr_projector
from tests.golden import assert_close_to_golden, load


@pytest.mark.parametrize("layers", [2, 3])
def test_equals_simclr_projection_head(layers: int) -> None:
    z = load(f"simclr/proj_head_{layers}layers.npz")
    width, out = z["x"].shape[1], z["out_train"].shape[1]
    sizes = [width] * layers + [out]
    head = MLP(sizes, bias=False, last_bias=False, last_norm="scale")
    linears = [m for m in head.layers if isinstance(m, nn.Linear)]
    norms = [m for m in head.layers if isinstance(m, GlobalBatchNorm)]
    arrays = {name.split(":", 1)[1]: z[name] for name in z if name.startswith("w")}
    after = {name.split(":", 1)[1]: z[name] for name in z if name.startswith("after")}
    prefix = "nl_{}|batch_norm_relu|batch_normalization|"
    for i, (linear, norm) in enumerate(zip(linears, norms, strict=True)):
        linear.weight.data = torch.tensor(arrays[f"nl_{i}|dense|kernel"]).T.contiguous()
        norm.weight.data = torch.tensor(arrays[prefix.format(i) + "gamma"])
        if norm.bias is not None:
            norm.bias.data = torch.tensor(arrays[prefix.format(i) + "beta"])
    assert norms[-1].bias is None, "the last norm has a scale and no offset"

    x = torch.tensor(z["x"])
    assert_close_to_golden(head(x), z["out_train"], 1e-5)
    n = len(x)
    for i, norm in enumerate(norms):
        assert_close_to_golden(norm.running_mean, after[prefix.format(i) + "moving_mean"], 1e-5)
        # TensorFlow keeps the biased variance, torch the unbiased one.
        theirs = torch.tensor(after[prefix.format(i) + "moving_variance"])
        assert_close_to_golden(norm.running_var, 0.9 + (theirs - 0.9) * n / (n - 1), 1e-5)
        norm.running_var.copy_(theirs)
    assert_close_to_golden(head.eval()(x), z["out_eval"], 1e-5)


def test_layers_of_the_papers_heads() -> None:
    simclr = simclr_projector(2048)
    assert [p.shape for p in simclr.parameters()] == [
        (2048, 2048),
        (2048,),
        (2048,),
        (128, 2048),
        (128,),
    ]
    byol = byol_mlp(2048)
    assert byol.layers[0].bias is not None
    assert byol.layers[-1].bias is None
    assert byol.layers[-1].weight.shape == (256, 4096)


@pytest.mark.parametrize("sizes", [[4], [], [4, 0]])
def test_bad_sizes_are_named(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at least two positive sizes"):
        MLP(sizes)
