"""Foreign: what a file is that cannot be what was wanted, told by its first bytes."""

from __future__ import annotations

import re
from pathlib import Path

_HTML = re.compile(rb"\W*(<!doctype html|<html|<head|<body|<script|<\?xml|<!--)", re.IGNORECASE)


def foreign(path: Path) -> str | None:
    """Half a sentence about a file that is empty or a page; None: it may be what is wanted.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "it is empty"
    if _HTML.match(head):
        return f"an HTML page (to log in, or of an error?) begins with {head[:32]!r}"
    return None
