"""The report in headless Chromium: no overflow, no accessibility finding, nothing refused.

Needs `chromium` (a Debian package) and axe-core (`pip install axe-core-python`, or the path of
axe.min.js in the environment variable AXE).
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.test_report import finished, other, page, pair  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCHEMES = {"dark": 0, "light": 1}
RUNNER = """
window.onload = async () => {
  const page = document.documentElement;
  const found = await axe.run(document);
  const violations = found.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.target)]);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  parent.document.body.dataset.found = JSON.stringify(
    {width: page.clientWidth, scroll: page.scrollWidth, passes: found.passes.length, dark,
     violations}
  );
};
"""


def axe() -> str | None:
    """Text of axe.min.js, if it is installed."""
    package = importlib.util.find_spec("axe_core_python")
    given = os.environ.get("AXE")
    if given is None and package is not None:
        given = str(Path(str(package.origin)).with_name("axe.min.js"))
    return Path(given).read_text() if given else None


def chromium(folder: Path, scheme: str, *args: str) -> subprocess.CompletedProcess[str]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    return subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={folder / 'data'}"),
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("runs", ["page", "pair"])
def test_it_fits_and_is_accessible(
    runs: str, width: int, scheme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = axe()
    if script is None:
        pytest.skip("no axe-core: pip install axe-core-python, or set AXE to axe.min.js")
    text = request.getfixturevalue(runs).read_text()
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    text = text.replace("</head>", f"<script>{script}</script><script>{RUNNER}</script></head>")
    # A window is at least 500 pixels wide, a frame as wide as it says.
    frame = f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(text)}">'
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}</iframe></body>")
    done = chromium(
        *(tmp_path, scheme, "--window-size=1400,1000"),
        *("--virtual-time-budget=100000", "--dump-dom", wrapper.as_uri()),
    )
    result = re.search(r'data-found="([^"]*)"', done.stdout)
    assert result, done.stderr[-3000:]
    found = json.loads(html.unescape(result[1]))
    assert found["dark"] == (scheme == "dark")
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["passes"] > 10
    assert found["violations"] == []


def test_light_and_dark_without_a_refused_source(page: Path, tmp_path: Path) -> None:  # noqa: F811
    brightness = {}
    for scheme in SCHEMES:
        shot = tmp_path / f"{scheme}.png"
        done = chromium(
            tmp_path, scheme, "--window-size=1000,3000", f"--screenshot={shot}", page.as_uri()
        )
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr  # a refused source is an error there
        with Image.open(shot) as picture:
            pixels = np.asarray(picture.convert("L"))
        brightness[scheme] = float(np.median(pixels))
        assert pixels.std() > 5  # not an empty page
    assert brightness["dark"] < 60
    assert brightness["light"] > 200
