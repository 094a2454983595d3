"""MapFile: the feature maps and masks of this rank's images, streamed to disk.

Maps are float16 (150 kB per image of 14 x 14 positions and 384 channels), so 10,000 images take
1.5 GB of disk and no memory; a training step reads the rows of its batch. Maps that do not fit in
float16's range, and a disk without room, are refused.
Shapes: n images of this rank, h x w positions, L = h w, D channels, H x W pixels, K classes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sslzoo.distributed import gather_objects
from sslzoo.eval.dense.maps import check_map
from sslzoo.eval.features import eval_mode, own_batches
from sslzoo.eval.knn.search import first_occurrence
from sslzoo.eval.loaders import EvalLoaders

_SPARE = 1 << 26  # bytes of the disk that are left free


class Layout(NamedTuple):
    """What every image of a `MapFile` has.

    Args:
        width: D.
        grid: h and w.
        size: H and W of the masks, which is that of the encoder's input.
    """

    width: int
    grid: tuple[int, int]
    size: tuple[int, int]


class MapFile:
    """Rows of float16 maps and uint8 or int16 masks in two files.

    Args:
        folder: an existing folder.
        name: name of the files.
        layout: the shape of every row.
        wide: whether masks need int16, for labels above 255.
    """

    def __init__(self, folder: Path, name: str, layout: Layout, wide: bool) -> None:
        self.layout = layout
        self.index = torch.empty(0, dtype=torch.int64)  # of the rows
        self._map_shape = (layout.grid[0] * layout.grid[1], layout.width)
        self._types = (np.float16, np.int16 if wide else np.uint8)
        paths = [folder / f"{name}.maps", folder / f"{name}.masks"]
        self._files = [path.open("w+b") for path in paths]
        self._rows = 0
        self._of: dict[int, int] = {}

    @property
    def row_bytes(self) -> int:
        """Bytes of an image."""
        shapes = (self._map_shape, self.layout.size)
        return sum(
            int(np.prod(shape)) * np.dtype(kind).itemsize
            for shape, kind in zip(shapes, self._types, strict=True)
        )

    def __len__(self) -> int:
        return len(self.index)

    def append(self, maps: Tensor, labels: Tensor, index: Tensor) -> None:
        """Write a batch. Shapes: (B, D, h, w), (B, H, W), (B,).

        Raises:
            ValueError: the map is not finite, or beyond the range of float16.
        """
        half = maps.flatten(2).mT.to(torch.float16)
        if not half.isfinite().all():
            raise ValueError(
                "the feature map must be finite and within float16's range of 65504, got a "
                f"largest value of {maps.abs().max().item():g}"
            )
        for file, kind, rows in zip(self._files, self._types, (half, labels), strict=True):
            file.write(np.ascontiguousarray(rows.cpu().numpy().astype(kind, copy=False)).data)
        self.index = torch.cat([self.index, index.cpu().to(torch.int64)])
        self._rows += len(index)

    def keep_once(self) -> None:
        """Drop rows whose index appears on an earlier rank or row; collective."""
        rows = first_occurrence(self.index)
        self._of = dict(zip(self.index[rows].tolist(), rows.tolist(), strict=True))
        self.index = self.index[rows]

    def rows_of(self, index: Tensor) -> Tensor:
        """The samples among `index`, (m,), that this rank has, in the given order."""
        return torch.tensor([i for i in index.tolist() if i in self._of], dtype=torch.int64)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Read images by their sample index. Shapes: (b,) -> (b, L, D) float32, (b, H, W) int64."""
        rows = [self._of[i] for i in index.tolist()]
        parts = (
            self._read(number, shape, rows)
            for number, shape in enumerate((self._map_shape, self.layout.size))
        )
        maps, labels = (torch.from_numpy(part) for part in parts)
        return maps.float(), labels.long()

    def _read(self, number: int, shape: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        file, kind = self._files[number], self._types[number]
        out = np.empty((len(rows), *shape), kind)
        size = out[:1].nbytes or int(np.prod(shape)) * np.dtype(kind).itemsize
        for place, row in enumerate(rows):
            file.seek(row * size)
            file.readinto(out[place])  # type: ignore[attr-defined]
        return out

    def chunks(self, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All images in the order of their index: (index, maps, masks) of up to `count`."""
        for index in self.index.sort().values.split(count):
            yield (index, *self.read(index))

    def close(self) -> None:
        """Close the files; reading is no longer possible."""
        for file in self._files:
            file.close()


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder of this rank's files, removed at the end.

    Args:
        folder: where to make it; None: the system's folder of temporary files.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sslzoo-maps-", dir=folder) as made:
        yield Path(made)


@contextmanager
def _closing_on_errors() -> Iterator[list[MapFile]]:
    files: list[MapFile] = []
    try:
        yield files
    except BaseException:
        for file in files:
            file.close()
        raise


@torch.no_grad()
def write_maps(
    module: nn.Module,
    mapper: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    loaders: EvalLoaders,
    folder: Path,
    name: str,
    device: torch.device | str,
    ignore_index: int,
) -> MapFile:
    """Compute the maps of one loader and stream them to disk; collective.

    Args:
        module: put into eval mode for the duration of the call.
        mapper: (B, C, H, W) -> (B, D, h, w).
        loader: `loaders.bank` or `loaders.query`.
        loaders: see `extract`; labels are masks (B, H, W).
        folder: where the files go.
        name: name of the files.
        device: device to compute on.
        ignore_index: the label of pixels that do not count.

    Returns:
        This rank's images, each index on one rank only.

    Raises:
        ValueError: the labels are not masks of the view's size or are outside the classes, the
            disk has no room, or no rank has a sample.
    """
    file: MapFile | None = None
    with _closing_on_errors() as opened, isolate_rng(), eval_mode(module):
        for batch in own_batches(loader, loaders):
            batch = loaders.transform(move_data_to_device(batch, device))
            labels = check_masks(batch.label, batch.views[0], loaders.num_classes, ignore_index)
            maps = check_map(mapper(batch.views[0]), type(module).__name__)
            if file is None:
                file = MapFile(folder, name, _layout(maps, labels), _is_wide(loaders, ignore_index))
                opened.append(file)
                _check_room(folder, file.row_bytes, loader, len(batch.index))
            file.append(maps, labels, batch.index)
    known = [x for x in gather_objects(None if file is None else file.layout) if x is not None]
    if not known:
        raise ValueError("the evaluation loader must yield at least one batch, got none")
    if file is None:
        file = MapFile(folder, name, known[0], _is_wide(loaders, ignore_index))
    file.keep_once()
    return file


def _is_wide(loaders: EvalLoaders, ignore_index: int) -> bool:
    return not 0 <= ignore_index <= 255 or (loaders.num_classes or 0) > 256


def _layout(maps: Tensor, labels: Tensor) -> Layout:
    grid, size = tuple(maps.shape[2:]), tuple(labels.shape[1:])
    return Layout(maps.shape[1], (grid[0], grid[1]), (size[0], size[1]))


def _check_room(folder: Path, row_bytes: int, loader: Any, first: int) -> None:
    try:
        rows = len(loader) * first
    except TypeError:
        return
    needed, free = rows * row_bytes + _SPARE, shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the disk of {os.fspath(folder)!r} must have {needed / 1e9:.1f} GB free for the "
            f"feature maps, got {free / 1e9:.1f} GB; set TMPDIR or `folder` to another disk"
        )


def check_masks(
    label: Tensor | None, view: Tensor, num_classes: int | None, ignore_index: int
) -> Tensor:
    """Masks (B, H, W) of a batch as int64 on the view's device.

    Raises:
        ValueError: there are none, they have another size, or a label is outside the classes.
    """
    if num_classes is None or label is None or label.ndim != 3:
        got = "none" if label is None else f"labels of shape {tuple(label.shape)}"
        got = "no classes" if label is not None and label.ndim == 3 else got
        raise ValueError(
            "the data must have masks (B, H, W) and num_classes for segmentation, such as "
            f"sslzoo.data.SegmentationFolder, got {got}"
        )
    if label.shape[1:] != view.shape[2:]:
        raise ValueError(
            "masks must have the size of the images after the evaluation view, got "
            f"{tuple(label.shape[1:])} and {tuple(view.shape[2:])}"
        )
    label = label.to(view.device, torch.int64)
    wrong = label[(label != ignore_index) & ((label < 0) | (label >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"labels of masks must be in 0..{num_classes - 1} or {ignore_index} (ignored), got "
            f"{sorted(wrong.unique().tolist())[:5]}"
        )
    return label
