"""Fields of file names, such as the speaker in `{word}/{speaker}_nohash_{n}.wav`."""

from __future__ import annotations

import os
import re
import unicodedata

import torch
from torch import Tensor


def parse_fields(names: list[str], pattern: str) -> list[dict[str, str]]:
    """Parse the fields of file names.

    Args:
        names: relative paths, with `/` or the system's separator.
        pattern: such as `{word}/{speaker}_nohash_{n}.wav`; a field contains no `/`.

    Raises:
        ValueError: a name does not match.
    """
    parts = re.split(r"{(\w+)}", pattern)
    expression = "".join(
        f"(?P<{part}>[^/]+?)" if i % 2 else re.escape(unicodedata.normalize("NFC", part))
        for i, part in enumerate(parts)
    )
    plain = [unicodedata.normalize("NFC", name.replace(os.sep, "/")) for name in names]
    matches = [re.fullmatch(expression, name) for name in plain]
    wrong = [name for name, match in zip(names, matches, strict=True) if match is None]
    if wrong:
        raise ValueError(
            f"all files must match {pattern!r}, {len(wrong)} do not, such as {wrong[:3]}"
        )
    return [match.groupdict() for match in matches if match is not None]


def field_labels(fields: list[dict[str, str]], name: str | None) -> tuple[Tensor | None, list[str]]:
    """A field's values as labels (N,) int64, and the sorted distinct values."""
    if name is None:
        return None, []
    values = sorted({field[name] for field in fields})
    number = {value: i for i, value in enumerate(values)}
    return torch.tensor([number[field[name]] for field in fields]), values
