"""Captions of rooms, the pairs that are held out, and the plain losses that ours are put beside."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.image_text import LOSSES, NAMES, caption, is_new, write_table


def scene(wall: str, floor: str, *objects: tuple[str, str, int]) -> dict[str, Any]:
    things = [{"color": c, "class": name, "pixels": size} for c, name, size in objects]
    return {"surfaces": {"wall": {"color": wall}, "floor": {"color": floor}}, "objects": things}


def test_captions_name_the_largest_objects_that_are_seen() -> None:
    start = "a room with red walls and a blue floor"
    assert caption(scene("red", "blue", ("pink", "vase", 39))) == start
    assert caption(scene("red", "blue", ("pink", "vase", 40))) == f"{start}, a pink vase"
    several = [
        ("red", "box", 90),
        ("cyan", "sofa", 99),
        ("gray", "door", 50),
        ("black", "lamp", 45),
    ]
    wanted = f"{start}, a cyan sofa, a red box and a gray door"
    assert caption(scene("red", "blue", *several)) == wanted


def test_every_color_is_trained_on_but_not_every_pair(tmp_path: Path) -> None:
    pairs = [(w, f) for w in NAMES for f in NAMES]
    new = {pair for pair in pairs if is_new(scene(*pair))}
    assert len(new) == 24
    kept = set(pairs) - new
    assert {w for w, _ in kept} == {f for _, f in kept} == set(NAMES)
    for part in ("train", "val"):
        (tmp_path / part / "scenes").mkdir(parents=True)
        for i, pair in enumerate(pairs):
            (tmp_path / part / "scenes" / f"{i:03}.json").write_text(json.dumps(scene(*pair)))
    assert write_table(tmp_path, tmp_path / "rooms.csv") == {"train": 120, "val": 144}
    with (tmp_path / "rooms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert not any(row["new"] == "1" for row in rows if row["split"] == "train")
    assert sum(row["new"] == "1" for row in rows) == 24


def test_the_forms_that_are_compared_have_one_value() -> None:
    z = [F.normalize(torch.randn(9, 4), dim=1) for _ in range(2)]
    for ours, plain, scalars in LOSSES.values():
        given = [*z, *[torch.tensor(2.0), torch.tensor(-5.0)][:scalars]]
        torch.testing.assert_close(ours(*given), plain(*given))
