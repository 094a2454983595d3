"""The README's examples run, and its commands name what exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslzoo.commands.configs import known_configs
from tests.toys import every_method

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
    names = ("photos", "Yours", "BYOL", "sslzoo.load", "SimCLR")
    return next(name for name in names if name in example)


@pytest.mark.parametrize("example", EXAMPLES, ids=map(title, EXAMPLES))
def test_example_runs(
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(70):
        color = tuple(int(x) for x in np.random.default_rng(i).integers(0, 256, 3))
        Image.new("RGB", (32, 32), color).save(tmp_path / "photos" / f"{i}.png")
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_an_example_for_each_way_in() -> None:
    ways = ["photos", "sslzoo.load", "SimCLR", "Yours", "BYOL"]
    assert [title(example) for example in EXAMPLES] == ways


def test_every_recipe_is_named_and_every_name_exists() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    text = "\n".join([README, *(page.read_text() for page in pages)])
    named = set(re.findall(r"`(\w+/\w+(?:ep|steps))`", text))
    assert named <= set(known_configs())
    assert {name for name in known_configs() if "/" in name} <= named


def test_methods_have_the_first_lines_of_their_docstrings() -> None:
    for cls in every_method():
        idea = (inspect.getdoc(cls) or "").splitlines()[0].rstrip(".")
        assert re.search(
            rf"\| \[{cls.__name__}\]\(docs/methods/\w+\.md\) \| {re.escape(idea)} \|", README
        )
