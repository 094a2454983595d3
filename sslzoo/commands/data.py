"""`sslzoo data`: what a folder or a list of images holds, and shards of it.

sslzoo data check photos
sslzoo data check scans.csv --value_range -1000 2000 --clip --yaml data.yaml
sslzoo data shard photos --output shards
sslzoo data index "shards/train-*.tar" --output shards/train.json
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslzoo.commands.errors import Parser, one_sentence, without_debug
from sslzoo.commands.quick_imports import quick_imports


def _parser() -> Parser:
    parser = Parser(prog="sslzoo data", description="Images before training.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="what a folder or a list of images holds, and the YAML that reads it",
        description="Check images before training: counts, sizes, channels, bits, values, mean and "
        "std, unreadable and equal files; last comes the YAML of the data module to use.",
    )
    check.add_argument("source", help="folder, or list (.csv, .tsv, .parquet, .txt)")
    check.add_argument(
        *("--value_range",), nargs=2, type=float, metavar=("BLACK", "WHITE"), help="range of values"
    )
    check.add_argument("--clip", action="store_true", help="clip values outside --value_range")
    check.add_argument("--reader", help="your function that reads a file, such as mine.read")
    check.add_argument("--path_column", default="path", help="column of paths in a list")
    check.add_argument("--label_column", default="label", help="column of classes")
    check.add_argument("--split_column", default="split", help="column of splits")
    check.add_argument("--root", help="folder of the relative paths of a list")
    check.add_argument("--num_workers", type=int, help="threads that read")
    check.add_argument("--yaml", help="also write the YAML to this file")
    shard = verbs.add_parser(
        "shard",
        help="write tar shards of a folder of images",
        description="Write the images of a folder, with their classes, as tar shards of WebDataset "
        "with an index and a JSON list; last comes the YAML of the data module to use.",
    )
    shard.add_argument("folder", help="folder in one of the layouts of ImageFolder")
    shard.add_argument("--output", required=True, help="folder to make")
    shard.add_argument("--shard_mb", type=float, default=512.0, help="size of a shard in MiB")
    shard.add_argument(
        *("--on_broken",), choices=["error", "skip"], default="error", help="for unreadable images"
    )
    shard.add_argument("--decode", action="store_true", help="decode every image, not only headers")
    shard.add_argument("--seed", type=int, default=0, help="seed of the samples' order")
    shard.add_argument(
        *("--captions",),
        action="store_true",
        help="also write the .txt beside each image, for CLIP and SigLIP",
    )
    index = verbs.add_parser(
        "index",
        help="write the index of tar shards that exist",
        description="Write an index beside each tar shard of WebDataset, and the JSON list of them "
        "that sslzoo.data.ImageShards and, with --text_key txt, ImageTextShards read.",
    )
    index.add_argument("shards", nargs="+", help="tar files, or patterns such as x-{000..127}.tar")
    index.add_argument("--output", required=True, help="the .json list to write beside the shards")
    index.add_argument("--image_key", help="extension of the image; any if it is not given")
    index.add_argument("--label_key", default="auto", help='extension of the label, or "none"')
    index.add_argument("--text_key", help="extension of the captions, such as txt")
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo data` on `args`; errors print one line."""
    args, debug = without_debug(args)
    given = vars(_parser().parse_args(args))
    verb = given.pop("verb")
    with one_sentence("sslzoo data", debug):
        {"check": _check, "shard": _shard, "index": _index}[verb](given)


# Imports come after --help, since they bring torch.


def _check(given: dict[str, Any]) -> None:
    with quick_imports():
        from sslzoo.data.check import check_data

    target = given.pop("yaml")
    report = check_data(**{**given, "reader": _function(given["reader"])})
    print(report)
    if target is not None:
        Path(target).write_text(report.yaml, encoding="utf-8")


def _shard(given: dict[str, Any]) -> None:
    import yaml

    with quick_imports():
        from sslzoo.data.check import VALIDATION
        from sslzoo.data.streams.write import write_shards

    written = write_shards(**given)
    lone = " and those without a partner" if given["captions"] else ""
    for split, one in written.items():
        told = f" of {one.classes} classes" if one.classes else ""
        print(f"{split}: {one.samples} images{told} in {one.shards} shards, {one.file}")
        if one.skipped:
            print(f"  skipped {len(one.skipped)} unreadable files{lone}, such as {one.skipped[0]}")
    names = list(written)
    train = "train" if "train" in names else names[0]
    val = next((name for name in VALIDATION if name in names), None)
    arguments: dict[str, Any] = {"train": str(written[train].file)}
    if val is not None:
        arguments["val"] = str(written[val].file)
    arguments |= written[train].fitting
    if given["captions"]:
        arguments["tokenizer"] = {"class_path": "sslzoo.data.WordPiece"}
        arguments |= {"label_key": "cls"} if written[train].classes else {}
    reader = "ImageTextShards" if given["captions"] else "ImageShards"
    data = {"data": {"class_path": f"sslzoo.data.{reader}", "init_args": arguments}}
    print(f"\n{yaml.safe_dump(data, sort_keys=False).rstrip()}")


def _index(given: dict[str, Any]) -> None:
    with quick_imports():
        from sslzoo.data.streams.write import index_shards

    label = None if given["label_key"] == "none" else given["label_key"]
    files, image, text = given["shards"], given["image_key"], given["text_key"]
    count = index_shards(files, image, label, given["output"], text)
    print(f"{count} samples, {given['output']}")


def _function(name: str | None) -> Any:
    if name is None:
        return None
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None) if module else None
    if not callable(found):
        raise ValueError(f"--reader must be a function as module.name, got {name!r}")
    return found
