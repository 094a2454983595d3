"""The sweep over timm's registry: one name per family, and the file that it wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.timm_registry import RESULT, tried

FAMILIES = {
    "vit_small_patch14_reg4_dinov2": {"mask": True, "keep": True, "any size": True},
    "vit_small_patch16_dinov3": {"mask": True, "keep": True, "any size": True},
    "beit_base_patch16_224": {"mask": True, "keep": False, "any size": False},
}
MAPS = {"convnext_atto": [320, 7, 7], "hiera_tiny_224": [768, 7, 7]}


@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family_gives_tokens(name: str) -> None:
    gives = tried(name, "vit")["works"]
    assert gives.items() >= FAMILIES[name].items()
    assert gives["tokens"][1] == gives["features"] == gives["map"][0]


@pytest.mark.parametrize("name", MAPS)
def test_others_give_maps(name: str) -> None:
    assert tried(name, "backbone")["works"]["map"] == MAPS[name]
    assert "timm_backbone takes it" in tried(name, "vit")["fails"]


def test_the_committed_sweep_names_every_reason() -> None:
    result: dict[str, Any] = json.loads(RESULT.read_text())
    rows = result["rows"]
    assert len(rows) == result["names"] > 1000
    for row in rows.values():
        for kind in ("vit", "backbone"):
            found = rows[row.get("as", "")][kind] if "as" in row else row[kind]
            assert found.keys() in ({"works"}, {"fails"})
    for name in FAMILIES:
        row = rows[rows[name].get("as", name)]
        assert "works" in row["vit"]
