"""`sslzoo embed`: write the features of files.

sslzoo embed simclr-small_resnet-cifar10jpeg photos --to features.npz
"""

from __future__ import annotations

from collections.abc import Sequence

from sslzoo.commands.errors import Parser, one_sentence, without_debug
from sslzoo.commands.quick_imports import quick_imports


def _parser() -> Parser:
    parser = Parser(
        prog="sslzoo embed",
        description="Write an encoder's features of images, sounds, lines of text or arrays.",
        epilog="Started again after a kill, it goes on where it was.",
    )
    parser.add_argument("model", help="run directory, name of the zoo, or file of weights")
    parser.add_argument("sources", nargs="+", help="files and folders")
    parser.add_argument("--to", required=True, help="file to write, .npz or .parquet")
    parser.add_argument("--batch_size", type=int, default=64, help="samples per forward pass")
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument(
        "--on_broken", choices=["error", "skip"], default="error", help="of unreadable files"
    )
    parser.add_argument(
        "--trust", action="store_true", help="let the model's file name any Python class"
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo embed` on `args`; errors print one line."""
    args, debug = without_debug(args)
    given = _parser().parse_args(args)
    with one_sentence("sslzoo embed", debug):
        with quick_imports():
            from sslzoo.runs.embed import embed  # after --help, since it imports torch

        print(embed(**vars(given)))
