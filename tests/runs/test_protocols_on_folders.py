"""Protocols on image benchmarks: tiny trees in the official layouts, on any number of ranks."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.data.image.benchmarks import read_copydays, read_voc
from sslzoo.runs.protocols import PROTOCOLS, Subject, figures
from sslzoo.runs.protocols.images import (
    CopyDetection,
    RevisitedRetrieval,
    VocTransfer,
    class_and_gem,
    read_revisited,
    several_scales,
    whiten,
)
from sslzoo.transforms.image.eval_view import EvalView
from tests.ranks import Ranks


def write(path: Path, shade: float, seed: int = 0, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    pixels = draw.normal(shade, 25, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def voc(root: Path) -> Path:
    """Twelve images of two classes: dark ones are cats, light ones dogs; one has a hard cat."""
    lists: dict[str, list[str]] = {}
    for number in range(24):
        split = "trainval" if number < 14 else "test"
        light = number % 2
        write(root / "JPEGImages" / f"{number:06d}.jpg", 60 + 130 * light, number)
        values = {"cat": 1 - 2 * light, "dog": 2 * light - 1}
        if number == 3:
            values["cat"] = 0
        for name, value in values.items():
            lists.setdefault(f"{name}_{split}", []).append(f"{number:06d} {value:2d}")
    for name, lines in lists.items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("000000\n")
    return root


def copydays(root: Path) -> Path:
    for scene in range(3):
        shade = 40 + 80 * scene
        name = f"20{scene}000.jpg"
        write(root / "original" / name, shade, scene)
        write(root / "jpegqual" / "20" / name, shade, scene)
        write(root / "crops" / "50" / name, shade, scene + 10, (12, 12))
        for copy in (1, 2):
            write(root / "strong" / f"20{scene}00{copy}.jpg", shade + 2 * copy, scene + 20)
    return root


GND = [
    {"bbx": [0.0, 0.0, 10.0, 8.0], "easy": [0], "hard": [1], "junk": [2]},
    {"bbx": [2.0, 2.0, 12.0, 12.0], "easy": [], "hard": [3, 4], "junk": []},
]


def oxford(root: Path, name: str = "roxford5k") -> Path:
    images = [f"building_{i:06d}" for i in range(6)]
    for i, image in enumerate(images):
        write(root / name / "jpg" / f"{image}.jpg", 50 + 30 * i, i, (24, 14 + 2 * i))
    queries = ["query_a", "query_b"]
    for i, query in enumerate(queries):
        write(root / name / "jpg" / f"{query}.jpg", 60 + 90 * i, i, (18, 22))
    content = {"imlist": images, "qimlist": queries, "gnd": GND}
    (root / name / f"gnd_{name}.json").write_text(json.dumps(content))
    return root


def subject(vit: bool = True) -> Subject:
    torch.manual_seed(0)
    encoder: Any = small_vit(16, 4, 8, 2, 2) if vit else SmallResNet((4, 8))
    view = EvalView(16, 16, mean=[0.5] * 3, std=[0.25] * 3)
    return Subject(encoder.eval(), torch.device("cpu"), preprocess=view)


def on_rank(rank: int, root: Path) -> dict[str, float]:
    settings = {
        "voc": VocTransfer(str(root / "voc"), l2=(1e-2, 1.0), batch_size=5),
        "copydays": CopyDetection(
            str(root / "days"),
            distractors=str(root / "days" / "strong"),
            whitening=str(root / "voc" / "JPEGImages"),
            size=16,
            batch_size=2,
        ),
        "oxford": RevisitedRetrieval(str(root / "ox"), size=16, scales=(1.0, 0.5)),
        "cropped": RevisitedRetrieval(str(root / "ox"), size=16, crop_queries=True),
    }
    for protocol in settings.values():
        protocol.check()
    return figures(settings, subject(), [0])[0]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmarks")
    voc(root / "voc")
    copydays(root / "days")
    oxford(root / "ox")
    return root


def test_every_figure_is_the_same_on_one_two_and_three_ranks(trees: Path, ranks: Ranks) -> None:
    one = on_rank(0, trees)
    assert {"voc/map", "voc/ap_cat", "voc/ap_dog", "oxford/map_easy", "cropped/mp5_hard"} <= set(
        one
    )
    assert {"copydays/map_strong", "copydays/map_jpegqual_20"} <= set(one)
    assert "copydays/map_crops_10" not in one  # no such folder
    for world in (2, 3):
        for got in ranks(world, on_rank, trees):
            assert got == one


def test_voc_is_read_as_it_is_published(trees: Path) -> None:
    found = read_voc(trees / "voc", "trainval")
    assert found.classes == ["cat", "dog"]
    assert found.labels[:4].tolist() == [[1, 0], [0, 1], [1, 0], [-1, 1]]
    assert len(found.paths) == 14
    assert VocTransfer(str(trees / "voc"))(subject())["map"] == 1.0  # light and dark separate


def test_copies_find_their_originals(trees: Path) -> None:
    found = read_copydays(trees / "days")
    assert found.positives["strong"] == [[0], [0], [1], [1], [2], [2]]
    assert found.positives["crops/50"] == [[0], [1], [2]]
    got = CopyDetection(str(trees / "days"), size=16)(subject())
    assert got["map_original"] == got["map_jpegqual_20"] == 1.0


def test_generalized_mean_and_whitening_by_hand() -> None:
    given = subject()
    x = torch.rand(2, 3, 16, 16)
    tokens: Any = given.encoder.forward_tokens(x)  # type: ignore[operator]
    found = class_and_gem(given.encoder, x)
    assert torch.equal(found[:, :8], tokens[:, 0])
    wanted = (tokens[:, 1:].clamp(min=1e-6) ** 4).mean(1) ** 0.25
    torch.testing.assert_close(found[:, 8:], wanted)
    known = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    white = whiten(known, known - known.mean(0))
    moment = white.T @ white / 500 - white.mean(0)[:, None] * white.mean(0)
    torch.testing.assert_close(moment, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_scales_are_cut_to_whole_patches() -> None:
    given = subject()
    x = torch.rand(1, 3, 18, 23)
    one = several_scales(given.encoder, (1.0,), x)
    torch.testing.assert_close(one, given.encoder(x[:, :, :16, :20]))
    half = torch.nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")
    both = several_scales(given.encoder, (1.0, 0.5), x)
    torch.testing.assert_close(both, (one + given.encoder(half[:, :, :8, :8])) / 2)
    assert several_scales(given.encoder, (1.0,), x[:, :, :3]).shape == (1, 8)


def test_the_official_pickle_is_read_as_plain_values(tmp_path: Path) -> None:
    oxford(tmp_path, "rparis6k")
    wanted = read_revisited(tmp_path, "rparis6k")
    plain = tmp_path / "rparis6k" / "gnd_rparis6k.json"
    content = json.loads(plain.read_text())
    plain.unlink()
    for own in content["gnd"]:
        own["easy"] = np.array(own["easy"], dtype=np.int64)
        own["bbx"] = np.array(own["bbx"])
    pickled = tmp_path / "rparis6k" / "gnd_rparis6k.pkl"
    for protocol in (2, 4):
        pickled.write_bytes(pickle.dumps(content, protocol=protocol))
        assert read_revisited(tmp_path, "rparis6k") == wanted


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    oxford(tmp_path)
    (tmp_path / "roxford5k" / "gnd_roxford5k.json").unlink()
    path = tmp_path / "roxford5k" / "gnd_roxford5k.pkl"
    path.write_bytes(
        pickle.dumps({"imlist": [], "qimlist": [], "gnd": [Hostile(tmp_path / "ran")]})
    )
    with pytest.raises(
        ValueError,
        match=r"only lists and arrays, got posix\.system; write them as gnd_roxford5k\.json",
    ):
        RevisitedRetrieval(str(tmp_path)).check()
    assert not (tmp_path / "ran").exists()


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gnd": GND[:1]}, r"one ground truth per query \(2\), got 1"),
        ({"gnd": [{**GND[0], "easy": [6]}, GND[1]]}, r"positions .* must be in 0\.\.5, got 6"),
        ({"gnd": [{"easy": []}, GND[1]]}, "query 'query_a' .* a list of positions 'hard'"),
        ({"qimlist": ["../a", "b"]}, r"images without folders, got '\.\./a'"),
        ({"qimlist": ["query_a", "gone"]}, "1 of 2 missing, such as .*gone.jpg"),
        ({"imlist": None}, "must have lists named"),
    ],
)
def test_a_wrong_ground_truth_is_named(tmp_path: Path, changes: Any, message: str) -> None:
    oxford(tmp_path)
    change(tmp_path / "roxford5k" / "gnd_roxford5k.json", **changes)
    with pytest.raises(ValueError, match=message):
        RevisitedRetrieval(str(tmp_path)).check()


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    for name in ("voc07_transfer", "dino_copy_detection", "roxford5k", "sts", "senteval"):
        protocol = PROTOCOLS[name].protocol
        assert not protocol.needs_data
    with pytest.raises(ValueError, match="root must have ImageSets/Main"):
        VocTransfer(str(tmp_path)).check()
    with pytest.raises(ValueError, match="root must have Copydays' folders"):
        CopyDetection(str(tmp_path)).check()
    with pytest.raises(ValueError, match="does not exist"):
        RevisitedRetrieval(str(tmp_path)).check()
    root = voc(tmp_path / "voc")
    lists = root / "ImageSets" / "Main"
    (lists / "cat_test.txt").write_text("000014 2\n")
    with pytest.raises(ValueError, match=r"must be `image -1\|0\|1`, got '000014 2'"):
        VocTransfer(str(root)).check()
    (lists / "cat_test.txt").write_text("000014 1\n")
    with pytest.raises(ValueError, match="must name the same images"):
        VocTransfer(str(root)).check()
    write(copydays(tmp_path / "days") / "strong" / "990000.jpg", 9)
    with pytest.raises(ValueError, match="must have an original of its name"):
        CopyDetection(str(tmp_path / "days")).check()
    bare = Subject(torch.nn.Linear(2, 2), torch.device("cpu"))
    with pytest.raises(ValueError, match="record a preprocessing of images, got none"):
        VocTransfer(str(voc(tmp_path / "again")))(bare)
