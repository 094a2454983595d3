"""Provenance: the code, packages and date of a run or an evaluation."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sslzoo

PACKAGES = ("torch", "torchvision", "lightning", "timm")


def provenance() -> dict[str, Any]:
    """Version, commit (if the package is in a clone), packages and date."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "sslzoo": sslzoo.__version__,
        "commit": commit(Path(sslzoo.__file__).parents[1]),
        "versions": {"python": sys.version.split()[0], **versions},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit(clone: Path) -> str | None:
    """HEAD of the repository with this root; None for other folders and without git."""
    git = ["git", "-C", str(clone), "rev-parse", "--show-prefix", "HEAD"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    prefix, head = found.stdout.split("\n")[:2]
    return None if prefix else head  # a prefix: the environment is inside another repository
