"""Self-supervised learning: pre-train, evaluate, share.

    sslzoo fit | validate | test | predict --config NAME    run a shipped config or your own file
    sslzoo data check FOLDER|LIST                           check images, print their YAML
    sslzoo data shard FOLDER --output FOLDER                write tar shards of a folder of images
    sslzoo data index SHARDS --output FILE                  list tar shards that exist
    sslzoo units FOLDER --to x.units.npz                    cluster the frames of recordings
    sslzoo embed NAME|RUN|FILE FILES --to x.npz             write the features of files
    sslzoo eval RUN|NAME|FILE... [--on CONFIG]              evaluate encoders on labeled data
    sslzoo report RUN...                                    compare runs in one HTML page
    sslzoo methods | configs [PATTERN]                      list what can be trained, and recipes
    sslzoo zoo list | info | fetch | verify | add | push | remove    encoders of others and yours
    sslzoo export NAME --format FORMAT --to FILE            export an encoder to other formats
    sslzoo consolidate FOLDER --to FILE     make one file of a distributed checkpoint
    sslzoo memory --config NAME             state the memory of a training step per rank
    sslzoo completion bash | zsh | fish                     print a completion script
    sslzoo --version                                        print the version

Each verb has its own --help; --debug adds the traceback to an error. `python -m sslzoo` is the same
command.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence

import sslzoo
from sslzoo.commands.errors import one_sentence, without_debug
from sslzoo.commands.hold_signals import hold_signals
from sslzoo.commands.quick_imports import quick_imports

Verb = Callable[[Sequence[str]], None]


def _fit(args: Sequence[str]) -> None:
    hold_signals()
    kept, debug = without_debug(sys.argv)
    sys.argv = kept
    with one_sentence("sslzoo", debug, of=()):
        with quick_imports():
            from sslzoo.commands import fit

        fit.run()


def _evaluate(args: Sequence[str]) -> None:
    with quick_imports():
        from sslzoo.commands import evaluate

    evaluate.main(args[1:])


def _embed(args: Sequence[str]) -> None:
    from sslzoo.commands import embed

    embed.main(args[1:])


def _consolidate(args: Sequence[str]) -> None:
    from sslzoo.commands import consolidate

    consolidate.main(args[1:])


def _memory(args: Sequence[str]) -> None:
    from sslzoo.commands import memory

    memory.main(args[1:])


def _data(args: Sequence[str]) -> None:
    from sslzoo.commands import data

    data.main(args[1:])


def _units(args: Sequence[str]) -> None:
    from sslzoo.commands import units

    units.main(args[1:])


def _report(args: Sequence[str]) -> None:
    try:
        with quick_imports():
            from sslzoo.commands import report
    except ImportError as error:
        print(f"sslzoo report: {error}: pip install 'sslzoo[report]'", file=sys.stderr)
        raise SystemExit(1) from None
    report.main(args[1:])


def _zoo(args: Sequence[str]) -> None:
    from sslzoo.commands import zoo

    zoo.main(args)


def _listing(args: Sequence[str]) -> None:
    from sslzoo.commands import listing

    listing.main(args)


# Verbs of other libraries -> ours.
_OTHER_WORDS = {"train": "fit", "pretrain": "fit", "list": "zoo", "download": "zoo", "fetch": "zoo"}
VERBS: dict[str, Verb] = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), _fit),
    "data": _data,
    "units": _units,
    "embed": _embed,
    "eval": _evaluate,
    "report": _report,
    **dict.fromkeys(("methods", "configs"), _listing),
    **dict.fromkeys(("zoo", "export"), _zoo),
    "consolidate": _consolidate,
    "memory": _memory,
    "completion": _listing,
}


def main() -> None:
    """Run the verb in `sys.argv`; each verb imports only what it needs."""
    args = sys.argv[1:]
    verb = args[0] if args else ""
    if "" not in sys.path and os.getcwd() not in sys.path:  # as `python -m` has it, but behind all
        sys.path.append(os.getcwd())
    if verb == "--version":
        print(sslzoo.__version__)
    elif verb in ("", "--help", "-h"):
        print(__doc__, end="")
    elif verb in VERBS:
        VERBS[verb](args)
    else:
        text = f"the verb must be one of {', '.join(VERBS)}, got {verb!r}{_meant(verb)}"
        print(f"sslzoo: {text}; see sslzoo --help", file=sys.stderr)
        raise SystemExit(2)


def _meant(verb: str) -> str:
    """What a word that is no verb may mean: a config, a method or a similar verb."""
    from sslzoo.commands.configs import find_config, known_configs

    name = verb.lower()
    if find_config(verb).endswith((".yaml", ".yml")):
        return f"; a config is trained by `sslzoo fit --config {verb}`"
    if name and any(known.startswith(f"{name}/") for known in known_configs()):
        return f"; a method is trained by a recipe of `sslzoo configs {name}/`"
    close = difflib.get_close_matches(_OTHER_WORDS.get(name, name), [*VERBS, *known_configs()], n=2)
    told = [f"fit --config {word}" if word not in VERBS else word for word in close]
    return "; similar: " + ", ".join(f"`sslzoo {word}`" for word in told) if told else ""


if __name__ == "__main__":
    main()
