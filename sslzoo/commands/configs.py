"""Shipped configs: find recipes by name, in the wheel or in a clone."""

from __future__ import annotations

import difflib
from pathlib import Path

import sslzoo


def config_folders() -> list[Path]:
    """Folders of the shipped configs, in the wheel or next to the package."""
    package = Path(sslzoo.__file__).parent
    return [
        folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()
    ]


def find_config(name: str) -> str:
    """Return an existing path, or the shipped config of that name, with or without `.yaml`."""
    if Path(name).exists():
        return name
    relative = Path(name)
    if relative.parts and relative.parts[0] == "configs":
        relative = Path(*relative.parts[1:])
    for folder in config_folders():
        for candidate in (folder / relative, folder / f"{relative}.yaml"):
            if candidate.is_file():
                return str(candidate)
    return name  # the parser reports the missing file


def known_configs() -> list[str]:
    """List the names of the shipped configs."""
    return sorted(
        {
            str(path.relative_to(folder).with_suffix(""))
            for folder in config_folders()
            for path in folder.rglob("*.yaml")
        }
    )


def similar_configs(name: str) -> list[str]:
    """At most five names of shipped configs that a misspelled one may mean."""
    known = known_configs()
    begun = [each for each in known if name and each.startswith(name.removesuffix(".yaml"))]
    return begun[:5] or difflib.get_close_matches(name, known, n=5)
