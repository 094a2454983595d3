"""SLURM: a requeued job is the unbroken one, and no job goes on with another's checkpoint."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback

from sslzoo.commands import cluster, fit
from sslzoo.commands.run_directory import read_rows
from sslzoo.commands.stop import SaveAndStop
from tests.commands.command import ENVIRONMENT, arguments, run
from tests.commands.test_fit_interrupted import MEASURED, SMALL
from tests.test_every_resume import flat

ONE_TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
    "SLURM_STEP_ID": "0",
}


class SignalAt(Callback):
    """Sends the first process of a test a signal at the first moment, the second at the second.

    Args:
        moments: hooks with the number of the call in this process, such as "on_train_start:1".
        folder: where the moments that have passed are noted.
        number: the signal.
        task: the SLURM task that gets it; in another one, nothing happens.
    """

    def __init__(
        self,
        moments: Sequence[str] = (),
        folder: str = "",
        number: int = signal.SIGUSR1,
        task: str = "0",
    ) -> None:
        self.number, self.folder = int(number), Path(folder)
        self.calls: dict[str, int] = {}
        self.passed = len(list(self.folder.glob("passed_*")))
        own = moments if os.environ.get("SLURM_PROCID", task) == task else ()
        for hook in {moment.partition(":")[0] for moment in own}:
            setattr(self, hook, lambda *_, hook=hook, **__: self._call(hook, moments))

    def _call(self, hook: str, moments: Sequence[str]) -> None:
        self.calls[hook] = self.calls.get(hook, 0) + 1
        if moments[self.passed : self.passed + 1] == [f"{hook}:{self.calls[hook]}"]:
            (self.folder / f"passed_{self.passed}").touch()
            signal.raise_signal(self.number)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of one task; the file into which `scontrol` writes its arguments."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in ONE_TASK.items():
        monkeypatch.setenv(name, value)
    said, folder = tmp_path / "scontrol.log", tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return said


def unbroken(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command outside of SLURM."""
    with monkeypatch.context() as patch:
        for name in ONE_TASK:
            patch.delenv(name)
        run(args, tmp_path)


def signals(moments: Sequence[str], folder: Path, number: int = signal.SIGUSR1) -> list[str]:
    """Arguments of the command that add `SignalAt`."""
    return [
        f"--trainer.callbacks+={__name__}.SignalAt",
        f"--trainer.callbacks.moments=[{','.join(moments)}]",
        f"--trainer.callbacks.folder={folder}",
        f"--trainer.callbacks.number={int(number)}",
    ]


def requeued(args: list[str], tmp_path: Path, moments: Sequence[str]) -> list[str]:
    """Run a job until it ends by itself, as SLURM does; what each run of it said."""
    said = []
    while len(said) <= len(moments):
        done = run([*args, *signals(moments, tmp_path)], tmp_path, check=False)
        said.append(done.stderr)
        if done.returncode == 0:
            return said
        assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    raise AssertionError(said[-1])


def last(out: Path) -> Path:
    return out / "version_0" / "checkpoints" / "last.ckpt"


def contents(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, by name, but folders, the job, and measured time and memory."""
    saved = torch.load(path, weights_only=True)
    out = str(path.parents[2])
    alike = {
        name.replace(out, ""): value.replace(out, "") if isinstance(value, str) else value
        for name, value in flat(saved)
    }
    others = ("/sslzoo_job", *MEASURED)
    return {name: value for name, value in alike.items() if not name.endswith(others)}


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two checkpoints do not have alike, bit for bit."""
    a, b = contents(one), contents(other)
    return sorted(
        name
        for name in a.keys() | b.keys()
        if name not in a
        or name not in b
        or not (
            torch.equal(a[name], b[name])
            if isinstance(a[name], torch.Tensor)
            else a[name] == b[name]
        )
    )


def are_alike(outs: Sequence[Path]) -> None:
    """The last checkpoints and the metrics of two runs are the same."""
    rows = [logged(out) for out in outs]
    assert rows[0] == rows[1]
    assert differences(*map(last, outs)) == []


def logged(out: Path) -> list[dict[str, float]]:
    """The metrics of a folder's only run but time and memory."""
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["version_0"]
    rows = read_rows(out / "version_0" / "metrics.csv")
    return [
        {name: float(cell) for name, cell in row.items() if cell and name not in MEASURED}
        for row in rows
    ]


def test_requeued_job_is_the_unbroken_one_and_another_job_begins_anew(
    folder: Path, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = [
        "on_train_batch_start:1",  # a batch was handed out, and no step was taken
        "on_train_batch_end:1",  # the last step of an epoch: it stops behind the next
    ]
    outs = [tmp_path / name for name in ("whole", "requeued")]
    length = [*SMALL[:4], "--trainer.max_epochs=2"]
    args = [[*arguments(folder, out, "simclr"), *length] for out in outs]
    unbroken(args[0], tmp_path, monkeypatch)
    said = requeued(args[1], tmp_path, moments)
    assert len(said) == len(moments) + 1
    assert f"saved {last(outs[1])}" in said[0]
    assert slurm.read_text().splitlines() == ["requeue 7"] * len(moments)
    are_alike(outs)

    torch.save({"of": "another job"}, outs[1] / "hpc_ckpt_3.ckpt")
    rate = "--model.init_args.optimizer.init_args.lr=0.01"
    other = [*args[1], rate, "--trainer.max_steps=1", f"--start_from={outs[0] / 'version_0'}"]
    anew = run(other, tmp_path).stderr
    found = rf"begins anew, and not from {outs[1]}/hpc_ckpt_3.ckpt, {outs[1]}/slurm_7_\w+.json: "
    assert re.search(found, anew)
    steps = [row["step"] for row in read_rows(outs[1] / "version_1" / "metrics.csv")]
    assert set(steps) == {"0"}
    assert "was requeued and goes on from" in run(other, tmp_path).stderr


def test_only_a_job_that_nobody_sits_at_is_requeued(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cluster.job_number() == "7"
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_ARRAY_JOB_ID", "5")
        patch.setenv("SLURM_ARRAY_TASK_ID", "2")
        assert cluster.job_number() == "5_2"
        assert cluster.requeue() == "SLURM job 5_2 is requeued"
    assert slurm.read_text() == "requeue 5_2\n"
    for name, value in {"SLURM_JOB_NAME": "interactive", "SLURM_PTY_PORT": "40001"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert cluster.job_number() is None, name
    with monkeypatch.context() as patch:
        patch.delenv("SLURM_PROCID")  # the shell of `salloc --job-name=train`
        assert cluster.job_number() is None
    (slurm.parent / "bin" / "scontrol").write_text("#!/bin/sh\necho no such job >&2; exit 1\n")
    wanted = "SLURM job 7 is not requeued, since {}; by hand: scontrol requeue 7"
    assert cluster.requeue() == wanted.format("no such job")
    monkeypatch.setenv("PATH", "")
    assert cluster.requeue() == wanted.format("no scontrol was found")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert cluster.job_number() is None


@pytest.mark.usefixtures("slurm")
def test_all_of_the_config_but_loggers_strategy_and_devices_makes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = {"max_epochs": 3, "devices": 1}
    config = {"model": {"lr": 1}, "seed_everything": 0, "ckpt_path": None, "trainer": trainer}
    name = cluster.JobRun(tmp_path, config).name
    free = {"devices": 2, "num_nodes": 2, "strategy": "ddp", "logger": [{"class_path": "Own"}]}
    assert cluster.JobRun(tmp_path, {**config, "trainer": {**trainer, **free}}).name == name
    parts = [{"class_path": "Own", "init_args": {"weight": weight}} for weight in (0.1, 10.0)]
    others: list[dict[str, Any]] = [
        *[{"model": {"lr": 2}}, {"seed_everything": 1}, {"trainer": {"max_epochs": 4}}],
        *[{"ckpt_path": path} for path in ("one/last.ckpt", "two/last.ckpt")],
        *[{"trainer": {**trainer, "callbacks": [part]}} for part in parts],
        *[{"trainer": {**trainer, "plugins": [part]}} for part in parts],
    ]
    names = {cluster.JobRun(tmp_path, {**config, **other}).name for other in others}
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "other")
    names.add(cluster.JobRun(tmp_path, config).name)
    assert len(names - {name}) == len(others) + 1


def test_commands_of_a_job_with_other_start_or_callbacks_are_runs_of_their_own(
    folder: Path, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = tmp_path / "out", [tmp_path / f"before_{number}" for number in (1, 2)]
    short = [*SMALL[:4], "--trainer.limit_train_batches=1"]
    args = [*arguments(folder, before[0], "simclr"), *short, "--trainer.max_epochs=1"]
    unbroken(args, tmp_path, monkeypatch)
    shutil.copytree(*before)
    args = [*arguments(folder, out, "simclr"), *short, "--trainer.max_epochs=2"]
    l2_sp = ["--trainer.callbacks+=sslzoo.callbacks.L2SP", "--trainer.callbacks.weight"]
    commands = [
        *[[*args, f"--ckpt_path={last(path)}"] for path in before],
        *[[*args, l2_sp[0], f"{l2_sp[1]}={weight}"] for weight in (0.1, 10.0)],
    ]
    for number, command in enumerate(commands):
        said = run(command, tmp_path).stderr
        assert "was requeued" not in said
        assert ("begins anew, and not from" in said) == (number > 1)
        assert (out / f"version_{number}" / "checkpoints" / "last.ckpt").is_file()
    written = [*out.glob("version_*/config.yaml"), *out.glob("version_*/run.json")]
    records = [path.read_bytes() for path in written]
    said = run([*commands[0], "--trainer.accelerator=cpu"], tmp_path).stderr  # it had finished
    assert f"was requeued and goes on from {last(out)}" in said
    assert [path.read_bytes() for path in written] == records


@pytest.mark.usefixtures("slurm")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_last_checkpoint_may_be_a_folder_of_shards(tmp_path: Path) -> None:
    run = cluster.JobRun(tmp_path, {"trainer": {}})
    run.add([tmp_path])
    for step in (1, 2, 3):
        folder = tmp_path / f"{step}.ckpt"
        torch.distributed.checkpoint.save(
            {"state_dict": {"w": torch.ones(2)}}, checkpoint_id=folder
        )
        saved = {cluster.JOB: run.name, "global_step": step, "optimizer_states": []}
        torch.save(saved, folder / "meta.pt")
    (tmp_path / "3.ckpt" / ".metadata").unlink()  # as where a job was killed while it wrote
    with pytest.warns(UserWarning, match=r"cannot be read are skipped: .*3.ckpt"):
        assert run.checkpoint(weights_only=True) == tmp_path / "2.ckpt"


@pytest.mark.usefixtures("slurm")
def test_files_that_cannot_be_read_do_not_stop_a_requeued_job(tmp_path: Path) -> None:
    run = cluster.JobRun(tmp_path, {"trainer": {}})
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    whole, cut = folder / "last.ckpt", folder / "cut.ckpt"
    run.add([folder])
    torch.save([1, 2], folder / "list.ckpt")
    (folder / "tmpx.part.ckpt").touch()  # as where a job was killed while it wrote
    assert run.checkpoint(weights_only=True) is None
    torch.save({cluster.JOB: run.name, "global_step": 1, "optimizer_states": []}, whole)
    assert run.checkpoint(weights_only=True) == whole
    cut.write_bytes(whole.read_bytes()[:300])
    torch.save({"own": tmp_path}, folder / "code.ckpt")
    with pytest.warns(UserWarning, match=r"cannot be read are skipped: ") as said:
        assert run.checkpoint(weights_only=True) == whole
    assert len(said) == 1
    assert f"{cut}" in str(said[0].message)
    assert f"{folder}/code.ckpt" in str(said[0].message)
    (tmp_path / run.name).write_text("")
    with pytest.warns(UserWarning, match=rf"are skipped: {tmp_path / run.name}, "):
        assert run.checkpoint(weights_only=True) == whole
    whole.rename(f"{whole}.aside")  # as where it was killed between two renames
    with pytest.warns(UserWarning, match="are skipped"):
        assert run.checkpoint(weights_only=True) == whole
    whole.unlink()
    with pytest.raises(ValueError, match=rf"must be readable .*, got .*{cut}.*--ckpt"):
        run.checkpoint(weights_only=True)
    run.add([folder])
    assert run.folders == [str(folder)]


def test_signal_requeues_once_unless_lightnings_flag_turns_it_off(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(stop: SaveAndStop, number: signal.Signals) -> None:
        with pytest.raises(SystemExit) as end:
            stop._handle(number, None)
        assert end.value.code == 128 + number

    off = SaveAndStop()
    environment = SLURMEnvironment(auto_requeue=False, requeue_signal=signal.SIGHUP)
    off._trainer = Trainer(accelerator="cpu", devices=1, logger=False, plugins=[environment])
    wanted = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
    assert off._job_signals() == wanted
    for number in wanted:
        asked(off, number)
    stop = SaveAndStop()
    asked(stop, signal.SIGTERM)
    assert not slurm.exists(), "scancel sends it"
    stop._process = -1  # as seen from a forked worker of a loader
    stop._handle(signal.SIGUSR1, None)
    stop._process = os.getpid()
    asked(stop, signal.SIGUSR2)
    stop._handle(signal.SIGTERM, None)  # SLURM ends a job that it requeues
    asked(stop, signal.SIGUSR2)
    assert slurm.read_text() == "requeue 7\n"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert stop._job_signals() == set()


def test_signal_that_comes_while_the_command_is_imported_waits_and_requeues(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported() -> None:
        signal.raise_signal(signal.SIGUSR1)  # its default is to end the process
        with SaveAndStop().on_signals():
            pytest.fail("the signal was not delivered")

    monkeypatch.setattr(fit, "run", imported)
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("the signal did not wait"))
    try:
        assert run(["fit"], tmp_path, check=False).returncode == 128 + signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert slurm.read_text() == "requeue 7\n"
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_sigterm_of_slurm_to_the_job_that_it_requeues_does_not_interrupt_the_end(
    slurm: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SLURM sends it as soon as it has taken the request, while ranks still wait for each other."""
    (slurm.parent / "bin" / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >> {slurm}\nkill -TERM {os.getpid()}\n'
    )
    stop = SaveAndStop()
    with stop.on_signals():
        stop._asked, stop._requeues = signal.SIGUSR1, True
        with pytest.raises(SystemExit) as end:
            stop._exit("last.ckpt")
    assert end.value.code == 128 + signal.SIGUSR1
    said = ["stopped by SIGUSR1: saved last.ckpt", "SLURM job 7 is requeued"]
    assert capfd.readouterr().err.splitlines() == [f"sslzoo: {line}" for line in said]


def processes(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], **flags: Any) -> None:
    """Check a Trainer's processes with some variables set."""
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        cluster.check_processes(Trainer(accelerator="cpu", logger=False, **flags))


def test_number_of_processes_must_be_that_of_torchrun_and_srun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    wanted = "num_nodes times --trainer.devices must be the number of .* {} has started, {}, got {}"
    for world, devices, nodes in (("4", 1, 1), ("4", 2, 1), ("2", 2, 2)):
        by = {**torchrun, "WORLD_SIZE": world}
        said = wanted.format("torchrun", world, f"{nodes} x {devices}")
        with pytest.raises(ValueError, match=said):
            processes(monkeypatch, by, devices=devices, num_nodes=nodes)
    processes(monkeypatch, torchrun, devices=2, num_nodes=2)
    with pytest.raises(ValueError, match="must be the number of processes per node"):
        processes(monkeypatch, {**torchrun, "LOCAL_RANK": "3"}, devices=2, num_nodes=2)
    by_hand = {"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "4"}
    with pytest.raises(ValueError, match="LightningEnvironment has started, 4, got 1 x 2"):
        processes(monkeypatch, by_hand, devices=2)
    two_tasks = {**ONE_TASK, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    with pytest.raises(ValueError, match="srun has started, 2, got 1 x 1"):
        processes(monkeypatch, two_tasks, devices=1)
    processes(monkeypatch, two_tasks, devices=2)
    processes(monkeypatch, {}, devices=2)


def test_command_that_srun_did_not_start(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.own_environment([]) == []
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert cluster.own_environment([]) == []
    (slurm.parent / "bin" / "srun").touch(0o755)
    monkeypatch.delenv("SLURM_STEP_ID")
    with pytest.raises(ValueError, match="2 tasks must be started by srun, got one process"):
        cluster.own_environment([])
    own = LightningEnvironment()
    assert cluster.own_environment([own]) == []
    monkeypatch.delenv("SLURM_PROCID")  # the shell of `salloc`, where Lightning raises a KeyError
    assert [type(part) for part in cluster.own_environment([])] == [LightningEnvironment]
    for name, value in {**ONE_TASK, "SLURM_PTY_PORT": "40001"}.items():
        monkeypatch.setenv(name, value)
    assert [type(part) for part in cluster.own_environment([])] == [LightningEnvironment]
    # The shell of `salloc` of two tasks under LaunchParameters=use_interactive_step, and then srun.
    for name, value in {"STEP_ID": "4294967290", "NTASKS": "2", "STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert [type(part) for part in cluster.own_environment([])] == [LightningEnvironment]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert cluster.own_environment([]) == []


@pytest.mark.parametrize("by_srun", [True, False])
def test_torchrun_within_slurm_has_the_ranks_of_torchrun_and_the_job_of_slurm(
    by_srun: bool, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two nodes, whose only task is torchrun, or torchrun in an sbatch file."""
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)
    task = {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "1", "SLURM_NODEID": "1"}
    elastic = {"TORCHELASTIC_RUN_ID": "7", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    elastic |= {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}
    for name, value in {**(task if by_srun else {}), **elastic}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_ID")
    (slurm.parent / "bin" / "srun").touch(0o755)
    assert cluster.own_environment([]) == []
    trainer = Trainer(accelerator="cpu", devices=2, num_nodes=2, logger=False, strategy="ddp")
    cluster.check_processes(trainer)
    assert cluster.is_one_of_many(trainer)
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank) == (2, 0, 1)
    assert trainer.world_size == 4
    with pytest.raises(ValueError, match="4, got 1 x 2"):
        processes(monkeypatch, {}, devices=2)
    name = cluster.JobRun(slurm.parent, {"trainer": {}}).name
    for rank in ("2", "0"):  # rank 0 alone requeues, on whichever node of SLURM's it is
        monkeypatch.setattr(rank_zero_only, "rank", int(rank))
        assert cluster.JobRun(slurm.parent, {"trainer": {}}).name == name
        stop = SaveAndStop()
        stop._trainer = trainer
        assert stop._job_signals() == {signal.SIGUSR1, signal.SIGUSR2}
        assert not slurm.exists()
        with pytest.raises(SystemExit):
            stop._handle(signal.SIGUSR1, None)
    assert slurm.read_text() == "requeue 7\n"
    with pytest.raises(ValueError, match="must be without SLURMEnvironment under torchrun"):
        cluster.own_environment([SLURMEnvironment(auto_requeue=False)])


HOOKS = [
    *["setup", "on_sanity_check_start", "on_train_start", "on_train_epoch_start"],
    *["on_train_batch_start", "on_after_backward", "on_before_optimizer_step"],
    *["on_before_zero_grad", "on_train_batch_end", "on_validation_start", "on_validation_end"],
    *["on_save_checkpoint", "on_train_epoch_end"],
]
EVERY = {
    "byol": [
        *["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=2"],
        *["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"],
        *["--trainer.callbacks.monitor=train/loss", "--trainer.callbacks.patience=99"],
    ],
    "instdisc": ["--data.num_workers=2", "--trainer.callbacks+=sslzoo.callbacks.OnlineProbe"],
    "simclr": ["--trainer.val_check_interval=1", "--trainer.max_steps=31"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_job_requeued_at_every_hook_is_the_unbroken_one(
    method: str, folder: Path, tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of five batches; accumulated, with validations in between, with workers."""
    outs = [tmp_path / name for name in ("whole", "requeued")]
    args = [[*arguments(folder, out, method), *EVERY[method]] for out in outs]
    length = [] if method == "simclr" else ["--trainer.max_epochs=9"]
    unbroken([*args[0], *length], tmp_path, monkeypatch)
    moments = [f"{hook}:{call}" for call in (1, 2) for hook in HOOKS]
    said = requeued([*args[1], *length], tmp_path, moments)
    assert len(said) > len(HOOKS)
    are_alike(outs)


@pytest.mark.slow
@pytest.mark.timeout(900)  # 6 processes that import torch
def test_two_tasks_that_get_the_signal_at_different_moments_stop_behind_one_step(
    folder: Path, tmp_path: Path, slurm: Path
) -> None:
    """A rank may be a step ahead, or in a validation, when the other gets the signal."""
    outs = [tmp_path / name for name in ("whole", "requeued")]
    options = ["--trainer.max_epochs=2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    options += ["--trainer.accelerator=cpu", "--trainer.precision=64-true"]
    args = [[*arguments(folder, out), *options] for out in outs]
    moments = ["on_train_batch_start:2", "on_train_batch_end:5"]  # the last step of an epoch
    assert tasks(args[0], tmp_path, {}) == [0, 0]
    for rank, moment in enumerate(moments):
        own = tmp_path / f"{rank}"
        own.mkdir()
        args[1] += [*signals([moment], own), f"--trainer.callbacks.task={rank}"]
    codes = tasks(args[1], tmp_path, ONE_TASK)
    assert codes == [128 + signal.SIGUSR1, 0]
    assert slurm.read_text() == "requeue 7\n"
    assert torch.load(last(outs[1]), weights_only=True)["global_step"] == 6
    assert tasks(args[1], tmp_path, ONE_TASK) == [0, 0]
    are_alike(outs)


def tasks(args: list[str], cwd: Path, variables: dict[str, str]) -> list[int]:
    """Run two tasks of a job on one node; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(2):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2"}
        own |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "PATH": os.environ["PATH"]}
        command = [sys.executable, "-m", "sslzoo", *args]
        path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])  # for SignalAt
        every = {**ENVIRONMENT, **variables, **own, **where, "PYTHONPATH": path}
        with (cwd / f"said_{rank}.txt").open("w") as said:
            processes.append(
                subprocess.Popen(command, cwd=cwd, env=every, stdout=said, stderr=subprocess.STDOUT)
            )
    try:
        return [process.wait(280) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
