"""Every entry: its card, its file, its class, and what it makes of a fixed picture."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sslzoo
from sslzoo.trust import undrawn
from sslzoo.zoo import entries, verify
from sslzoo.zoo.build import build_backbone, count_parameters
from sslzoo.zoo.catalog import official_cards, sources
from sslzoo.zoo.converters import LAYOUTS
from sslzoo.zoo.verifying import fixed_input

ROOT = Path(__file__).parents[2]
OURS = sorted(path.stem for path in (ROOT / "zoo_weights").glob("*.json"))


def test_every_weight_has_a_card_of_its_name() -> None:
    assert sorted(p.stem for p in (ROOT / "zoo_weights").glob("*.safetensors")) == OURS
    assert set(OURS) <= set(sslzoo.list_models())


@pytest.mark.parametrize("name", OURS)
def test_our_entry_is_what_its_card_says(name: str) -> None:
    card = entries()[name]
    weights = ROOT / "zoo_weights" / card.file
    assert card.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.stat().st_size <= 2_500_000
    assert len(card.features) == 4, "record them: see sslzoo.zoo.verifying.fixed_features"
    for known in (card.recipe, card.commit, card.epochs, card.seeds, card.protocol, card.score):
        assert known
    assert (ROOT / str(card.recipe)).is_file()
    assert sources(card)[-1].endswith(card.file)
    assert verify(name) == card
    assert count_parameters(sslzoo.load(name)) == card.parameters


@pytest.mark.parametrize("name", OURS)
def test_the_card_is_read_and_written_alike(name: str) -> None:
    raw = json.loads((ROOT / "zoo_weights" / f"{name}.json").read_text())
    again = json.loads(entries()[name].to_json())
    assert again == {key: value for key, value in raw.items() if value is not None and value != []}


def test_every_official_card_has_the_name_of_its_file() -> None:
    files = sorted((ROOT / "sslzoo" / "zoo" / "cards").iterdir())
    assert [file.suffix for file in files] == [".json"] * len(files)
    assert [file.stem for file in files] == [card.name for card in official_cards()]
    for file, card in zip(files, official_cards(), strict=True):
        assert file.read_text() == card.to_json()


@pytest.mark.parametrize("name", sorted(set(sslzoo.list_models()) - set(OURS)))
def test_an_official_entry_names_its_class_layout_and_source(name: str) -> None:
    card = entries()[name]
    assert card.layout in LAYOUTS
    assert card.source
    assert all(url.startswith("https://") for url in card.urls)
    assert card.urls or "by hand" in str(card.note)
    if card.sha256 is None and card.md5 is None:
        assert "no published hash" in str(card.note)
    with undrawn(), torch.device("meta"):
        encoder: Any = build_backbone(card.backbone)
    assert encoder.num_features == card.num_features
    assert count_parameters(encoder) == card.parameters
    if card.kind == "image":
        view = card.preprocess()
        assert view(fixed_input(300)).shape == (1, 3, view.size, view.size)


def test_the_fixed_input_tells_axes_and_channels_apart() -> None:
    x = fixed_input(32)[0]
    assert not torch.equal(x[0], x[0].T)
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[0], x[0].flip(0))


def wheel_has(name: str) -> bool:
    """What the build's exclusions leave of a file: the last pattern that matches counts."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("\nexclude = [\n")[1].split("]")[0]
    patterns = [line.strip().strip('",') for line in block.splitlines() if line.strip()]
    kept = True
    for pattern in patterns:
        if fnmatch.fnmatch(f"zoo_weights/{name}", pattern.removeprefix("!")):
            kept = pattern.startswith("!")
    return kept


def test_the_wheel_carries_every_card_and_at_most_six_encoders() -> None:
    carried = [p for p in (ROOT / "zoo_weights").iterdir() if wheel_has(p.name)]
    weights = [p for p in carried if p.suffix == ".safetensors"]
    assert {p.stem for p in carried if p.suffix == ".json"} == set(OURS)
    assert 1 <= len(weights) <= 6
    assert sum(p.stat().st_size for p in carried) <= 15_000_000
    for method in ("simclr", "dino"):
        name = f"{method}-small_resnet-cifar10jpeg"
        assert name not in OURS or wheel_has(f"{name}.safetensors")
