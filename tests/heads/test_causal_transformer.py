"""CausalTransformer and step predictors: what a frame sees, and attention written out."""

from __future__ import annotations

import pytest
import torch

from sslzoo.heads import CausalTransformer, LinearSteps, TransformerSteps


def small(**options: int) -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(4, heads=2, hidden=8, dropout=0.0, **options)


def test_a_frame_sees_itself_and_those_before() -> None:
    x = torch.randn(1, 5, 4, requires_grad=True)
    out = small(layers=2)(x)
    for frame in range(5):
        (grad,) = torch.autograd.grad(out[0, frame].square().sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(1) > 0
        assert seen.tolist() == [other <= frame for other in range(5)]


def test_attention_is_the_formula_written_out() -> None:
    attention = small().layers[0].attention
    x = torch.randn(2, 5, 4)
    q, k, v = (attention.qkv(x)[..., 4 * i : 4 * i + 4].unflatten(2, (2, 2)) for i in range(3))
    wanted = torch.zeros(2, 5, 2, 2)
    for b in range(2):
        for head in range(2):
            for t in range(5):
                keys = [k[b, s, head] + attention.distance[t - s] for s in range(t + 1)]
                scores = torch.stack(keys) @ q[b, t, head] / 2**0.5
                wanted[b, t, head] = scores.softmax(0) @ v[b, : t + 1, head]
    torch.testing.assert_close(attention(x), attention.out(wanted.flatten(2)))


def test_steps_have_a_predictor_each() -> None:
    torch.manual_seed(0)
    linear = LinearSteps(4, 3, 2)
    c = torch.randn(2, 5, 4)
    by_hand = torch.stack([c @ linear.linear.weight[:3].T, c @ linear.linear.weight[3:].T], dim=2)
    torch.testing.assert_close(linear(c), by_hand)
    steps = TransformerSteps(4, 2, heads=2, hidden=8, dropout=0.0)
    torch.testing.assert_close(steps(c)[:, :, 1], steps.steps[1](c))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="heads must divide the width 4, got 3"):
        CausalTransformer(4, heads=3)
    with pytest.raises(ValueError, match="at most max_frames=3 frames, got 4"):
        small(max_frames=3)(torch.zeros(1, 4, 4))
