"""The pages agree with the docstrings, and their links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
DOCS = runpy.run_path(str(ROOT / "docs/method_pages.py"))
RUNNER = runpy.run_path(str(ROOT / "docs/run_tutorial.py"))
METHODS = sorted(
    path.stem
    for path in (ROOT / "sslzoo/methods").glob("*.py")
    if path.stem not in ("__init__", "base")
)
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
TUTORIALS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/tutorials").glob("*.py"))


def prose(page: Path) -> str:
    """A page's text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings, in which none is repeated."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("method", METHODS)
def test_page_has_what_the_code_and_the_results_say(method: str) -> None:
    page = (ROOT / f"docs/methods/{method}.md").read_text()
    for part in ("example", "losses", "recipes", "deviations"):
        assert f"<!-- {part} of sslzoo.methods.{method} -->\n" in page
    assert DOCS["render"](page) == page, "run python docs/method_pages.py"


def test_the_history_quotes_the_source_and_the_figures() -> None:
    page = (ROOT / "docs/history.md").read_text()
    assert DOCS["render"](page) == page, "run python docs/method_pages.py"
    files = [path.read_text() for path in (ROOT / "sslzoo").rglob("*.py")]
    source = {line.strip() for text in files for line in text.splitlines()}
    quoted = "".join(re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    assert not {line.strip() for line in quoted.splitlines()} - source


@pytest.mark.parametrize("method", METHODS)
def test_page_has_every_section(method: str) -> None:
    page = (ROOT / f"docs/methods/{method}.md").read_text()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert [heading for heading in headings if heading in DOCS["SECTIONS"]] == [*DOCS["SECTIONS"]]
    parts = dict(zip(headings, re.split(r"^## .+$", page, flags=re.MULTILINE)[1:], strict=True))
    assert "```mermaid\n" in parts["Data flow"]
    assert "```text\n" in parts["Pseudo-code"]
    assert parts["Results here"].strip()
    assert "\n- " in parts["Traps"]
    assert "```bibtex\n" in parts["Citation"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # Lightning's own
@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_example_of_a_page_trains(method: str) -> None:
    script = DOCS["example"](method).split("```")[1].removeprefix("python\n")
    once = 'Trainer(fast_dev_run=True, accelerator="cpu")'
    short = script.replace("Trainer(max_epochs=10)", once)
    assert once in short
    exec(compile(short, method, "exec"), {})


def test_every_page_is_of_a_method() -> None:
    assert [path.stem for path in DOCS["PAGES"]] == METHODS


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_exist(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(ROOT / page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def python_sources(page: str) -> list[str]:
    """The Python blocks of a page, or a tutorial's script."""
    text = (ROOT / page).read_text()
    if page.endswith(".py"):
        return [text]
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [dedent(block) for _, block in blocks if ">>>" not in block]


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS])
def test_code_compiles_and_names_what_exists(page: str) -> None:
    for source in python_sources(page):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sslzoo":
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    found = hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}")
                    assert found, f"{node.module}.{name.name}"


def test_the_counts_of_lines_are_those_of_the_scripts() -> None:
    page = "docs/guides/photos_in_three_libraries.md"
    counts = [
        sum(bool(line.strip()) for line in script.splitlines()) for script in python_sources(page)
    ]
    told = re.findall(r"^\| [^|]+ \| (\d+) \|", (ROOT / page).read_text(), re.MULTILINE)
    assert [int(count) for count in told] == counts


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_tutorial_has_a_title_and_cells(tutorial: str) -> None:
    page = RUNNER["page"](ROOT / tutorial, None, "")
    assert page.startswith("# ")
    assert "\n```python\n" in page


@pytest.mark.slow  # the site's build runs them with small budgets
@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_tutorial_runs_with_a_full_budget(tutorial: str, tmp_path: Path) -> None:
    longer = ["--epochs", "30"] if '"--epochs"' in (ROOT / tutorial).read_text() else []
    RUNNER["main"](str(ROOT / tutorial), str(tmp_path), *longer)


def test_page_of_a_tutorial_shows_what_its_cells_print_and_draw(tmp_path: Path) -> None:
    script = tmp_path / "1_tiny.py"
    script.write_text(
        '"""Tiny.\n\nIt begins.\n"""\n\nimport subprocess\n\n# %% [markdown]\n# ## A *part*\n\n'
        '# %%\nsubprocess.run(["echo", "said"])\n\n'
        '# %%\nopen("picture.png", "w").close()\nprint("drawn")\n'
    )
    RUNNER["main"](str(script), str(tmp_path / "site"))
    assert (tmp_path / "site/1_tiny/picture.png").exists()
    assert (tmp_path / "site/1_tiny.md").read_text() == (
        "# Tiny\n\nIt begins.\n\nThe script: [1_tiny.py](1_tiny.py).\n\n"
        "```python\nimport subprocess\n```\n\n## A *part*\n\n"
        '```python\nsubprocess.run(["echo", "said"])\n```\n\n```text\nsaid\n```\n\n'
        '```python\nopen("picture.png", "w").close()\nprint("drawn")\n```\n\n'
        "```text\ndrawn\n```\n\n![picture.png](1_tiny/picture.png)\n"
    )
    script.write_text('"""Broken."""\n\n# %%\nraise OSError("no such file")\n')
    with pytest.raises(RuntimeError, match="no such file"):
        RUNNER["main"](str(script), str(tmp_path / "site"))
