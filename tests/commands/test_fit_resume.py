"""Which checkpoints `--ckpt_path` takes, and which it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningModule
from torch import nn

from sslzoo.backbones import SmallResNet
from sslzoo.commands import checkpoints, fit
from sslzoo.commands.checkpoints import LIGHTNINGS, read_for
from sslzoo.commands.configs import config_folders
from sslzoo.commands.run_directory import read_rows
from sslzoo.methods import SimCLR
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
    by_command = {"fit": ["own.ckpt", "none.ckpt", "version_3"], "validate": ["page.html"]}
    told = {
        name: refusal([verb, *options, f"--ckpt_path={tmp_path / name}"])
        for verb, names in by_command.items()
        for name in names
    }
    for name in files.keys() - told.keys():  # the command takes a second for each
        told[name] = unreadable(tmp_path / name, SimCLR(SmallResNet((8, 16)), nn.Linear(16, 8)))
    for name, said in told.items():
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
    with pytest.raises((ValueError, OSError)) as caught:
        fit.run(args)
    return str(caught.value)


def unreadable(path: Path, model: LightningModule) -> str:
    """Why the command would not resume the model from a file."""
    with pytest.raises((ValueError, OSError)) as caught:
        read_for(str(path), "fit", model, True)
    return str(caught.value)


class Other(SimCLR):
    """A method of another name."""


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_of_another_module_is_refused_by_every_verb(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [*arguments(folder, out, "simclr"), "--trainer.limit_train_batches=1"]
    given += ["--trainer.callbacks=null", "--trainer.limit_val_batches=0"]
    run([*given, "--trainer.max_epochs=1"], tmp_path)
    last = out / "version_0" / "checkpoints" / "last.ckpt"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    saved = torch.load(last, weights_only=True)
    backbone = "--model.init_args.backbone"
    small = [f"{backbone}=sslzoo.backbones.SmallResNet", f"{backbone}.init_args.widths=[8,256]"]
    sgd = ["--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.1}}"]
    cases: dict[str, tuple[list[str], str]] = {
        "class": ([f"--model={__name__}.Other"], r"the model must be .*SimCLR.*, got .*\.Other"),
        "shape": (small, r"does not fit SimCLR: .* in name or shape"),
        "optimizer": (sgd, r"optimizer .*class_path must be 'torch.optim.AdamW', got .*SGD"),
    }
    for name, (changes, wanted) in cases.items():
        for verb in ("fit", "validate", "test", "predict") if name == "class" else ("fit",):
            said = refusal([verb, *given[1:], *changes, f"--ckpt_path={last}"])
            assert re.search(wanted, said), said
    edits: dict[str, tuple[dict[str, Any], str]] = {
        "future": ({LIGHTNINGS: "99.0"}, "must be at most .*, got 99.0; update lightning"),
        "no version": ({LIGHTNINGS: 3}, "must be a version, got 3"),
        "weights": ({"optimizer_states": None}, "must be a whole checkpoint, got .* without opt"),
        "tensors": ({"state_dict": {"a": 1}}, "state_dict of .* must be tensors by name"),
        "loops": ({"loops": [1]}, "loops of .* must be a dictionary, got list"),
        "none": ({"optimizer_states": []}, "must have a state per optimizer, got none"),
    }
    for name, (edit, wanted) in edits.items():
        path = tmp_path / f"{name}.ckpt"
        torch.save({k: v for k, v in {**saved, **edit}.items() if v is not None}, path)
        told = [unreadable(path, SimCLR.load_from_checkpoint(last, weights_only=True))]
        told += [refusal([*given, f"--ckpt_path={path}"])] if name == "none" else []
        for said in told:
            assert re.search(wanted, said), said
            assert len(said.splitlines()) == 1
    inner = last.with_name("inner.ckpt")  # found when the state is restored
    torch.save({**saved, "loops": {}}, inner)
    with pytest.raises(ValueError, match=r"must hold the state of a run of .*SimCLR, got KeyError"):
        fit.run([*given, f"--ckpt_path={inner}"])
    inner.unlink()
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert after == before, "a refused run writes nothing"


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_alone_goes_on_with_the_config_of_its_run(folder: Path, tmp_path: Path) -> None:
    given = [*arguments(folder, tmp_path / "out", "simclr"), "--trainer.limit_val_batches=0"]
    run([*given, "--trainer.callbacks=null", "--trainer.max_epochs=1"], tmp_path)
    moved = tmp_path / "elsewhere" / "version_3"
    (tmp_path / "out" / "version_0").rename(moved.parent.mkdir() or moved)  # type: ignore[func-returns-value]
    config = moved / "config.yaml"
    text = config.read_text().replace(f"default_root_dir: {tmp_path / 'out'}", "default_root_dir:")
    config.write_text(text)
    last = moved / "checkpoints" / "last.ckpt"
    reads: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        load = torch.load
        patch.setattr(torch, "load", lambda *a, **k: (reads.append(a[0]), load(*a, **k))[1])
        resumed = fit.run(["fit", f"--ckpt_path={last}", "--trainer.max_epochs=2"])
    assert len(reads) == 1, "the file is read once"
    assert resumed.model.step == 10
    assert [path.name for path in moved.parent.iterdir()] == ["version_3"]
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "epoch=1-step=10.ckpt"}
    steps = [row["step"] for row in read_rows(moved / "metrics.csv")]
    assert [float(step) for step in steps] == list(range(10))
    assert yaml.safe_load(config.read_text())["ckpt_path"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"out", "elsewhere"}

    (tmp_path / "copy.ckpt").write_bytes(last.read_bytes())
    said = refusal(["fit", f"--ckpt_path={tmp_path / 'copy.ckpt'}"])
    assert "--config or --model must be given" in said
    hostile = text.replace("torch.optim.AdamW", "os.system")
    config.write_text(hostile)
    said = refusal(["fit", f"--ckpt_path={last}"])
    assert re.search(rf"got 'os.system'.*or pass --config {config}, which is your word", said), said


def test_the_trainer_of_every_recipe_needs_no_word_of_the_user() -> None:
    """So that a run of it goes on by `--ckpt_path` alone."""
    sharded = {"strategy": {"class_path": "sslzoo.sharding.FullyShard", "init_args": {}}}
    trainers = {"sharded": sharded}
    for path in config_folders()[0].rglob("*.yaml"):
        trainers[str(path)] = yaml.safe_load(path.read_text()).get("trainer", {})
    assert len(trainers) > 100
    for where, trainer in trainers.items():
        for name in checkpoints._FREE:
            checkpoints._refuse_free(name, trainer.get(name), where)
    for name, value in {"strategy": "my.Strategy", "callbacks": [{"class_path": "os.Run"}]}.items():
        with pytest.raises(ValueError, match=f"trainer.{name} of x must be plain or"):
            checkpoints._refuse_free(name, value, "x")
