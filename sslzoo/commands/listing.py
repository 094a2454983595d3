"""`sslzoo methods`, `sslzoo configs` and `sslzoo completion`: what exists, without importing it."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path

import sslzoo
from sslzoo.commands.configs import find_config, known_configs
from sslzoo.commands.errors import Parser, one_sentence, without_debug

SHELLS = ("bash", "zsh", "fish")
# Words after each verb; a file name is always completed too.
_TRAINER = [
    *("--config", "--ckpt_path", "--debug", "--help", "--print_config", "--seed_everything"),
    *("--data", "--data.root", "--data.batch_size", "--data.num_workers", "--data.val_dir"),
    *("--data.labels", "--model", "--trainer.max_epochs", "--trainer.max_steps"),
    *("--trainer.precision", "--trainer.accelerator", "--trainer.devices", "--trainer.callbacks"),
    *("--trainer.logger", "--trainer.default_root_dir", "--trainer.log_every_n_steps"),
]
_WORDS = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), _TRAINER),
    "data": ["check", "shard", "index", "--value_range", "--yaml", "--output", "--help"],
    "units": [
        "--to",
        "--num_units",
        "--rate",
        "--encoder",
        "--layer",
        "--fraction",
        "--on_broken",
        "--help",
    ],
    "embed": ["--to", "--batch_size", "--device", "--on_broken", "--trust", "--help"],
    "eval": ["--on", "--data.root", "--suite.protocols", "--seeds", "--untrained", "--output"],
    "report": ["--output", "--results", "--root", "--samples", "--pictures", "--trust"],
    "methods": [],
    "configs": [],
    "zoo": ["list", "info", "fetch", "verify", "add", "push", "remove"],
    "export": ["--format", "--to", "--model", "--size", "--channels", "--trust"],
    "consolidate": ["--to", "--help"],
    "memory": ["--config", "--ranks", "--batch_size", "--checkpointing", "--help"],
    "completion": list(SHELLS),
}
_OF_MODELS = ("embed", "eval", "export", "zoo")


def methods() -> Iterator[tuple[str, str]]:
    """Class path and title of each method, from the source."""
    found = {}  # name -> its bases and title
    for path in sorted((Path(sslzoo.__file__).parent / "methods").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        title = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = set(map(ast.unparse, node.bases))
                found[node.name] = bases, title.partition(": ")[2] or title
    for name, (bases, title) in found.items():
        if "SSLMethod" in bases or any("SSLMethod" in found[b][0] for b in bases & found.keys()):
            yield f"sslzoo.methods.{name}", title


def configs() -> Iterator[tuple[str, str]]:
    """Name and title of each shipped config, from its header."""
    for name in known_configs():
        with open(find_config(name), encoding="utf-8") as file:
            yield name, file.readline().lstrip("# ").rstrip().rstrip(".")


def completion(shell: str) -> str:
    """A completion script with the verbs, options, configs and zoo names of this version.

    Args:
        shell: one of `SHELLS`.
    """
    from sslzoo.zoo.catalog import entries

    names, models = " ".join(known_configs()), " ".join(sorted(entries()))
    if shell == "fish":
        return _fish(names, models)
    words = "\n".join(f"    {verb}) words='{' '.join(_WORDS[verb])}' ;;" for verb in _WORDS)
    ready = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
    return (ready if shell == "zsh" else "") + _BASH.format(
        verbs=" ".join([*_WORDS, "--version", "--help"]),
        words=words,
        configs=names,
        models=models,
        of_models="|".join(_OF_MODELS),
    )


_BASH = """\
_sslzoo() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{verbs}' -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{words}
  esac
  case "${{COMP_WORDS[1]}}" in
    {of_models}) words="$words {models}" ;;
    configs) words='{configs}' ;;
  esac
  case "$before" in
    --config|-c|--on) words='{configs}' ;;
    --ckpt_path|--to|--output|--root|--data.root) words='' ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _sslzoo sslzoo
"""


def _fish(configs: str, models: str) -> str:
    lines = [f"complete -c sslzoo -n __fish_use_subcommand -f -a '{' '.join(_WORDS)}'"]
    for verb, words in _WORDS.items():
        seen = f"complete -c sslzoo -n '__fish_seen_subcommand_from {verb}'"
        for word in words:
            if word == "--config":
                lines.append(f"{seen} -l config -x -a '{configs}'")
            elif word.startswith("--"):
                lines.append(f"{seen} -l {word[2:]}")
            else:
                lines.append(f"{seen} -a {word}")
        if verb in _OF_MODELS:
            lines.append(f"{seen} -a '{models}'")
    return "\n".join(lines) + "\n"


def _print(rows: Iterator[tuple[str, str]], pattern: str, what: str) -> None:
    wanted = pattern if {"*", "?"} & set(pattern) else f"*{pattern}*"
    found = [row for row in rows if fnmatch.fnmatch(row[0].lower(), wanted.lower())]
    if not found:
        raise ValueError(f"the pattern must match a {what}, got {pattern!r}")
    width = max(len(name) for name, _ in found)
    for name, title in found:
        print(f"{name:<{width}}  {title}")


def main(args: Sequence[str]) -> None:
    """Run `sslzoo methods`, `configs` or `completion`; errors print one line."""
    args, debug = without_debug(args)
    verb = args[0]
    if verb == "completion":
        parser = Parser(
            prog="sslzoo completion",
            description="Print a completion script: source <(sslzoo completion bash); "
            "sslzoo completion fish | source.",
        )
        parser.add_argument("shell", choices=SHELLS, help="the shell")
    else:
        what = "the methods, as values of --model" if verb == "methods" else "the shipped configs"
        parser = Parser(prog=f"sslzoo {verb}", description=f"List {what}, with one line each.")
        parser.add_argument("pattern", nargs="?", default="*", help="name, may contain * and ?")
    given = parser.parse_args(args[1:])
    with one_sentence("sslzoo", debug):
        if verb == "completion":
            print(completion(given.shell), end="")
            return
        rows = methods() if verb == "methods" else configs()
        _print(rows, given.pattern, verb.removesuffix("s"))
