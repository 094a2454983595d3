"""Context: a row's context knows that row and the rows above, and no other."""

from __future__ import annotations

import pytest
import torch

from sslzoo.heads import PixelContext


def test_context_depends_on_its_row_and_those_above_only() -> None:
    torch.manual_seed(0)
    context = PixelContext(4, layers=3)
    x = torch.randn(1, 4, 6, 5, requires_grad=True)
    for row in range(6):
        (grad,) = torch.autograd.grad(context(x)[:, :, row].square().sum(), x)
        seen = grad.abs().sum((0, 1, 3)) > 0
        first = max(0, row - 3)  # a layer sees one row further up
        assert seen.tolist() == [first <= other <= row for other in range(6)]


def test_a_layer_is_the_gate_written_out() -> None:
    torch.manual_seed(0)
    context = PixelContext(2, layers=1)
    x = torch.randn(1, 2, 3, 4)
    layer = context.layers[0]
    padded = torch.zeros(1, 2, 4, 6)
    padded[:, :, 1:, 1:-1] = x
    wanted = torch.empty_like(x)
    for i in range(3):
        for j in range(4):
            window = padded[0, :, i : i + 2, j : j + 3]
            a, b = (torch.einsum("ochw,chw->o", layer.conv.weight, window) + layer.conv.bias).chunk(
                2
            )
            wanted[0, :, i, j] = x[0, :, i, j] + a.tanh() * b.sigmoid()
    torch.testing.assert_close(context.layers(x), wanted)
    torch.testing.assert_close(context(x), context.out(wanted))


@pytest.mark.parametrize(("width", "layers"), [(0, 1), (3, 0)])
def test_wrong_sizes_are_named(width: int, layers: int) -> None:
    with pytest.raises(ValueError, match=f"got {width} and {layers}"):
        PixelContext(width, layers)
