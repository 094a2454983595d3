"""Ranks whose configs, packages or data differ are refused, on every rank."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sslzoo.commands.agreement import RanksAgree
from sslzoo.commands.run_directory import Resumed
from tests.data.toys import ToyData
from tests.ranks import Ranks

CONFIG = {"model": {"lr": 0.1, "dims": [8, 16]}, "ckpt_path": None, "trainer": {"max_epochs": 2}}


def refused(rank: int, callback: Any, data: Any = None) -> str:
    try:
        callback.setup(SimpleNamespace(datamodule=data), None, "fit")
    except ValueError as error:
        return str(error)
    return ""


def compared(rank: int, folders: list[str]) -> dict[str, str]:
    """What every kind of difference between two ranks gives on this one."""
    second = rank == 1
    configs: dict[str, Any] = {
        "none": CONFIG,
        "value": {**CONFIG, "model": {"lr": 0.2 if second else 0.1, "dims": [8, 16]}},
        "longer": {**CONFIG, "model": {"lr": 0.1, "dims": [8, 16, *[4] * second]}},
        "folder": {**CONFIG, "data": {"root": folders[rank]}, "ckpt_path": folders[rank]},
        "missing": {**CONFIG, "data": {"root": folders[0] if rank else f"{folders[0]}/none"}},
    }
    said = {name: refused(rank, RanksAgree(config)) for name, config in configs.items()}
    sets = {"fewer": ToyData(22 if second else 23), "labels": ToyData(23)}
    for name, data in sets.items():
        data.setup("fit")
        if name == "labels" and second:
            data.sets.train.labels[3] = 2
        said[name] = refused(rank, RanksAgree(CONFIG), data)
    version = importlib.metadata.version
    with pytest.MonkeyPatch.context() as patch:
        if second:
            patch.setattr(
                importlib.metadata, "version", lambda n: "0.1" if n == "timm" else version(n)
            )
        said["package"] = refused(rank, RanksAgree(CONFIG))
    resumed = Resumed()
    resumed.refusal = None if second else "it is in use"
    said["lock"] = refused(rank, resumed)
    return said


def test_ranks_that_differ_are_refused_with_the_difference(ranks: Ranks, tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        Path(folder).mkdir()
    told = ranks(2, compared, folders)
    assert told[0] == told[1]
    said = told[0]
    assert said["none"] == said["folder"] == ""
    same = "must be the same on every rank, got"
    assert said["value"] == f"model.lr {same} 0.1 on rank 0, 0.2 on rank 1"
    assert said["longer"] == f'model.dims.2 {same} "nothing" on rank 0, 4 on rank 1'
    assert said["missing"].startswith(f'data.root {same} "{folders[0]}/none" on rank 0, "a path"')
    assert said["fewer"] == f"the number of training samples {same} 23 on rank 0, 22 on rank 1"
    assert said["labels"].startswith("the hash of the training labels must")
    timm = importlib.metadata.version("timm")
    assert said["package"] == f'the version of timm {same} "{timm}" on rank 0, "0.1" on rank 1'
    assert said["lock"] == "it is in use"
