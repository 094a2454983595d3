"""The verbs: list, info, fetch, verify, add, push and export."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import sslzoo
from sslzoo import __main__ as command
from sslzoo.backbones import PatchGrid, SmallResNet, Towers, small_vit, timm_backbone
from sslzoo.commands import zoo as zoo_command
from sslzoo.zoo import card_named, entries
from sslzoo.zoo.cache import home, place
from sslzoo.zoo.card import card_of
from sslzoo.zoo.catalog import STATES
from sslzoo.zoo.export import export
from sslzoo.zoo.hub import push
from sslzoo.zoo.save import _made, save, save_with_card
from tests.commands.command import arguments, run
from tests.zoo.test_load import NAME, WEIGHTS, _own_home, small_card, write  # noqa: F401


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    zoo_command.main(args)
    return capsys.readouterr().out


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        zoo_command.main(args)
    assert caught.value.code == 1
    text = capsys.readouterr()
    return text.out + text.err


def test_list_says_what_is_here_and_what_is_not_commercial(
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo_command.main(["zoo", "list"])
    told = capsys.readouterr()
    head, *rows = told.out.splitlines()
    assert head.split()[0] == "name"
    lines = {line.split()[0]: line for line in rows}
    assert set(lines) == set(entries())
    assert "MIT" in lines[NAME]
    assert lines[NAME].endswith(" here")
    assert "non-commercial" in lines["moco_v2-resnet50-imagenet-800ep"]
    assert len(said(capsys, "zoo", "list", "dino-vit*").splitlines()) == 1 + 6
    for state, meaning in STATES.items():
        assert f"{state}: {meaning}" in told.err


def test_list_and_info_say_how_the_weights_can_be_had(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = {line.split()[0]: line for line in said(capsys, "zoo", "list").splitlines()}
    states = {name: re.split(r"\s{2,}", line)[-1] for name, line in lines.items()}
    assert {"here", "published hash", "first use", "by hand"} == set(STATES)
    for name, card in entries().items():
        hashed = card.sha256 or card.md5 or "-d0f474de." in card.file
        wanted = "here" if card.layout is None else "by hand"
        if card.urls:
            wanted = "published hash" if hashed else "first use"
        assert states[name] == wanted, lines[name]
    for name in (NAME, "moco_v2-resnet50-imagenet-800ep", "dino-vits16-imagenet"):
        zoo_command.main(["zoo", "info", name])
        assert capsys.readouterr().err == f"{states[name]}: {STATES[states[name]]}\n"
    card = entries()["dino-vits16-imagenet"]
    file = place(card.name, card.file)
    file.parent.mkdir(parents=True)
    file.touch()
    assert said(capsys, "zoo", "list", card.name).endswith(" here\n")


def test_listing_and_cards_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sslzoo.commands import zoo\n"
        "zoo.main(['zoo', 'list'])\nzoo.main(['zoo', 'info', 'dino-vits16-imagenet'])\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_info_is_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    card = json.loads(said(capsys, "zoo", "info", NAME))
    assert card["sha256"] == entries()[NAME].sha256
    assert [url.rpartition("/")[2] for url in card["urls"]] == [f"{NAME}.safetensors"]
    assert "similar names" in failure(capsys, "zoo", "info", "simclr")


def test_fetch_prints_the_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, SmallResNet((8, 16)))
    assert said(capsys, "zoo", "fetch", path.as_uri()).strip() == str(path), "it is here already"
    monkeypatch.setenv("SSLZOO_MIRROR", path.parent.as_uri())
    (tmp_path / "home" / "entries").mkdir(parents=True)
    path.with_suffix(".json").rename(tmp_path / "home" / "entries" / "tiny.json")
    got = Path(said(capsys, "zoo", "fetch", "tiny").strip())
    assert got.read_bytes() == path.read_bytes()
    assert got.is_relative_to(tmp_path / "home")
    monkeypatch.setenv("SSLZOO_MIRROR", str(tmp_path / "home"))
    (tmp_path / "home" / "dino-vits16-imagenet").mkdir()
    file = sslzoo.zoo.card_named("dino-vits16-imagenet").file
    (tmp_path / "home" / "dino-vits16-imagenet" / file).write_bytes(b"<html>Log in")
    told = failure(capsys, "zoo", "fetch", "--strict", "dino-vits16-imagenet")
    assert "must have a published hash" in told
    assert "an HTML page" in failure(capsys, "zoo", "fetch", "dino-vits16-imagenet")


def test_a_folder_of_entries_that_cannot_be_made_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSLZOO_HOME", "/proc/nope")
    said = r"the cache /proc/nope cannot be written.*set SSLZOO_HOME"
    with pytest.raises(OSError, match=said), _made(home() / "entries"):
        pass


def test_a_pattern_without_an_entry_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(capsys, "zoo", "list", "nothing*") == (
        "sslzoo: the pattern must match an entry of the zoo, got 'nothing*'\n"
    )


def test_verify_and_fetch_take_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["dino-small_resnet-cifar10jpeg", "dino-small_vit-cifar10jpeg"]
    here = [f"right {name}" for name in names]  # and none of those to be downloaded
    assert said(capsys, "zoo", "verify", "dino-*").splitlines() == here
    paths = said(capsys, "zoo", "fetch", "dino-small_*").splitlines()
    assert [Path(path).stem for path in paths] == names
    assert "nowhere" in failure(capsys, "zoo", "fetch", "file:///nowhere?x=1", "--sha256", "0" * 64)
    for verb, where in (("verify", "on this machine"), ("fetch", "of the zoo")):
        assert f"the pattern must match an entry {where}, got 'nothing*'" in failure(
            capsys, "zoo", verb, "nothing*"
        )


def test_verify_finds_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys, "zoo", "verify", NAME) == f"right {NAME}\n"
    path = write(tmp_path, SmallResNet((8, 16)), features=[9.0, 9.0, 9.0, 9.0])
    text = failure(capsys, "zoo", "verify", NAME, str(path))
    assert f"right {NAME}" in text
    assert f"WRONG {path}: 'tiny' must give the features" in text


def test_an_encoder_of_sequences_is_not_exported_as_one_of_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["export", "cpc-gru_small-pendulum", "--format", "onnx", "--to", str(tmp_path / "x")]
    assert "must be an encoder of images to export, got frames" in failure(capsys, *asked)
    assert not (tmp_path / "x").exists()


# -- add and push


@pytest.fixture(scope="module")
def version(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished SimCLR run."""
    out = tmp_path_factory.mktemp("run")
    run([*arguments(folder, out, "simclr"), "--trainer.max_epochs=2"], out)
    return out / "version_0"


def test_a_run_becomes_an_entry_that_loads_by_name(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = ["--name", "mine", "--data", "60 pictures", "--license", "CC0-1.0"]
    card = json.loads(
        said(capsys, "zoo", "add", str(version), *about, "--to", str(tmp_path / "zoo"))
    )
    assert (card["method"], card["epochs"], card["seeds"]) == ("sslzoo.methods.SimCLR", 2, [0])
    view = card["preprocessing"]  # pictures of 16 pixels, trained at 32
    assert (view["size"], view["resize"], view["channels"]) == (32, 37, 3)
    assert "val/knn_top1_k20_t0.07" in card["score"]
    weights = tmp_path / "zoo" / "mine.safetensors"
    loaded: Any = sslzoo.load(str(weights))
    (ckpt,) = version.rglob("last.ckpt")
    trained = torch.load(ckpt, weights_only=True)["state_dict"]
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[f"backbone.{name}"]), name
    assert said(capsys, "zoo", "verify", str(weights)) == f"right {weights}\n"
    assert "must not exist yet" in failure(
        capsys, "zoo", "add", str(version), *about, "--to", str(tmp_path / "zoo"), "--size", "16"
    )
    text = failure(capsys, "zoo", "add", str(tmp_path), *about)
    assert "a run directory must have" in text


def test_a_checkpoint_is_exported_at_the_size_that_it_was_trained_at(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ckpt,) = version.rglob("last.ckpt")
    to = str(tmp_path / "net.safetensors")
    sizes = []

    def tried(encoder: Any, path: Path, form: str, size: int, *more: Any) -> Path:
        sizes.append((size, *more))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslzoo.zoo.export.export", tried)
        for more in ([], ["--size", "8", "--channels", "1"]):
            said(capsys, "export", str(ckpt), "--format", "safetensors", "--to", to, *more)
    assert sizes == [(32, None, 3), (8, None, 1)]


def test_the_user_s_size_and_deviation_go_over_the_run_s(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = ["--name", "mine", "--data", "d", "--license", "l", "--to", str(tmp_path)]
    asked = ["zoo", "add", str(version), *about, "--size", "24"]
    view = json.loads(said(capsys, *asked))["preprocessing"]
    assert (view["size"], "resize" in view) == (24, False)


QUICK = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--data.batch_size=32"]
QUICK.append("--trainer.callbacks=sslzoo.callbacks.OnlineSpectrum")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_quickstart_becomes_an_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlxtend")
    out = f"--trainer.default_root_dir={tmp_path / 'run'}"
    run(["fit", "--config", "quickstart", *QUICK, out], tmp_path)
    about = ["--name", "digits", "--data", "MNIST-5k", "--license", "CC0-1.0"]
    card = json.loads(said(capsys, "zoo", "add", str(tmp_path / "run" / "version_0"), *about))
    assert (card["preprocessing"]["size"], card["preprocessing"]["channels"]) == (28, 1)
    encoder: Any = sslzoo.load("digits")
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        features = encoder(encoder.preprocess(images))
    assert features.shape == (3, card["num_features"])
    assert features.isfinite().all()
    assert said(capsys, "zoo", "verify", "digits") == "right digits\n"
    to = str(tmp_path / "digits.pt2")
    assert said(capsys, "export", "digits", "--format", "torch.export", "--to", to) == f"{to}\n"


class TheirData(LightningDataModule):
    """A user's own, which does not say what its images are."""


@pytest.mark.parametrize("stated", [False, True])
def test_a_run_on_a_user_s_own_data_becomes_an_entry(
    stated: bool, version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((version / "config.yaml").read_text())
    config["data"] = {"class_path": f"{__name__}.TheirData"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (whole,) = version.rglob("last.ckpt")
    saved = torch.load(whole, weights_only=True)
    del saved["ImageFolder"]  # a data module that has no state, or says nothing in it
    ckpt = tmp_path / "own.ckpt"
    torch.save(saved, ckpt)
    about = ["--name", "mine", "--data", "theirs", "--license", "CC0-1.0", f"--ckpt_path={ckpt}"]
    view = ["--size=16", "--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.2", "0.2"]
    card = json.loads(said(capsys, "zoo", "add", str(tmp_path), *about, *(view if stated else [])))
    encoder: Any = sslzoo.load("mine")
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, card["num_features"])
    if stated:
        x = torch.rand(2, 3, 16, 16)
        wanted = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2
        torch.testing.assert_close(encoder.preprocess(x), wanted)
    else:
        assert (card["preprocessing"], encoder.preprocess) == (None, None)


class Theirs(LightningModule):
    """A training that knows nothing of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = SmallResNet((8, 16))
        self.head = nn.Linear(16, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.head(self.net(batch)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


SMALL = '{"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}}'
ABOUT = ["--name", "theirs", "--data", "noise", "--license", "CC0-1.0"]


@pytest.fixture
def their_checkpoint(tmp_path: Path) -> Path:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
    quiet |= {"enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, log_every_n_steps=1, **quiet)
    trainer.fit(Theirs(), DataLoader(list(torch.rand(8, 3, 8, 8)), batch_size=4))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt")
    return tmp_path / "theirs.ckpt"


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
def test_any_lightning_checkpoint_becomes_an_entry(
    their_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["zoo", "add", str(their_checkpoint), *ABOUT]
    named = [*add, "--backbone", SMALL, "--prefix", "net."]
    card = json.loads(said(capsys, *named, "--size", "8", "--method", "theirs"))
    assert (card["method"], card["epochs"], card["preprocessing"]["size"]) == ("theirs", 2, 8)
    trained = torch.load(their_checkpoint, weights_only=True)["state_dict"]
    loaded = sslzoo.load("theirs")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[f"net.{name}"]), name
    assert said(capsys, "zoo", "verify", "theirs") == "right theirs\n"
    assert "the name must be new, got that of the existing entry 'theirs'" in failure(
        capsys, *named
    )
    add[4] = NAME  # of an entry that came with the package
    assert f"must be new, got that of the existing entry '{NAME}'" in failure(
        capsys, *add, "--backbone", SMALL
    )
    assert f"must be new, got that of the existing entry '{NAME}'" in failure(capsys, *add)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
def test_a_checkpoint_that_does_not_fit_what_is_said_of_it_is_refused(
    their_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["zoo", "add", str(their_checkpoint), *ABOUT]
    for more, text in (
        ([], "a run directory must have .*pass --backbone"),
        (["--prefix", "net."], "--backbone must be given with --prefix, got none"),
        (["--backbone", SMALL], r"must have tensors under 'backbone\.', got \['net\."),
        (["--backbone", SMALL, "--prefix", ""], "does not fit SmallResNet"),
        (["--backbone", SMALL, "--layout", "moco"], "must have"),
        (
            ["--backbone", "torch.nn.Flatten"],
            "num_features of the backbone must be an int, got None of Flatten",
        ),
        (
            ["--backbone", SMALL, "--prefix", "net.", "--mean", "1"],
            r"must have the keys \['size'\]",
        ),
    ):
        assert re.search(text, failure(capsys, *add, *more)), (more, text)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_images_that_the_encoder_does_not_take_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(SmallResNet((8, 16), in_chans=1), tmp_path / "gray.safetensors")
    gray = SMALL.replace("[8, 16]", '[8, 16], "in_chans": 1')
    add = ["zoo", "add", str(tmp_path / "gray.safetensors"), *ABOUT]
    text = failure(capsys, *add, "--backbone", gray, "--prefix", "", "--size", "8")
    assert "cannot encode a sample preprocessed by {'range': [0.0, 1.0], 'size': 8}" in text
    assert not (tmp_path / "home").exists()
    for more in (["--channels", "1"], ["--mean", "0.5", "--std", "0.5"]):
        named = [*add, "--backbone", gray, "--prefix", "", "--size", "8", *more]
        folder = str(tmp_path / more[0])
        assert json.loads(said(capsys, *named, "--to", folder))["preprocessing"]["size"] == 8


def test_a_checkpoint_of_a_known_layout_becomes_an_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = SmallResNet((8, 16))
    state = {f"encoder.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": {**state, "projector.weight": torch.ones(1)}}, tmp_path / "solo.ckpt")
    said(
        capsys,
        *["zoo", "add", str(tmp_path / "solo.ckpt"), *ABOUT],
        *["--backbone", SMALL, "--layout", "solo_learn"],
    )
    for name, value in sslzoo.load("theirs").state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"]), name


FULL = """
import json, resource, signal, sys
from sslzoo.commands import zoo as zoo_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for args in json.loads(sys.argv[1]):
    try:
        zoo_command.main(args)
    except SystemExit as error:
        assert error.code == 1
    else:
        raise AssertionError(args)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    net, out = SmallResNet((8, 16)), tmp_path / "out"
    state = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    asked = [
        ["export", NAME, "--format", "safetensors", "--to", str(out / "a.safetensors")],
        ["export", NAME, "--format", "torch.export", "--to", str(out / "b.pt2")],
        ["zoo", "add", str(tmp_path / "net.pt"), *ABOUT, "--backbone", SMALL, "--to", str(out)],
    ]
    command = [sys.executable, "-W", "ignore", "-c", FULL, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    for line, file in zip(lines, ("a.safetensors", "b.pt2", "theirs.safetensors"), strict=True):
        assert line.startswith("sslzoo: ")
        assert file.partition(".")[0] in line
        assert "File too large" in line
    assert not list(out.iterdir())


def test_a_card_appears_under_its_name_by_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed, replace = [], os.replace

    def noted(source: Any, target: Any) -> None:
        renamed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    card = card_of(small_card(), "here")
    save_with_card(SmallResNet((8, 16)), card, tmp_path / "zoo")
    assert renamed[-2:] == ["tiny.safetensors", "tiny.json"]
    assert {p.name for p in (tmp_path / "zoo").iterdir()} == {"tiny.json", "tiny.safetensors"}


def test_what_a_killed_add_left_is_no_entry_and_is_removed_by_the_next(tmp_path: Path) -> None:
    """Killed by a signal, it leaves its temporary folder, whose lock is free."""
    folder = home() / "entries"
    killed, running = (folder / f".adding-{name}" for name in ("killed", "running"))
    for left in (killed, running):
        left.mkdir(parents=True)
        write(left, SmallResNet((8, 16)))
        (left / "lock").touch()
    assert "tiny" not in entries()
    with (running / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save_with_card(SmallResNet((8, 16)), card_of(small_card(), "here"), folder)
        names = {path.name for path in folder.iterdir()}
        assert names == {"tiny.json", "tiny.safetensors", running.name}
    save_with_card(SmallResNet((8, 16)), card_of(small_card(file="b.safetensors"), "here"), folder)
    assert not running.exists()


def test_values_beyond_the_precision_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    nn.init.constant_(net.bias, 1e6)
    with pytest.raises(ValueError, match="bias must be finite in float16"):
        save(net, tmp_path / "net.safetensors", "float16")
    assert not list(tmp_path.iterdir())


# -- what fails leaves nothing


def every_path(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


class Mute(LightningModule):
    """A user's own method, without encoder()."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def changed_config(version: Path, folder: Path, change: Any) -> Path:
    """The run with another config, and its checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (ckpt,) = version.rglob("last.ckpt")
    (folder / "checkpoints" / "last.ckpt").write_bytes(ckpt.read_bytes())
    content = yaml.safe_load((version / "config.yaml").read_text())
    changed = change(content)
    text = changed if isinstance(changed, str) else yaml.safe_dump(content)
    (folder / "config.yaml").write_text(text)
    return folder


def without(*keys: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def other_widths(content: dict[str, Any]) -> None:
    content["model"]["init_args"]["backbone"]["init_args"]["widths"] = [8, 16]


def no_encoder_class(content: dict[str, Any]) -> None:
    content["model"]["init_args"]["backbone"]["class_path"] = "torch.nn.Tanh"
    content["model"]["init_args"]["backbone"]["init_args"] = {}


CONFIGS: dict[str, tuple[Any, str]] = {
    "no YAML": (lambda content: "model: [", "config.yaml is not a valid config"),
    "deep YAML": (lambda content: "[" * 5000, "config.yaml is not a valid config"),
    "a list": (lambda content: "- a\n", "must be a dictionary, got list"),
    "nothing": (lambda content: "\n", "must be a dictionary, got NoneType"),
    "bytes": (lambda content: "a: \x00", "config.yaml is not a valid config"),
    "no model": (without("model"), "must have model.class_path"),
    "no class": (without("model", "class_path"), "must have model.class_path"),
    "no arguments": (without("model", "init_args"), "must have model.init_args.backbone"),
    "no backbone": (without("model", "init_args", "backbone"), "pass --backbone, and --prefix"),
    "other widths": (other_widths, "does not fit SmallResNet"),
    "other class": (no_encoder_class, "Tanh"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_whose_config_is_wrong_leaves_nothing(
    kind: str, version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, text = CONFIGS[kind]
    folder = changed_config(version, tmp_path / "run", change)
    before = every_path(tmp_path)
    line = failure(capsys, "zoo", "add", str(folder), *ABOUT)
    assert text in line
    assert line.startswith("sslzoo: ")
    assert line.count("\n") == 1
    assert every_path(tmp_path) == before


def nan_weights(saved: dict[str, Any]) -> None:
    next(v for k, v in saved["state_dict"].items() if k.startswith("backbone.")).fill_(torch.nan)


def mute(saved: dict[str, Any]) -> None:
    saved["hyper_parameters"]["_class_path"] = f"{__name__}.Mute"
    saved["state_dict"] = {"scale": torch.ones(())}


def wrong_preprocessing(saved: dict[str, Any]) -> None:
    saved["ImageFolder"]["preprocessing"]["size"] = "large"


def too_many_channels(saved: dict[str, Any]) -> None:
    saved["ImageFolder"]["preprocessing"]["channels"] = 4


CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "NaN": (nan_weights, "got NaN or infinity in"),
    "no encoder()": (mute, "must have encoder()"),
    "preprocessing": (
        wrong_preprocessing,
        "size of the preprocessing must be an integer above 0, got 'large'",
    ),
    "channels": (too_many_channels, "cannot encode a sample"),
    "no tensors": (lambda saved: saved["state_dict"].clear(), "ckpt"),
    "no torch file": (None, "is not a valid torch file"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_run_whose_checkpoint_is_wrong_leaves_nothing(
    kind: str, version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, text = CHECKPOINTS[kind]
    ckpt = tmp_path / "own.ckpt"
    if change is None:
        ckpt.write_bytes(b"<html>")
    else:
        (whole,) = version.rglob("last.ckpt")
        saved = torch.load(whole, weights_only=True)
        change(saved)
        torch.save(saved, ckpt)
    before = every_path(tmp_path)
    line = failure(capsys, "zoo", "add", str(version), *ABOUT, "--ckpt_path", str(ckpt))
    assert text in line
    assert line.startswith("sslzoo: ")
    assert line.count("\n") == 1
    assert every_path(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".", "..", ".hidden", "a b", "a*", "C:x", "a\nb", "x" * 300, "-x"]
)
def test_a_name_that_is_no_file_s_is_refused(
    name: str, version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = every_path(tmp_path)
    about = [f"--name={name}", "--data", "d", "--license", "l"]
    for more in ([], ["--backbone", SMALL], ["--to", str(tmp_path / "zoo")]):
        line = failure(capsys, "zoo", "add", str(version), *about, *more)
        assert "must be at most 200 letters, digits" in line
        assert line.count("\n") == 1
    assert every_path(tmp_path) == before


class Stopped(BaseException):
    """As a KeyboardInterrupt, which pytest would take for its own."""


FAILURES = [ValueError("two\nlines"), OSError("disk"), KeyboardInterrupt(), Stopped()]


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("to", ["", "deep/er"])
def test_wherever_adding_stops_it_leaves_nothing(
    error: BaseException,
    to: str,
    their_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At every call that writes, renames or loads, and behind it."""
    add = ["zoo", "add", str(their_checkpoint), *ABOUT, "--backbone", SMALL, "--prefix", "net."]
    add += ["--size", "8", "--to", str(tmp_path / "zoo" / to)] if to else ["--size", "8"]
    before = every_path(tmp_path)
    stops = [
        ("sslzoo.zoo.save.save_file", 1),
        ("sslzoo.zoo.save.atomic_write", 1),
        ("sslzoo.zoo.save.load", 1),
        ("sslzoo.zoo.save.fixed_features", 1),
        *(("os.replace", call) for call in (1, 2, 3, 4)),
    ]
    for at, call in stops:
        for behind in (False, True):
            calls = []
            module, _, name = at.rpartition(".")
            original = getattr(sys.modules[module], name)

            def stop(
                *args: Any,
                original: Any = original,
                calls: list = calls,
                call: int = call,
                behind: bool = behind,
                **more: Any,
            ) -> Any:
                calls.append(args)
                if len(calls) == call and not behind:
                    raise error
                done = original(*args, **more)
                if len(calls) == call:
                    raise error
                return done

            with monkeypatch.context() as patch:
                patch.setattr(at, stop)
                with pytest.raises((SystemExit, Stopped)):
                    zoo_command.main(add)
            assert len(calls) >= call, at
            if isinstance(error, Exception):
                assert capsys.readouterr().err.count("\n") == 1
            assert every_path(tmp_path) == before, (at, call, behind)
    said(capsys, *add)
    assert len(every_path(tmp_path) - before) >= 3


def test_what_cannot_be_verified_is_said_with_the_path_that_was_asked_for(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed_config(version, tmp_path / "run", other_widths)
    line = failure(capsys, "zoo", "add", str(folder), *ABOUT, "--to", str(tmp_path / "zoo"))
    assert f"'{tmp_path}/zoo/theirs.safetensors' does not fit" in line


def test_a_folder_that_is_a_file_is_refused(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    for to in (tmp_path / "file", tmp_path / "file" / "deeper"):
        line = failure(capsys, "zoo", "add", str(version), *ABOUT, "--to", str(to))
        assert (line.startswith("sslzoo: "), line.count("\n")) == (True, 1)
    assert (tmp_path / "file").read_text() == "kept"


class Recorder:
    """Takes the place of the Hub: keeps what it is given."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        self.repository = repo_id

    def upload_file(self, *, path_or_fileobj: Any, path_in_repo: str, repo_id: str) -> None:
        self.files[path_in_repo] = path_or_fileobj


def test_push_uploads_weights_card_and_page() -> None:
    api = Recorder()
    assert push(card_named(NAME), WEIGHTS, "me/mine", api) == f"hf://me/mine/{NAME}.safetensors"
    assert set(api.files) == {f"{NAME}.safetensors", f"{NAME}.json", "README.md"}
    assert b"0.6269" in api.files["README.md"]
    with pytest.raises(ValueError, match="which its authors released"):
        push(card_named("dino-vits16-imagenet"), WEIGHTS, "me/mine", api)
    with pytest.raises(ValueError, match="must be OWNER/NAME"):
        push(card_named(NAME), WEIGHTS, "mine", api)


def test_a_push_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(api: Any, *args: Any, **options: Any) -> None:
        raise RuntimeError("401 Client Error\n\nno token")  # no OSError, as the HTTP client's

    monkeypatch.setattr("huggingface_hub.HfApi", Recorder)
    for step in ("create_repo", "upload_file"):
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, step, refuse)
            text = failure(capsys, "zoo", "push", NAME, "me/mine")
        assert text == "sslzoo: cannot push to 'me/mine': 401 Client Error no token\n"


def test_others_weights_are_refused_before_they_are_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    text = failure(capsys, "zoo", "push", "moco_v2-resnet50-imagenet-800ep", "me/mine")
    assert "which its authors released" in text


# -- export


def test_an_exported_resnet_is_timms_and_torchvisions(tmp_path: Path) -> None:
    encoder = timm_backbone("resnet18")
    encoder(torch.rand(4, 3, 64, 64))  # moves the running statistics
    for to in ("timm", "torchvision"):
        path = export(encoder, tmp_path / f"{to}.safetensors", to, 64, "resnet18")  # type: ignore[arg-type]
        net: Any = (
            timm.create_model("resnet18", num_classes=0)
            if to == "timm"
            else torchvision.models.resnet18()
        )
        if to == "torchvision":
            net.fc = nn.Identity()
        net.load_state_dict(load_file(path))
        x = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(x), encoder(x))


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    net = SmallResNet((8, 16))
    to = tmp_path / "net.safetensors"
    for form, model, text in (
        ("timm", "resnet18", "must have the encoder's tensors"),
        ("timm", "resnet", r"model \(--model\) must be one of timm's"),
        ("torchvision", "vit_b_16", "must be a ResNet"),
        ("torchvision", None, r"model \(--model\) must be one of torchvision's"),
        ("tensorrt", None, "format must be one of"),
    ):
        with pytest.raises(ValueError, match=text):
            export(net, to, form, 16, model)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for to in (tmp_path / "pipe", tmp_path):  # seen before the entry is looked for
        asked = ["export", "no entry", "--format", "safetensors", "--to", str(to)]
        assert f"must not be a folder or a device, got '{to}'" in failure(capsys, *asked)
        with pytest.raises(FileExistsError, match="must not be a folder"):
            export(SmallResNet((8, 16)), to, "safetensors", 16)
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_an_encoder_that_the_reference_does_not_equal_is_refused(tmp_path: Path) -> None:
    net: Any = timm_backbone("resnet18")
    net.maxpool = nn.AvgPool2d(3, 2, 1)  # the same names, other features
    with pytest.raises(ValueError, match="must be torch's up to"):
        export(net, tmp_path / "net.safetensors", "timm", 64, "resnet18")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_program_takes_any_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "net.pt2"
    said(capsys, "export", NAME, "--format", "torch.export", "--to", str(to))
    program = torch.export.load(to).module()
    encoder = sslzoo.load(NAME)
    for batch in (1, 5):
        x = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(program(x), encoder(x))
    said(capsys, "export", NAME, "--format", "safetensors", "--to", str(tmp_path / "a.safetensors"))
    assert load_file(tmp_path / "a.safetensors").keys() == encoder.state_dict().keys()


def encoders() -> dict[str, nn.Module]:
    """One of each kind whose forward could make the batch a constant."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"width": 16, "depth": 2, "num_heads": 2}
    return {
        "resnet": SmallResNet((8, 16)),
        "vit": small_vit(32, 8, **small),
        "vit of patches": small_vit(16, 8, **small, class_token=False, pool="mean"),
        "timm's vit": timm_backbone(
            "vit_tiny_patch16_224", options={"img_size": 32, "depth": 2, "embed_dim": 48}
        ),
        "towers": Towers([SmallResNet((8,), in_chans=1), SmallResNet((8,), in_chans=2)], [1, 2]),
        "grid of patches": PatchGrid(SmallResNet((8,)), 32, 16, 8),
    }


@pytest.mark.parametrize("kind", list(encoders()))
def test_every_kind_of_encoder_exports_with_any_batch(kind: str, tmp_path: Path) -> None:
    encoder = encoders()[kind]
    path = export(encoder, tmp_path / "net.pt2", "torch.export", 32)
    program = torch.export.load(path).module()
    x = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(program(x), encoder(x))


@pytest.mark.parametrize("kind", [NAME, *encoders()])
def test_onnx_equals_torch(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime: Any = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    path = tmp_path / "net.onnx"
    if kind == NAME:
        encoder = sslzoo.load(NAME)
        told = said(capsys, "export", NAME, "--format", "onnx", "--to", str(path))
        assert told == f"{path}\n"
    else:
        encoder = encoders()[kind]
        export(encoder, path, "onnx", 32)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["net.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    for batch in (1, 5):
        x = torch.rand(batch, 3, 32, 32)
        with torch.no_grad():
            wanted = encoder(x)
        got = torch.tensor(session.run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_without_the_extra_onnx_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"sslzoo\[export\]"):
        export(SmallResNet((8, 16)), tmp_path / "net.onnx", "onnx", 16)
    assert not list(tmp_path.iterdir())


def test_the_command_has_the_verbs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sslzoo", "zoo", "info", "nothing"])
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().err.startswith("sslzoo: the model must be an entry of the zoo")
