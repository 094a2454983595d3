"""Boxes of crops reach the method: where the pixels come from, on every path of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.data import ImageFolder, with_views
from sslzoo.heads import MLP
from sslzoo.methods import VICRegL
from sslzoo.transforms import RandomResizedCrop, View, Views, multi_crop_views
from sslzoo.transforms.image.pixels import pixels_of
from sslzoo.transforms.image.resample import crop_pixels
from tests.data.image.test_folder import write_tree
from tests.data.test_with_views import PIXELS, Users

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def crops(boxes: bool = True, size: int = 8, **options: Any) -> Views:
    """Two large and a small crop, without other operations."""
    large = View(RandomResizedCrop(size, (0.3, 1.0)), [])
    small = View(RandomResizedCrop(size // 2, (0.1, 0.3)), [])
    return Views([large, large, small], boxes=boxes, **options)


def assert_cut_from(batch: Batch, images: list[Tensor], tol: float = 1.01 / 255) -> None:
    """Every view is the part of its image, uint8 (C, H, W), that its box names."""
    assert batch.boxes is not None
    assert batch.boxes.dtype == torch.int64
    assert batch.boxes.shape == (len(images), len(batch.views), 5)
    for v, view in enumerate(batch.views):
        for i, image in enumerate(images):
            *box, flip = batch.boxes[i, v].tolist()
            wanted = crop_pixels(image, box, bool(flip), view.shape[-1], "bilinear") / 255
            assert (view[i] - wanted).abs().max() <= tol


@pytest.mark.parametrize("in_workers", [False, True])
@pytest.mark.parametrize("shared_flip", [0.0, 0.5])
def test_boxes_say_where_the_views_are(in_workers: bool, shared_flip: float) -> None:
    transform = crops(shared_flip=shared_flip)
    data = with_views(Users(), transform, seed=1, num_classes=3, crop_in_workers=in_workers)
    data.setup("fit")
    batch = data.preview(list(range(12)), epoch=2)
    assert_cut_from(batch, [torch.from_numpy(x).permute(2, 0, 1) for x in PIXELS])
    assert batch.boxes is not None
    assert batch.boxes[..., 4].unique().tolist() == [0, 1]
    part = data.preview([7, 3], epoch=2)  # any split: of samples, index and epoch alone
    assert part.boxes is not None
    assert torch.equal(part.boxes, batch.boxes[[7, 3]])
    other = data.preview([7, 3], epoch=3)
    assert not torch.equal(part.boxes, other.boxes)


def test_both_paths_have_the_same_boxes() -> None:
    found = []
    for in_workers in (False, True):
        data = with_views(Users(), crops(), seed=1, num_classes=3, crop_in_workers=in_workers)
        data.setup("fit")
        found.append(data.preview([4, 9]).boxes)
    assert torch.equal(*found)


def test_others_do_not_pay() -> None:
    plain = with_views(Users(), crops(boxes=False), seed=1, num_classes=3)
    plain.setup("fit")
    assert plain.preview([0]).boxes is None
    assert multi_crop_views().boxes is False
    assert multi_crop_views(boxes=True).boxes is True


def test_files_have_boxes_in_pixels_of_the_file(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ("train",), count=2)
    data = ImageFolder(str(root), crops(size=64), 4, val_dir=None, num_workers=0, seed=3)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    paths = [data.sets.train.path(i) for i in batch.index.tolist()]
    made = data.train_views(batch, 0)
    assert_cut_from(made, [pixels_of(Image.open(path)) for path in paths])


def test_a_reduced_jpeg_has_the_boxes_of_the_whole(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ("train",), count=1, size=(640, 480))
    data = ImageFolder(str(root), crops(size=16), 2, val_dir=None, num_workers=0, seed=3)
    data.setup("fit")
    batch = data.preview([0, 1])
    assert batch.boxes is not None
    assert batch.boxes[:, :2, 2:4].amin() > 200  # of 480, not of the 120 that are decoded
    paths = [data.sets.train.path(i) for i in range(2)]
    assert_cut_from(batch, [pixels_of(Image.open(path)) for path in paths], tol=0.1)


def test_an_unreadable_image_takes_the_boxes_of_its_replacement(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ("train",), count=2)
    (root / "train" / "cat" / "0.jpg").write_bytes(b"broken")
    options: dict[str, Any] = {"val_dir": None, "num_workers": 0, "on_broken": "skip"}
    data = ImageFolder(str(root), crops(size=64), 4, **options)
    data.setup("fit")
    with pytest.warns(UserWarning, match="skipped an unreadable image"):
        batch = data.preview([0, 1, 2])
    assert batch.boxes is not None
    assert batch.index.tolist() == [1, 1, 2]
    assert torch.equal(batch.boxes[0], batch.boxes[1])


def test_parts_of_a_view_have_its_box() -> None:
    data = with_views(Users(), crops(split=(1, 2)), seed=1, num_classes=3)
    data.setup("fit")
    batch = data.preview([0, 1])
    assert batch.boxes is not None
    assert batch.boxes.shape == (2, 6, 5)
    assert torch.equal(batch.boxes[:, 0::2], batch.boxes[:, 1::2])


class Seen(Callback):
    """Keeps index, epoch and boxes of every batch that the method gets."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], int, Tensor]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert batch.boxes is not None
        self.batches.append((batch.index.tolist(), trainer.current_epoch, batch.boxes))


def fit(transform: Views, seen: Callback, folder: Path) -> Any:
    torch.manual_seed(0)
    heads = [MLP([8, 4], last_bias=False) for _ in range(2)]
    method = VICRegL(
        SmallResNet((4, 8)),
        *heads,
        num_matches=(3, 2),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01),
    )
    data = with_views(Users(), transform, seed=1, num_classes=3)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[seen],
        max_epochs=2,
    )
    trainer.fit(method, data)
    return data


def test_training_gets_the_boxes_of_its_epoch(tmp_path: Path) -> None:
    whole = Seen()
    data = fit(crops(), whole, tmp_path)
    assert len(whole.batches) == 6
    for index, epoch, boxes in whole.batches:
        wanted = data.preview(index, epoch).boxes
        assert wanted is not None
        assert torch.equal(boxes, wanted)


def test_a_transform_without_boxes_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have the boxes of its crops, got none; set boxes"):
        fit(crops(boxes=False), Callback(), tmp_path)
