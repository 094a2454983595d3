"""Render the `Deviations:` of the methods' docstrings into docs/methods/*.md.

`python docs/deviations.py` rewrites the pages; with --check it names the outdated ones and exits
with 1 if there are any.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/methods").glob("*.md"))
BLOCK = re.compile(r"(<!-- deviations of sslzoo\.methods\.(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def deviations(method: str) -> str:
    """Numbered list of a method's deviations, which is Markdown as it stands in the docstring."""
    source = (ROOT / f"sslzoo/methods/{method}.py").read_text()
    docstring = ast.get_docstring(ast.parse(source)) or ""
    found = re.search(r"^Deviations:\n((?: +.*\n?)+)", docstring, re.MULTILINE)
    if not found:
        raise ValueError(f"the docstring of sslzoo.methods.{method} must have `Deviations:`")
    return dedent(found[1]).rstrip().replace("``", "`")


def render(page: str) -> str:
    """Text of a page with the deviations of the docstring that its marker names."""
    return BLOCK.sub(lambda block: f"{block[1]}{deviations(block[2])}\n{block[3]}", page)


def main(arguments: list[str]) -> int:
    """Rewrite the outdated pages, or with --check only name them."""
    outdated = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    for page in outdated:
        print(page.relative_to(ROOT))
        if "--check" not in arguments:
            page.write_text(render(page.read_text()))
    return int("--check" in arguments and bool(outdated))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
