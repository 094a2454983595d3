"""Objects from class paths and arguments: as the command builds them, by type hints alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import pytest
import torch
import yaml
from lightning import LightningModule
from torch import nn

import sslzoo
from sslzoo.commands.configs import config_folders
from sslzoo.trust import UntrustedError, build, shell
from sslzoo.zoo import entries

NET = {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}}
MODELS: dict[str, Any] = {
    str(path.relative_to(folder)): yaml.safe_load(path.read_text())["model"]
    for folder in config_folders()
    for path in sorted(folder.rglob("*.yaml"))
    if "bert" not in path.name  # needs transformers
}


class Typed(nn.Module):
    """An argument of each kind of type."""

    def __init__(
        self,
        number: float = 0.0,
        count: int = 0,
        flag: bool = False,
        text: str = "",
        choice: Literal["a", 1] = "a",
        pair: tuple[int, int] = (0, 0),
        many: tuple[float, ...] = (),
        rows: list[int] | None = None,
        either: float | nn.Module = 0.0,
        nets: list[nn.Module] | None = None,
        later: Any = None,
    ) -> None:
        super().__init__()
        self.given = locals()


def typed(**args: Any) -> Any:
    return build({"class_path": f"{__name__}.Typed", "init_args": args}, nn.Module, "x").given


@pytest.mark.parametrize("name", list(MODELS))
def test_a_shipped_model_is_what_the_command_builds(name: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=LightningModule)
    with torch.device("meta"):
        parsed = parser.parse_object({"made": copy.deepcopy(MODELS[name])})
        wanted = parser.instantiate(parsed)["made"]
        made = build(MODELS[name], LightningModule, name)
    assert type(made) is type(wanted)
    assert repr(made) == repr(wanted)
    shapes = {key: value.shape for key, value in wanted.state_dict().items()}
    assert {key: value.shape for key, value in made.state_dict().items()} == shapes


def test_every_card_is_built_without_a_trusting_word() -> None:
    for card in entries().values():
        made = shell(card.backbone, nn.Module, card.name)
        assert made is not None, card.name
        assert made.num_features == card.num_features


def test_values_become_what_their_types_say() -> None:
    given = typed(number=1, count=2, flag=True, text="os.system", choice=1, pair=[1, 2], many=[1])
    assert (given["number"], given["count"], given["flag"]) == (1.0, 2, True)
    assert isinstance(given["number"], float)
    assert given["text"] == "os.system", "a string stays one where a string is wanted"
    assert (given["choice"], given["pair"], given["many"]) == (1, (1, 2), (1.0,))
    assert isinstance(typed(either=NET)["either"], sslzoo.backbones.SmallResNet)
    assert typed(either=2)["either"] == 2.0
    assert len(typed(nets=[NET, "torch.nn.Identity"])["nets"]) == 2


@pytest.mark.parametrize("value", [1, object()])
def test_an_error_rules_no_terminal(value: Any) -> None:
    args = {"name": "resnet18", "options": {"\x1b[2J": value}}
    with pytest.raises(ValueError, match=r"\?\[2J") as raised:
        build({"class_path": "sslzoo.backbones.timm_backbone", "init_args": args}, nn.Module, "x")
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"number": "1"}, "number must be float, got '1'"),
        ({"number": True}, "number must be float, got True"),
        ({"count": 1.5}, "count must be int, got 1.5"),
        ({"count": True}, "count must be int, got True"),
        ({"flag": 1}, "flag must be bool, got 1"),
        ({"text": None}, "text must be str, got None"),
        ({"choice": "b"}, "choice must be .*Literal.*, got 'b'"),
        ({"choice": True}, "choice must be .*, got True"),
        ({"pair": [1]}, "pair must be 2 values"),
        ({"pair": "12"}, "pair must be a list"),
        ({"rows": "abc"}, "rows must be .*, got 'abc'"),
        ({"rows": [1, "b"]}, r"rows"),
        ({"nets": [3]}, r"nets"),
        ({"either": "nothing"}, "is not the dotted name"),
        ({"other": 1}, "has no argument 'other', it takes"),
        ({"later": object()}, "later must be plain data"),
    ],
)
def test_a_value_of_another_type_is_named(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        typed(**args)


@pytest.mark.parametrize(
    "args",
    [
        {"either": {"class_path": "os.system", "init_args": {"command": "true"}}},
        {"either": "os.system"},
        {"nets": ["os.system"]},
        {"nets": [{"class_path": "torch.nn.Sequential", "init_args": {"modules": ["os.path"]}}]},
        {"later": {"class_path": "os.system"}},
        {"later": [{"deep": {"class_path": "os.system"}}]},
    ],
)
def test_nothing_else_is_named_at_any_depth(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"names|has no argument"):
        typed(**args)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "class_path and init_args wanted, got None"),
        ([NET], "class_path and init_args wanted"),
        ({}, "class_path and init_args wanted"),
        ({"class_path": 3}, "class_path and init_args wanted"),
        ({**NET, "more": 1}, r"got \['more'\] too"),
        ({**NET, "init_args": [1]}, "init_args must be arguments by name"),
        ({**NET, "init_args": {1: 2}}, "init_args must be arguments by name"),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": 3}}, "missing a required"),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": -1, "out_features": 2}},
            "torch.nn.Linear cannot be built",
        ),
    ],
)
def test_a_description_that_is_none_is_one_sentence(spec: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(spec, nn.Module, "x.json")


def test_nesting_without_end_is_one_sentence() -> None:
    spec: Any = NET
    for _ in range(5000):
        spec = {
            "class_path": "sslzoo.backbones.Towers",
            "init_args": {"towers": [spec], "channels": [3]},
        }
    with pytest.raises(ValueError, match="nested too deeply"):
        build(spec, nn.Module, "x.json")


def test_weights_are_asked_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("timm.create_model", lambda name, **options: seen.update(options) or 1)
    for args in ({"name": "resnet18", "pretrained": True}, {"name": "resnet18"}):
        spec = {"class_path": "sslzoo.backbones.timm_backbone", "init_args": args}
        with pytest.raises(ValueError, match="cannot be built"):  # 1 is no network
            build(spec, nn.Module, "x.json")
        assert seen["pretrained"] is False
    bad = {"name": "resnet18", "options": {"checkpoint_path": "x.pth"}}
    with pytest.raises(ValueError, match="options must not have checkpoint_path"):
        build(
            {"class_path": "sslzoo.backbones.timm_backbone", "init_args": bad}, nn.Module, "x.json"
        )


def test_building_draws_nothing_from_the_program_s_generator() -> None:
    before = torch.get_rng_state()
    build(NET, nn.Module, "x.json")
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_that_started_from_an_entry_is_built_without_its_weights(tmp_path: Path) -> None:
    name = "simclr-small_resnet-cifar10jpeg"
    for loader in ("sslzoo.load", "sslzoo.zoo.load"):
        made = build({"class_path": loader, "init_args": {"name": name}}, nn.Module, "x.ckpt")
        assert made.num_features == entries()[name].num_features
    with pytest.raises(UntrustedError, match="would fetch"):
        build(
            {"class_path": "sslzoo.load", "init_args": {"name": "https://x.y/z.ckpt"}},
            nn.Module,
            "x.ckpt",
        )
