"""CPC for images: what predicts what, in each direction, and what it asks of its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.batch import Batch
from sslzoo.distributed import Rows
from sslzoo.heads import PixelContext
from sslzoo.losses import cpc_info_nce
from sslzoo.methods import ImageCPC, SimCLR
from sslzoo.methods.base import step_keys
from tests.toys import Pooled


class Places(nn.Module):
    """A backbone whose map is the image itself."""

    num_features = map_features = 3
    grid = 5

    def forward_map(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def method(**options: Any) -> ImageCPC:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_steps": 2, "num_negatives": 4}
    return ImageCPC(Places(), contexts=[PixelContext(3, 1)], **{**given, **options})


def batch(size: int = 5) -> Batch:
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    return Batch([x], index=torch.arange(4))


def test_the_term_is_the_mean_over_steps_of_rows_that_do_not_overlap() -> None:
    cpc, given = method(), batch()
    z = given.views[0]
    c = cpc.contexts[0](z)
    steps = []
    for k in (1, 2):
        reach = k + 1
        target = torch.stack([cpc.predictors[0][k - 1](z[:, :, y, x]) for y in range(reach, 5)
                              for x in range(5)], dim=1)  # fmt: skip
        above = torch.stack([c[:, :, y, x] for y in range(5 - reach) for x in range(5)], dim=1)
        places = torch.arange(5 * (5 - reach))
        keys = step_keys(cpc, given).fold("down", k)
        drawn = keys.integers("negatives", 4 * len(places), len(places), 4)
        steps.append(cpc_info_nce(above, target, places, drawn))
    torch.testing.assert_close(cpc.losses(given)["down"], (steps[0] + steps[1]) / 2)


@pytest.mark.parametrize(
    ("direction", "turn"),
    [
        ("up", lambda x: x.flip(2)),
        ("right", lambda x: x.transpose(2, 3)),
        ("left", lambda x: x.flip(3).transpose(2, 3)),
    ],
)
def test_a_direction_is_down_on_a_turned_image(monkeypatch, direction: str, turn: Any) -> None:
    def first(self: Any, purpose: str, high: int, *shape: int) -> Tensor:
        return torch.arange(self.key.shape[0] * shape[0] * shape[1]).view(-1, *shape) % high

    monkeypatch.setattr("sslzoo.random.keys.Keys.integers", first)  # the same negatives in both
    given = batch()
    turned = given._replace(views=[turn(given.views[0])])
    wanted = method().losses(turned)["down"]
    torch.testing.assert_close(method(directions=[direction]).losses(given)[direction], wanted)


def test_negatives_come_from_the_whole_batch_and_change_with_the_step(monkeypatch) -> None:
    drawn: list[Tensor] = []

    def spy(
        anchors: Tensor, targets: Tensor, places: Tensor, negatives: Tensor, rows: Rows
    ) -> Tensor:
        drawn.append(negatives // targets.shape[1])  # whose targets they are
        return cpc_info_nce(anchors, targets, places, negatives, rows=rows)

    monkeypatch.setattr("sslzoo.methods.image_cpc.cpc_info_nce", spy)
    cpc, given = method(num_negatives=50), batch()
    first, again = (cpc.losses(given)["down"] for _ in range(2))
    assert torch.equal(first, again)
    for samples in drawn:
        for own in samples:
            assert own.unique().tolist() == [0, 1, 2, 3]
    cpc.step += 1
    assert not torch.equal(cpc.losses(given)["down"], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": []}, "got 0 contexts"),
        ({"directions": ["down", "up"]}, "got 1 contexts and directions"),
        ({"directions": ["sideways"]}, "sideways"),
        ({"contexts": [PixelContext(4, 1)]}, r"contexts must have in_features 3, .* got \[4\]"),
        ({"num_steps": 4}, "below 5, the rows of the grid, got 4, 4 and 1"),
        ({"num_negatives": 0}, "got 2, 0 and 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"contexts": [PixelContext(3, 1)], "num_steps": 2, "num_negatives": 4}
    with pytest.raises(ValueError, match=message):
        ImageCPC(Places(), **{**given, **options})


def test_a_backbone_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="Pooled with map_features None and grid None"):
        ImageCPC(Pooled(6), [PixelContext(6, 1)])


def test_lists_of_modules_are_not_stored_as_hyperparameters() -> None:
    assert "contexts" not in method().hparams
    assert method().hparams["num_steps"] == 2
    assert SimCLR(Pooled(6), nn.Linear(6, 2)).hparams["temperature"] == 0.1
