"""Files of many channels and bits keep them from the disk to the view, and are read by windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslzoo.data import ImageFolder
from sslzoo.data.image.image_set import FileImages
from sslzoo.data.image.load import grid
from sslzoo.data.image.rasters import array_raster, open_image
from sslzoo.random import sample_keys
from sslzoo.transforms import RandomResizedCrop, View, Views, channel_views
from sslzoo.transforms.image.pixels import Decoding, Raster
from sslzoo.value_range import ValueRangeError

RNG = np.random.default_rng(0)
HIGH = {"uint8": 255, "uint16": 65535, "uint32": 2**32 - 1, "int16": 30000, "int32": 2**30}


def bands(kind: str, channels: int = 13, height: int = 70, width: int = 90) -> np.ndarray:
    """(C, H, W), over the range of the type."""
    unit = RNG.random((channels, height, width))
    return unit.astype(kind) if kind.startswith("f") else (unit * HIGH[kind]).astype(kind)


def tiff(path: Path, array: np.ndarray, **how: Any) -> None:
    pytest.importorskip("tifffile").imwrite(path, array, **how)


def hdf5(path: Path, array: np.ndarray, **how: Any) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file.create_dataset("a/bands", data=array, **how)


def zarr(path: Path, array: np.ndarray, **how: Any) -> None:
    store = pytest.importorskip("zarr").create_array(
        str(path), shape=array.shape, dtype=array.dtype, **how
    )
    store[:] = array


def npy(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def npz(path: Path, array: np.ndarray) -> None:
    np.savez(path, image=array, other=np.zeros(3))


MINIS = {"photometric": "minisblack"}
PLANAR = {**MINIS, "planarconfig": "separate"}
INTERLEAVED = {**MINIS, "planarconfig": "contig"}
# How a file is written, its ending, and whether its array has channels last.
FORMATS: dict[str, tuple[Callable[..., None], str, bool, dict[str, Any]]] = {
    "planar TIFF": (tiff, ".tif", False, PLANAR),
    "interleaved TIFF": (tiff, ".tif", True, INTERLEAVED),
    "tiled planar TIFF": (tiff, ".tif", False, {**PLANAR, "tile": (32, 48), "compression": "zlib"}),
    "tiled TIFF": (tiff, ".tiff", True, {**INTERLEAVED, "tile": (16, 32), "compression": "zlib"}),
    "strips": (tiff, ".TIF", True, {**INTERLEAVED, "rowsperstrip": 9, "compression": "zlib"}),
    "pages": (tiff, ".tif", False, {**MINIS, "compression": "zlib", "rowsperstrip": 16}),
    "big-endian TIFF": (tiff, ".tif", False, {**PLANAR, "byteorder": ">"}),
    "npy": (npy, ".npy", False, {}),
    "npy of channels last": (npy, ".npy", True, {}),
    "npz": (npz, ".npz", True, {}),
    "HDF5": (hdf5, ".h5", False, {"chunks": (13, 16, 16), "compression": "gzip"}),
    "Zarr": (zarr, ".zarr", False, {"chunks": (13, 32, 32)}),
    "Zarr of channels last": (zarr, ".zarr", True, {"chunks": (32, 32, 1)}),
}


def saved(root: Path, name: str, array: np.ndarray, stem: str = "a") -> Path:
    write, ending, last, how = FORMATS[name]
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{stem}{ending}"
    write(path, np.ascontiguousarray(array.transpose(1, 2, 0)) if last else array, **how)
    return path


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_window_has_the_values_of_the_file(tmp_path: Path, name: str) -> None:
    array = bands("uint16")
    with open_image(str(saved(tmp_path, name, array))) as image:
        assert isinstance(image, Raster)
        assert (image.shape, image.size) == ((13, 70, 90), (90, 70))
        for top, left, tall, wide in ((0, 0, 70, 90), (15, 30, 40, 41), (69, 89, 1, 1)):
            got = image.read(top, left, tall, wide)
            assert np.array_equal(got, array[:, top : top + tall, left : left + wide])
            part = image.part((5, 7, 60, 70)).read(top // 2, left // 2, 3, 4)
            assert np.array_equal(part, array[:, 5 + top // 2 :, 7 + left // 2 :][:, :3, :4])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16", "int32", "float16",
                                  "float32", "float64"])  # fmt: skip
@pytest.mark.parametrize("name", ["tiled TIFF", "npy", "HDF5", "Zarr"])
def test_every_type_keeps_its_bits(tmp_path: Path, name: str, kind: str) -> None:
    array = bands(kind)
    declared = (0.0, float(HIGH[kind])) if kind in ("uint32", "int16", "int32") else None
    decoding = Decoding(13, declared)
    with open_image(str(saved(tmp_path, name, array))) as image:
        pixels = decoding(image)
        wanted = array.astype(np.float64) / HIGH.get(kind, 1)
        got = pixels.double() / (255 if pixels.dtype == torch.uint8 else 1)
        assert pixels.dtype == (torch.uint8 if kind == "uint8" else torch.float32)
        torch.testing.assert_close(got, torch.from_numpy(wanted), atol=1e-6, rtol=0)
        if declared is not None:
            with pytest.raises(ValueRangeError, match="declare another range by value_range"):
                Decoding(13)(image)


def test_tiff_of_12_packed_bits_tells_its_range(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = RNG.integers(0, 4096, (8, 16), dtype=np.uint16)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    whole = (pairs[:, 0] << 12) | pairs[:, 1]
    packed = np.stack([whole >> 16, whole >> 8, whole], axis=1).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, iter([packed.tobytes()]), shape=(8, 16), dtype="uint16", photometric=1,
                     rowsperstrip=8, bitspersample=12, metadata=None)  # fmt: skip
    with open_image(str(path)) as image:
        torch.testing.assert_close(
            Decoding(1)(image)[0], torch.from_numpy(values / np.float32(4095)), atol=1e-6, rtol=0
        )


def dicom(path: Path, array: np.ndarray, bits: int, **tags: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = array.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PixelData = array.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def decoded(path: Path, decoding: Decoding) -> torch.Tensor:
    with open_image(str(path)) as image:
        return decoding(image)


def test_dicom_has_its_bits_its_rescaling_and_its_white(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (20, 30), dtype=np.uint16)
    unit = torch.from_numpy(stored / np.float32(4095))[None]
    dicom(tmp_path / "a.dcm", stored, 12)
    torch.testing.assert_close(decoded(tmp_path / "a.dcm", Decoding(1)), unit)
    dicom(tmp_path / "1.2.840.5", stored, 12, RescaleSlope=2.0, RescaleIntercept=-1000.0)
    torch.testing.assert_close(decoded(tmp_path / "1.2.840.5", Decoding(1)), unit)
    window = Decoding(1, (-500.0, 1500.0), clip=True)
    wanted = ((torch.from_numpy(stored * 2.0 - 1000) + 500) / 2000).clamp(0, 1).float()[None]
    torch.testing.assert_close(decoded(tmp_path / "1.2.840.5", window), wanted)
    with pytest.raises(ValueRangeError, match=r"declared value_range .*; clip=True"):
        decoded(tmp_path / "1.2.840.5", window._replace(clip=False))
    dicom(tmp_path / "b.dcm", stored, 12, PhotometricInterpretation="MONOCHROME1")
    torch.testing.assert_close(decoded(tmp_path / "b.dcm", Decoding(1)), 1 - unit)
    signed = (stored.astype(np.int16) - 2048).astype(np.int16)
    dicom(tmp_path / "c.dcm", signed, 12)
    torch.testing.assert_close(decoded(tmp_path / "c.dcm", Decoding(1)), unit)
    assert decoded(tmp_path / "a.dcm", Decoding(3)).shape == (3, 20, 30)


def two_views(size: int = 24) -> Views:
    crop = RandomResizedCrop(size, (0.05, 1.0))
    return Views([View(crop, []), View(RandomResizedCrop(size // 2), [])])


def folder(root: Path, **changes: Any) -> ImageFolder:
    plain: dict[str, Any] = {"labels": False, "batch_size": 2, "seed": 1, "num_workers": 0}
    data = ImageFolder(str(root), changes.pop("transform", two_views()), **{**plain, **changes})
    data.setup("fit")
    return data


@pytest.mark.parametrize("name", ["tiled TIFF", "npy", "HDF5", "Zarr"])
def test_crops_read_the_box_alone_and_equal_crops_of_the_whole(tmp_path: Path, name: str) -> None:
    arrays = [bands("uint16") for _ in range(3)]
    for i, array in enumerate(arrays):
        saved(tmp_path, name, array, str(i))
    data = folder(tmp_path, channels=None, decode="workers")
    assert data.sets.train.channels == 13
    transform = data.transform
    for batch in data.train_dataloader():
        for row, index in enumerate(batch.index.tolist()):
            whole = torch.from_numpy(arrays[index].astype(np.float32) / 65535)
            keys = sample_keys(1, 0, torch.tensor([index]))
            for view, crop in zip(batch.views, transform.crop_one(whole, keys), strict=True):
                torch.testing.assert_close(view[row], crop, atol=1e-6, rtol=0)
    view = data.eval_views(next(iter(data.eval_dataloaders().bank))).views[0]
    assert view.shape == (3, 13, 24, 24)
    about = data.preprocessing()
    assert about is not None
    assert about["channels"] == 13
    with pytest.raises(ValueError, match="must have 3 channels, got 13; set channels=13"):
        folder(tmp_path)


def test_small_files_of_many_channels_become_one_array(tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", bands("uint16", 5, 20, 20))
    data = folder(tmp_path, channels=5)
    assert data.sets.train.images.shape == (4, 5, 20, 20)
    assert data.sets.train.images.dtype == torch.float32


def test_a_value_range_is_in_the_preprocessing_and_applies_to_raw_images(tmp_path: Path) -> None:
    from sslzoo.zoo.card import complaints_of_preprocessing, image_view

    for i in range(4):
        np.save(tmp_path / f"{i}.npy", (bands("float32", 2, 20, 20) * 10000).astype(np.uint16))
    data = folder(tmp_path, channels=2, value_range=(0, 8000), clip=True, decode="workers")
    about = data.preprocessing()
    assert about is not None
    assert (about["value_range"], about["clip"]) == ([0.0, 8000.0], True)
    assert complaints_of_preprocessing(about) == []
    raw = np.load(tmp_path / "0.npy")
    got = image_view(about)(torch.from_numpy(raw))
    wanted = data.eval_views(next(iter(data.eval_dataloaders().bank))).views[0][:1]
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def read_upside_down(path: str) -> np.ndarray:
    return np.load(path)[:, ::-1]


def read_twice(path: str) -> np.ndarray:
    return np.stack([np.load(path)] * 2)


def test_a_users_reader_reads_every_file(tmp_path: Path) -> None:
    for i in range(2):
        with (tmp_path / f"{i}.raw").open("wb") as file:
            np.save(file, bands("uint8", 6, 30, 40))
    data = folder(tmp_path, channels=6, reader=read_upside_down, decode="workers")
    with open_image(str(tmp_path / "0.raw"), 6, read_upside_down) as image:
        assert np.array_equal(image.read(0, 0, 30, 40), np.load(tmp_path / "0.raw")[:, ::-1])
    assert next(iter(data.train_dataloader())).views[0].dtype == torch.uint8
    plain = folder(tmp_path, channels=6, reader=read_upside_down, extensions=[".RAW"])
    assert plain.sets.train.images.shape == (2, 6, 30, 40)
    with pytest.raises(ValueError, match=r"got \(2, 6, 30, 40\); .* name a function"):
        folder(tmp_path, channels=6, reader=read_twice)


def test_tiles_cover_every_image_and_split_by_image(tmp_path: Path) -> None:
    arrays = [bands("uint16", 3, 50, 70), bands("uint16", 3, 20, 33)]
    for i, array in enumerate(arrays):
        saved(tmp_path, "tiled TIFF", array, str(i))
    covered = np.zeros((50, 70), int)
    for top, left, tall, wide in grid(50, 70, 32).tolist():
        assert (tall, wide) == (32, 32)
        covered[top : top + tall, left : left + wide] += 1
    assert covered.min() == 1
    data = folder(tmp_path, tile=32, transform=two_views(16), num_workers=2)
    train: FileImages = data.sets.train
    assert train.tiles is not None
    assert train.tiles.file.tolist() == [0] * 6 + [1] * 2
    whole = Views([View(RandomResizedCrop(16), [])])
    for batch in data.train_dataloader():
        for row, index in enumerate(batch.index.tolist()):
            top, left, tall, wide = train.tiles.box[index].tolist()
            tile = arrays[int(train.tiles.file[index])][:, top : top + tall, left : left + wide]
            pixels = torch.from_numpy(tile.astype(np.float32) / 65535)
            keys = sample_keys(1, 0, torch.tensor([index]))
            got = data.transform.crop_one(pixels, keys)[0]
            torch.testing.assert_close(batch.views[0][row], got, atol=1e-6, rtol=0)
    data.teardown()
    assert len(folder(tmp_path, tile=32, transform=whole).sets.train.subset(torch.arange(3))) == 3


def test_color_recipes_are_refused_before_the_first_step(tmp_path: Path) -> None:
    from sslzoo.transforms import cmc_views, multi_crop_views, simclr_views

    for i in range(2):
        np.save(tmp_path / f"{i}.npy", bands("uint8", 4, 30, 40))
    for recipe, named in (
        (simclr_views(16), "color jitter, got 4"),
        (multi_crop_views("dino", (16, 8)), "color jitter, got 4"),
        (channel_views([16], mean=[0.5] * 3, std=[0.5] * 3), "mean and std must have 4 numbers"),
        (cmc_views(16), "views must have 3 channels|must have 4 numbers"),
    ):
        with pytest.raises(ValueError, match=named):
            folder(tmp_path, channels=4, transform=recipe)
    with pytest.raises(ValueError, match=r"sslzoo\.transforms\.channel_views, for any number"):
        folder(tmp_path, channels=4, transform=simclr_views(16))
    folder(tmp_path, channels=4, transform=simclr_views(16, color=False))
    assert folder(tmp_path, channels=4, transform=channel_views([16])).sets.train.channels == 4


def test_axes_that_do_not_tell_are_refused() -> None:
    with pytest.raises(ValueRangeError, match="first or last axis"):
        array_raster(np.zeros((5, 9, 5)), None)
    assert array_raster(np.zeros((5, 9, 4)), 5).shape == (5, 9, 4)
    assert array_raster(np.zeros((1, 7, 1, 9, 8)), None).shape == (7, 9, 8)


def test_a_broken_file_is_named_or_skipped(tmp_path: Path) -> None:
    for package in ("h5py", "pydicom", "tifffile"):
        pytest.importorskip(package)
    for i in range(3):
        saved(tmp_path, "tiled TIFF", bands("uint16", 4), str(i))
    for ending in (".tif", ".npy", ".h5", ".dcm", ".npz"):
        (tmp_path / f"broken{ending}").write_bytes(b"nothing of the kind")
    for ending in (".tif", ".npy", ".h5", ".dcm", ".npz"):
        with pytest.raises((ValueError, OSError)), open_image(str(tmp_path / f"broken{ending}")):
            pass
    data = folder(tmp_path, channels=4, on_broken="skip", batch_size=8, decode="workers")
    with pytest.warns(UserWarning, match="skipped an unreadable image"):
        batch = next(iter(data.train_dataloader()))
    assert set(batch.index.tolist()) == {0, 1, 2}


def test_color_of_jpeg_2000_is_refused_if_pillow_would_cut_it(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "a.jp2"
    Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    with open_image(str(path)) as image:
        assert Decoding()(image).dtype == torch.uint8
    data = bytearray(path.read_bytes())
    start = data.find(b"\xff\x4f\xff\x51") + 42
    data[start : start + 9 : 3] = bytes([15] * 3)  # 16 bits
    path.write_bytes(data)
    with open_image(str(path)) as image, pytest.raises(ValueRangeError, match="Pillow cuts more"):
        Decoding()(image)


def test_ome_zarr_is_read_at_full_resolution(tmp_path: Path) -> None:
    group = pytest.importorskip("zarr").open_group(str(tmp_path / "a.zarr"), mode="w")
    array = bands("uint16", 4)
    for name, level in (("0", array), ("1", array[:, ::2, ::2])):
        shape = (1, 4, 1, *level.shape[1:])  # t, c, z, y, x
        group.create_array(name, shape=shape, dtype="uint16")[:] = level.reshape(shape)
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": "0"}, {"path": "1"}]}]}
    with open_image(str(tmp_path / "a.zarr")) as image:
        assert np.array_equal(image.read(3, 5, 20, 30), array[:, 3:23, 5:35])


@pytest.mark.parametrize("compression", ["lzw", "zstd"])
def test_tiff_of_other_compressions_is_read_by_imagecodecs(
    tmp_path: Path, compression: str
) -> None:
    pytest.importorskip("imagecodecs")
    array = bands("uint16")
    tiff(tmp_path / "a.tif", array, **PLANAR, tile=(32, 32), compression=compression)
    with open_image(str(tmp_path / "a.tif")) as image:
        assert np.array_equal(image.read(9, 20, 40, 50), array[:, 9:49, 20:70])
