"""Repositories on this machine are found without a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslzoo.trust.hub_cache import folder_on_disk


def test_a_repository_in_the_cache_is_found_by_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # beside which there is no "x"
    repository = tmp_path / "models--somebody--something"
    for commit, files in (("a" * 40, ["config.json"]), ("b" * 40, ["tokenizer.json"])):
        (repository / "snapshots" / commit).mkdir(parents=True)
        for file in files:
            (repository / "snapshots" / commit / file).write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    found = folder_on_disk("somebody/something")
    assert found == str(repository / "snapshots" / ("a" * 40))
    tokens = ("tokenizer_config.json", "tokenizer.json")
    assert folder_on_disk("somebody/something", "b" * 40, tokens).endswith("b" * 40)
    assert folder_on_disk(str(tmp_path)) == str(tmp_path)
    for name in ("somebody/else", "no/such/name", "../x"):
        with pytest.raises(OSError, match="must be a folder or in the Hub's cache"):
            folder_on_disk(name)
    with pytest.raises(OSError, match="with tokenizer"):
        folder_on_disk("somebody/something", wanted=["tokenizer.json"])
