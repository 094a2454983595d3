"""`sslzoo zoo` and `sslzoo export`: find, download, share and export trained encoders.

Each subcommand imports only what it needs, since importing methods and data takes seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslzoo.atomic_write import check_target
from sslzoo.commands.errors import Parser, one_sentence, without_debug
from sslzoo.zoo.cache import ANY, place
from sslzoo.zoo.card import KINDS, Card, channels_of
from sslzoo.zoo.catalog import (
    STATES,
    card_named,
    entries,
    list_models,
    local_file,
    remove,
    sources,
    state_of,
)

LEGEND = "; ".join(f"{state}: {meaning}" for state, meaning in STATES.items())


def _list(given: argparse.Namespace) -> None:
    matching = [card_named(name) for name in list_models(given.pattern)]
    cards = [card for card in matching if _is_asked(card, given)]
    if not cards:
        more = " with these filters" if matching else ""
        raise ValueError(f"the pattern must match an entry of the zoo{more}, got {given.pattern!r}")
    rows = [_HEADER, *(_row(card) for card in cards)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]))
    print(LEGEND, file=sys.stderr)  # a pipe gets only the table


_HEADER = ("name", "kind", "width", "parameters", "file", "score", "license", "weights")


def _row(card: Card) -> tuple[str, ...]:
    best = next((f"{metric} {value:.3f}" for metric, value in card.score.items()), "-")
    license = "non-commercial" if card.non_commercial else card.license["weights"].split(";")[0]
    width = str(card.num_features)
    count = "-" if card.parameters is None else f"{card.parameters / 1e6:.1f} M"
    return (card.name, card.kind, width, count, _size(card), best, license, state_of(card))


def _size(card: Card) -> str:
    """Size of the weights on this machine; "-" elsewhere, since cards do not record it."""
    path = local_file(card) or place(card.name, card.file)
    return megabytes(path.stat().st_size) if path.is_file() else "-"


def megabytes(size: int) -> str:
    """A number of bytes in MB."""
    return f"{size / 1e6:.1f} MB"


def _is_asked(card: Card, given: argparse.Namespace) -> bool:
    state = state_of(card)
    fetchable = state in ("published hash", "first use")
    return (
        (given.kind is None or card.kind == given.kind)
        and (given.method is None or given.method.lower() in card.method.lower())
        and (given.min_score is None or max(card.score.values(), default=0) >= given.min_score)
        and (not given.here or state == "here")
        and (not given.fetchable or fetchable)
        and (not given.commercial or not card.non_commercial)
    )


def _remove(given: argparse.Namespace) -> None:
    for name in _matching(given.names, here=True):
        removed, freed = remove(name)
        print(f"removed {', '.join(map(str, removed))}: {megabytes(freed)} freed")


def _info(given: argparse.Namespace) -> None:
    card = card_named(given.name)
    print(dataclasses.replace(card, urls=sources(card)).to_json(), end="")
    state = state_of(card)
    print(f"{state}: {STATES[state]}", file=sys.stderr)  # a pipe gets only the card


def _matching(names: Sequence[str], here: bool = False) -> list[str]:
    """Expand names with * or ? to matching entries; `here`: only those on this machine."""
    found: list[str] = []
    for name in names:
        if "://" in name or not {"*", "?"} & set(name):
            found.append(name)
            continue
        matches = [
            entry
            for entry in list_models(name)
            if not here or state_of(card_named(entry)) == "here"
        ]
        if not matches:
            where = "on this machine" if here else "of the zoo"
            raise ValueError(f"the pattern must match an entry {where}, got {name!r}")
        found += matches
    return found


def _fetch(given: argparse.Namespace) -> None:
    from sslzoo.zoo.weights_file import locate

    for name in _matching(given.names):
        print(locate(name, given.sha256, strict=given.strict).path)


def _verify(given: argparse.Namespace) -> None:
    from sslzoo.zoo.verifying import verify

    wrong = 0
    for name in _matching(given.names or ["*"], here=True):
        try:
            verify(name, given.sha256, given.trust)
        except (ValueError, OSError) as error:
            wrong += 1
            print(f"WRONG {name}: {error}")
        else:
            print(f"right {name}")
    if wrong:
        raise SystemExit(1)


def _add(given: argparse.Namespace) -> None:
    from sslzoo.run_folder import RunFolder
    from sslzoo.zoo.save import add_checkpoint, add_run

    run, folder = Path(given.run), None if given.to is None else Path(given.to)
    view = {key: getattr(given, key) for key in ("size", "mean", "std", "channels")}
    view = {key: value for key, value in view.items() if value is not None}
    about = (given.name, given.data, given.license, folder, given.dtype, view)
    checkpoint = None if given.ckpt_path is None else Path(given.ckpt_path)
    other = {key: getattr(given, key) for key in ("prefix", "layout", "method")}
    other = {key: value for key, value in other.items() if value is not None}
    if given.backbone is not None:
        file = checkpoint or (RunFolder(run).checkpoint_file if run.is_dir() else run)
        card = add_checkpoint(file, given.backbone, *about, **other)
    elif other:
        raise ValueError(f"--backbone must be given with --{next(iter(other))}, got none")
    else:
        card = add_run(run, *about, checkpoint=checkpoint, trust=given.trust)
    print(card.to_json(), end="")


def _push(given: argparse.Namespace) -> None:
    from sslzoo.zoo.hub import push, refuse_others
    from sslzoo.zoo.weights_file import locate

    if given.name in entries():
        refuse_others(entries()[given.name])  # before their file is downloaded
    found = locate(given.name)
    if found.card is None:
        raise ValueError(
            f"{given.name!r} must have a card to be pushed, got none; `sslzoo zoo add` makes one"
        )
    print(push(found.card, found.path, given.repository))


def _export(given: argparse.Namespace) -> None:
    from sslzoo.zoo.export import export
    from sslzoo.zoo.load import load
    from sslzoo.zoo.preprocess import of_checkpoint
    from sslzoo.zoo.safe_read import read
    from sslzoo.zoo.weights_file import locate

    check_target(Path(given.to))
    encoder: Any = load(given.name, sha256=given.sha256, trust=given.trust)
    card: Card | None = getattr(encoder, "card", None)
    if card is None:  # a checkpoint of a run
        view = of_checkpoint(read(locate(given.name, given.sha256).path))[0] or {}
    else:
        view = card.preprocessing or {}
    kind = view.get("kind", "image")
    if kind != "image":
        raise ValueError(f"{given.name!r} must be an encoder of images to export, got {kind}")
    size, channels = given.size or view.get("size"), given.channels or channels_of(view)
    if size is None:
        raise ValueError(f"--size must be given, since {given.name!r} records no image size")
    print(export(encoder, Path(given.to), given.format, size, given.model, channels))


def class_or_json(text: str) -> dict[str, Any]:
    """Parse a class path, or the JSON of its `class_path` and `init_args`."""
    named: dict[str, Any] = json.loads(text) if text.startswith("{") else {"class_path": text}
    return named


# Help texts of the flags --sha256 and --trust.
HASHED: dict[str, Any] = {"help": f"hash of the file, or {ANY!r} if none is published"}
TRUST = "let the file name any class that Python can import, whose code then runs"


def _zoo_parser() -> Parser:
    parser = Parser(prog="sslzoo zoo", description="Find, download and share trained encoders.")
    zoo = parser.add_subparsers(required=True, metavar="VERB")

    verb = zoo.add_parser(
        "list",
        help="list names, kinds, widths, sizes, scores, licenses and where the weights are",
        epilog=f"Values of the last column: {LEGEND}.",
    )
    verb.add_argument("pattern", nargs="?", default="*", help="name, may contain * and ?")
    verb.add_argument("--kind", choices=KINDS, help="kind of samples")
    verb.add_argument("--method", help="part of the method's name")
    verb.add_argument("--min_score", type=float, help="lowest score, from 0 to 1")
    verb.add_argument("--here", action="store_true", help="only weights on this machine")
    verb.add_argument("--fetchable", action="store_true", help="only weights that have a URL")
    verb.add_argument("--commercial", action="store_true", help="only weights free for such use")
    verb.set_defaults(act=_list)

    verb = zoo.add_parser("info", help="print the card of an entry")
    verb.add_argument("name", help="name of the entry")
    verb.set_defaults(act=_info)

    verb = zoo.add_parser("fetch", help="download and check weights, and print their paths")
    verb.add_argument("names", nargs="+", help="names, may contain * and ?")
    verb.add_argument("--sha256", **HASHED)
    verb.add_argument("--strict", action="store_true", help="refuse a file without published hash")
    verb.set_defaults(act=_fetch)

    verb = zoo.add_parser("verify", help="check hash, class, shapes and features against the card")
    verb.add_argument(
        "names", nargs="*", help="names, may contain * and ?; default: all on this machine"
    )
    verb.add_argument("--sha256", **HASHED)
    verb.add_argument("--trust", action="store_true", help=TRUST)
    verb.set_defaults(act=_verify)

    verb = zoo.add_parser("add", help="make an entry from your own run or checkpoint")
    verb.add_argument("run", help="run directory; with --backbone also any checkpoint")
    verb.add_argument("--name", required=True, help="name of the new entry")
    verb.add_argument("--data", required=True, help="description of the training data")
    verb.add_argument("--license", required=True, help="license of the weights")
    verb.add_argument("--to", help="folder to write to (default: the cache, which loads by name)")
    verb.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="type of the weights"
    )
    verb.add_argument("--size", type=int, help="image size, if the run does not record it")
    verb.add_argument("--mean", type=float, nargs="+", help="mean per channel, likewise")
    verb.add_argument("--std", type=float, nargs="+", help="standard deviation per channel")
    verb.add_argument("--channels", type=int, help="of the images (default: those of --mean, or 3)")
    verb.add_argument("--ckpt_path", help="checkpoint to use (default: the run's last.ckpt)")
    verb.add_argument(
        "--backbone",
        type=class_or_json,
        help="module that a checkpoint of other code fills: a class path, or JSON of class_path "
        "and init_args",
    )
    names = verb.add_mutually_exclusive_group()
    names.add_argument(
        "--prefix", help="prefix of the backbone's keys in that checkpoint (default: backbone.)"
    )
    names.add_argument("--layout", help="library that wrote that checkpoint: lightly, ...")
    verb.add_argument("--method", help="name of the method that trained it")
    verb.add_argument("--trust", action="store_true", help=TRUST)
    verb.set_defaults(act=_add)

    verb = zoo.add_parser(
        "remove", help="remove your own entries and downloaded weights, and say what that frees"
    )
    verb.add_argument("names", nargs="+", help="names, may contain * and ?")
    verb.set_defaults(act=_remove)

    verb = zoo.add_parser("push", help="upload your own entry to the Hugging Face Hub")
    verb.add_argument("name", help="name of the entry")
    verb.add_argument("repository", help="repository on the Hub, OWNER/NAME")
    verb.set_defaults(act=_push)
    return parser


def _export_parser() -> Parser:
    from sslzoo.zoo.export import FORMATS

    parser = Parser(prog="sslzoo export", description="Export an encoder to other formats.")
    parser.add_argument("name", help="name of an entry, path or URL")
    parser.add_argument("--format", choices=FORMATS, required=True, help="format of the file")
    parser.add_argument("--to", required=True, help="file to write")
    parser.add_argument("--model", help="model of timm or torchvision, for those two formats")
    parser.add_argument("--size", type=int, help="image size, if no card or run records it")
    parser.add_argument("--channels", type=int, help="channels of the images, likewise")
    parser.add_argument("--sha256", **HASHED)
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.set_defaults(act=_export)
    return parser


def main(args: Sequence[str]) -> None:
    """Run one of the commands; errors print one line."""
    args, debug = without_debug(args)
    parser = _export_parser() if args[0] == "export" else _zoo_parser()
    with one_sentence("sslzoo", debug):
        given = parser.parse_args(args[1:])
        given.act(given)
