"""Pages of the site that are made from other files: a hook of mkdocs.

The README is the first page; each package with public names has a page of the API; tutorials are
run, unless SSLZOO_DOCS_RUN=0, and shown with their output; and links into the repository lead to a
page of that file. Every page appears in the navigation by its place in docs/.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import posixpath
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import sslzoo

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))
import run_tutorial  # noqa: E402

LOG = logging.getLogger("mkdocs.hooks.site")
# A link or image of Markdown, or an address in HTML: opening, path, anchor.
LINK = re.compile(r'(\]\(|(?:src|srcset|href)=")(?!\w+:|#)([^)"\s#]+)(#[^)"\s]*)?(?=[)"])')
COPIES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/index.md",
}


def public_packages() -> dict[str, list[str]]:
    """The public names of each package and module that lists them."""
    names = {"sslzoo": [name for name in sslzoo.__all__ if callable(getattr(sslzoo, name))]}
    for module in pkgutil.walk_packages(sslzoo.__path__, "sslzoo."):
        if module.ispkg or module.name.count(".") == 1:
            listed = getattr(importlib.import_module(module.name), "__all__", [])
            if listed or module.name.removeprefix("sslzoo.") in sslzoo.__all__:
                names[module.name] = sorted(listed, key=str.lower)
    return names


def home(package: str, name: str) -> str:
    """The path of a public name that is found in its source, also where it is imported late."""
    module = importlib.import_module(package)
    if name in vars(module) and not hasattr(module, "__getattr__"):
        return f"{package}.{name}"
    value = getattr(module, name)
    prefix = f"{package}."
    homes = (found for found in list(sys.modules) if found.startswith(prefix))
    return next(f"{found}.{name}" for found in homes if vars(sys.modules[found]).get(name) is value)


def api_page(package: str, names: list[str]) -> str:
    """Markdown of a package's page: its docstring and each public name."""
    options = (
        "    options: {members: false, show_root_heading: false, show_root_toc_entry: false}\n"
    )
    head = f"# {package}\n\n::: {package}\n"
    if not names:
        return head + "    options: {show_root_heading: false, show_root_toc_entry: false}\n"
    return head + options + "".join(f"\n::: {home(package, name)}\n" for name in names)


def repository_path(page: str) -> str:
    """The path in the repository of a page of the site."""
    return {site: path for path, site in COPIES.items()}.get(page, f"docs/{page}")


def site_path(target: str) -> str:
    """The page of the site that shows a file of the repository."""
    if target in COPIES:
        return COPIES[target]
    if target.startswith("docs/tutorials/") and target.endswith(".py"):
        return target.removeprefix("docs/")
    if target.startswith("docs/") and not target.endswith(".py"):
        return target.removeprefix("docs/")
    return f"source/{target}.md"


def relink(markdown: str, page: str) -> tuple[str, list[str]]:
    """Markdown whose links into the repository lead to pages; and the files that they name."""
    origin, named = repository_path(page), []

    def replace(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[2]))
        if not (ROOT / target).exists():
            return link[0]
        named.append(target)
        shown = site_path(target)
        anchor = "" if shown.startswith("source/") else link[3] or ""
        return link[1] + posixpath.relpath(shown, posixpath.dirname(page) or ".") + anchor

    return LINK.sub(replace, markdown), named


def source_page(path: str) -> str:
    """Markdown that shows a file, or the names in a folder."""
    file = ROOT / path
    if file.is_dir():
        return f"# {path}\n\n" + "".join(f"- `{name.name}`\n" for name in sorted(file.iterdir()))
    if file.suffix == ".md":
        return LINK.sub(r"\1#", file.read_text())
    language = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(file.suffix, "text")
    return f"# {path}\n\n````{language}\n{file.read_text()}\n````\n"


def tutorials(files: Files, config: MkDocsConfig) -> None:
    """Add the page of each tutorial, with its output and images."""
    for script in sorted((ROOT / "docs/tutorials").glob("*.py")):
        page = f"tutorials/{script.stem}.md"
        if os.environ.get("SSLZOO_DOCS_RUN") == "0":
            content = run_tutorial.page(script, None, script.stem)
            files.append(File.generated(config, page, content=content))
            continue
        LOG.info("Running %s", script.name)
        with TemporaryDirectory() as folder:
            run_tutorial.main(str(script), folder)
            for made in (path for path in sorted(Path(folder).rglob("*")) if path.is_file()):
                uri = f"tutorials/{made.relative_to(folder).as_posix()}"
                files.append(File.generated(config, uri, content=made.read_bytes()))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Order the navigation by the folders of docs/."""

    def pages(pattern: str) -> list[str]:
        found = sorted(
            (ROOT / "docs").glob(pattern),
            key=lambda path: (int(re.match(r"\d*", path.stem)[0] or 0), path.name),
        )
        return [path.relative_to(ROOT / "docs").with_suffix(".md").as_posix() for path in found]

    api = [{name: f"api/{name}.md"} for name in public_packages()]
    config.nav = [
        {"Start": ["index.md", *pages("start/*.md"), "changelog.md", "contributing.md"]},
        {"Tutorials": pages("tutorials/*.py")},
        {"Methods": pages("methods/*.md")},
        {"Guides": [*pages("guides/*.md"), *pages("*.md")]},
        {"API reference": api},
        {"Benchmarks": ["benchmarks/index.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    for path, page in COPIES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for package, names in public_packages().items():
        files.append(File.generated(config, f"api/{package}.md", content=api_page(package, names)))
    tutorials(files, config)
    named = {
        target
        for file in files.documentation_pages()
        if not file.src_uri.startswith("api/")
        for target in relink(file.content_string, file.src_uri)[1]
    }
    for target in sorted(named):
        page = site_path(target)
        if page.startswith("source/"):
            made = File.generated(config, page, content=source_page(target))
            made.inclusion = made.inclusion.NOT_IN_NAV
            files.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> Any:
    """Lead links into the repository to the pages that show its files."""
    uri = page.file.src_uri
    return markdown if uri.startswith(("api/", "source/")) else relink(markdown, uri)[0]
