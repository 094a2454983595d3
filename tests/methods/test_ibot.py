"""iBOT: a step is the paper's, with every patch scored; masks reach the student alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.backbones import small_vit, timm_swin
from sslzoo.batch import Batch
from sslzoo.callbacks.freeze import FreezeHead
from sslzoo.heads import DINOHead, Prototypes
from sslzoo.masks import BlockMasks
from sslzoo.memory import commit_memories
from sslzoo.methods import IBOT
from sslzoo.methods.base import step_keys
from sslzoo.optim import ConstantSchedule, LinearSchedule, RunLength
from sslzoo.random import Keys


def toy(**options) -> IBOT:
    torch.manual_seed(0)
    vit = small_vit(24, 4, width=16, depth=2, num_heads=2, mask_token=True)
    return IBOT(vit, DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6), **options).double()


def batch(n: int = 6, small: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(3)
    sizes = [24, 24] + [8] * small
    views = [torch.randn(n, 3, s, s, generator=generator).double() for s in sizes]
    return Batch(views, torch.arange(n))


def scores(head: DINOHead, tokens: Tensor) -> Tensor:
    return head(tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1])


@pytest.mark.parametrize(
    ("small", "separate", "teacher_shares"),
    [(0, False, False), (2, False, False), (0, True, False), (2, True, True)],
)
def test_a_step_is_the_papers_with_every_patch_scored(
    small: int, separate: bool, teacher_shares: bool
) -> None:
    method = toy(
        teacher_temperature=ConstantSchedule(0.05),
        teacher_patch_temperature=LinearSchedule(0.04, 0.07, 2),
        cls_weight=2.0,
        patch_weight=0.5,
        patch_center_momentum=0.6 if separate else None,
        patch_prototypes=Prototypes(6, 10 if teacher_shares else 7) if separate else None,
        teacher_shares_prototypes=teacher_shares,
    )
    student_patches = method.patch_prototypes if separate else method.projector.last_layer
    teacher_patches = method.teacher_projector.last_layer
    assert len(method.teacher_pairs()) == (3 if separate and not teacher_shares else 2)
    if separate and not teacher_shares:
        teacher_patches = method.teacher_patch_prototypes
        assert method.teacher_pairs()[2] == (student_patches, teacher_patches)
        with torch.no_grad():
            teacher_patches.weight_v.normal_()
    method.run_length, method.step = RunLength(40, 10), 5  # a quarter of the way up: 0.0475
    with torch.no_grad():
        method.backbone.norm.weight.mul_(2)  # student and teacher differ
        method.center.rows.normal_()
        method.patch_center.rows.normal_()
    center, patch_center = method.center.read().clone(), method.patch_center.read().clone()
    data = batch(small=small)
    masks, cls_loss, patch_loss = method.mask(data), [], []
    students, teachers, patches = [], [], []
    for i, view in enumerate(data.views):
        mask = masks[:, i] if i < 2 else None
        tokens = method.backbone.forward_tokens(view, mask=mask)
        student = scores(method.projector, tokens[:, 0]) / 0.1
        students.append(student.log_softmax(-1))
        if i < 2:
            student = student_patches(method.projector.bottleneck(tokens[:, 1:])) / 0.1
            tokens = method.teacher_backbone.forward_tokens(view)
            teachers.append(scores(method.teacher_projector, tokens[:, 0]))
            patches.append(teacher_patches(method.teacher_projector.bottleneck(tokens[:, 1:])))
            q = ((patches[-1] - patch_center) / 0.0475).softmax(-1)
            each = -(q * student.log_softmax(-1)).sum(-1)
            count = mask.sum(1).clamp(min=1)
            patch_loss.append(((each * mask).sum(1) / count).mean())
    for i, teacher in enumerate(teachers):
        q = ((teacher - center) / 0.05).softmax(-1)
        cls_loss += [-(q * s).sum(-1).mean() for j, s in enumerate(students) if i != j]
    assert 0 < masks.sum() < masks.numel()
    terms = method.losses(data)
    wanted = 2 * torch.stack(cls_loss).mean(), 0.5 * torch.stack(patch_loss).mean()
    torch.testing.assert_close(terms["cls"], wanted[0], rtol=1e-9, atol=0)
    torch.testing.assert_close(terms["patch"], wanted[1], rtol=1e-9, atol=0)
    commit_memories(method)
    m_patches = 0.6 if separate else 0.9
    for memory, before, logits, m in (
        (method.center, center, torch.cat(teachers), 0.9),
        (
            method.patch_center,
            patch_center,
            torch.cat(patches).flatten(0, 1),
            m_patches,
        ),
    ):
        torch.testing.assert_close(memory.read(), m * before + (1 - m) * logits.mean(0))


def test_masks_differ_by_view_and_step_and_not_by_batch() -> None:
    method, data = toy(masks=BlockMasks([0.4], [0.1])), batch(16)
    first = method.mask(data)
    assert first.shape == (16, 2, 36)
    assert not torch.equal(first[:, 0], first[:, 1])
    part = Batch([view[3:5] for view in data.views], data.index[3:5])
    assert torch.equal(method.mask(part), first[3:5])
    method.step = 1
    assert not torch.equal(method.mask(data), first)


def test_masks_of_both_views_are_made_together_and_are_those_made_apart() -> None:
    method, data = toy(masks=BlockMasks()), batch(16)
    masks, rows = method.masks, []

    class Counted(BlockMasks):
        def __call__(self, keys: Keys, height: int, width: int) -> Tensor:
            rows.append(len(keys.key))
            return masks(keys, height, width)

    method.masks = Counted()
    got, keys = method.mask(data), step_keys(method, data)
    assert rows == [32]
    apart = [masks(keys.fold("mask", view), 6, 6) for view in range(2)]
    assert torch.equal(got, torch.stack(apart, dim=1))


def test_the_teacher_sees_large_crops_whole() -> None:
    method, data = toy(), batch()
    hidden = data.views[0].clone()
    before = method.losses(data)
    with torch.no_grad():
        method.teacher_backbone.mask_token.normal_(std=100.0)  # nothing of the teacher is masked
    assert torch.equal(method.losses(data)["patch"], before["patch"])
    with torch.no_grad():
        method.backbone.mask_token.normal_()
    assert not torch.allclose(method.losses(data)["patch"], before["patch"])
    assert torch.equal(data.views[0], hidden)


def test_without_masks_it_is_dino_and_the_patches_cost_nothing() -> None:
    method = toy(masks=BlockMasks([0.0], [0.0]))
    terms = method.losses(batch())
    assert terms["patch"] == 0
    assert terms["cls"] > 0


def test_a_backbone_without_mask_token_is_named() -> None:
    with pytest.raises(ValueError, match="mask_token=True, got ViT"):
        IBOT(small_vit(8, 4, width=16, depth=1, num_heads=2), DINOHead(16, 10, 8, 6))
    options = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1]}
    swin = timm_swin(img_size=32, window_size=4, options=options)
    with pytest.raises(ValueError, match="must have a class token, got Swin without it"):
        IBOT(swin, DINOHead(16, 10, 8, 6))


def test_both_prototypes_are_frozen_at_first() -> None:
    """The code drops the gradients of every parameter named last_layer, so also of last_layer2."""
    method = toy(patch_prototypes=Prototypes(6, 7, fixed_length=False))
    method.run_length = RunLength(40, 10)
    for step, frozen in ((0, True), (9, True), (10, False)):
        method.step = step
        sum(method.losses(batch()).values()).backward()
        for callback in method.configure_callbacks():
            if isinstance(callback, FreezeHead):
                callback.drop(method)
        for layer in (method.projector.last_layer, method.patch_prototypes):
            assert (layer.weight_v.grad is None) == frozen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cls_weight": -1.0}, r"cls_weight must be in \[0, inf\), got -1\.0"),
        ({"patch_weight": float("nan")}, r"patch_weight must be in \[0, inf\), got nan"),
        ({"patch_center_momentum": 1.0}, "momentum in .*got 10 and 1.0"),
        ({"teacher_shares_prototypes": True}, "out_features 10, .*got None"),
        (
            {"teacher_shares_prototypes": True, "patch_prototypes": Prototypes(6, 7)},
            "out_features 10, .*got 7",
        ),
        ({"mask_from_epoch": -1.0}, r"mask_from_epoch must be in \[0, inf\), got -1\.0"),
        ({"patch_prototypes": Prototypes(5, 7)}, "in_features 6, .*bottleneck, got 5"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**options)


def test_masks_begin_with_their_epoch() -> None:
    method = toy(mask_from_epoch=1.5, masks=BlockMasks([0.4], [0.1]))
    method.run_length = RunLength(40, 10)
    for step, masked in ((0, False), (14, False), (15, True)):
        method.step = step
        assert method.mask(batch()).any() == masked
        terms = method.losses(batch())
        assert (terms["patch"] > 0) == masked
        assert terms["cls"] > 0
