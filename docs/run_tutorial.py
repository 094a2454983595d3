"""Run a tutorial, a script in the percent format, and write it as a page with its output.

Cells begin with `# %%` (code) or `# %% [markdown]` (text in comments); the module's docstring is
the introduction. Each tutorial runs as a script of its own in an empty folder. The page shows below
each cell what it printed and the images that it wrote there. Further arguments go to the tutorial.

    python docs/run_tutorial.py docs/tutorials/1_your_photos.py FOLDER --epochs 20
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent

SHOWN = (".png", ".html")
MARK = "\x1e"
# Ranks and loader processes run the script too: only the first process marks its cells.
MARKER = (
    "import os as _os; _os.environ.setdefault('TUTORIAL_PID', str(_os.getpid()));"
    " _os.environ['TUTORIAL_PID'] == str(_os.getpid()) and"
    f" print({MARK!r} + '|'.join(sorted(_os.listdir())), flush=True)"
)


def cells(script: str) -> tuple[str, list[tuple[bool, str]]]:
    """Split a script into its docstring and cells, each (whether it is text, source)."""
    docstring = ast.get_docstring(ast.parse(script))
    if not docstring:
        raise ValueError("a tutorial must begin with a docstring, its title and introduction")
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
    if len(parts) < 3:
        raise ValueError("a tutorial must have cells that begin with `# %%`, got none")
    body = [("[markdown]" in parts[i], parts[i + 1]) for i in range(1, len(parts), 2)]
    before = script.split('"""', 2)[2].split("\n# %%", 1)[0].strip()
    return docstring, [(False, before), *body] if before else body


def text(source: str) -> str:
    """Markdown of a cell of comments."""
    return re.sub(r"^# ?", "", source, flags=re.MULTILINE).strip()


def run(script: Path, folder: Path, *arguments: str) -> list[tuple[str, list[str]]]:
    """Run a script in a folder; per code cell what it printed and the files it made."""
    marked = script.read_text()
    docstring, found = cells(marked)
    lines = [f'"""{docstring}"""']
    future = "from __future__ import annotations\n"
    if future in marked:
        lines.append(future)
    lines += [f"{source.replace(future, '')}\n{MARKER}" for is_text, source in found if not is_text]
    (folder / script.name).write_text("\n".join(lines))
    environment = {**os.environ, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    command = [sys.executable, script.name, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} must run, got\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    outputs, seen = [], {script.name}
    for part in re.findall(rf"(.*?){MARK}([^\n]*)\n", done.stdout, flags=re.DOTALL):
        files = [name for name in part[1].split("|") if name not in seen and name.endswith(SHOWN)]
        seen.update(files)
        printed = part[0].replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
        outputs.append((re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).strip("\n"), files))
    return outputs


def page(script: Path, outputs: list[tuple[str, list[str]]] | None, folder: str) -> str:
    """Markdown of a tutorial; without outputs, of its text and code alone."""
    docstring, found = cells(script.read_text())
    title, _, introduction = docstring.partition("\n")
    blocks = [f"# {title.rstrip('.')}", dedent(introduction).strip()]
    blocks.append(f"The script: [{script.name}]({script.name}).")
    results = iter(outputs or [])
    for is_text, source in found:
        if is_text:
            blocks.append(text(source))
            continue
        if source.strip():
            blocks.append(f"```python\n{source.strip()}\n```")
        printed, files = next(results, ("", []))
        if printed:
            blocks.append(f"```text\n{printed}\n```")
        for name in files:
            blocks.append(f"{'!' if name.endswith('.png') else ''}[{name}]({folder}/{name})")
    return "\n\n".join(block for block in blocks if block) + "\n"


def main(script: str, to: str, *arguments: str) -> None:
    """Run a tutorial in an empty folder; write its page and its files."""
    path, target = Path(script).resolve(), Path(to)
    with tempfile.TemporaryDirectory() as name:
        outputs = run(path, Path(name), *arguments)
        (target / path.stem).mkdir(parents=True, exist_ok=True)
        for file in (file for _, files in outputs for file in files):
            (target / path.stem / file).write_bytes((Path(name) / file).read_bytes())
        (target / f"{path.stem}.md").write_text(page(path, outputs, path.stem))


if __name__ == "__main__":
    main(*sys.argv[1:])
