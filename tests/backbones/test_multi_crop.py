"""Multi-crop forwards once for each run of equal sizes, and keeps samples and crops apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, multi_crop
from sslzoo.heads import MLP


def _views(sizes: tuple[int, ...], n: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, size, size, generator=generator).double() for size in sizes]


def test_values_are_those_of_one_view_after_the_other_in_eval_mode() -> None:
    backbone, head = SmallResNet((4, 8)).double().eval(), MLP([8, 6, 5]).double().eval()
    views = _views((8, 8, 6, 8, 6, 6))
    wanted = torch.stack([head(backbone(view)) for view in views], dim=1)
    torch.testing.assert_close(multi_crop(backbone, head, views), wanted)


def test_one_forward_for_each_run_of_a_size_and_one_of_the_head() -> None:
    backbone, head = SmallResNet((4, 8)).double(), MLP([8, 5]).double()
    seen: list[tuple[int, ...]] = []
    for part in (backbone, head):
        part.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    multi_crop(backbone, head, _views((8, 8, 6, 6, 6)))
    assert seen == [(10, 3, 8, 8), (15, 3, 6, 6), (25, 8)]


def test_batch_norm_sees_the_crops_of_one_size_together() -> None:
    """The authors' order, crop after crop, has the same statistics."""
    backbone, head = SmallResNet((4, 8)).double(), MLP([8, 6, 5]).double()
    views = _views((8, 8, 6))
    features = torch.cat([backbone(torch.cat(views[:2])), backbone(views[2])])
    wanted = head(features).unflatten(0, (3, 5)).transpose(0, 1)
    torch.testing.assert_close(multi_crop(backbone, head, views), wanted)


def test_groups_of_batch_norm_hold_whole_samples() -> None:
    """Two groups: samples 0 and 1 do not see samples 2 and 3."""
    backbone, head = SmallResNet((4, 8), bn_groups=2).double(), nn.Identity()
    views = _views((8, 8, 6), n=4)
    before = multi_crop(backbone, head, views)
    others = [torch.cat([view[:2], view[2:] * 3 + 1]) for view in views]
    after = multi_crop(backbone, head, others)
    torch.testing.assert_close(after[:2], before[:2])
    assert not torch.allclose(after[2:], before[2:])
