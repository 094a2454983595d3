"""Imports without the garbage collector, which runs again behind them."""

from __future__ import annotations

import gc
import sys

import pytest

from sslzoo.commands.quick_imports import quick_imports


def test_the_collector_rests_until_all_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    with quick_imports():
        assert gc.isenabled()  # torch is imported already
    monkeypatch.delitem(sys.modules, "torch")
    frozen = gc.get_freeze_count()
    try:
        with quick_imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.freeze()  # as the tests have it
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()
