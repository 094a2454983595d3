"""No file runs code, whatever is in it and whatever reads it; and honest files load."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batteries import hostile


@pytest.fixture(scope="module")
def battery() -> Iterator[tuple[hostile.Honest, Path, hostile.Server]]:
    with hostile.prepared() as prepared:
        yield prepared


def test_the_watch_sees_what_runs(tmp_path: Path) -> None:
    """A gadget that is called is noticed, so that a quiet battery means something."""
    for name, reduced in hostile.pickled().items():
        raw = pickle.dumps(reduced)
        if name in ("webbrowser.open", "importlib.import_module"):  # they would open a browser
            continue
        with hostile.watched() as events:
            made = pickle.loads(raw)
            if isinstance(made, subprocess.Popen):
                made.wait()
        assert events, name
    with hostile.watched() as events:
        os.system("true")
    assert events


def test_honest_files_are_read_in_every_way(
    battery: tuple[hostile.Honest, Path, hostile.Server],
) -> None:
    """Else a battery of refusals would prove nothing."""
    for attempt in hostile.honest_attempts(*battery):
        hostile.fresh(battery[1])
        hostile.quietly(attempt.act)


def test_no_file_runs_code(battery: tuple[hostile.Honest, Path, hostile.Server]) -> None:
    tried = 0
    for attempt in hostile.attempts(*battery, every=96, every_slow=512):
        tried += 1
        assert not hostile.happened(attempt, battery[1]), attempt[:3]
    assert tried > 200
    assert "not_imported_yet" not in sys.modules


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_file_runs_code_by_any_gadget(
    battery: tuple[hostile.Honest, Path, hostile.Server],
) -> None:
    for attempt in hostile.attempts(*battery, every=1, every_slow=8):
        assert not hostile.happened(attempt, battery[1]), attempt[:3]
