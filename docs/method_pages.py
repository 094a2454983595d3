"""Render what the code and the results say into docs/methods/*.md.

Each page has five generated parts between HTML comments: the `Example:` of the method's docstring
as a script that trains, the lines of its `losses`, the headers of its configs, its scores in
benchmarks/results and the `Deviations:` of the docstring; docs/history.md has the figure of each
paper beside one of ours.
`python docs/method_pages.py` rewrites the pages; with --check it names the outdated ones and exits
with 1 if there are any.
"""

from __future__ import annotations

import ast
import doctest
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
from benchmarks.table import changes, epochs  # noqa: E402

HISTORY = ROOT / "docs/history.md"
PAGES = sorted((ROOT / "docs/methods").glob("*.md"))
WIDTH = 100  # of a line of code
SECTIONS = (
    "In Python",
    "Data flow",
    "Pseudo-code",
    "Recipes",
    "Results here",
    "Deviations",
    "Traps",
    "Citation",
)
BLOCK = re.compile(
    r"(<!-- (example|losses|recipes|results|deviations|paper|figures) of sslzoo\.methods\.(\w+) "
    r"-->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def deviations(method: str) -> str:
    """Numbered list of a method's deviations, which is Markdown as it stands in the docstring."""
    docstring = ast.get_docstring(ast.parse(_source(method))) or ""
    found = re.search(r"^Deviations:\n((?: +.*\n?)+)", docstring, re.MULTILINE)
    if not found:
        raise ValueError(f"the docstring of sslzoo.methods.{method} must have `Deviations:`")
    return dedent(found[1]).rstrip().replace("``", "`")


def example(method: str) -> str:
    """The `Example:` of a method's docstring as a script, which then trains on its batch."""
    module = ast.parse(_source(method))
    classes = {
        node.name: doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
    ((cls, steps),) = ((name, steps) for name, steps in classes.items() if steps)
    source = "".join(step.source for step in steps)
    nodes = ast.parse(source).body
    lines = ["adam = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"]
    for node in nodes[:-1]:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "method":
            lines.append(_with_optimizer(node.value, source))
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            lines.append(str(ast.get_source_segment(source, node)))
    lines.append(f"print({steps[-1].source.strip()})\n# {steps[-1].want.strip()}")
    lines.append("Trainer(max_epochs=10).fit(method, DataLoader([batch], batch_size=None))")
    script = "\n".join(lines)
    return (
        f"```python\n{_imports([*module.body, *nodes], cls, script)}\n\n{script}\n```\n\n"
        "The networks are tiny and the views random: take the networks of a [recipe](#recipes),\n"
        "and a data module of `sslzoo.data` in place of the loader."
    )


def losses(method: str) -> str:
    """The source of a method's `losses`."""
    source = _source(method)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "losses":
            lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
            return f"```python\n{dedent(chr(10).join(lines))}\n```"
    raise ValueError(f"sslzoo.methods.{method} must define `losses`")


def recipes(method: str) -> str:
    """Table of a method's configs, with the hardware and the score of their headers."""
    rows = ["| recipe | hardware, time | score |", "|---|---|---|"]
    for path in sorted((ROOT / "configs" / method).glob("*.yaml")):
        header = path.read_text().split("\n#\n", 1)[1]
        hardware, score = (_field(header, name) for name in ("Hardware", "Score"))
        before = f", after `{_field(header, 'Before')}`" if "# Before:" in header else ""
        rows.append(f"| `{method}/{path.stem}`{before} | {hardware} | {score} |")
    return "\n".join(rows)


def results(method: str) -> str:
    """Table of a method's runs in benchmarks/results/quality, with their entries of the zoo."""
    cards = [json.loads(path.read_text()) for path in (ROOT / "zoo_weights").glob("*.json")]
    entries = {card.get("recipe"): card["name"] for card in cards}
    rows = [
        "| recipe | epochs | kNN top-1 | untrained | minutes | entry of the [zoo](../zoo.md) |",
        "|---|---|---|---|---|---|",
    ]
    found = {}
    for path in sorted((ROOT / "benchmarks/results/quality").glob("*.json")):
        result = json.loads(path.read_text())
        if result["config"].startswith(f"configs/{method}/"):
            found[path.stem] = result
    if not found:
        raise ValueError(f"benchmarks/results/quality must have a run of {method}, got none")
    for result in found.values():
        recipe = result["config"].removeprefix("configs/").removesuffix(".yaml")
        machine = result.get("gpu") or f"{result['cpu']}, {result['cores']} cores"
        recipe = " ".join(f"`{text}`" for text in (recipe, *changes(result)))
        (seed,) = result["seeds"]
        entry = f"`{entries[result['config']]}`"
        if seed:  # the encoder of seed 0 alone is kept
            recipe, entry = f"{recipe}, seed {seed}", "-"
        rows.append(
            f"| {recipe} | {epochs(result)} "
            f"| {result['knn_top1']:.3f} "
            f"| {result['untrained_knn_top1']:.3f} | {result['minutes']:.1f} ({machine}) "
            f"| {entry} |"
        )
    pixels = {
        (result["raw_pixels_knn_top1"], result["normalized_pixels_knn_top1"])
        for result in found.values()
    }
    ((raw, normalized),) = pixels
    rows.append(
        "\nWeighted kNN (k 20, T 0.07) of the 10,000 test images in the 50,000 training images of\n"
        f"CIFAR-10 as JPEG files, one seed per row; raw pixels score {raw:.3f}, normalized ones "
        f"{normalized:.3f}. How\nthe runs were made: "
        "[benchmarks](../../benchmarks/README.md#quality)."
    )
    return "\n".join(rows)


def paper(method: str) -> str:
    """The figure of the paper, and the recipe that is meant to reach it."""
    scores = {}
    for path in sorted((ROOT / "configs" / method).glob("*.yaml")):
        score = _field(path.read_text().split("\n#\n", 1)[1], "Score")
        of_users = path.stem.startswith(("folder", "arrays", "continue"))
        other = any(part in path.stem for part in ("linear", "fine_tune", "distill", "_sk_"))
        if not of_users and not other:
            scores[path.stem] = re.sub(r"^not run here(; |, and |\. )", "", score)

    def rank(name: str) -> tuple[bool, bool, int]:
        epochs = re.search(r"_(\d+)\w*$", name)
        return "%" in scores[name], "imagenet" in name, int(epochs[1]) if epochs else 0

    name = max(scores, key=rank)
    return f"`{method}/{name}`: {scores[name]}"


def figures(method: str) -> str:
    """The figure of the paper, and what a run gave here."""
    found = [
        result
        for path in sorted((ROOT / "benchmarks/results/quality").glob("*.json"))
        if (result := json.loads(path.read_text()))["config"].startswith(f"configs/{method}/")
    ]
    recipe = found[0]["config"].removeprefix("configs/").removesuffix(".yaml")
    here = (
        f"{found[0]['knn_top1']:.3f} after {epochs(found[0])} epochs "
        f"(untrained {found[0]['untrained_knn_top1']:.3f})"
    )
    return f"| the paper's figure | here |\n|---|---|\n| {paper(method)} | `{recipe}`: {here} |"


def _with_optimizer(call: Any, source: str) -> str:
    """The line `method = ...` of an example, whose call also gets `optimizer=adam`."""
    given = [ast.get_source_segment(source, part) for part in [*call.args, *call.keywords]]
    given = [*map(str, given), "optimizer=adam"]
    head, listed = f"method = {ast.unparse(call.func)}(", ", ".join(given)
    for text in (f"{head}{listed})", f"{head}\n    {listed}\n)"):
        if max(map(len, text.splitlines())) <= WIDTH:
            return text
    return head + "".join(f"\n    {part}," for part in given) + "\n)"


def _imports(nodes: list[ast.stmt], cls: str, script: str) -> str:
    """The imports that a script needs: some of those among the nodes, the trainer, the class."""
    used = {node.id for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Name)}
    names = {"lightning": {"Trainer"}, "sslzoo.methods": {cls}, "torch.utils.data": {"DataLoader"}}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names.setdefault(str(node.module), set()).update({a.name for a in node.names} & used)
    lines = [
        f"from {path} import {', '.join(sorted(found))}"
        for path, found in sorted(names.items(), key=lambda item: ("sslzoo" in item[0], item[0]))
        if found
    ]
    return "\n".join(["import torch", *lines]).replace("\nfrom sslzoo", "\n\nfrom sslzoo", 1)


def _source(method: str) -> str:
    return (ROOT / f"sslzoo/methods/{method}.py").read_text()


def _field(header: str, name: str) -> str:
    found = re.search(rf"^# {name}:(.*(?:\n# {{9,}}.*)*)", header, re.MULTILINE)
    if not found:
        raise ValueError(f"the header of a config must have `{name}:`, got\n{header[:200]}")
    text = " ".join(found[1].replace("\n#", " ").split()).replace("|", r"\|")
    text = re.sub(r"\bdocs/(\w+\.md)", r"[docs/\1](../\1)", text)
    return text.replace("benchmarks/README.md", "[benchmarks](../../benchmarks/README.md)")


RENDERERS: dict[str, Callable[[str], str]] = {
    "example": example,
    "losses": losses,
    "recipes": recipes,
    "results": results,
    "deviations": deviations,
    "paper": paper,
    "figures": figures,
}


def render(page: str) -> str:
    """Text of a page with its generated parts as the code and the results have them."""
    return BLOCK.sub(lambda part: f"{part[1]}{RENDERERS[part[2]](part[3])}\n{part[4]}", page)


def main(arguments: list[str]) -> int:
    """Rewrite the outdated pages, or with --check only name them."""
    outdated = [page for page in [*PAGES, HISTORY] if render(page.read_text()) != page.read_text()]
    for page in outdated:
        print(page.relative_to(ROOT))
        if "--check" not in arguments:
            page.write_text(render(page.read_text()))
    return int("--check" in arguments and bool(outdated))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
