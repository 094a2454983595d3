"""Davis: the videos of DAVIS in their official layout, for label propagation.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.data.datamodule import PredictOn
from sslzoo.data.image.datamodule import ImageDataModule, ImageSets
from sslzoo.data.image.image_set import FileImages
from sslzoo.data.image.load import IMAGE_EXTENSIONS
from sslzoo.data.image.segmentation import read_mask
from sslzoo.data.listing import check_folder, list_files
from sslzoo.transforms.image.eval_view import EvalView
from sslzoo.transforms.image.pixels import Decoding
from sslzoo.transforms.image.views import Views


class Video(NamedTuple):
    """The files of one video.

    Args:
        name: name of its folder.
        frames: T images, in order.
        masks: the annotation of each frame.
    """

    name: str
    frames: list[str]
    masks: list[str]


class Davis(ImageDataModule):
    """Videos in `JPEGImages/480p/<video>/*.jpg` with `Annotations/480p/<video>/*.png`.

    The names of the videos are the lines of `ImageSets/2017/<split>.txt`. The frames are the
    training images and the bank of label-free metrics; the protocol "davis" of `sslzoo eval` reads
    the videos.

    For the other arguments see `ImageDataModule`.

    Args:
        root: the folder `DAVIS`.
        transform: makes the training views.
        split: name of the list of videos.
        resolution: folder of the resolution.
        year: folder of the lists, "2016" or "2017".

    Raises:
        ValueError: a folder, the list, a frame or a mask is missing.
    """

    def __init__(
        self,
        root: str,
        transform: Views,
        split: str = "val",
        resolution: str = "480p",
        year: str = "2017",
        batch_size: int = 64,
        eval_view: EvalView | None = None,
        eval_batch_size: int = 32,
        num_workers: int | None = None,
        seed: int | None = None,
        train_fraction: float = 1.0,
        predict_on: PredictOn = "train",
        drop_last: bool = True,
    ) -> None:
        super().__init__(
            *(transform, batch_size, eval_view, eval_batch_size, num_workers, seed),
            *(train_fraction, predict_on, drop_last),
        )
        self.root = root
        self.split, self.resolution, self.year = split, resolution, year
        self.videos: list[Video] = []

    def read(self) -> ImageSets:
        """List the videos and their frames."""
        self.videos = read_videos(Path(self.root), self.split, self.resolution, self.year)
        frames = [frame for video in self.videos for frame in video.frames]
        return ImageSets(FileImages(frames, None, decoding=Decoding(upright=False)), None, None)

    def masks(self, video: Video) -> list[Tensor]:
        """The annotations of a video, (H, W) int64 each."""
        return [torch.from_numpy(read_mask(path).astype("int64")) for path in video.masks]

    def frames(
        self, video: Video, side: int, device: torch.device | str
    ) -> Iterator[Callable[[], Tensor]]:
        """Functions that read the frames of a video, (1, C, H', W') preprocessed.

        Args:
            video: the video.
            side: shorter side in pixels; see `frame_size`.
            device: where the images are made.
        """
        for path in video.frames:
            yield partial(self._frame, path, side, device)

    def _frame(self, path: str, side: int, device: torch.device | str) -> Tensor:
        images = FileImages([path], None, decoding=Decoding(upright=False))
        with images._open(0) as image:
            pixels = images.decoding(image).to(device)[None]
        size = frame_size((pixels.shape[2], pixels.shape[3]), side)
        floats = pixels.float() / (255 if pixels.dtype == torch.uint8 else 1)
        resized = F.interpolate(floats, size, mode="bilinear", align_corners=False)
        return self.eval_view.finish(resized)


def read_videos(
    folder: Path, split: str, resolution: str = "480p", year: str = "2017"
) -> list[Video]:
    """The videos of a split.

    Args:
        folder: the folder DAVIS.
        split: name of the list of videos.
        resolution: folder of the resolution.
        year: folder of the lists.

    Raises:
        ValueError: a folder, the list, a frame or a mask is missing.
    """
    root = check_folder(folder, "root")
    path = root / "ImageSets" / year / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"root must hold ImageSets/{year}/{split}.txt, as DAVIS does, got {str(root)!r}"
        )
    # Lists of DAVIS 2016 have a line per frame: /JPEGImages/480p/<video>/00000.jpg.
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    names = [Path(name).parent.name if "/" in name else name for name in names]
    if not names:
        raise ValueError(f"{str(path)!r} must list videos, got none")
    return [_video(root, resolution, name) for name in dict.fromkeys(names)]


def _video(root: Path, resolution: str, name: str) -> Video:
    folders = [
        check_folder(root / part / resolution / name, f"the folder of video {name!r}")
        for part in ("JPEGImages", "Annotations")
    ]
    frames, masks = (list_files(folder, IMAGE_EXTENSIONS) for folder in folders)
    stems = [[Path(path).stem for path in paths] for paths in (frames, masks)]
    if stems[0] != stems[1] or len(frames) < 3:
        lost = sorted(set(stems[0]) ^ set(stems[1]))
        raise ValueError(
            f"the video {name!r} must have at least 3 frames with one mask each, got "
            f"{len(frames)} frames and {len(masks)} masks"
            f"{f', without the other: {lost[:5]}' if lost else ''}"
        )
    return Video(name, frames, masks)


def frame_size(size: tuple[int, int], side: int, multiple: int = 64) -> tuple[int, int]:
    """Height and width of a resized frame: the shorter is `side`, the longer a multiple.

    Args:
        size: H and W.
        side: shorter side of the result.
        multiple: the longer side is rounded down to a multiple of it, 64 in DINO.
    """
    height, width = size
    longer = side * max(size) // min(size)
    longer = max(multiple, longer // multiple * multiple)
    return (longer, side) if height > width else (side, longer)
