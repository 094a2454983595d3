"""Clusters: a requeued SLURM job goes on with its own run; the processes fit the Trainer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.utilities import rank_zero_warn

from sslzoo.atomic_write import atomic_write, recover
from sslzoo.run_folder import versions
from sslzoo.trust import is_folder_of_shards, outline

JOB = "sslzoo_job"  # a checkpoint's key: the name of the `JobRun` that saved it
# What may differ between two commands of one run.
_FREE = {"logger", "profiler", "accelerator", "strategy", "devices", "num_nodes"}
_FREE |= {"default_root_dir", "config", "weights_only"}
_ENVIRONMENT = "lightning.pytorch.plugins.environments.LightningEnvironment"


def job_number() -> str | None:
    """The number of the running SLURM job, N_TASK in an array; None outside and interactively.

    In a shell that `salloc` or `srun --pty` opened, nothing is requeued.
    """
    variables = os.environ
    is_shell = "SLURM_PTY_PORT" in variables or "SLURM_PROCID" not in variables
    if SLURMEnvironment.job_id() is None or is_shell:
        return None
    array = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
    number = "_".join(map(str, array)) if all(array) else variables["SLURM_JOB_ID"]
    return number if re.fullmatch(r"\d+(_\d+)?", number) else None


def determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a command's config, plain values, that the numbers of a run depend on."""
    own = {name: part for name, part in config.items() if name not in _FREE}
    own["trainer"] = {k: v for k, v in own["trainer"].items() if k not in _FREE}
    return own


def requeue() -> str:
    """Put the running job back into SLURM's queue.

    Returns:
        What became of it, as a sentence.
    """
    command = ["scontrol", "requeue", str(job_number())]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        return f"SLURM job {job_number()} is requeued"
    except FileNotFoundError:
        why = "no scontrol was found"
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip() or f"scontrol gave {error.returncode}"
    return f"SLURM job {job_number()} is not requeued, since {why}; by hand: {shlex.join(command)}"


@dataclass(frozen=True)
class JobRun:
    """A run of a SLURM job; `slurm_<job>_<hash>.json` has the folders of its checkpoints.

    A command of the same job is of the same run if its config and `--ckpt_path` are the same, but
    for loggers, and the strategy, processes and devices that the numbers do not depend on.

    Args:
        folder: the parent of the run directories.
        config: the command's config, plain values.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the file; the checkpoints of the run have it too."""
        config = determining(self.config)
        text = json.dumps([os.environ.get("SLURM_CLUSTER_NAME"), config], sort_keys=True)
        return f"slurm_{job_number()}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"

    @property
    def folders(self) -> list[str] | None:
        """Folders of the run's checkpoints; empty before its first step, None: unreadable."""
        try:
            return list(json.loads((self.folder / self.name).read_text())["folders"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, folders: Iterable[str | Path | None]) -> None:
        """Add folders of checkpoints to the file."""
        local = [folder for folder in folders if folder and _is_local_file_protocol(folder)]
        known = [str(Path(folder).absolute()) for folder in local]
        about = {"folders": list(dict.fromkeys([*(self.folders or []), *known]))}
        atomic_write(self.folder / self.name, json.dumps(about, indent=1) + "\n")

    def checkpoint(self, weights_only: bool) -> Path | None:
        """Path of the last whole checkpoint of the run; None without one.

        Raises:
            ValueError: there is none, but a file that may be one cannot be read.
        """
        found: list[tuple[int, int, Path]] = []
        unread: list[Path] = []
        folders = [Path(folder) for folder in self.folders or []]
        if self.folders is None:
            unread.append(self.folder / self.name)
            folders = [run.checkpoint.parent for run in versions(self.folder)]
        for folder in folders:
            recover(folder)
            for path in folder.glob("*.ckpt"):
                if path.stem.endswith(".part"):  # its writing was cut off
                    continue
                try:
                    saved = _read(path, weights_only)
                    if saved.get(JOB) == self.name and "optimizer_states" in saved:
                        found.append((saved["global_step"], path.stat().st_mtime_ns, path))
                except Exception:  # torch raises anything
                    unread.append(path)
        names = ", ".join(map(str, unread))
        if unread and not found:
            raise ValueError(
                f"a checkpoint of SLURM job {job_number()} must be readable to go on from it, got "
                f"{names}; remove them to begin anew, or name another one with --ckpt_path"
            )
        if unread:
            rank_zero_warn(f"files of a SLURM job that cannot be read are skipped: {names}")
        return max(found)[-1] if found else None

    def others(self) -> list[Path]:
        """Checkpoints of Lightning's own requeueing, and other runs of the same job."""
        hpc = sorted(self.folder.glob("hpc_ckpt_*.ckpt"))
        runs = sorted(self.folder.glob(f"slurm_{job_number()}_*.json"))
        return [*hpc, *(path for path in runs if path.name != self.name)]


def _read(path: Path, weights_only: bool) -> Mapping[str, Any]:
    """The contents of a checkpoint without its tensors' values; empty if it holds something else.

    With mmap, tensors are not read.
    """
    if is_folder_of_shards(path):
        return outline(path)
    saved = torch.load(path, "cpu", weights_only=weights_only, mmap=True)
    return saved if isinstance(saved, Mapping) else {}


def own_environment(plugins: Sequence[Any]) -> list[ClusterEnvironment]:
    """Lightning's own environment for a command in a SLURM job that `srun` has not started.

    Args:
        plugins: of the Trainer; one that names an environment wins.

    Raises:
        ValueError: SLURM has given several tasks, and the command would wait for all others; or
            SLURM's ranks are asked for in processes that torchrun has started.
    """
    slurm = any(isinstance(plugin, SLURMEnvironment) for plugin in plugins)
    if slurm and TorchElasticEnvironment.detect():
        raise ValueError(
            "--trainer.plugins must be without SLURMEnvironment under torchrun, whose ranks are "
            "others than those of SLURM's tasks, got one; start the command by srun, one task per "
            "process, or omit it"
        )
    given = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if given or TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    tasks = int(os.environ["SLURM_NTASKS"])
    own = int(os.environ.get("SLURM_STEP_NUM_TASKS", tasks))  # a shell has one of the job's tasks
    shell = "SLURM_PTY_PORT" in os.environ and own == 1  # of `srun --pty`, or of `salloc` by it
    if shell or "SLURM_PROCID" not in os.environ:  # of `salloc`
        return [LightningEnvironment()]
    started = {"SLURM_STEP_ID", "SLURM_STEPID"} & set(os.environ)
    if tasks > 1 and not started and shutil.which("srun"):
        raise ValueError(
            f"a command in a SLURM job of {tasks} tasks must be started by srun, got one process "
            f"that would wait for {tasks - 1} others; for a single process with all devices of "
            f"this machine, pass --trainer.plugins+={_ENVIRONMENT}"
        )
    return []


def is_one_of_many(trainer: Trainer) -> bool:
    """Whether torchrun or srun has started further ranks, which fail or wait with this one."""
    environment = trainer._accelerator_connector.cluster_environment
    return environment.creates_processes_externally and trainer.world_size > 1


def check_processes(trainer: Trainer) -> None:
    """Refuse processes, started by torchrun or srun, that are not num_nodes x devices.

    Lightning 2.6 trains the ranks apart from each other, or waits for those that do not exist.

    Raises:
        ValueError: the number differs.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if not environment.creates_processes_externally:
        return
    nodes, devices = trainer.num_nodes, trainer.num_devices
    starter = _starter(environment)
    world = environment.world_size()
    if isinstance(environment, LightningEnvironment):
        world = int(os.environ.get("WORLD_SIZE", nodes * devices))
    if world != nodes * devices:
        raise ValueError(
            "--trainer.num_nodes times --trainer.devices must be the number of processes that "
            f"{starter} has started, {world}, got {nodes} x {devices}"
        )
    if environment.local_rank() >= devices:
        raise ValueError(
            f"--trainer.devices must be the number of processes per node, of which {starter} has "
            f"started at least {environment.local_rank() + 1}, got {devices}"
        )


def _starter(environment: ClusterEnvironment) -> str:
    if isinstance(environment, TorchElasticEnvironment):
        return "torchrun"
    if isinstance(environment, SLURMEnvironment):
        return "srun"
    return type(environment).__name__
