"""What a run's folder and a resumed checkpoint may say of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from sslzoo.commands import evaluate, report
from sslzoo.trust import forget_other_files, read_config

CONFIG = {"model": {"class_path": "sslzoo.methods.SimCLR"}, "seed_everything": 0}
_LINES = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
BROKEN = {
    "aliases that double again and again": "\n".join(["a0: &a0 [x, x]", *_LINES]),
    "an alias of itself": "a: &a [*a]",
    "nested too deeply": f"a: {'[' * 200}{']' * 200}",
    "nested beyond Python's depth": f"a: {'[' * 5000}{']' * 5000}",
    "a list": "- a",
    "nothing": "",
    "no YAML": "a: [1",
    "control characters": "\0\1",
    "an object of Python's": "a: !!python/object/apply:os.getcwd []",
    "a model that is a list": "model: [1]",
    "a trainer that is a number": "trainer: 3",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_config_that_is_none_is_one_sentence(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(BROKEN[kind])
    with pytest.raises(ValueError, match=r"config\.yaml is not a valid config"):
        read_config(tmp_path / "config.yaml")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for act in (
        lambda: evaluate.main([str(tmp_path)]),
        lambda: evaluate.main(["--table", str(tmp_path)]),
        lambda: report.main([str(tmp_path)]),
    ):
        with pytest.raises(SystemExit):
            act()
        said = capsys.readouterr().err.strip()
        assert "is not a valid config" in said, said
        assert "\n" not in said, said


def test_what_a_run_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": None}))
    assert read_config(tmp_path / "config.yaml") == CONFIG


def resumed(folder: Path, **state: Any) -> ModelCheckpoint:
    callback = ModelCheckpoint(dirpath=folder)
    assert callback.dirpath is not None
    callback.load_state_dict({**callback.state_dict(), **state})
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[callback])
    forget_other_files(trainer)
    return callback


@pytest.mark.parametrize(
    "path",
    [
        "local:///victim",
        "s3://bucket/victim",
        "{folder}/../../victim",
        "{folder}/..",
        "memory://{folder}/x",
        3,
        "{folder}/a\0b",
    ],
)
def test_files_of_others_are_forgotten(tmp_path: Path, path: Any) -> None:
    bad = path.format(folder=tmp_path) if isinstance(path, str) else path
    best = {bad: torch.tensor(0.0), f"{tmp_path}/own.ckpt": torch.tensor(1.0)}
    kept = resumed(
        tmp_path,
        best_model_path=bad,
        last_model_path=bad,
        kth_best_model_path=bad,
        best_k_models=best,
    )
    assert (kept.best_model_path, kept.last_model_path) == ("", "")
    assert (kept.kth_best_model_path, kept.best_k_models) == ("", {})


def test_a_run_keeps_its_own_files_and_the_name_of_another_run_s_best(tmp_path: Path) -> None:
    own, other = f"{tmp_path}/own.ckpt", "/elsewhere/best.ckpt"
    kept = resumed(
        tmp_path,
        best_model_path=other,
        last_model_path=own,
        kth_best_model_path=own,
        best_k_models={own: torch.tensor(1.0)},
    )
    assert (kept.best_model_path, kept.last_model_path) == (other, own)
    assert (kept.kth_best_model_path, list(kept.best_k_models)) == (own, [own])
