"""MAE's decoder and I-JEPA's predictor equal transformers written by hand, for any grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.heads import IJEPAPredictor, MAEDecoder
from tests import plain_transformer as plain

GRIDS: list[Any] = [(2, 3), (3, 2), 2]


def randomized(head: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head.double()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mlp_ratio", [4.0, 1.5])
def test_the_decoder(grid: Any, mlp_ratio: float) -> None:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    length = rows * columns
    decoder = randomized(MAEDecoder(6, grid, 2, 8, 2, 2, channels=1, mlp_ratio=mlp_ratio))
    state = decoder.state_dict()
    assert state["blocks.0.mlp.fc1.weight"].shape == (int(8 * mlp_ratio), 8)
    tokens = torch.randn(3, 1 + 2, 6, dtype=torch.float64)
    order = torch.stack([torch.randperm(length) for _ in range(3)])
    got = decoder(tokens, order.argsort(dim=1))
    assert got.shape == (3, length, 4)
    for image in range(3):
        seen = plain.linear(tokens[image], state, "embed")
        x = state["mask_token"][0].repeat(1 + length, 1)
        x[0] = seen[0]
        for number, patch in enumerate(order[image, :2].tolist()):
            x[1 + patch] = seen[1 + number]
        x = plain.blocks(x[None] + state["pos_embed"], state, 2, 1e-6)
        wanted = plain.linear(plain.norm(x, state, "norm", 1e-6), state, "predict")[0, 1:]
        torch.testing.assert_close(got[image], wanted)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mlp_ratio", [4.0, 1.5])
def test_the_predictor(grid: Any, mlp_ratio: float) -> None:
    predictor = randomized(IJEPAPredictor(6, grid, 8, 2, 2, mlp_ratio))
    state = predictor.state_dict()
    assert state["blocks.0.mlp.fc1.weight"].shape == (int(8 * mlp_ratio), 8)
    tokens = torch.randn(2, 2, 6, dtype=torch.float64)
    context, targets = torch.tensor([[0, 3], [1, 2]]), torch.tensor([[[2, 3]], [[3, 0]]])
    got = predictor(tokens, context, targets)
    for image in range(2):
        positions = state["pos_embed"][0]
        seen = plain.linear(tokens[image], state, "embed") + positions[context[image]]
        masked = state["mask_token"][0] + positions[targets[image, 0]]
        x = plain.blocks(torch.cat([seen, masked])[None], state, 2, 1e-6)
        wanted = plain.linear(plain.norm(x, state, "norm", 1e-6), state, "project")[0, 2:]
        torch.testing.assert_close(got[image, 0], wanted)


@pytest.mark.parametrize("head", [MAEDecoder, IJEPAPredictor])
def test_positions_are_the_columns_and_the_rows(head: Any) -> None:
    sizes = {"token_dim": 6, "width": 8, "depth": 1, "num_heads": 2}
    built = head(grid=(2, 3), **sizes, **({"patch_size": 2} if head is MAEDecoder else {}))
    assert built.grid == (2, 3)
    table = built.pos_embed[0, -6:].view(2, 3, 2, 4)
    assert all(torch.equal(table[0, :, 0], table[row, :, 0]) for row in range(2))  # the column's
    assert all(torch.equal(table[:, 0, 1], table[:, column, 1]) for column in range(3))


@pytest.mark.parametrize("head", [MAEDecoder, IJEPAPredictor])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (2, 0)}, r"grid must be .*, got \(2, 0\)"),
        ({"grid": True}, "grid must be .*, got True"),
        ({"grid": "2"}, "grid must be .*, got '2'"),
        ({"mlp_ratio": -1.0}, r"mlp_ratio must be above 0, got -1\.0"),
        ({"mlp_ratio": 0.1}, r"mlp_ratio must be .* at least 1 / 8"),
    ],
)
def test_wrong_sizes_are_named(head: Any, options: dict[str, Any], message: str) -> None:
    sizes = {"token_dim": 6, "grid": 2, "width": 8, "depth": 1, "num_heads": 2}
    sizes |= {"patch_size": 2} if head is MAEDecoder else {}
    with pytest.raises(ValueError, match=message):
        head(**(sizes | options))
