"""Two nodes, as network namespaces of one machine: torchrun, a node that is lost, and resuming."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.commands.command import ENVIRONMENT, arguments, run
from tests.commands.test_cluster import differences, last, logged
from tests.commands.test_fit_interrupted import SAVES_EVERY_STEP

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # 18 processes that import torch

SLOWLY = """
import os, time
from pathlib import Path
from lightning import Callback


class Slowly(Callback):
    def on_train_batch_end(self, trainer, *args):
        Path(f"{os.environ['GROUP_RANK']}.{trainer.global_step}").touch()
        time.sleep(1)
"""
ADDRESSES = ("10.77.0.1", "10.77.0.2")


class Node(NamedTuple):
    """A network namespace.

    Attributes:
        address: its address.
        holder: a process that does nothing but keep it.
        enter: the beginning of a command that is to run in it.
    """

    address: str
    holder: subprocess.Popen[bytes]
    enter: list[str]

    def processes(self) -> list[int]:
        """All processes of the node but the holder."""
        own = os.readlink(f"/proc/{self.holder.pid}/ns/net")
        return [pid for pid in _processes() if pid != self.holder.pid and _namespace(pid) == own]

    def kill(self) -> None:
        """Kill everything that runs on the node, at once."""
        while processes := self.processes():
            for pid in processes:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _hold(command: Sequence[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([*command, "sleep", "3600"])
    before = _namespace(os.getpid())
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        if "sleep" in Path(f"/proc/{process.pid}/comm").read_text():
            assert _namespace(process.pid) != before
            return process
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise OSError(f"{' '.join(command)} failed")


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two namespaces with a cable between them; nothing else is reachable from them."""
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("needs ip and nsenter")
    root = os.geteuid() == 0
    user = [] if root else ["--user", "--preserve-credentials"]
    holders: list[subprocess.Popen[bytes]] = []
    found: list[Node] = []
    try:
        for i, address in enumerate(ADDRESSES):
            into = ["nsenter", "--target", str(holders[0].pid), "--net", *user] if i else []
            new = ["unshare", "--net", *([] if root or i else ["--map-root-user"])]
            holders.append(_hold([*into, *new]))
            enter = ["nsenter", "--target", str(holders[i].pid), "--net", *user]
            found.append(Node(address, holders[i], enter))
        first = found[0].enter
        _call(*first, *["ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1"])
        _call(*first, *["ip", "link", "set", "cable1", "netns"], str(holders[1].pid))
        for i, node in enumerate(found):
            _call(*node.enter, *f"ip addr add {node.address}/24 dev cable{i}".split())
            for device in ("lo", f"cable{i}"):
                _call(*node.enter, *f"ip link set {device} up".split())
    except (OSError, subprocess.CalledProcessError) as error:
        _end(holders)
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield found
    for node in found:
        node.kill()
    _end(holders)


def _end(holders: list[subprocess.Popen[bytes]]) -> None:
    for process in holders:
        process.kill()
        process.wait()


def start(node: Node, number: int, args: list[str], cwd: Path, said: Path) -> subprocess.Popen[str]:
    """Start `sslzoo fit` under torchrun on a node."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2"]
    torchrun += ["--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:29500"]
    torchrun += [f"--local_addr={node.address}", f"--rdzv_conf=is_host={int(number == 0)}"]
    path = os.pathsep.join([str(cwd), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    own = {"GLOO_SOCKET_IFNAME": f"cable{number}", "PYTHONPATH": path}
    with said.open("w") as file:
        return subprocess.Popen(
            [*node.enter, *torchrun, "-m", "sslzoo", *args],
            cwd=cwd,
            env={**ENVIRONMENT, **own},
            stdout=file,
            stderr=file,
            text=True,
        )


def fit(nodes: list[Node], args: list[str], cwd: Path, name: str) -> list[Any]:
    """Start a command on both nodes; the processes, and the files of what they say."""
    files = [cwd / f"{name}_{i}.txt" for i in range(2)]
    started = [start(node, i, args, cwd, files[i]) for i, node in enumerate(nodes)]
    return [*started, *files]


def options(folder: Path, out: Path, *more: str) -> list[str]:
    """Two epochs of five steps, saved behind each, on two nodes."""
    return [
        *arguments(folder, out),
        *["--trainer.precision=64-true", "--trainer.max_epochs=2", *SAVES_EVERY_STEP],
        *["--trainer.accelerator=cpu", "--trainer.num_nodes=2", "--trainer.devices=2"],
        *(more or ["--trainer.strategy=ddp"]),
    ]


def until_third_step(processes: Sequence[subprocess.Popen[str]], cwd: Path, said: Path) -> None:
    """Wait for it on the second node."""
    deadline = time.monotonic() + 300
    while not (cwd / "1.3").exists() and time.monotonic() < deadline:
        assert processes[0].poll() is None, said.read_text()[-3000:]
        time.sleep(0.05)


def test_lost_node_and_a_second_start_equal_the_unbroken_run(
    nodes: list[Node], folder: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("whole", "lost")]
    (tmp_path / "slowly.py").write_text(SLOWLY)
    args = [options(folder, out) for out in outs]
    one, other, *files = fit(nodes, args[0], tmp_path, "whole")
    assert [one.wait(400), other.wait(60)] == [0, 0], [file.read_text()[-2000:] for file in files]

    slow = [*args[1], "--trainer.callbacks+=slowly.Slowly"]
    one, other, *files = fit(nodes, slow, tmp_path, "lost")
    until_third_step([one, other], tmp_path, files[0])
    nodes[1].kill()
    other.wait()
    began = time.monotonic()
    assert one.wait(100) != 0
    print(f"the other node ended {time.monotonic() - began:.1f} s later")
    wanted = (
        f"sslzoo: another rank has ended or is not reached; the last checkpoint is {last(outs[1])}"
    )
    assert wanted in files[0].read_text()
    assert 2 <= torch.load(last(outs[1]), weights_only=True)["global_step"] < 5

    one, other, *files = fit(nodes, [*args[1], f"--ckpt_path={last(outs[1])}"], tmp_path, "again")
    assert [one.wait(400), other.wait(60)] == [0, 0], [file.read_text()[-2000:] for file in files]
    assert logged(outs[1]) == logged(outs[0])
    assert differences(*map(last, outs)) == []


def test_node_that_is_not_reached_ends_the_run_after_the_timeout(
    nodes: list[Node], folder: Path, tmp_path: Path
) -> None:
    """Nothing says that a node whose cable was pulled is gone."""
    (tmp_path / "slowly.py").write_text(SLOWLY)
    more = ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]
    more += ["--trainer.strategy.timeout=0:00:40", "--trainer.callbacks+=slowly.Slowly"]
    args = options(folder, tmp_path / "out", *more)
    one, other, *files = fit(nodes, args, tmp_path, "pulled")
    until_third_step([one, other], tmp_path, files[0])
    _call(*nodes[0].enter, *["ip", "link", "set", "cable0", "down"])
    began = time.monotonic()
    assert one.wait(200) != 0
    print(f"the first node ended {time.monotonic() - began:.1f} s later")
    wanted = "sslzoo: another rank has ended or is not reached; the last checkpoint is "
    while wanted not in files[1].read_text() and time.monotonic() < began + 200:
        time.sleep(0.1)
    assert all(wanted in file.read_text() for file in files)
    nodes[1].kill()  # its torchrun waits for the first one, and longer
    other.wait()


def test_checkpoint_that_one_node_lacks_is_refused_on_both(
    nodes: list[Node], folder: Path, tmp_path: Path
) -> None:
    """A disk of its own: the second node has another working directory."""
    run([*options(folder, tmp_path / "out")[:-4], "--trainer.max_steps=1"], tmp_path)
    (tmp_path / "other").mkdir()
    args = [*options(folder, tmp_path / "out"), "--ckpt_path=out/version_0/checkpoints/last.ckpt"]
    places = [tmp_path, tmp_path / "other"]
    files = [tmp_path / f"lacks_{i}.txt" for i in range(2)]
    processes = [start(nodes[i], i, args, places[i], files[i]) for i in range(2)]
    wanted = "every node, .*, got step 1 on rank 0, there is no file at .*last.ckpt' on rank 2"
    for process, file in zip(processes, files, strict=True):
        assert process.wait(300) != 0
        assert re.search(wanted, file.read_text()), file.read_text()[-3000:]
