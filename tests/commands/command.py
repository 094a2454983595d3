"""The command, in this process or as one of its own, with the arguments of a small run."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing.process
import os
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from unittest import mock

import torch
import torch.multiprocessing

from sslzoo import __main__ as command
from tests.ranks import settle_torch

ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
COMMAND = [str(Path(sys.executable).parent / "sslzoo")]


def arguments(folder: Path, out: Path, method: str = "byol") -> list[str]:
    sizes = {
        "byol": ["projector.init_args.hidden_dim=16", "predictor.init_args.hidden_dim=16"],
        "instdisc": ["bank_size=60", "num_negatives=8"],
        "simclr": [],
    }[method]
    return [
        *["fit", "--config", f"{method}/folder_small_10ep"],
        f"--data.root={folder}",
        "--data.batch_size=12",
        "--trainer.precision=32-true",
        f"--trainer.default_root_dir={out}",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        *[f"--model.init_args.{size}" for size in sizes],
    ]


def run(
    args: list[str], cwd: Path, check: bool = True, warn: Literal["ignore", "always"] = "ignore"
) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: importing torch and Lightning takes seconds."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(sys, "argv", ["sslzoo", *args]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter(warn)
        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler):
                    stack.enter_context(mock.patch.object(handler, "stream", err))
        stack.callback(os.chdir, Path.cwd())
        os.chdir(cwd)
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            command.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                err.write(end.code)
        except Exception:
            code = 1
            traceback.print_exc()
    done = subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())
    assert not check or code == 0, done.stderr[-3000:]
    return done


def run_process(args: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own; it must succeed."""
    done = subprocess.run(
        [*COMMAND, *args], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def start(
    args: list[str], cwd: Path, said: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> multiprocessing.process.BaseProcess:
    """Start the command in a process that has imported it already.

    Args:
        args: of the command.
        cwd: its folder.
        said: file of what it writes.
        variables: of its environment, further ones.
    """
    context = torch.multiprocessing.get_context("forkserver")
    process = context.Process(
        target=_main, args=(args, str(cwd), str(said), {**ENVIRONMENT, **variables})
    )
    process.start()
    return process


def torchrun(args: list[str], cwd: Path, said: Path, world_size: int = 2) -> None:
    """Run the command on ranks as torchrun starts them; all must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}
    about |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    files = [said.with_suffix(f".{rank}") for rank in range(world_size)]
    processes = [
        start(args, cwd, file, {**about, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world_size, files[0].read_text()[-3000:]


def _main(args: list[str], cwd: str, said: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = ["sslzoo", *args]
    warnings.simplefilter("ignore")
    settle_torch()
    with open(said, "w", buffering=1) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        command.main()


def checkpoint(run_folder: Path) -> Path:
    return next((run_folder / "checkpoints").glob("*.ckpt"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]
