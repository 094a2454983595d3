"""Shards: folders of distributed checkpoints are data, and incomplete ones are refused."""

from __future__ import annotations

import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as parts

from sslzoo.commands.consolidate import consolidate
from sslzoo.trust import assemble, is_folder_of_shards, outline
from tests.commands.command import run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
STATE = {"state_dict": {"a.w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "last.ckpt"
    group = {"lr": 0.1, "params": ["a.w"]}
    moments = {"a.w": {"step": torch.tensor(2.0), "m": torch.ones(2, 3)}}
    tensors = {**STATE, "optimizer_0": {"state": moments, "param_groups": [group]}}
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 1, "pytorch-lightning_version": "2.6.4"}, folder / "meta.pt")
    return folder


def changed(folder: Path, change: Any) -> None:
    """Change the metadata that torch would read."""
    path = folder / ".metadata"
    read = pickle.loads(path.read_bytes())
    change(read)
    path.write_bytes(pickle.dumps(read))


def test_a_folder_becomes_the_checkpoint_of_one_process(saved: Path, tmp_path: Path) -> None:
    assert is_folder_of_shards(saved)
    whole = assemble(saved)
    torch.testing.assert_close(whole["state_dict"], STATE["state_dict"], rtol=0, atol=0)
    assert whole["epoch"] == 1
    (state,) = whole["optimizer_states"]
    assert state["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert state["state"][0]["step"] == 2
    shapes = {name: x.shape for name, x in outline(saved)["state_dict"].items()}
    assert shapes == {"a.w": (2, 3), "n": ()}
    done = run(["consolidate", str(saved), "--to", "one.safetensors"], tmp_path)
    assert done.stdout == "one.safetensors\n"


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("code has run",)


def _named(read: parts.Metadata) -> None:
    read.planner_data = Hostile()


def _outside(read: parts.Metadata) -> None:
    for info in read.storage_data.values():
        info.relative_path = "../secret"


def _packed(read: parts.Metadata) -> None:
    for info in read.storage_data.values():
        info.transform_descriptors = ["zstd"]


def _larger(read: parts.Metadata) -> None:
    described: Any = read.state_dict_metadata["state_dict.a.w"]
    described.size = torch.Size([2, 300])


def _huge(read: parts.Metadata) -> None:
    described: Any = read.state_dict_metadata["state_dict.a.w"]
    described.size = described.chunks[0].sizes = torch.Size([2, 10**12])


def _endless(read: parts.Metadata) -> None:
    described: Any = read.state_dict_metadata["state_dict.a.w"]
    described.size = described.chunks[0].sizes = [0, 2**70]


def _deep(read: parts.Metadata) -> None:
    described: Any = read.state_dict_metadata["state_dict.a.w"]
    described.size = described.chunks[0].sizes = [0] * 80


def _beyond(read: parts.Metadata) -> None:
    for info in read.storage_data.values():
        info.length = 10**9


def _twice(read: parts.Metadata) -> None:
    read.planner_data = dict.fromkeys(read.planner_data, ("state_dict", "a.w"))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_named, "names builtins.print, which could run code"),
        (_outside, "must be in a file of the folder, got '../secret'"),
        (_packed, "must be stored plainly"),
        (_larger, "the parts of state_dict.a.w must be those of"),
        (_huge, "must have the bytes of"),
        (_endless, "sizes must be those of a tensor"),
        (_deep, "sizes must be those of a tensor, got 80"),
        (_beyond, "too short for"),
        (_twice, "once, got two values"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_forged_metadata_is_refused_and_runs_nothing(
    saved: Path, tmp_path: Path, change: Any, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(saved, change)
    with pytest.raises(ValueError, match=wanted) as caught:
        consolidate(str(saved), str(tmp_path / "one.ckpt"))
    assert "\n" not in str(caught.value)
    assert "code has run" not in capsys.readouterr().out
    assert not (tmp_path / "one.ckpt").exists()


def test_a_class_cannot_be_changed(saved: Path) -> None:
    build = b"ctorch.distributed.checkpoint.metadata\nMetadata\n}(Vx\nVy\nub."
    (saved / ".metadata").write_bytes(build)
    with pytest.raises(ValueError, match="it changes <class"):
        assemble(saved)


def test_plain_values_that_name_code_are_refused(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "x.ckpt"
    dcp.save(
        {"state_dict": {"a": torch.ones(2), "b": Hostile()}}, checkpoint_id=folder, no_dist=True
    )
    with pytest.raises(ValueError, match=r"state_dict\.b in .* must be a tensor or a plain value"):
        assemble(folder)
    shutil.rmtree(folder)
    dcp.save({"state_dict": {"a": torch.ones(2)}}, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": Hostile()}, folder / "meta.pt")
    with pytest.raises(ValueError, match="must hold only tensors and plain values"):
        assemble(folder)
    assert "code has run" not in capsys.readouterr().out


def test_incomplete_folders_are_refused_in_one_sentence(saved: Path, tmp_path: Path) -> None:
    (part,) = saved.glob("*.distcp")
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    for name in (".metadata", part.name):
        done = run(["consolidate", str(saved), "--to", "one.ckpt"], tmp_path, check=False)
        assert done.returncode == 1
        assert "must be a whole distributed checkpoint, got" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        (saved / name).unlink()
    with pytest.raises(ValueError, match=r"--to must end with .ckpt or .safetensors, got 'x.pt'"):
        consolidate(str(saved), "x.pt")
    with pytest.raises(ValueError, match="the checkpoint must be a folder of shards, got"):
        consolidate(str(tmp_path / "none"), "x.ckpt")


def test_folder_of_a_run_without_its_plain_values_is_refused(saved: Path) -> None:
    (saved / "meta.pt").unlink()
    with pytest.raises(ValueError, match=r"whole distributed checkpoint, got one without meta\.pt"):
        assemble(saved)


def test_file_for_which_the_disk_has_no_room_is_one_sentence(tmp_path: Path) -> None:
    folder, out = tmp_path / "last.ckpt", tmp_path / "out"
    dcp.save({"state_dict": {"w": torch.ones(9999)}}, checkpoint_id=folder, no_dist=True)
    out.mkdir()
    for name in ("one.ckpt", "one.safetensors"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (999, resource.RLIM_INFINITY))
        try:
            with pytest.raises(OSError, match=rf"{name}.*too large|too large: '.*{name}'"):
                consolidate(str(folder), str(out / name))
        finally:
            infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
    assert not list(out.iterdir())
