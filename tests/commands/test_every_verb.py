"""The page of all commands has each verb, and its examples run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed.checkpoint as dcp

from sslzoo.__main__ import VERBS
from sslzoo.__main__ import __doc__ as HELP
from sslzoo.commands.listing import _WORDS
from tests.commands.command import run

PAGE = (Path(__file__).parents[2] / "docs/commands.md").read_text()
QUICK = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.precision=32-true"]


def test_every_verb_is_on_the_page_in_the_help_and_completed() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == VERBS.keys()
    assert _WORDS.keys() == VERBS.keys()
    assert HELP is not None
    named = re.findall(r"^    sslzoo ((?:\w+ \| )*\w+)", HELP, re.MULTILINE)
    assert VERBS.keys() <= {verb for line in named for verb in line.split(" | ")}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_every_example_of_the_page_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as long as every verb of the command once."""
    pytest.importorskip("sklearn")
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "recordings").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 16000))
    for number, wave in enumerate(noise):
        soundfile.write(tmp_path / "recordings" / f"{number}.wav", wave, 16000)
    state = {"state_dict": {"a.w": torch.ones(2, 3)}}
    dcp.save(state, checkpoint_id=tmp_path / "SHARDED/checkpoints/last.ckpt", no_dist=True)
    meta = {"epoch": 1, "pytorch-lightning_version": "2.6.4"}
    torch.save(meta, tmp_path / "SHARDED/checkpoints/last.ckpt/meta.pt")
    sections = re.split(r"^### (\w+)$", PAGE, flags=re.MULTILINE)[1:]
    for verb, section in zip(sections[::2], sections[1::2], strict=True):
        examples = re.findall(r"^    sslzoo (.+)$", section, re.MULTILINE)
        assert examples
        for example in examples:
            args = shlex.split(example.replace("RUN", "runs/simclr/folder_small_10ep/version_0"))
            assert args[0] == verb
            assert run([*args, *(QUICK if verb == "fit" else [])], tmp_path).stdout
    wanted = ["again.json", "data.yaml", "encoder.pt2", "features.npz", "mfcc.units.npz"]
    wanted += ["report.html", "results.json", "whole.ckpt"]
    assert all(len(list(tmp_path.rglob(name))) == 1 for name in wanted)
