"""The slips of tests/mutations.py still have a place where they can be made."""

from __future__ import annotations

import pytest

from tests.mutations import ROOT, SLIPS, Slip, occurrences


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.name)
def test_slip_can_be_made(slip: Slip) -> None:
    assert occurrences(slip) == 1
    assert slip.new != slip.old
    assert all((ROOT / "tests" / name).exists() for name in slip.tests)


def test_there_are_thirty() -> None:
    assert len(SLIPS) >= 30
