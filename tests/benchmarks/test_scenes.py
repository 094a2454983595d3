"""Rendered rooms: the same for a seed, geometry from depth, and what MultiViewFolder reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.scenes import CLASSES, MODALITIES, draw, main, normals, solids
from benchmarks.views import scores
from sslzoo.data import Modality, MultiViewFolder


def test_a_scene_is_a_function_of_seed_part_and_number() -> None:
    scene = draw(3, "train", 5)
    assert scene == draw(3, "train", 5)
    assert scene == json.loads(json.dumps(scene))
    assert scene["objects"] != draw(3, "val", 5)["objects"]
    assert scene["objects"] != draw(4, "train", 5)["objects"]


def test_objects_overlap_neither_each_other_nor_the_camera() -> None:
    for number in range(20):
        scene = draw(0, "train", number)
        eye = scene["camera"]["position"][:2]
        stand = [o for o in scene["objects"] if o["class"] not in ("door", "picture")]
        reach = [math.hypot(*o["size"][:2]) / 2 for o in stand]
        for i, thing in enumerate(stand):
            assert math.dist(thing["position"][:2], eye) > reach[i] + 0.59
            for j in range(i):
                gap = math.dist(thing["position"][:2], stand[j]["position"][:2])
                assert gap > reach[i] + reach[j] - 1e-3


def test_an_object_fills_its_height_and_width() -> None:
    for name in CLASSES[5:]:
        parts = solids(name, 1.0, 0.8, 1.2)
        assert max(p.center[2] + p.size[2] / 2 for p in parts) == pytest.approx(1.2)
        assert max(p.center[0] + p.size[0] / 2 for p in parts) == pytest.approx(0.5)


def test_normals_of_a_plane_before_a_wall() -> None:
    """A floor 1 m below the camera, and a wall 4 m in front of it, seen at 90 degrees."""
    side = 32
    down = -((np.arange(side) + 0.5) / side * 2 - 1)[:, None]
    depth = np.where(down < -0.25, -1 / np.minimum(down, -1e-3), 4.0) * np.ones((1, side))
    got = normals(depth, 90.0).astype(int)
    assert (abs(got[down[:, 0] < -0.4] - [128, 255, 128]) <= 1).all()  # up
    assert (abs(got[down[:, 0] > -0.2] - [128, 128, 255]) <= 1).all()  # to the camera


def test_scores_are_those_worked_by_hand() -> None:
    predicted, labels = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 255]])
    # IoU 1/2 of class 0, 1/2 of class 1; 2 of 3 pixels.
    got = scores(predicted, labels)
    assert got == pytest.approx({"miou": 50.0, "accuracy": 200 / 3})


def test_rendered_scenes_are_read_as_aligned_modalities(tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    main(["--output", str(tmp_path), "--train", "2", "--val", "1", "--side", "32"])
    for modality in MODALITIES:
        assert len(list((tmp_path / "train" / modality).glob("*.png"))) == 2
    kinds = [
        Modality("image", "image"),
        Modality("depth", "depth", value_range=(0, 10_000)),
        Modality("normals", "normals"),
        Modality("labels", "labels", num_classes=len(CLASSES)),
    ]
    data = MultiViewFolder(str(tmp_path), kinds, 32, batch_size=2, num_workers=0)
    data.setup("fit")
    assert data.channels == [1, 2, 1, 3, 12]
    scene = json.loads((tmp_path / "train/scenes/00000.json").read_text())
    labels = np.array(Image.open(tmp_path / "train/labels/00000.png"))
    for name in CLASSES[3:]:
        seen = sum(o["pixels"] for o in scene["objects"] if o["class"] == name)
        assert seen == (labels == CLASSES.index(name)).sum()
    floor = np.array(Image.open(tmp_path / "train/normals/00000.png"))[labels == 1]
    assert (floor[:, 1] > 128).mean() > 0.9  # the floor faces up
