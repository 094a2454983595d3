"""`sslzoo memory`: the memory that a config's training step needs per rank.

sslzoo memory --config dinov2/imagenet_vit_large16_100ep --ranks 32
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sslzoo.commands.errors import Parser, one_sentence, without_debug
from sslzoo.commands.quick_imports import quick_imports

_ROWS = {
    "parameters": "trained parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "teacher": "teacher and frozen parameters",
    "buffers": "buffers",
    "gathered": "gathered units",
    "activations": "activations, without mixed precision",
    "total": "total",
}


def _parser() -> Parser:
    parser = Parser(
        prog="sslzoo memory",
        description="State the memory of a training step per rank, with and without sharding.",
        epilog="Computed from shapes alone, in GiB. Temporary tensors come on top.",
    )
    parser.add_argument("--config", required=True, help="name of a config, or a file")
    parser.add_argument("--ranks", type=int, default=8, help="number of GPUs")
    parser.add_argument("--batch_size", type=int, help="samples of all ranks (default: config's)")
    parser.add_argument(
        "--checkpointing", action="store_true", help="recompute blocks, as PerBlock does"
    )
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo memory` on `args`; errors print one line."""
    args, debug = without_debug(args)
    given = _parser().parse_args(args)
    with one_sentence("sslzoo memory", debug):
        with quick_imports():
            from sslzoo.commands.configs import find_config
            from sslzoo.runs.memory import memory_plan
            from sslzoo.trust import read_config

        path = find_config(given.config)
        if not Path(path).is_file():
            raise ValueError(f"--config must be a file or a shipped config, got {given.config!r}")
        config = read_config(Path(path))
        if not {"model", "data"} <= config.keys():
            raise ValueError(f"{path} must have model and data, got {sorted(config)}")
        options = (given.batch_size, given.checkpointing, path)
        plans = [memory_plan(config, given.ranks, sharded, *options) for sharded in (False, True)]
        print(f"{'GiB per rank':36}  {'DDP':>8}  FullyShard")
        for name, title in _ROWS.items():
            whole, shared = (getattr(plan, name) / 2**30 for plan in plans)
            print(f"{title:36}  {whole:8.2f}  {shared:10.2f}")
