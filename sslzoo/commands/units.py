"""`sslzoo units`: cluster the frames of recordings, and write each frame's cluster (HuBERT).

sslzoo units recordings --num_units 100 --to recordings/mfcc.units.npz
sslzoo units recordings --num_units 500 --encoder RUN --layer 6 --to recordings/layer6.units.npz
"""

from __future__ import annotations

from collections.abc import Sequence

from sslzoo.commands.errors import Parser, one_sentence, without_debug
from sslzoo.commands.quick_imports import quick_imports


def _parser() -> Parser:
    parser = Parser(
        prog="sslzoo units",
        description="Cluster MFCC or the features of an encoder's layer by k-means, and write the "
        "cluster of each frame, which HuBERT predicts.",
    )
    parser.add_argument("folder", help="folder of the recordings, with all folders below")
    parser.add_argument("--to", required=True, help="npz file to write, such as mfcc.units.npz")
    parser.add_argument("--num_units", type=int, default=100, help="number of clusters")
    parser.add_argument("--rate", type=int, help="sampling rate in Hz (default for MFCC: 16000)")
    parser.add_argument("--encoder", help="run, zoo name or file; without it: MFCC")
    parser.add_argument("--layer", type=int, help="layer of the encoder, counted from 1")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the files for k-means")
    parser.add_argument("--seed", type=int, default=0, help="seed of k-means")
    parser.add_argument(
        "--on_broken",
        choices=["error", "skip"],
        default="error",
        help="of recordings that are unreadable or shorter than a frame",
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo units` on `args`; errors print one line."""
    args, debug = without_debug(args)
    given = vars(_parser().parse_args(args))
    with one_sentence("sslzoo units", debug):
        with quick_imports():
            from sslzoo.runs.units import cluster_units  # after --help, since it imports torch

        print(cluster_units(**given))
