"""RunReport at the end of fit: what it says where there is no report."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sslzoo.report import RunReport, callback


def trainer(folder: Path, **changes: Any) -> Any:
    usual = {"is_global_zero": True, "world_size": 1, "loggers": [], "fast_dev_run": False}
    return SimpleNamespace(log_dir=str(folder), **{**usual, **changes})


def test_without_the_extra_one_sentence_before_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(callback.NEEDS, "no_such_module", "no-such-package")
    with caplog.at_level(logging.INFO):
        RunReport().on_fit_start(trainer(tmp_path), None)
    assert "since no-such-package must be installed" in caplog.text
    assert "pip install 'sslzoo[report]'" in caplog.text
    RunReport().on_fit_end(trainer(tmp_path), None)
    assert capsys.readouterr().out == ""


def test_a_run_does_not_fail_at_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunReport().on_fit_end(trainer(tmp_path), None)
    said = capsys.readouterr().out
    assert said.startswith("report: not written: a run directory must have config.yaml")
    assert said.count("\n") == 1
    RunReport().on_fit_end(trainer(tmp_path, world_size=2), None)
    assert f"sslzoo report {tmp_path}" in capsys.readouterr().out
    RunReport().on_fit_end(trainer(tmp_path, is_global_zero=False), None)
    RunReport().on_fit_end(trainer(tmp_path, fast_dev_run=True), None)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="samples must be at least 3"):
        RunReport(samples=2)
