"""Detect files that cannot contain weights by their first bytes."""

from __future__ import annotations

import re
from pathlib import Path

_HTML = re.compile(rb"\W*(<!doctype html|<html|<head|<body|<script|<\?xml|<!--)", re.IGNORECASE)


def other_kind(path: Path) -> str | None:
    """Describe an empty file or an HTML page; None if the file may contain weights.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    if _HTML.match(head):
        return f"it is an HTML page (perhaps a login or an error), which begins with {head[:32]!r}"
    return None
