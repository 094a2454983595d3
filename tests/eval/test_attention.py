"""Attention maps equal the weights that an unfused block computes, for our ViTs and timm's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.callbacks import AttentionMaps
from sslzoo.eval.attention import attention_picture, cls_attention
from sslzoo.heads import DINOHead
from sslzoo.methods import DINO
from tests.callbacks.toy import FILTERS, ToyData, trainer

pytestmark = FILTERS


def our_vit() -> Any:
    torch.manual_seed(0)
    return small_vit(8, 4, width=16, depth=2, num_heads=2)


def timm_tiny() -> Any:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)


def unfused(vit: Any, images: Tensor) -> Tensor:
    """The weights themselves: the last block without its fused kernel, caught at its dropout."""
    seen: list[Tensor] = []
    attention = vit.blocks[-1].attn
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    vit.eval()(images)
    hook.remove()
    return seen[0][:, :, 0, 1:]


def small(name: str) -> Any:
    """A timm model of two narrow blocks, with numbers where it begins with zeros."""
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 32, "num_classes": 0}
    vit = timm.create_model(name, **options)
    with torch.no_grad():
        for value in vit.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    return vit


WITH_EXTRAS = [
    "vit_small_patch16_dinov3",  # rotary positions and four registers
    "vit_small_patch16_rope_224",
    "eva02_tiny_patch14_224",  # biases of queries and values alone
    "beit_base_patch16_224",  # a table of relative positions
    "vit_small_patch14_reg4_dinov2",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
]


@pytest.mark.parametrize(
    "name", [*WITH_EXTRAS[:1], *(pytest.param(n, marks=pytest.mark.slow) for n in WITH_EXTRAS[1:])]
)
def test_maps_of_other_vits_are_what_their_fused_kernel_uses(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, images, weights = small(name).eval(), torch.randn(2, 3, 32, 32), []
    kernel = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **more: Any) -> Tensor:
        scores = q @ k.mT * more.get("scale", q.shape[-1] ** -0.5)
        weights.append((scores if attn_mask is None else scores + attn_mask).softmax(dim=-1))
        return kernel(q, k, v, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    vit(images)
    maps = cls_attention(vit, images)
    assert maps.shape == (2, 2, 2, 2)
    torch.testing.assert_close(maps.flatten(2), weights[1][:, :, 0, -4:])
    assert vit.blocks[-1].attn.fused_attn


@pytest.mark.parametrize(("make", "size", "heads"), [(our_vit, 8, 2), (timm_tiny, 32, 3)])
def test_maps_are_the_weights_of_the_last_block(make: Any, size: int, heads: int) -> None:
    vit, images = make(), torch.randn(2, 3, size, size)
    vit.train()
    maps = cls_attention(vit, images)
    assert vit.training
    assert maps.shape == (2, heads, 2, 2)
    torch.testing.assert_close(maps.flatten(2), unfused(vit, images))
    assert (maps.sum((2, 3)) < 1).all()  # the class token's own share is left out


def test_other_sizes_have_their_own_grid() -> None:
    assert cls_attention(our_vit(), torch.randn(1, 3, 12, 8)).shape == (1, 2, 3, 2)


def test_what_has_no_class_token_or_no_blocks_is_named() -> None:
    with pytest.raises(ValueError, match="class token, got SmallResNet"):
        cls_attention(SmallResNet((4, 8)), torch.randn(1, 3, 8, 8))
    for name in ("vit_wee_patch16_reg1_gap_256", "cait_xxs24_224"):  # a register; elsewhere
        with pytest.raises(ValueError, match="class token"):
            cls_attention(small(name), torch.randn(1, 3, 32, 32))
    vit = small_vit(8, 4, width=16, depth=1, num_heads=2, class_token=False, pool="mean")
    with pytest.raises(ValueError, match="class token, got ViT"):
        cls_attention(vit, torch.randn(1, 3, 8, 8))


def test_picture_has_a_row_an_image_and_a_column_a_map() -> None:
    images = torch.rand(2, 1, 8, 8)
    attention = torch.zeros(2, 3, 2, 2)
    attention[:, :, 0, 1] = torch.tensor([0.1, 0.2, 0.3])
    picture = np.asarray(attention_picture(images, attention))
    assert picture.shape == (2 * 10, 5 * 10, 3)  # a border of one pixel
    inner = picture[1:9, 11:19, 0]  # the mean of the first image
    assert (inner[:4, 4:] == 255).all()
    assert not inner[4:].any()
    assert picture[1:9, 1:9].max() == 255
    assert picture[1:9, 1:9].min() == 0


def test_a_run_ends_with_a_picture(tmp_path: Any) -> None:
    torch.manual_seed(0)
    vit = small_vit(4, 2, width=16, depth=1, num_heads=2)
    method = DINO(vit, DINOHead(16, 8, 8, 4), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    run = trainer(tmp_path, AttentionMaps(count=5), max_epochs=1)
    run.fit(method, datamodule=ToyData())
    with Image.open(tmp_path / "attention.png") as image:
        picture = np.asarray(image)
    assert picture.shape == (5 * 6, 4 * 6, 3)


def test_wrong_settings_are_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="got 0"):
        AttentionMaps(count=0)
    with pytest.raises(ValueError, match="eval_dataloaders"):
        AttentionMaps().on_train_start(trainer(tmp_path), nn.Identity())  # type: ignore[arg-type]
