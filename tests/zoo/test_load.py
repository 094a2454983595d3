"""Loading: encoders in one line, from YAML too; and an error that says what is wrong."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import sslzoo
from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.heads import DINOHead
from sslzoo.methods import DINO
from sslzoo.zoo import load_start_weights, read_card
from sslzoo.zoo.card import Card, card_of
from sslzoo.zoo.catalog import card_named, local_file
from sslzoo.zoo.load import _train_as
from sslzoo.zoo.safe_read import read
from sslzoo.zoo.verifying import fixed_input
from tests.commands.command import arguments, run

ROOT = Path(__file__).parents[2]
NAME = "simclr-small_resnet-cifar10jpeg"
WEIGHTS = ROOT / "zoo_weights" / f"{NAME}.safetensors"
SMALL = {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}}


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))


def small_card(**changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "file": "tiny.safetensors",
        "method": "sslzoo.methods.SimCLR",
        "backbone": copy.deepcopy(SMALL),
        "num_features": 16,
        "data": "none",
        "preprocessing": {"range": [0.0, 1.0], "size": 8},
        "license": {"code": "MIT", "weights": "MIT"},
        **changes,
    }


def write(where: Path, net: nn.Module, **changes: Any) -> Path:
    """Weights and card of a small net; the hash is right unless it is given."""
    path = where / "tiny.safetensors"
    save_file({name: v.contiguous() for name, v in net.state_dict().items()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card = card_of(small_card(**{"sha256": digest, **changes}), "here")
    path.with_suffix(".json").write_text(card.to_json())
    return path


def test_an_entry_loads_as_a_plain_module_in_eval_mode() -> None:
    before = torch.get_rng_state()
    encoder: Any = sslzoo.load(NAME)
    assert torch.equal(before, torch.get_rng_state()), "loading draws nothing"
    assert type(encoder) is SmallResNet
    assert not any(module.training for module in encoder.modules())
    saved = load_file(WEIGHTS)
    for name, value in encoder.state_dict().items():
        assert value.dtype == (torch.float32 if value.is_floating_point() else torch.int64)
        assert torch.equal(value, saved[name].to(value.dtype)), name
    assert encoder.card.name == NAME
    x = fixed_input(32)
    assert encoder(encoder.preprocess(x)).shape == (1, 256)
    torch.testing.assert_close(encoder.preprocess(x), x / 255)  # SimCLR normalizes nothing
    bigger = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8)
    assert encoder.preprocess(bigger).shape == (2, 3, 32, 32)


def test_a_path_loads_with_the_card_beside_it_or_with_a_backbone(tmp_path: Path) -> None:
    net = SmallResNet((8, 16)).eval()
    path = write(tmp_path, net)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(sslzoo.load(str(path))(x), net(x))
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="a card next to it, got none; or pass backbone="):
        sslzoo.load(str(path))
    other = SmallResNet((8, 16))
    loaded = sslzoo.load(str(path), backbone=other, train=True)
    assert loaded is other
    assert loaded.training
    torch.testing.assert_close(loaded.eval()(x), net(x))


def test_a_user_s_entry_is_found_by_its_name(tmp_path: Path) -> None:
    entries = tmp_path / "home" / "entries"
    entries.mkdir(parents=True)
    write(entries, SmallResNet((8, 16)))
    assert "tiny" in sslzoo.list_models("t*")
    assert sslzoo.load("tiny").num_features == 16


def test_a_user_s_entry_that_is_none_is_skipped_until_it_is_asked_for(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    entries = tmp_path / "home" / "entries"
    entries.mkdir(parents=True)
    write(entries, SmallResNet((8, 16)))
    official = "dino-vits16-imagenet"
    for name in ("cut", official):
        (entries / f"{name}.json").write_text('{"name": ')
    (entries / "gone.json").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        assert {"tiny", NAME} < set(sslzoo.list_models())
    assert not {"cut", official} & set(sslzoo.list_models()), "nothing else stands in for it"
    assert sslzoo.load("tiny").num_features == 16
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == 2
    assert all(re.match(r"skipped a card: .*\.json is not JSON", text) for text in told)
    for name in ("cut", official):
        with pytest.raises(ValueError, match=rf"{name}\.json is not JSON"):
            sslzoo.zoo.card_named(name)
        with pytest.raises(OSError, match=rf"{name}\.json is not JSON"):
            sslzoo.load(name)


def test_a_user_s_weights_do_not_stand_in_for_those_of_a_shipped_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "wheel", tmp_path / "own"]
    for folder in folders:
        folder.mkdir()
        path = write(folder, SmallResNet((8, 16)))
    monkeypatch.setattr("sslzoo.zoo.catalog.card_folders", lambda: folders)
    assert local_file(card_named("tiny")) == folders[0] / path.name
    (folders[0] / path.name).unlink()  # the wheel leaves some out
    assert local_file(card_named("tiny")) is None


def test_a_license_that_is_not_commercial_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, SmallResNet((8, 16)), license={"code": "MIT", "weights": "CC-BY-NC-4.0"})
    sslzoo.load(str(path))
    assert "tiny: weights under CC-BY-NC-4.0" in capsys.readouterr().err
    sslzoo.load(NAME)
    assert capsys.readouterr().err == ""


# -- from the command: a backbone to train further, and a run's checkpoint


def test_training_from_a_yaml_starts_at_the_entry_and_moves(
    folder: Path,
    tmp_path: Path,
) -> None:
    start = tmp_path / "start.yaml"
    backbone = {"class_path": "sslzoo.load", "init_args": {"name": NAME, "train": True}}
    start.write_text(yaml.safe_dump({"model": {"init_args": {"backbone": backbone}}}))
    args = arguments(folder, tmp_path / "run", "simclr")
    args += [f"--config={start}", "--trainer.max_epochs=1", "--trainer.logger=false"]
    run([*args, "--trainer.callbacks=null", "--trainer.limit_val_batches=0"], tmp_path)
    (ckpt,) = (tmp_path / "run").rglob("last.ckpt")
    trained = torch.load(ckpt, weights_only=True)["state_dict"]
    weight, counted = trained["backbone.stem.weight"], trained["backbone.bn.num_batches_tracked"]
    saved = load_file(WEIGHTS)
    moved = (weight - saved["stem.weight"].float()).abs().max()
    assert 0 < moved < 0.1, "it started there, and trained"
    assert counted == saved["bn.num_batches_tracked"] + 5, "batch norm was in train mode"
    again: Any = sslzoo.load(str(ckpt))
    assert torch.equal(again.stem.weight, weight)
    assert not again.training
    whole: Any = sslzoo.load(str(ckpt), whole=True)
    assert type(whole).__name__ == "SimCLR"
    assert torch.equal(whole.backbone.stem.weight, weight)
    for source in (ckpt, ckpt.parents[1]):  # the run directory starts others
        gray = SmallResNet(in_chans=1)
        load_start_weights(gray, source)
        torch.testing.assert_close(gray.stem.weight, weight.sum(1, keepdim=True))


# -- bad input


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SmallResNet((8, 16)), sha256=None)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        sslzoo.load(str(path))
    torch.save({"state_dict": SmallResNet((8, 16)).state_dict()}, tmp_path / "net.pth")
    whole = (tmp_path / "net.pth").read_bytes()
    for length in (0, 3, 500, len(whole) - 300):
        (tmp_path / "net.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a valid torch file"):
            sslzoo.load(str(tmp_path / "net.pth"), SmallResNet((8, 16)), "torchvision")
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"a": np.zeros(99)}, protocol=2)[:-50])
    with pytest.raises(ValueError, match="not a valid pickle"):
        sslzoo.load(str(tmp_path / "net.pkl"), SmallResNet((8, 16)), "byol")


def test_a_file_that_holds_no_weights_says_what_it_is(tmp_path: Path) -> None:
    page = "<!DOCTYPE html><html></html>"
    for name in ("a.pth", "a.safetensors", "a.pkl"):
        path = tmp_path / name
        for content, said in ((page, r"it is an HTML page \(perhaps"), ("", "it is empty")):
            path.write_text(content)
            with pytest.raises(ValueError, match=rf"{name} is not a valid .*: {said}"):
                sslzoo.load(path)
    run_folder = tmp_path / "version_0"
    (run_folder / "checkpoints").mkdir(parents=True)
    (run_folder / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"which is a folder; its weights are in .*/last\.ckpt'"):
        sslzoo.load(run_folder)
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"Linear.*; save the state_dict\(\) of a module instead"):
        sslzoo.load(tmp_path / "module.pth")


@pytest.mark.parametrize("held", [[1], torch.ones(3), {}, {"epoch": 3}, None])
def test_a_file_without_weights_by_name_says_what_it_holds(tmp_path: Path, held: Any) -> None:
    torch.save(held, tmp_path / "a.pth")
    for given in ({}, {"backbone": SmallResNet((8, 16))}, {"layout": "moco"}):
        with pytest.raises(ValueError, match=r"a.pth' must have tensors by name, got"):
            sslzoo.load(tmp_path / "a.pth", **given)  # type: ignore[arg-type]


def test_a_state_loads_from_the_usual_wrappers_and_without_its_classifier(tmp_path: Path) -> None:
    net, path = SmallResNet((8, 16)), tmp_path / "net.pth"
    classified = {**net.state_dict(), "fc.weight": torch.ones(2, 16), "fc.bias": torch.ones(2)}
    wrappers: list[dict[str, Any]] = [
        classified,
        {"state_dict": classified, "epoch": 3, "best": 0.5},
        {"model": classified, "optimizer": {"state": {0: torch.ones(1)}}},
    ]
    for held in wrappers:
        torch.save(held, path)
        loaded: Any = sslzoo.load(path, SmallResNet((8, 16)), "torchvision")
        assert torch.equal(loaded.stem.weight, net.stem.weight)
        with pytest.raises(ValueError, match=r"\['fc.bias', .*; pass layout='torchvision'"):
            sslzoo.load(path, SmallResNet((8, 16)))
    torch.save({"state_dict": net.state_dict()}, path)
    loaded = sslzoo.load(path, SmallResNet((8, 16)))
    assert torch.equal(loaded.stem.weight, net.stem.weight)


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SmallResNet((8, 16)), sha256="0" * 64)
    with pytest.raises(ValueError, match=f"must be {'0' * 64}, got"):
        sslzoo.load(str(path))
    with pytest.raises(ValueError, match="must be feedfeed, got"):
        sslzoo.load(NAME, sha256="feedfeed")


def test_a_wrong_class_is_refused(tmp_path: Path) -> None:
    net = SmallResNet((8, 16))
    for class_path, text in (
        ("sslzoo.backbones.LargeResNet", "LargeResNet"),
        ("collections.OrderedDict", "OrderedDict"),
        ("sslzoo.backbones.dim_convnet", "unexpected"),
    ):
        path = write(tmp_path, net, backbone={"class_path": class_path})
        with pytest.raises(ValueError, match=text):
            sslzoo.load(str(path))
    path = write(tmp_path, net, backbone={**SMALL, "init_args": {"wd": 1}})
    with pytest.raises(ValueError, match="wd"):
        sslzoo.load(str(path))
    path = write(tmp_path, net, num_features=17)
    with pytest.raises(ValueError, match=r"must be 17, as on the card of 'tiny', got 16"):
        sslzoo.load(str(path))


def test_a_wrong_shape_and_missing_keys_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, SmallResNet((8, 24)))
    with pytest.raises(ValueError, match=r"blocks.0.*of another shape"):
        sslzoo.load(str(path))
    path = write(tmp_path, nn.Sequential())
    with pytest.raises(ValueError, match=r"such as \['blocks.*missing"):
        sslzoo.load(str(path))
    whole = SmallResNet((8, 16)).state_dict()
    save_file({n: v.long().contiguous() for n, v in whole.items()}, tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"floats.*weight: torch.int64 for torch.float32"):
        sslzoo.load(str(tmp_path / "whole.safetensors"), SmallResNet((8, 16)))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, "harm.pth")
    Path("harm.pkl").write_bytes(pickle.dumps({"experiment_state": Malicious()}, protocol=2))
    for file, layout in (("harm.pth", "moco"), ("harm.pkl", "byol")):
        with pytest.raises(ValueError, match=r"could run code.*mkdir"):
            sslzoo.load(file, SmallResNet((8, 16)), layout)
    torch.save({"state_dict": nn.Linear(1, 1)}, "module.pth")
    with pytest.raises(ValueError, match=r"could run code.*Linear"):
        sslzoo.load("module.pth", SmallResNet((8, 16)), "moco")
    assert not Path("harm").exists()


class Call:
    """Pickled as a call, and a state that is set on what it gives."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


OBJECTS = Call(np.ndarray, ((1,), Call(np.dtype, ("O",)), b"A" * 8))
RECONSTRUCT = np.zeros(1).__reduce__()[0]


@pytest.mark.parametrize(
    "harm",
    [
        OBJECTS,  # whose element is a pointer of the file's
        Call(np.ndarray, (OBJECTS, Call(np.dtype, ("f4",)))),
        Call(
            RECONSTRUCT,
            (np.ndarray, (0,), b"b"),
            (1, (1,), Call(np.dtype, ("O8",)), False, b"A" * 8),
        ),
        Call(np.dtype, ([("a", "O")],)),
        Call(np.dtype, ("f4",), (3, "O,", None, None, None, -1, -1, 0)),
        np.array(["a", None]),
    ],
    ids=["objects", "shape", "reconstructed", "structured", "byte order", "array of objects"],
)
def test_a_pickle_makes_arrays_of_numbers_only(harm: Any, tmp_path: Path) -> None:
    (tmp_path / "harm.pkl").write_bytes(pickle.dumps({"experiment_state": harm}, protocol=2))
    with pytest.raises(ValueError, match=r"could run code: it asks for"):
        sslzoo.load(str(tmp_path / "harm.pkl"), SmallResNet((8, 16)), "byol")


def test_a_pickle_s_arrays_and_numbers_are_numpy_s(tmp_path: Path) -> None:
    rows = np.arange(6.0).reshape(2, 3)
    arrays = [rows, rows.T, np.arange(3, dtype=">i4"), np.array([True, False]), np.array(2.5)]
    numbers = [np.float32(0.5), np.uint8(7), np.int64(-3)]
    for protocol in (2, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps([*arrays, *numbers], protocol))
        got = read(tmp_path / "a.pkl")
        for mine, theirs in zip(got, [*arrays, *numbers], strict=True):
            np.testing.assert_array_equal(np.asarray(mine), theirs)
    state = (1, (2, 2), rows.dtype, False, b"0" * 8)  # of four numbers only one is there
    short = Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(short, protocol=2))
    with pytest.raises(ValueError, match="not a valid pickle"):
        read(tmp_path / "a.pkl")


def test_what_is_not_there_names_what_is_close(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=NAME):
        sslzoo.load("simclr-small_resnet-cifar10")
    for name in (str(tmp_path / "nowhere.safetensors"), "zzzzqqqq"):
        with pytest.raises(FileNotFoundError, match=name) as caught:
            sslzoo.load(name)
        assert "similar" not in str(caught.value)
    with pytest.raises(ValueError, match="layout must be one of"):
        sslzoo.load(str(WEIGHTS), layout="mocco")
    with pytest.raises(
        ValueError, match="must be a Lightning checkpoint of sslzoo with whole=True"
    ):
        sslzoo.load(NAME, whole=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": None}, "name must be str, got None"),
        ({"file": "../tiny.safetensors"}, "plain file name"),
        ({"backbone": {}}, "class_path"),
        ({"backbone": "SmallResNet"}, r"backbone must be dict\[str, Any\], got 'SmallResNet'"),
        ({"license": {"code": "MIT"}}, "license must have texts for"),
        ({"license": {"code": "MIT", "weights": None}}, "license must have texts for"),
        ({"sha256": "xyz"}, "sha256 must be 8 to 64 hex digits"),
        ({"preprocessing": {"size": 32, "crop": 1}}, "crop"),
        (
            {"preprocessing": {"kind": ["image"]}},
            r"kind of the preprocessing must be .* got \['image'\]",
        ),
        ({"score": {"knn": 51.0}}, "scores must be in 0..1, got knn"),
        ({"epochs": "ten"}, "epochs"),
        ({"color": "red"}, r"unknown \['color'\]"),
    ],
)
def test_a_card_with_a_wrong_value_names_it(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        card_of({**small_card(), **changes}, "card.json")


def test_a_card_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SmallResNet((8, 16)))
    card = path.with_suffix(".json")
    assert isinstance(read_card(card), Card)
    for text, said in (("{", "is not JSON"), ("[]", "JSON object"), ("{}", "missing")):
        card.write_text(text)
        with pytest.raises(ValueError, match=said):
            sslzoo.load(str(path))
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_any_does_not_switch_off_the_hash_of_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "byol-small_resnet-cifar10jpeg"
    card = sslzoo.zoo.card_named(name)
    monkeypatch.setattr("sslzoo.zoo.weights_file.local_file", lambda _: None)
    monkeypatch.setenv("SSLZOO_MIRROR", str(tmp_path))
    (tmp_path / card.file).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"the sha256 of .* must be"):
        sslzoo.zoo.locate(name, "any")


def test_a_teacher_trains_where_its_student_did(tmp_path: Path) -> None:
    vit = small_vit(8, 4, width=16, depth=2, num_heads=2, drop_path_rate=0.2, positions="mae")
    method = DINO(vit, DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6))
    teacher = method.encoder()
    assert not any(p.requires_grad for p in teacher.parameters())
    _train_as(teacher, method.backbone)
    flags = [p.requires_grad for p in method.backbone.parameters()]
    assert [p.requires_grad for p in teacher.parameters()] == flags
    assert any(flags)
    assert not all(flags), "the positions are fixed"
    drops = [m.drop_prob for m in teacher.modules() if hasattr(m, "drop_prob")]
    assert max(drops) == pytest.approx(0.2)
