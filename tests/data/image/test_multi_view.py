"""MultiViewFolder: formats, one crop for all modalities, matching by name, errors, CMC on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, Towers
from sslzoo.batch import Batch
from sslzoo.data import Modality, MultiViewFolder
from sslzoo.data.image.multi_view import read_modality
from sslzoo.heads import PerView
from sslzoo.methods import CMC
from sslzoo.random import sample_keys
from sslzoo.transforms import RandomResizedCrop
from sslzoo.transforms.image.color_space import LAB_MEAN, LAB_STD, to_space_

SIDE, WIDE = 20, 24
ALL = [
    Modality("image", "image", [0.0] * 3, [1.0] * 3),
    Modality("depth", "depth"),
    Modality("normals", "normals"),
    Modality("seg", "labels"),
]


def write_tree(root: Path, parts: tuple[str, ...] = ("train", "val"), count: int = 6) -> Path:
    """Two classes; image, depth and normals show the same smooth picture, seg its halves."""
    for part in parts:
        for i in range(count):
            name = f"{'cat' if i % 2 else 'dog'}/{i}"
            rng = np.random.default_rng(i)
            small = torch.from_numpy(rng.random((1, 1, 4, 5))).float()
            smooth = torch.nn.functional.interpolate(small, (SIDE, WIDE), mode="bilinear")[0, 0]
            for modality in ALL:
                (root / part / modality.folder / name).parent.mkdir(parents=True, exist_ok=True)
            byte = (smooth * 255).round().to(torch.uint8).numpy()
            colors = Image.fromarray(np.stack([byte] * 3, 2))
            colors.save(root / part / "image" / f"{name}.png")
            deep = (smooth * 65535).round().numpy().astype(np.uint16)
            Image.fromarray(deep).save(root / part / "depth" / f"{name}.png")
            np.save(root / part / "normals" / f"{name}.npy", np.stack([smooth.numpy()] * 3))
            halves = Image.fromarray((byte > 128).astype(np.uint8) * 7)
            halves.save(root / part / "seg" / f"{name}.png")
    return root


def folder(root: Path, **options: Any) -> MultiViewFolder:
    plain: dict[str, Any] = {
        "modalities": ALL, "size": 16, "space": "rgb", "batch_size": 3, "num_workers": 0, "seed": 1,
    }  # fmt: skip
    return MultiViewFolder(str(root), **{**plain, **options})


def train_batches(data: MultiViewFolder, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = [data.train_views(batch, epoch) for batch in loader]
    loader.close()
    return batches


def mirrored(data: MultiViewFolder, batch: Batch, epoch: int = 0) -> Tensor:
    keys = sample_keys(data.seed, epoch, batch.index).fold("view", 0)
    return data.transform.crops[0].draw_flip(keys)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_modalities_get_one_crop_and_flip(tmp_path: Path, num_workers: int) -> None:
    data = folder(write_tree(tmp_path), num_workers=num_workers)
    data.setup("fit")
    assert data.channels == [3, 1, 3, 1]
    flips = []
    for batch in train_batches(data):
        image, depth, normals, seg = batch.views
        assert [view.shape[1] for view in batch.views] == data.channels
        assert all(view.shape[2:] == (16, 16) for view in batch.views)
        assert batch.label is None
        assert (image[:, :1] - depth).abs().max() < 0.003  # 8 bits and 16 bits
        torch.testing.assert_close(normals[:, 1:2], depth, rtol=0, atol=1e-4)
        flip = mirrored(data, batch)
        sign = torch.where(flip, -1.0, 1.0)[:, None, None]
        torch.testing.assert_close(normals[:, 0], normals[:, 1] * sign)
        assert set((seg * 255).round().unique().tolist()) <= {0.0, 7.0}  # classes do not mix
        clear = (depth - 128 / 255).abs() > 0.2
        assert ((seg > 0) == (depth > 0.5))[clear].all()
        flips += flip.tolist()
    assert {True, False} <= set(flips)


def test_the_crop_is_that_of_the_device_path(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path))
    data.setup("fit")
    for epoch in (0, 1):
        batch = train_batches(data, epoch)[0]
        whole = torch.stack([data.sets.train.read(i)[1] for i in batch.index.tolist()])
        keys = sample_keys(1, epoch, batch.index).fold("view", 0)
        wanted = RandomResizedCrop(16, (0.2, 1.0))(whole, keys)
        torch.testing.assert_close(batch.views[1], wanted, rtol=0, atol=1e-4)


def test_lab_splits_the_image_in_training_and_evaluation_joins_all(tmp_path: Path) -> None:
    modalities = [Modality("image", "image"), Modality("depth", "depth", [0.5], [0.25])]
    data = folder(write_tree(tmp_path), modalities=modalities, space="lab", labels=True)
    data.setup()
    assert data.channels == [1, 2, 1]
    assert [view.shape[1] for view in train_batches(data)[0].views] == [1, 2, 1]
    loaders = data.eval_dataloaders()
    batch = data.eval_views(next(iter(loaders.query)))
    assert (len(batch.views), loaders.num_classes, data.classes) == (1, 2, ["cat", "dog"])
    assert batch.label.tolist() == [0, 0, 0, 1, 1, 1]
    image, depth = data.sets.query.read(0)
    planes = image[:, None].clone()
    to_space_(planes, "lab")
    planes = planes[:, 0, 2:18, 4:20]
    mean, std = torch.tensor(LAB_MEAN), torch.tensor(LAB_STD)
    lab = (planes - mean[:, None, None]) / std[:, None, None]
    wanted = torch.cat([lab, (depth[:, 2:18, 4:20] - 0.5) / 0.25])
    torch.testing.assert_close(batch.views[0][0], wanted)


def test_evaluation_resizes_the_shorter_side(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path), size=8, resize=10, val_dir=None)
    data.setup()
    view = data.eval_views(next(iter(data.eval_dataloaders().bank))).views[0]
    assert view.shape == (6, 8, 8, 8)
    depth = data.sets.train.read(0)[1]
    half = torch.nn.functional.interpolate(depth[None], (10, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(view[0, 3], half[0, 0, 1:9, 2:10])
    large = folder(tmp_path, size=22)
    large.setup()
    batches = iter(large.eval_dataloaders().bank)
    with pytest.raises(ValueError, match=r"at least 22 pixels .*, got 20 x 24; set resize"):
        next(batches)


def test_formats(tmp_path: Path) -> None:
    depth, normals, seg = ALL[1], ALL[2], ALL[3]
    deep = np.array([[0, 65535], [1000, 30000]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    wanted = torch.from_numpy(deep.astype(np.float32) / 65535)[None]
    torch.testing.assert_close(read_modality(str(tmp_path / "a.png"), depth), wanted)
    np.save(tmp_path / "b.npy", deep)
    torch.testing.assert_close(read_modality(str(tmp_path / "b.npy"), depth), wanted)
    meters = np.array([[0.5, 9.0]])
    np.save(tmp_path / "c.npy", meters)
    standardized = Modality("depth", "depth", [2.5], [1.5])
    assert read_modality(str(tmp_path / "c.npy"), standardized).tolist() == [[[0.5, 9.0]]]
    declared = Modality("depth", "depth", value_range=(0, 10))
    torch.testing.assert_close(
        read_modality(str(tmp_path / "c.npy"), declared), torch.tensor([[[0.05, 0.9]]])
    )
    for dtype in (np.uint16, np.int32, np.float32):  # millimeters of any type
        np.save(tmp_path / "mm.npy", np.array([[500, 20_000]], dtype=dtype))
        clipped = Modality("depth", "depth", value_range=(0, 10_000), clip=True)
        got = read_modality(str(tmp_path / "mm.npy"), clipped)
        torch.testing.assert_close(got, torch.tensor([[[0.05, 1.0]]]))
    np.save(tmp_path / "g.npy", np.array([[0, 2], [1, 255]], dtype=np.int64))
    one_hot = read_modality(str(tmp_path / "g.npy"), Modality("seg", "labels", num_classes=3))
    assert one_hot.tolist() == [[[1, 0], [0, 0]], [[0, 0], [1, 0]], [[0, 1], [0, 0]]]
    last = np.random.default_rng(0).random((5, 4, 3)).astype(np.float32)
    np.save(tmp_path / "d.npy", last)
    assert np.array_equal(read_modality(str(tmp_path / "d.npy"), normals), last.transpose(2, 0, 1))
    byte = np.zeros((2, 2, 3), dtype=np.uint8)
    byte[0, 0] = 255
    Image.fromarray(byte).save(tmp_path / "e.png")
    assert read_modality(str(tmp_path / "e.png"), normals)[0].tolist() == [[1, -1], [-1, -1]]
    palette = Image.fromarray(np.array([[0, 2]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 50, 50, 50, 200, 0, 0])
    palette.save(tmp_path / "f.png")
    got = read_modality(str(tmp_path / "f.png"), seg) * 255
    torch.testing.assert_close(got, torch.tensor([[[0.0, 2.0]]]))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    depth = ALL[1]
    np.save(tmp_path / "a.npy", np.zeros((4, 5, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"depth must have 1 channels, got .*a.npy"):
        read_modality(str(tmp_path / "a.npy"), depth)
    np.save(tmp_path / "b.npy", np.zeros((4, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="uint8, uint16 or float, got int64"):
        read_modality(str(tmp_path / "b.npy"), depth)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read .*c.png"):
        read_modality(str(tmp_path / "c.png"), depth)
    root = write_tree(tmp_path / "tree")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(root / "train/seg/cat/1.png")
    with pytest.raises(ValueError, match=r"\(9, 9\) in .*seg/cat/1.png and \(20, 24\) in .*image"):
        folder(root).setup("fit")


@pytest.mark.parametrize("part", ["train", "val"])
def test_units_and_classes_are_checked_before_the_first_step(tmp_path: Path, part: str) -> None:
    root = write_tree(tmp_path)
    classes = [*ALL[:3], Modality("seg", "labels", num_classes=8)]
    folder(root, modalities=classes).setup("fit")
    wrong = root / part / "seg/cat/3.png"
    Image.fromarray(np.full((SIDE, WIDE), 9, dtype=np.uint8)).save(wrong)
    folder(root, modalities=classes).setup("predict")
    with pytest.raises(ValueError, match=r"from 0 to 7, .* or 255 for none, got \[9\] in .*cat/3"):
        folder(root, modalities=classes).setup("fit")
    meters = np.full((SIDE, WIDE), 4.5, dtype=np.float32)
    (root / part / "depth/cat/3.png").unlink()
    np.save(root / part / "depth/cat/3.npy", meters)
    with pytest.raises(ValueError, match=r"depth in .*3.npy must be from 0 to 1, got 4.5 to 4.5; "):
        folder(root, modalities=ALL).setup("fit")
    wanted = Modality("depth", "depth", value_range=(0, 4))
    with pytest.raises(ValueError, match=r"value_range \(0, 4\), got .*clip=True of the modality"):
        folder(root, modalities=[ALL[0], wanted]).setup("fit")
    np.save(root / part / "normals/cat/3.npy", np.stack([meters] * 3))
    with pytest.raises(ValueError, match=r"normals in .*3.npy must be from -1 to 1, got 4.5 to"):
        folder(root, modalities=[ALL[0], ALL[2]]).setup("fit")


def test_millimeters_need_their_range(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    for file in root.glob("*/depth/*/*.png"):
        millimeters = (np.array(Image.open(file)) // 10).astype(np.uint16)
        Image.fromarray(millimeters).save(file)
    with pytest.raises(ValueError, match=r"'depth' must use .* at most .* \[0, 10000\] for milli"):
        folder(root).setup("fit")
    declared = Modality("depth", "depth", value_range=(0, 10_000))
    folder(root, modalities=[ALL[0], declared]).setup("fit")


def test_one_folder_per_modality_is_enough(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path) / "train")
    data.setup("fit")
    assert (data.num_samples, data.sets.query) == (6, None)
    alone = folder(tmp_path / "train", modalities=ALL[:1], space="lab")
    alone.setup("fit")
    assert [view.shape[1] for view in train_batches(alone)[0].views] == [1, 2]


def test_patches_are_square_boxes_of_one_size(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path), size=8, scale=(64 / (SIDE * WIDE),) * 2, ratio=(1, 1))
    data.setup("fit")
    batch = train_batches(data)[0]
    keys = sample_keys(1, 0, batch.index).fold("view", 0)
    assert (data.transform.crops[0].draw(keys, SIDE, WIDE)[:, 2:] == 8).all()


def test_samples_that_do_not_match_are_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    lost = root / "train/depth/cat/3.png"
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ValueError, match=r"1 of 6 samples of 'image' are not in 'depth'.*cat/3"):
        folder(root).setup()
    lost.write_bytes(kept)
    more = root / "train/depth/cat/9.png"
    more.write_bytes(kept)
    with pytest.raises(ValueError, match=r"1 of 7 samples of 'depth' are not in 'image'.*cat/9"):
        folder(root).setup()
    more.unlink()
    np.save(root / "train/depth/cat/1.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"a sample must have one file, got .*1.npy and .*1.png"):
        folder(root).setup()
    (root / "train/depth/cat/1.npy").unlink()
    with pytest.raises(ValueError, match=r"modality 'flow' must be a folder.*does not exist"):
        folder(root, modalities=[ALL[0], Modality("flow", "depth")]).setup()
    (root / "train/flow").mkdir()
    with pytest.raises(ValueError, match=r"flow' must hold files .* got none"):
        folder(root, modalities=[ALL[0], Modality("flow", "depth")]).setup()
    for name in ("image", "depth"):
        (root / "val" / name / "cat").rename(root / "val" / name / "hen")
    with pytest.raises(ValueError, match=r"classes that training lacks: \['hen'\]"):
        folder(root, modalities=ALL[:2], labels=True).setup()
    for name in ("image", "depth"):
        (root / "train" / name / "dog/0.png").rename(root / "train" / name / "0.png")
    with pytest.raises(ValueError, match="<modality>/<class>/<file>, got '0'"):
        folder(root, modalities=ALL[:2], labels=True).setup()


def test_wrong_arguments_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least two, .* got \['image'\]"):
        folder(tmp_path, modalities=ALL[:1])
    with pytest.raises(ValueError, match=r"in different folders, got \['image', 'image'\]"):
        folder(tmp_path, modalities=[ALL[0], ALL[0]])
    with pytest.raises(ValueError, match=r"may be an image, got \['depth', 'image'\]"):
        folder(tmp_path, modalities=[ALL[1], ALL[0]])
    with pytest.raises(ValueError, match="got 'xyz'"):
        folder(tmp_path, space="xyz")
    with pytest.raises(ValueError, match="got 'flow'"):
        Modality("flow", "flow")
    for argument, kind in (("value_range", "image"), ("num_classes", "depth")):
        given: Any = {argument: (0, 1) if argument == "value_range" else 3}
        with pytest.raises(ValueError, match=f"{argument} must be left out for {kind}"):
            Modality("a", kind, **given)
    with pytest.raises(ValueError, match=r"num_classes must be in \[1, 255\]"):
        Modality("seg", "labels", num_classes=400)
    with pytest.raises(ValueError, match="clip must be left out without value_range"):
        Modality("depth", "depth", clip=True)
    with pytest.raises(ValueError, match=r"mean of depth must have 1 numbers, got \[0.5, 0.5\]"):
        Modality("depth", "depth", [0.5, 0.5])


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_the_yaml_of_the_guide_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/methods/cmc.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    content = yaml.safe_load(block)
    content["init_args"] |= {"root": str(write_tree(tmp_path)), "size": 16, "batch_size": 3}
    data = parser.instantiate_classes(parser.parse_object({"data": content})).data
    data.num_workers = 0
    data.setup()
    assert data.channels == [1, 2, 1, 3]
    assert [view.shape[1] for view in train_batches(data)[0].views] == data.channels


def test_cmc_takes_a_step_on_it_and_evaluates_all_towers(tmp_path: Path) -> None:
    data = folder(write_tree(tmp_path), space="lab")
    data.setup()
    towers = [SmallResNet((4, 8), in_chans=channels) for channels in data.channels]
    heads = PerView([nn.Linear(8, 4) for _ in towers])
    method = CMC(Towers(towers, data.channels), heads, data.num_samples, 0, mode="core_view")
    terms = method.losses(train_batches(data)[0])
    assert len(terms) == 2 * (len(data.channels) - 1)
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in method.parameters())
    batch = data.eval_views(next(iter(data.eval_dataloaders().bank)))
    assert method(batch.views[0]).shape == (6, 8 * 5)
