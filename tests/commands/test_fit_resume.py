"""Which checkpoints `--ckpt_path` takes, and which it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sslzoo.commands import fit
from tests.commands.command import arguments, run


def test_a_checkpoint_cannot_name_what_a_resumed_run_removes(folder: Path, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.mkdir()
    (victim / "letter.txt").touch()
    given = [*arguments(folder, out, "simclr"), "--trainer.max_epochs=1"]
    run(given, tmp_path)
    last = out / "version_0" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    (state,) = (s for k, s in saved["callbacks"].items() if k.startswith("ModelCheckpoint"))
    state["best_model_path"] = f"local://{victim}"
    torch.save(saved, tmp_path / "from_elsewhere.ckpt")

    resumed = [*given, "--trainer.max_epochs=2", f"--ckpt_path={tmp_path / 'from_elsewhere.ckpt'}"]
    run(resumed, tmp_path)
    assert (victim / "letter.txt").is_file()
    assert (out / "version_1" / "checkpoints" / "last.ckpt").is_file()


class Own:
    """What a checkpoint may hold that is no plain value."""


@pytest.mark.filterwarnings("ignore")  # of Lightning's command
def test_what_is_no_checkpoint_of_a_run_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    lightnings = {"pytorch-lightning_version": "2.6.6", "state_dict": {}}
    files = {
        "page.html": "page.html is not a valid torch file: it is an HTML page",
        "empty.ckpt": "empty.ckpt is not a valid torch file: it is empty",
        "cut.ckpt": "cut.ckpt is not a valid torch file",
        "weights.pth": r"weights.pth must be a Lightning checkpoint, got \['conv1.weight'\]",
        "list.pth": "list.pth must be a Lightning checkpoint, got 'list'",
        "module.pth": r"could run code: .*Linear.*save the state_dict\(\) of a module instead$",
        "own.ckpt": r"could run code: .*Own.*if you trust it, pass --weights_only=false",
        "none.ckpt": "no file at '.*none.ckpt'",
        "version_3": r"a folder .*; its checkpoint is .*version_3/checkpoints/last\.ckpt",
    }
    (tmp_path / "page.html").write_text("<!doctype html><html></html>")
    (tmp_path / "empty.ckpt").touch()
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "weights.pth")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "weights.pth").read_bytes()[:-300])
    torch.save([1], tmp_path / "list.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    torch.save({**lightnings, "own": Own()}, tmp_path / "own.ckpt")
    (tmp_path / "version_3" / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_3" / "checkpoints" / "last.ckpt").touch()
    options = arguments(folder, tmp_path / "out", "simclr")[1:]
    for verb, only in (("fit", list(files)), ("validate", ["page.html", "none.ckpt"])):
        for name in only:
            said = refusal([verb, *options, f"--ckpt_path={tmp_path / name}"])
            assert re.search(files[name], said), said
            assert len(said.splitlines()) == 1
            assert "--weights_only" not in said or name == "own.ckpt"
    assert not list((tmp_path / "out").rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore")
def test_last_is_the_newest_run_s_last_checkpoint(folder: Path, tmp_path: Path) -> None:
    given = [*arguments(folder, tmp_path / "out", "simclr"), "--trainer.limit_val_batches=0"]
    given += ["--trainer.callbacks=null", "--trainer.limit_train_batches=1"]
    for which in ("last", "best"):
        said = refusal([*given, f"--ckpt_path={which}"])
        assert re.search(rf"since .*version_N.* has no checkpoint, got '{which}'", said), said
    fit.run([*given, "--trainer.max_epochs=1"])
    resumed = fit.run([*given, "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert resumed.model.step == 2
    assert torch.load(tmp_path / "out/version_0/checkpoints/last.ckpt")["global_step"] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["version_0"]
    assert "must be 'last' or one of" in refusal([*given, "--ckpt_path=best"])


def refusal(args: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        fit.run(args)
    return str(caught.value)
