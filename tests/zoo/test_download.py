"""Downloads: redirects, stalls, resumption and certificates, with servers on this machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslzoo.zoo import cache, download
from sslzoo.zoo.cache import fetch, place
from sslzoo.zoo.download import Wanted
from tests.zoo.servers import Site, certificate, dripping, redirect, serving, silent, status
from tests.zoo.test_cache import CONTENT, DIGEST, left, wait_for

FETCH = (
    "import sys; from sslzoo.zoo.cache import fetch, place\n"
    "fetch([sys.argv[1]], place('entry', 'weights.bin'), sys.argv[2])\n"
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    with serving() as site:
        site.files["/weights.bin"] = CONTENT
        yield site


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def secure(server: Site, pem: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with serving(pem) as site:
        site.files["/weights.bin"] = CONTENT
        yield site


def target() -> Path:
    return place("entry", "weights.bin")


def test_https_is_read_where_the_certificate_is_trusted(
    secure: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"{secure.url}/weights.bin"]
    assert fetch(urls, target()).read_bytes() == CONTENT
    cache.forget(target())
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(urls, target(), DIGEST)
    assert left() == []


@pytest.mark.parametrize("known", [True, False])
def test_a_redirect_stays_as_safe_as_it_was(secure: Site, server: Site, known: bool) -> None:
    wanted = DIGEST if known else None
    secure.files["/safe"] = redirect("/weights.bin")
    assert fetch([f"{secure.url}/safe"], target(), wanted).read_bytes() == CONTENT
    cache.forget(target())
    server.files["/up"] = redirect(f"{secure.url}/weights.bin")
    assert fetch([f"{server.url}/up"], target(), wanted).read_bytes() == CONTENT
    cache.forget(target())
    for to in (
        f"{server.url}/weights.bin",
        "ftp://h/f",
        "file:///etc/hosts",
        "data:,x",
        "gopher:x",
    ):
        secure.files["/down"] = redirect(to)
        with pytest.raises((ValueError, OSError), match=r"/down: ") as caught:
            fetch([f"{secure.url}/down"], target(), wanted)
        assert len(str(caught.value).splitlines()) == 1
    assert server.asked == ["/up"]
    server.files["/out"] = redirect("http://nowhere.invalid/weights.bin")
    with pytest.raises(
        (ValueError, OSError),
        match="must be given for an http:// URL" if not known else "nowhere|Name",
    ):
        fetch([f"{server.url}/out"], target(), wanted)
    secure.files["/round"] = redirect("/round")
    with pytest.raises(OSError, match="redirects more than 10 times"):
        fetch([f"{secure.url}/round"], target(), wanted)
    assert left() == []


def test_a_token_is_not_handed_on(
    secure: Site, server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_ofmine")
    server.files["/owner/name/resolve/main/a.bin"] = redirect(f"{secure.url}/weights.bin")
    assert fetch(["hf://owner/name/a.bin"], target()).read_bytes() == CONTENT
    assert [about.get("Authorization") for about in server.headers] == ["Bearer hf_ofmine"]
    assert [about.get("Authorization") for about in secure.headers] == [None]


@pytest.mark.parametrize("behavior", [dripping(True), dripping(False), silent()])
@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_server_that_stalls_is_left(
    server: Site, secure: Site, behavior: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.3)
    site = server if kind == "http" else secure
    site.files["/weights.bin"] = behavior
    began = time.monotonic()
    with pytest.raises(
        OSError, match=r"the server stalls: fewer than 65536 bytes came within 0.3 seconds"
    ):
        fetch([f"{site.url}/weights.bin"], target(), DIGEST)
    assert time.monotonic() - began < 5
    assert left() == []


def test_a_server_that_is_slow_but_gives_is_waited_for(
    server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(download, "STALL_BYTES", 1)
    server.files["/weights.bin"] = dripping(False, every=0.02, count=80)
    with pytest.raises(OSError, match=r"80 of 1000000 bytes came"):
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert left() == []


def test_a_broken_download_goes_on_where_it_broke_off(server: Site) -> None:
    server.ranges, server.cut = True, 600_000
    assert fetch([f"{server.url}/weights.bin"], target(), DIGEST).read_bytes() == CONTENT
    ranges = [about.get("Range") for about in server.headers]
    assert ranges == [None, "bytes=600000-", "bytes=1200000-", "bytes=1800000-"]
    assert len({about.get("If-Range") for about in server.headers[1:]}) == 1
    assert left() == ["weights.bin", "weights.bin.sha256"]


def test_a_later_call_resumes_and_an_end_without_progress_is_said(server: Site) -> None:
    server.ranges, server.cut = True, 100_000
    with pytest.raises(
        OSError, match="the connection broke 5 times: only 500000 of 2097152 bytes came"
    ):
        fetch([f"{server.url}/weights.bin"], target())
    assert left() == ["weights.bin.part.bin", "weights.bin.part.bin.from"]
    server.cut = 0
    with pytest.raises(OSError, match="500000 of 2097152 bytes came"):
        fetch([f"{server.url}/weights.bin"], target())
    server.cut, server.files["/weights.bin"] = None, status(503)
    with pytest.raises(OSError, match="HTTP 503"):
        fetch([f"{server.url}/weights.bin"], target())
    server.files["/weights.bin"] = CONTENT
    assert fetch([f"{server.url}/weights.bin"], target()).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == "bytes=500000-"
    assert left() == ["weights.bin", "weights.bin.sha256"]


def test_a_killed_download_is_resumed(server: Site) -> None:
    server.ranges = True
    server.slow.set()
    command = [sys.executable, "-W", "ignore", "-c", FETCH, f"{server.url}/weights.bin", DIGEST]
    part = target().with_name("weights.bin.part.bin")
    with subprocess.Popen(command) as process:
        wait_for(lambda: part.is_file() and part.stat().st_size > 0)
        process.kill()
    assert not target().exists()
    server.slow.clear()
    assert fetch([f"{server.url}/weights.bin"], target(), DIGEST).read_bytes() == CONTENT
    assert "Range" in server.headers[-1]
    assert left() == ["weights.bin", "weights.bin.sha256"]


@pytest.mark.parametrize("obeys", ["If-Range", "nothing", "no range"])
def test_no_two_versions_are_put_together(server: Site, obeys: str) -> None:
    """A server may heed If-Range, send the rest of another version, or know no ranges."""
    server.ranges, server.cut = True, 100_000
    with pytest.raises(OSError, match="bytes came"):
        fetch([f"{server.url}/weights.bin"], target())
    other, server.cut = CONTENT[::-1], None
    server.files["/weights.bin"] = other

    def rest(handler: Any) -> None:
        begin = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if begin else 200)
        handler.send_header("ETag", '"another"')
        if begin:
            handler.send_header("Content-Range", f"bytes {begin}-{len(other) - 1}/{len(other)}")
        handler.send_header("Content-Length", str(len(other) - begin))
        handler.end_headers()
        handler.wfile.write(other[begin:])

    if obeys == "nothing":
        server.files["/weights.bin"] = rest
    server.ranges = obeys != "no range"
    assert fetch([f"{server.url}/weights.bin"], target()).read_bytes() == other
    assert left() == ["weights.bin", "weights.bin.sha256"]


def test_what_another_address_began_is_not_gone_on_with(server: Site) -> None:
    server.ranges, server.cut = True, 100_000
    with pytest.raises(OSError, match="bytes came"):
        fetch([f"{server.url}/weights.bin"], target())
    server.cut, server.files["/other.bin"] = None, CONTENT[::-1]
    assert fetch([f"{server.url}/other.bin"], target()).read_bytes() == CONTENT[::-1]
    assert "Range" not in server.headers[-1]


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "x"])
def test_an_absurd_length_is_one_sentence(server: Site, length: str) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(b"x" * 100)

    server.files["/weights.bin"] = answer
    with pytest.raises((OSError, ValueError)) as caught:
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert len(str(caught.value).splitlines()) == 1
    assert left() == []


def test_a_size_is_kept_to(server: Site, tmp_path: Path) -> None:
    part = tmp_path / "part"
    with pytest.raises(ValueError, match="at most 1000 bytes, got 2097152"):
        download.download(f"{server.url}/weights.bin", part, Wanted("weights", most=1000))

    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"{" * 10_000)

    server.files["/weights.bin"] = endless
    with pytest.raises(ValueError, match="at most 1000 bytes, got more"):
        download.download(f"{server.url}/weights.bin", part, Wanted("weights", most=1000))
    assert not part.exists()


def test_bytes_that_are_packed_are_not_taken_for_the_file(server: Site) -> None:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)

    server.files["/weights.bin"] = answer
    with pytest.raises(OSError, match="got the encoding 'gzip'"):
        fetch([f"{server.url}/weights.bin"], target(), hashlib.sha256(b"x" * 10).hexdigest())
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_a_proxy_is_asked(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.files["http://nowhere.invalid/weights.bin"] = CONTENT
    path = fetch(["http://nowhere.invalid/weights.bin"], target(), DIGEST)
    assert path.read_bytes() == CONTENT


def test_progress_is_shown_on_a_terminal_alone(
    server: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert capfd.readouterr() == ("", "")
    cache.forget(target())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "weights.bin" in shown.err


def test_names_and_lists_need_no_network_library() -> None:
    code = (
        "import sys, sslzoo.zoo.cache, sslzoo.zoo.catalog as l; l.list_models()\n"
        "print([m for m in ('httpx2', 'huggingface_hub', 'rich', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
