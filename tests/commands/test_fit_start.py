"""What the command imports before it answers, and that it also runs as a module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

import sslzoo
from sslzoo.commands import fit
from sslzoo.commands.arguments import with_config_paths
from sslzoo.commands.listing import methods
from sslzoo.commands.precision import best_precision
from tests.commands.command import ENVIRONMENT, run_process

ASK = """
import sys
from sslzoo.__main__ import main
sys.argv = ["sslzoo", *{args}]
main()
print("loaded", *(name for name in {names} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("args", "said", "names"),
    [
        (["--version"], sslzoo.__version__, ["torch", "lightning"]),
        (["--help"], "sslzoo report RUN...", ["torch", "lightning"]),
        (["zoo", "list", "simclr-*"], "simclr-small_resnet-cifar10jpeg", ["lightning", "timm"]),
        (["zoo", "info", "simclr-small_resnet-cifar10jpeg"], '"sha256"', ["lightning", "timm"]),
    ],
)
def test_answers_do_not_wait_for_what_they_do_not_need(
    args: list[str], said: str, names: list[str]
) -> None:
    asked = [sys.executable, "-c", ASK.format(args=args, names=names)]
    done = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.endswith("loaded\n")


def test_the_help_begins_with_commands_and_describes_what_is_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        fit.run(["fit", "--help"])
    text = capsys.readouterr().out
    assert "[options]\n\nTrain a method as a config says.\n\n    sslzoo fit --config simclr" in text
    assert "registry:model-name" not in text, "Lightning's, which is refused here"


def test_the_arguments_of_a_class_are_explained_without_a_config() -> None:
    for args in (["fit", "--model.help", "sslzoo.methods.SimCLR"], ["fit", "--data.help=MNIST5k"]):
        assert with_config_paths(args) == (args, None)


def test_without_a_class_the_methods_and_data_modules_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args, wanted in {"--model.help": dict(methods()), "--data.help": {}}.items():
        with pytest.raises(SystemExit) as end:
            fit.run(["fit", args])
        assert end.value.code == 0
        rows = [
            line.split(maxsplit=1) for line in capsys.readouterr().out.split("\n\n")[0].split("\n")
        ]
        assert all(len(row) == 2 for row in rows)
        assert wanted.keys() <= {name for name, _ in rows}
    assert {"sslzoo.data.ImageFolder", "sslzoo.data.TextLines"} <= {name for name, _ in rows}


def test_the_arguments_of_a_class_are_not_lost_among_the_classes_of_torch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        fit.run(["fit", "--model.help", "sslzoo.methods.SimCLR"])
    text = capsys.readouterr().out
    assert text.startswith("usage: sslzoo fit --model.backbone BACKBONE")
    assert "torch.nn.Linear" not in text
    assert "sslzoo.backbones.SmallResNet" in text
    assert "torch.optim.AdamW" in text, "a short list is whole"


def test_the_module_is_the_command() -> None:
    asked = [sys.executable, "-m", "sslzoo", "zoo", "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.stdout.startswith("usage: sslzoo"), done.stdout[:200] + done.stderr


@pytest.mark.parametrize(
    ("precision", "amx", "said"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_a_cpu_keeps_freed_memory_and_bfloat16_without_its_instructions_is_named(
    precision: Any, amx: bool, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "has_amx", lambda: amx)
    told: list[str] = []
    kept: list[bool] = []
    monkeypatch.setattr(fit, "rank_zero_info", told.append)
    monkeypatch.setattr(fit, "keep_freed_memory", lambda: kept.append(True))
    fit._prepare_cpu(
        Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    )
    assert bool(told) == said
    assert kept == [True]
    assert all("--trainer.precision=auto" in text for text in told)


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        ({"amx_tile": True, "amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": True, "amx_bf16": False}, "32-true"),
        ({"avx2": True}, "32-true"),
    ],
)
def test_precision_follows_the_processor(
    machine: dict[str, bool], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: machine)
    assert best_precision("cpu")[0] == wanted
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, n=native, **__: n)
        assert best_precision("auto")[0] == ("bf16-mixed" if native else "32-true")


def test_a_module_of_the_current_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_data.py").write_text(
        "from sslzoo.data import ImageFolder\nclass MyData(ImageFolder): ...\n"
    )
    (tmp_path / "torch.py").write_text("raise RuntimeError('imported for its name')\n")
    asked = ["fit", "--config", "simclr/folder_small_10ep", "--data=my_data.MyData"]
    asked += ["--data.root=somewhere", "--print_config"]
    assert "class_path: my_data.MyData" in run_process(asked, tmp_path).stdout
