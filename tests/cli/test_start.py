"""What the command imports before it answers, and that it also runs as a module."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sslzoo
from tests.cli.command import ENVIRONMENT

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


def test_the_module_is_the_command() -> None:
    asked = [sys.executable, "-m", "sslzoo", "fit", "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.stdout.startswith("usage: sslzoo [options] fit"), done.stdout[:200] + done.stderr
