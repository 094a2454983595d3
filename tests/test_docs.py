"""The pages agree with the docstrings, and their links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = runpy.run_path(str(ROOT / "docs/deviations.py"))
METHODS = sorted(
    path.stem
    for path in (ROOT / "sslzoo/methods").glob("*.py")
    if path.stem not in ("__init__", "base")
)
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings, in which none is repeated."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("method", METHODS)
def test_page_has_the_deviations_of_the_docstring(method: str) -> None:
    page = (ROOT / f"docs/methods/{method}.md").read_text()
    assert f"<!-- deviations of sslzoo.methods.{method} -->\n" in page
    assert DOCS["render"](page) == page, "run python docs/deviations.py"


def test_every_page_is_of_a_method() -> None:
    assert [path.stem for path in DOCS["PAGES"]] == METHODS


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_exist(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
