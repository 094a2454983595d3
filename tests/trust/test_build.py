"""Objects from class paths and arguments: as the command builds them, by type hints alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import sslzoo
from sslzoo.methods import SSLMethod
from sslzoo.runs.encoders import build_data
from sslzoo.trust import UntrustedError, build, shell
from sslzoo.zoo import entries

NET = {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}}


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


class Defaults(nn.Module):
    """Arguments whose defaults are not of their types, or no plain values."""

    def __init__(
        self,
        width: int = None,  # type: ignore[assignment]  # noqa: RUF013
        net: nn.Module = None,  # type: ignore[assignment]
        rows: list[int] = ("a", None),  # type: ignore[assignment]
        dtype: torch.dtype = torch.float32,
        norm: type[nn.Module] = nn.BatchNorm2d,
        act: Callable[[Tensor], Tensor] = nn.functional.relu,
    ) -> None:
        super().__init__()
        self.given = (width, net, rows, dtype, norm, act)


def typed(**args: Any) -> Any:
    return build({"class_path": f"{__name__}.Typed", "init_args": args}, nn.Module, "x").given


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


def test_a_default_is_taken_as_it_is_whatever_the_type_says() -> None:
    path = f"{__name__}.Defaults"
    args = {
        "width": None,
        "net": None,
        "rows": ["a", None],
        "dtype": "torch.float32",
        "norm": "torch.nn.BatchNorm2d",
        "act": "torch.nn.functional.relu",
    }
    made: Any = build({"class_path": path, "init_args": args}, nn.Module, "x")
    assert made.given == Defaults().given
    for key, value in (
        ("width", True),
        ("rows", ["a"]),
        ("dtype", "torch.float16"),
        ("norm", "torch.nn.BatchNorm1d"),
        ("act", "torch.nn.functional.gelu"),
    ):
        with pytest.raises(
            ValueError, match="float16" if key == "dtype" else "gelu" if key == "act" else key
        ):
            build({"class_path": path, "init_args": {key: value}}, nn.Module, "x")


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
        ({"other": 1}, "must be one of .* got 'other'"),
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
    with pytest.raises(ValueError, match=r"must name|an argument of"):
        typed(**args)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (None, "must be class_path and init_args, got None"),
        ([NET], "must be class_path and init_args"),
        ({}, "must be class_path and init_args"),
        ({"class_path": 3}, "must be class_path and init_args"),
        ({**NET, "more": 1}, r"only, got \['more'\]"),
        ({**NET, "init_args": [1]}, "init_args must be a dictionary of arguments"),
        ({**NET, "init_args": {1: 2}}, "init_args must be a dictionary of arguments"),
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
        assert not seen.get("pretrained")
    for key, value in (("checkpoint_path", "x.pth"), ("pretrained", True), ("pretrained_cfg", {})):
        for factory in ("timm_backbone", "timm_vit"):
            bad = {"name": "vit_tiny_patch16_224", "options": {key: value}}
            spec = {"class_path": f"sslzoo.backbones.{factory}", "init_args": bad}
            with pytest.raises(ValueError, match=f"options must not have {key}"):
                build(spec, nn.Module, "x.json")


def test_an_object_that_is_called_is_told_from_a_class_that_is() -> None:
    arguments = {
        "backbone": NET,
        "projector": {"class_path": "sslzoo.heads.MLP", "init_args": {"sizes": [16, 8]}},
        "parameter_groups": {
            "class_path": "sslzoo.optim.ConstantRateFor",
            "init_args": {"parts": ["projector"]},
        },
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}},
    }
    spec = {"class_path": "sslzoo.methods.SimCLR", "init_args": arguments}
    optimizer = build(spec, SSLMethod, "x.yaml").configure_optimizers()
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    assert [bool(group.get("constant_rate")) for group in optimizer.param_groups] == [False, True]


def test_building_draws_nothing_from_the_program_s_generator() -> None:
    before = torch.get_rng_state()
    build(NET, nn.Module, "x.json")
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_that_started_from_an_entry_is_built_without_its_weights(tmp_path: Path) -> None:
    name = "simclr-small_resnet-cifar10jpeg"
    for loader in ("sslzoo.load", "sslzoo.zoo.load"):
        made = build({"class_path": loader, "init_args": {"name": name}}, nn.Module, "x.ckpt")
        assert made.num_features == entries()[name].num_features
    with pytest.raises(UntrustedError, match="would download"):
        build(
            {"class_path": "sslzoo.load", "init_args": {"name": "https://x.y/z.ckpt"}},
            nn.Module,
            "x.ckpt",
        )


def test_a_data_set_that_a_file_names_is_not_downloaded() -> None:
    tokenizer = {"class_path": "sslzoo.data.WordPiece", "init_args": {"num_ids": 60}}
    args = {"name": "ag_news", "transform": "sslzoo.transforms.plain_text", "tokenizer": tokenizer}
    section = {"class_path": "sslzoo.data.HFText", "init_args": args}
    with pytest.raises(ValueError, match=r"'ag_news' .* must be a folder.*--trust"):
        build_data(section).prepare_data()
