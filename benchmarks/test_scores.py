"""Scores of the cards: measured again from the weights and the data.

    SSLZOO_DATA=FOLDER pytest benchmarks/test_scores.py -m slow

FOLDER holds the archives that the cards name; a card whose archive is missing is skipped.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import sslzoo
from benchmarks.quality import score
from benchmarks.text import correlations
from benchmarks.trajectories import probe, write
from sslzoo.data import ImageFolder
from sslzoo.runs.encoders import build_data
from sslzoo.transforms import simclr_views
from sslzoo.zoo import Card, entries

ROOT = Path(__file__).parents[1]
OURS = sorted(path.stem for path in (ROOT / "zoo_weights").glob("*.json"))
DATA = Path(os.environ.get("SSLZOO_DATA", "data"))
KNN = "val/knn_top1_k20_t0.07"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Archive name -> the folder it was unpacked into, once."""
    made: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if not (DATA / name).is_file():
            pytest.skip(f"no data at {DATA / name}")
        if name not in made:
            made[name] = tmp_path_factory.mktemp("data")
            with tarfile.open(DATA / name) as archive:
                archive.extractall(made[name], filter="data")
        return made[name]

    return unpack


def recipe_data(card: Card, root: Path) -> Any:
    """The data of the card's recipe, set up."""
    section = yaml.safe_load((ROOT / str(card.recipe)).read_text())["data"]
    section["init_args"]["root"] = str(root)
    data: Any = build_data(section)
    data.setup("validate")
    return data


def of_images(card: Card, root: Path) -> dict[str, float]:
    root = next(path.parent for path in root.rglob("test") if path.is_dir())
    view = card.preprocess()
    data: Any = ImageFolder(str(root), simclr_views(32), val_dir="test", eval_view=view)
    data.setup("validate")
    return {KNN: score(sslzoo.load(card.name), data.eval_dataloaders())}


def of_recordings(card: Card, root: Path) -> dict[str, float]:
    data = recipe_data(card, root / "recordings")
    return {KNN: score(sslzoo.load(card.name), data.eval_dataloaders())}


def of_sentences(card: Card, root: Path) -> dict[str, float]:
    return correlations(recipe_data(card, root), sslzoo.load(card.name))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OURS)
def test_the_score_is_reproduced(name: str, unpacked: Any, tmp_path: Path) -> None:
    card = entries()[name]
    if card.data.startswith("Pendulum"):
        pytest.importorskip("gymnasium")
        write(tmp_path)
        got = {"linear_top1": probe(recipe_data(card, tmp_path), sslzoo.load(name), "forward")}
    else:
        of, archive = {
            "CIFAR-10 as JPEG files": (of_images, "cifar10_jpeg.tar.gz"),
            "FSDD": (of_recordings, "fsdd.tar.gz"),
            "STS-B": (of_sentences, "stsb_en.tar.gz"),
        }[card.data]
        got = of(card, unpacked(archive))
    assert got == pytest.approx(card.score, abs=0.002)
