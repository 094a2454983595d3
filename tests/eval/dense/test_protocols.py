"""Dense protocols: separable shapes, any number of ranks, memory of patches, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, Towers, cifar_resnet, small_vit
from sslzoo.batch import Batch
from sslzoo.eval.dense import (
    DenseOptions,
    LinearOptions,
    RawPixels,
    RetrievalOptions,
    dense_metrics,
    feature_map,
)
from sslzoo.eval.dense.map_file import write_maps
from sslzoo.eval.dense.retrieval import build_memory, chosen_patches, patch_fractions, retrieve
from tests.eval.dense.toy import NUM_CLASSES, SIDE, drawn, identity, loaders
from tests.ranks import Ranks

OPTIONS = DenseOptions(
    LinearOptions(epochs=8, batch_size=4, lr=0.05), RetrievalOptions(k=5, memory_size=60)
)


def metrics(rank: int = 0) -> dict[str, float]:
    return dense_metrics(RawPixels(2), loaders(), options=OPTIONS)


def test_it_is_the_same_on_any_number_of_ranks(ranks: Ranks) -> None:
    one = metrics()
    assert one["linear_miou"] > 0.6
    assert one["knn_miou_k5_t0.02"] > 0.6
    for world in (2, 3):
        assert ranks(world, metrics) == [one] * world


def test_per_class_figures_have_the_classes_names(tmp_path: Path) -> None:
    options = DenseOptions(OPTIONS.linear, OPTIONS.knn, per_class=True)
    names = ["ground", "red", "green"]
    found = dense_metrics(
        *(RawPixels(4), loaders(), ["linear_segmentation"], options),
        folder=tmp_path / "maps", class_names=names,
    )  # fmt: skip
    ious = [found[f"linear_iou_{name}"] for name in names]
    assert found["linear_miou"] == pytest.approx(sum(ious) / 3)
    assert list((tmp_path / "maps").iterdir()) == []  # nothing is left on the disk


def test_views_need_not_be_multiples_of_the_patch() -> None:
    found = dense_metrics(small_vit(15, 5, depth=2), loaders(), options=OPTIONS)
    assert 0 < found["linear_miou"] < 1


def test_the_loss_of_all_pixels_gives_about_the_same_head() -> None:
    options = DenseOptions(LinearOptions(8, 4, 0.05, loss_scale=None), OPTIONS.knn)
    found = dense_metrics(RawPixels(4), loaders(), ["linear_segmentation"], options)
    coarse = dense_metrics(RawPixels(4), loaders(), ["linear_segmentation"], OPTIONS)
    assert found["linear_miou"] == pytest.approx(coarse["linear_miou"], abs=0.1)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (small_vit(16, 4, depth=2), (128, 4, 4)),
        (SmallResNet((4, 8, 16)), (16, 4, 4)),
        (cifar_resnet("resnet18"), (512, 2, 2)),
        (timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8), (192, 2, 2)),
        (Towers([SmallResNet((4, 8), 1), SmallResNet((4, 8, 16), 2)], [1, 2]), (24, 8, 8)),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_feature_maps(encoder: nn.Module, shape: tuple[int, ...]) -> None:
    assert feature_map(encoder.eval(), torch.rand(2, 3, 16, 16)).shape == (2, *shape)


def test_patch_tokens_are_in_their_place() -> None:
    vit: Any = small_vit(16, 4, depth=2).eval()
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        tokens = vit.forward_tokens(images)[:, 1:]
    assert torch.equal(feature_map(vit, images)[0, :, 2, 3], tokens[0, 11])
    two = feature_map(vit, images, blocks=2)
    torch.testing.assert_close(two[:, 128:], feature_map(vit, images))


def test_an_encoder_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must have forward_map .* got Flatten"):
        feature_map(nn.Flatten(), torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"blocks must be 1 .* got 2"):
        feature_map(SmallResNet(), torch.rand(1, 3, 8, 8), 2)


class NotFinite(RawPixels):
    def forward_map(self, x: Tensor) -> Tensor:
        return super().forward_map(x) * 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": None}, "must have masks and a query set .* got no query set"),
        ({"num_classes": None}, "must have masks and a query set .* got no classes"),
        ({"num_classes": 2}, r"labels of masks must be in 0\.\.1 or 255 \(ignored\), got \[2\]"),
        ({"bank": []}, "must yield at least one batch"),
        (
            {"bank": [Batch([torch.rand(1, 3, 8, 8)], torch.arange(1), torch.zeros(1))]},
            r"must have masks \(B, H, W\).* got labels of shape \(1,\)",
        ),
        (
            {"bank": [Batch([torch.rand(1, 3, 8, 8)], torch.arange(1), torch.zeros(1, 4, 4))]},
            r"must have the size of the images .* \(4, 4\) and \(8, 8\)",
        ),
    ],
)
def test_data_without_masks_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense_metrics(RawPixels(2), loaders()._replace(**change), options=OPTIONS)


def test_maps_beyond_float16_are_refused() -> None:
    with pytest.raises(ValueError, match="within float16's range"):
        dense_metrics(NotFinite(2), loaders(), options=OPTIONS)


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"must have 0\.1 GB free for the feature maps, got 0.0"):
        dense_metrics(RawPixels(2), loaders(), options=OPTIONS, folder=tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearOptions(epochs=0), "epochs must be at least 1"),
        (lambda: LinearOptions(lr=0), "lr must be above 0"),
        (lambda: RetrievalOptions(memory_size=3), "memory_size must be at least 30, got 3"),
        (lambda: DenseOptions(blocks=0), "blocks must be at least 1"),
    ],
)
def test_options_out_of_their_bounds_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_patch_fractions_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 1], [0, 255, 1]]])
    counts = patch_fractions(labels, (1, 2), 2, patch=(2, 2))  # one column of padding, right
    assert counts.tolist() == [[[3, 0], [0, 2]]]


def test_rare_classes_come_first() -> None:
    counts = torch.zeros(1, 50, 2)
    counts[0, :, 0], counts[0, 7] = 1, torch.tensor([0.0, 1.0])
    hits = [chosen_patches(counts, torch.tensor([i]), 5, 0)[0, 7] for i in range(40)]
    assert torch.stack(hits).float().mean() > 0.8  # its score is a uniform draw of 1, not of 49
    nothing = torch.zeros(1, 4, 2)
    assert not chosen_patches(nothing, torch.zeros(1), 3, 0).any()


def test_retrieval_equals_attention_over_the_memory(tmp_path: Path) -> None:
    of, net = loaders(), RawPixels(4)
    args = (of, tmp_path, "bank", "cpu", 255)
    file = write_maps(net, net.forward_map, of.bank, *args)
    options = RetrievalOptions(k=4, memory_size=10_000)
    memory = build_memory(file, NUM_CLASSES, options, (4, 4))
    images, masks = drawn(11, 0)
    keys = net.forward_map(images).half().float().flatten(2).mT.flatten(0, 1)
    values = patch_fractions(masks, (4, 4), NUM_CLASSES, (4, 4)).flatten(0, 1)
    values = values / values.sum(1, keepdim=True)
    assert torch.equal(memory.fractions, values)
    query = torch.rand(5, keys.shape[1])
    unit = nn.functional.normalize
    near = (unit(query.double()) @ unit(keys.double()).T).topk(4)
    wanted = ((near.values / 0.02).softmax(1)[..., None] * values[near.indices]).sum(1)
    torch.testing.assert_close(retrieve(memory, query, options), wanted.float())
    file.close()


def test_a_memory_too_small_is_refused() -> None:
    ignored = torch.full((1, SIDE, SIDE), 255)
    ignored[0, 0, 0] = 1
    bank = [Batch([torch.rand(1, 3, SIDE, SIDE)], torch.arange(1), ignored)]
    with pytest.raises(ValueError, match="k must be at most 1 "):
        dense_metrics(RawPixels(4), loaders()._replace(bank=bank), ["knn_segmentation"])


def test_unsharded_loaders_are_shared_out(ranks: Ranks) -> None:
    assert ranks(2, unsharded) == [unsharded()] * 2


def unsharded(rank: int = 0) -> dict[str, float]:
    pairs = [[(x, y) for x, y in zip(*(t.split(3) for t in drawn(n, n)), strict=True)]
             for n in (9, 7)]  # fmt: skip
    of = loaders()._replace(bank=pairs[0], query=pairs[1], transform=identity, sharded=False)
    return dense_metrics(RawPixels(4), of, options=OPTIONS)
