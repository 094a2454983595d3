"""`sslzoo consolidate`: one file from the folder of a distributed checkpoint.

sslzoo consolidate RUN/checkpoints/last.ckpt --to last.ckpt
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sslzoo.atomic_write import check_target, recover, replacing, save_tensors
from sslzoo.commands.errors import Parser, one_sentence, without_debug

KINDS = (".ckpt", ".safetensors")


def consolidate(folder: str, to: str) -> str:
    """Write the checkpoint that one process would have saved.

    Args:
        folder: a distributed checkpoint, or a run directory whose last checkpoint is one.
        to: file to write: `.ckpt` can be resumed and loaded like any other checkpoint,
            `.safetensors` has the weights alone, by name.

    Returns:
        The file.

    Raises:
        ValueError: the folder is none, incomplete or damaged, or the file has another suffix.
        OSError: the file cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    from sslzoo.run_folder import RunFolder
    from sslzoo.trust import assemble, is_folder_of_shards

    source, target = Path(folder), Path(to)
    if target.suffix not in KINDS:
        raise ValueError(f"--to must end with {' or '.join(KINDS)}, got {to!r}")
    check_target(target)
    if source.is_dir() and not is_folder_of_shards(source):
        source = RunFolder(source).checkpoint
    recover(source.parent)
    if not is_folder_of_shards(source):
        kind = "a file" if source.is_file() else "a folder without shards or nothing"
        raise ValueError(f"the checkpoint must be a folder of shards, got {str(source)!r}, {kind}")
    saved: Any = assemble(source)
    if target.suffix == ".safetensors":
        saved = saved.get("state_dict", saved.get("model", saved))
        odd = [name for name, value in saved.items() if not isinstance(value, torch.Tensor)]
        if odd:
            raise ValueError(
                f"{source} must hold a state_dict of tensors for .safetensors, got {odd[:3]}; "
                "write a .ckpt"
            )
    with replacing(target) as part:
        if target.suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in saved.items()}, part)
        else:
            save_tensors(saved, part, target)
    return str(target)


def _parser() -> Parser:
    parser = Parser(
        prog="sslzoo consolidate",
        description="Make one file of a distributed checkpoint, which is a folder.",
        epilog="All its tensors are held in memory meanwhile.",
    )
    parser.add_argument("folder", help="distributed checkpoint, or its run directory")
    parser.add_argument("--to", required=True, help="file to write, .ckpt or .safetensors")
    return parser


def main(args: Sequence[str]) -> None:
    """Run `sslzoo consolidate` on `args`; errors print one line."""
    args, debug = without_debug(args)
    given = _parser().parse_args(args)
    with one_sentence("sslzoo consolidate", debug):
        print(consolidate(given.folder, given.to))
