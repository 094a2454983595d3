"""Pictures of a report for README and docs, by headless Chromium (`apt-get install chromium`).

    python docs/report_pictures.py runs/quickstart/version_0/report.html

It writes report_quickstart.png (wide, light) and report_quickstart_narrow.png (390 pixels, dark).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
DARK, LIGHT = 0, 1


def picture(page: Path, name: str, width: int, height: int, scheme: int) -> None:
    """Write the top of the page, at most 150 kB: 256 colors are enough for it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("report_pictures: chromium must be installed")
    with tempfile.TemporaryDirectory() as folder:
        # A window is at least 500 pixels wide, a frame as wide as it says.
        frame = Path(folder) / "frame.html"
        frame.write_text(
            f'<!doctype html><body style="margin:0"><iframe src="{page.resolve().as_uri()}" '
            f'width="{width}" height="{height}" style="border:0"></iframe></body>'
        )
        shot = Path(folder) / name
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}"),
                *(f"--user-data-dir={folder}/data", f"--window-size={max(width, 500)},{height}"),
                frame.as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(shot) as whole:
            part = whole.convert("RGB").crop((0, 0, width, height))
        part.quantize(256, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    report = Path(sys.argv[1])
    picture(
        report, "report_quickstart.png", 1180, int(sys.argv[2]) if sys.argv[2:] else 2900, LIGHT
    )
    picture(report, "report_quickstart_narrow.png", 390, 1400, DARK)
