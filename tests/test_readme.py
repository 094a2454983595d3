"""The README's examples run, and its commands name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sslzoo.commands.configs import known_configs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*LeafSpec.*:FutureWarning",  # Lightning reads a deprecated attribute of torch's
        ".*does not have many workers",  # the examples' loaders are the user's
        ".*is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
    )
]


def title(example: str) -> str:
    return next(name for name in ("SimCLR", "Yours", "BYOL", "sslzoo.load") if name in example)


@pytest.mark.parametrize("example", EXAMPLES, ids=map(title, EXAMPLES))
def test_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_an_example_for_each_way_in() -> None:
    assert [title(example) for example in EXAMPLES] == ["sslzoo.load", "SimCLR", "Yours", "BYOL"]


def test_every_config_it_names_exists() -> None:
    named = set(re.findall(r"`(\w+/\w+(?:ep|steps))`", README))
    assert named <= set(known_configs())
    assert {name for name in known_configs() if "/" in name} <= named
