"""Listings say what exists, and import nothing heavy; completion scripts are valid."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sslzoo.methods
from sslzoo.commands.configs import known_configs
from sslzoo.commands.listing import completion, configs, methods
from sslzoo.zoo import catalog
from sslzoo.zoo.cache import place
from tests.commands.command import ENVIRONMENT, run
from tests.commands.test_fit_start import ASK


def test_every_method_and_config_has_its_line() -> None:
    listed = dict(methods())
    wanted = {f"sslzoo.methods.{name}" for name in sslzoo.methods.__all__ if name != "SSLMethod"}
    assert set(listed) == wanted
    assert all(listed.values())
    titles = dict(configs())
    assert list(titles) == known_configs()
    assert all(titles.values())


@pytest.mark.parametrize("args", [["methods"], ["configs", "cpc"], ["completion", "bash"]])
def test_listings_do_not_import_torch(args: list[str]) -> None:
    asked = [sys.executable, "-c", ASK.format(args=args, names=["torch", "lightning"])]
    done = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.stdout.endswith("loaded\n"), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_valid_script(shell: str) -> None:
    script = completion(shell)
    assert "simclr/folder_small_10ep" in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_completion_completes() -> None:
    ask = "COMP_WORDS=(sslzoo fit --config quick); COMP_CWORD=3; _sslzoo; echo ${COMPREPLY[@]}"
    text = f"{completion('bash')}\n{ask}"
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "quickstart"


def test_zoo_list_has_a_header_and_filters(tmp_path: Path) -> None:
    table = run(["zoo", "list", "--kind", "text"], tmp_path).stdout.splitlines()
    wanted = "name kind width parameters file score license weights"
    assert " ".join(table[0].split()) == wanted
    assert all(" text " in line for line in table[1:])
    here = run(["zoo", "list", "--here"], tmp_path).stdout
    assert "MB" in here
    assert "by hand" not in here


def test_remove_frees_own_entries_and_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path))
    name = "moco_v2-resnet50-imagenet-800ep"
    file = place(name, catalog.card_named(name).file)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 2_500_000)
    done = run(["zoo", "remove", name], tmp_path)
    assert done.stdout == f"removed {file}: 2.5 MB freed\n"
    assert not file.parent.exists()
    assert run(["zoo", "remove", name], tmp_path, check=False).returncode == 1
