"""Persistent pools of real gloo ranks: `ranks(2, function, *args)` is a list, one result a rank.

A pool is started when first used and lives until the session ends. A function is found in the
workers by its qualified name, so it stands at the top level of a test module. Before every call
each rank seeds torch with 0; inside it warnings are errors, as in the parent.
"""

from __future__ import annotations

import datetime
import os
import pickle
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

HANG_SECONDS = 120.0  # a call that takes longer is a hang
# Imported once, by the server that all ranks and started commands are forked from.
PRELOADED = ["tests.ranks", "sslzoo.methods", "sslzoo.commands.fit"]
GRACE_SECONDS = 5.0  # what the other ranks get to finish after one of them has failed


class RemoteError(Exception):
    """The cause of an error that was raised on a rank: that rank's own traceback."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def _call(rank: int, message: bytes) -> bytes:
    """Run one pickled (function, args) and pickle (result, None) or (error, traceback)."""
    try:
        function, args = pickle.loads(message)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return pickle.dumps((function(rank, *args), None))
    except BaseException as error:
        text = f"on rank {rank}: {traceback.format_exc()}"
        try:
            return pickle.dumps((error, text))
        except Exception:
            return pickle.dumps((RuntimeError(repr(error)), text))


def settle_torch() -> None:
    """What keeps toys from writing beyond their memory in torch 2.14's convolutions.

    Seen for odd batches of images and very few channels alone: with two threads, and with oneDNN's
    on processors without AVX-512.
    """
    torch.set_num_threads(1)
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        torch.backends.mkldnn.set_flags(False)


def _worker(rank: int, world_size: int, port: int, connection: Connection) -> None:
    settle_torch()
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    environment = {name: str(value) for name, value in {**local, **where}.items()}
    os.environ.update(environment)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    timeout = datetime.timedelta(seconds=HANG_SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        while message := connection.recv_bytes():
            os.environ.update(environment)  # a Trainer takes some of it away at its end
            connection.send_bytes(_call(rank, message))
    except EOFError:  # the parent is gone
        pass
    finally:
        dist.destroy_process_group()
        os._exit(0)  # the interpreter's own clearing of torch takes seconds


class _Pool:
    """`world_size` processes in one gloo group."""

    def __init__(self, world_size: int) -> None:
        context = torch.multiprocessing.get_context("forkserver")
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.connections: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            args = (rank, world_size, self.store.port, theirs)
            process = context.Process(target=_worker, args=args, daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def call(self, message: bytes) -> list[tuple[Any, str | None] | None]:
        """Each rank's (result, None) or (error, traceback), or None where it hung or died."""
        for connection in self.connections:
            connection.send_bytes(message)
        answers: list[tuple[Any, str | None] | None] = [None] * len(self.connections)
        waiting = set(range(len(self.connections)))
        deadline = time.monotonic() + HANG_SECONDS
        while waiting and time.monotonic() < deadline:
            for rank in sorted(waiting):
                if not self.connections[rank].poll(0.002):
                    continue
                waiting.discard(rank)
                try:
                    answers[rank] = pickle.loads(self.connections[rank].recv_bytes())
                except EOFError:
                    answers[rank] = (RuntimeError(f"rank {rank} died"), "")
                if answers[rank][1] is not None:  # type: ignore[index]
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return answers

    def close(self, kill: bool) -> None:
        for connection, process in zip(self.connections, self.processes, strict=True):
            if kill:
                process.kill()
            elif process.is_alive():
                connection.send_bytes(b"")
        for connection, process in zip(self.connections, self.processes, strict=True):
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
            connection.close()


class Ranks:
    """Runs functions on 1, 2, 3, ... ranks."""

    def __init__(self) -> None:
        self._pools: dict[int, _Pool] = {}

    def __call__(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Results of `function(rank, *args)` on every rank; an error on a rank is raised here.

        Args:
            world_size: number of ranks; 1 runs here, without a process group.
            function: at the top level of an importable module.
            args: picklable, the same for every rank; tensors are copied.
        """
        if world_size == 1:
            torch.manual_seed(0)
            return [function(0, *args)]
        if world_size not in self._pools:
            self._pools[world_size] = _Pool(world_size)
        answers = self._pools[world_size].call(pickle.dumps((function, args)))
        failed = [answer for answer in answers if answer is not None and answer[1] is not None]
        silent = [rank for rank, answer in enumerate(answers) if answer is None]
        if silent or 0 < len(failed) < world_size:  # the ranks are out of step
            self._pools.pop(world_size).close(kill=True)
        if failed:
            raise failed[0][0] from RemoteError(failed[0][1])
        if silent:
            name = getattr(function, "__qualname__", function)
            raise TimeoutError(f"{name}: no answer in {HANG_SECONDS} s from ranks {silent}")
        return [answer[0] for answer in answers if answer is not None]

    def close(self) -> None:
        while self._pools:
            self._pools.popitem()[1].close(kill=False)


def assert_same_step(results: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Hold what the ranks of a step gave to one process: loss and gradients as means, the state.

    Args:
        results: of each rank: "loss", "grads" and "state" by name.
        one: the same of one process.
    """
    mean = torch.stack([result["loss"] for result in results]).mean()
    torch.testing.assert_close(mean, one["loss"], rtol=1e-9, atol=0)
    for name, wanted in one["grads"].items():
        got = torch.stack([result["grads"][name] for result in results]).mean(0)
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-11)
    for result in results:
        torch.testing.assert_close(result["state"], one["state"], rtol=1e-7, atol=1e-11)
