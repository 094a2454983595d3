"""The cache: downloads that are whole or not there, whoever else asks and whatever breaks."""

from __future__ import annotations

import errno
import functools
import hashlib
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sslzoo
from sslzoo.backbones import SmallResNet
from sslzoo.zoo import cache
from sslzoo.zoo.cache import fetch, place, resolved
from tests.zoo.test_loading import write

CONTENT = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(NamedTuple):
    url: str
    root: Path
    asked: list[str]
    slow: threading.Event  # sends a little, then waits
    short: threading.Event  # breaks off in the middle


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, server_state: Server, **kwargs: Any) -> None:
        self.state = server_state
        super().__init__(*args, directory=str(server_state.root), **kwargs)

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.state.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if self.state.slow.is_set():
            outputfile.write(source.read(100_000))
            outputfile.flush()
            while self.state.slow.is_set():
                time.sleep(0.01)
        if self.state.short.is_set():
            outputfile.write(source.read(100_000))
            return
        super().copyfile(source, outputfile)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    root = tmp_path / "server"
    root.mkdir()
    (root / "weights.bin").write_bytes(CONTENT)
    state = Server("", root, [], threading.Event(), threading.Event())
    handler = functools.partial(_Handler, server_state=state)
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state._replace(url=f"http://127.0.0.1:{http.server_port}")
    state.slow.clear()
    http.shutdown()
    http.server_close()
    thread.join()


def target() -> Path:
    return place("entry", "weights.bin")


def left() -> list[str]:
    """What lies in the cache, locks aside (they are empty and stay)."""
    files = [path for path in cache.home().rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.suffix != ".lock")


def test_a_file_is_fetched_once(server: Server) -> None:
    urls = [f"{server.url}/weights.bin"]
    for _ in range(2):
        assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT
    assert server.asked == ["/weights.bin"]
    assert left() == ["weights.bin", "weights.bin.sha256"]


def test_two_at_once_download_once(server: Server) -> None:
    code = (
        "import sys; from sslzoo.zoo.cache import fetch, place\n"
        "fetch([sys.argv[1]], place('entry', 'weights.bin'), sys.argv[2])\n"
    )
    server.slow.set()
    command = [sys.executable, "-W", "ignore", "-c", code, f"{server.url}/weights.bin", DIGEST]
    both = [subprocess.Popen(command) for _ in range(2)]
    wait_for(lambda: len(server.asked) >= 1)
    time.sleep(0.5)
    server.slow.clear()
    assert [process.wait(120) for process in both] == [0, 0]
    assert server.asked == ["/weights.bin"]
    assert target().read_bytes() == CONTENT
    with ThreadPoolExecutor(4) as pool:
        again = pool.map(lambda _: fetch([], target(), DIGEST), range(8))
    assert {path.read_bytes() for path in again} == {CONTENT}
    assert left() == ["weights.bin", "weights.bin.sha256"]


def wait_for(fact: Any) -> None:
    deadline = time.monotonic() + 120
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_download_is_begun_anew(server: Server) -> None:
    server.slow.set()
    code = (
        "import sys; from sslzoo.zoo.cache import fetch, place\n"
        "fetch([sys.argv[1]], place('entry', 'weights.bin'), sys.argv[2])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, f"{server.url}/weights.bin", DIGEST]
    with subprocess.Popen(command) as process:
        wait_for(lambda: server.asked)
        process.send_signal(signal.SIGKILL)
    assert not target().exists()
    server.slow.clear()
    assert fetch([f"{server.url}/weights.bin"], target(), DIGEST).read_bytes() == CONTENT
    assert left() == ["weights.bin", "weights.bin.sha256"]


def test_a_download_that_breaks_off_leaves_nothing(server: Server) -> None:
    server.short.set()
    with pytest.raises(OSError, match=r"100000 of 2097152 bytes came"):
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert left() == []


def test_a_wrong_hash_leaves_nothing(server: Server) -> None:
    with pytest.raises(ValueError, match=f"{'0' * 64} wanted"):
        fetch([f"{server.url}/weights.bin"], target(), "0" * 64)
    with pytest.raises(ValueError, match=r"md5 .* 00000000 wanted"):
        fetch([f"{server.url}/weights.bin"], target(), DIGEST, md5="00000000")
    assert left() == []
    fetch([f"{server.url}/weights.bin"], target(), DIGEST[:8])
    target().write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="another file"):
        fetch([], target(), DIGEST)


@pytest.mark.parametrize("digest", ["", "0", DIGEST[:7], "x" * 8, DIGEST + "0"])
def test_a_hash_too_short_to_tell_is_refused(server: Server, digest: str) -> None:
    path = server.root / "weights.bin"
    for ask in (
        lambda: fetch([path.as_uri()], target(), digest),
        lambda: cache.check(path, digest),
        lambda: sslzoo.load("simclr-small_resnet-cifar10jpeg", sha256=digest),
        lambda: sslzoo.zoo.locate(path.as_uri(), digest),
    ):
        with pytest.raises(ValueError, match="sha256 is 8 to 64 hex digits"):
            ask()
    assert left() == []


FULL = """
import resource, signal, sys
from sslzoo.zoo.cache import fetch, place
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
fetch([sys.argv[1]], place("entry", "weights.bin"), sys.argv[2])
"""


def test_a_full_disk_is_said_and_leaves_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FULL, f"{server.url}/weights.bin", DIGEST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no space for weights.bin in" in done.stderr
    assert left() == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

    usage = cache.shutil.disk_usage(cache.home().parent)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"no space for weights.bin") as caught:
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert caught.value.errno == errno.ENOSPC
    assert left() == []


def test_mirrors_are_tried_in_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = server.root / "wrong.bin"
    wrong.write_bytes(b"something else")
    nobody = "http://127.0.0.1:9/weights.bin"
    urls = [nobody, f"{server.url}/absent", wrong.as_uri(), f"{server.url}/weights.bin"]
    assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT
    target().unlink()
    monkeypatch.setenv("SSLZOO_MIRROR", str(server.root))
    asked = len(server.asked)
    assert fetch([nobody], target(), DIGEST).read_bytes() == CONTENT
    assert len(server.asked) == asked, "a mirror may be a folder"
    target().unlink()
    monkeypatch.setenv("SSLZOO_MIRROR", server.url)
    assert fetch([nobody], target(), DIGEST).read_bytes() == CONTENT
    assert [path.rpartition("/")[2] for path in server.asked[asked:]] == ["weights.bin"] * 2
    owned = server.root / target().parent.name
    owned.mkdir()
    (owned / "weights.bin").write_bytes(b"of this owner")
    target().unlink()
    target().with_name("weights.bin.sha256").unlink()
    assert fetch([nobody], target(), "any").read_bytes() == b"of this owner"
    target().unlink()
    target().with_name("weights.bin.sha256").unlink()
    (owned / "weights.bin").unlink()
    with pytest.raises(OSError, match="cannot be fetched"):  # a bare name could be anybody's
        fetch([nobody], target(), "any")


def test_every_cached_file_has_its_hash_beside_it(server: Server) -> None:
    urls = [f"{server.url}/weights.bin"]
    fetch(urls, target(), DIGEST)
    note = target().with_name("weights.bin.sha256")
    assert note.read_text().strip() == DIGEST
    target().write_bytes(b"tampered")
    for wanted in (None, "any", DIGEST):
        with pytest.raises(ValueError, match="another file"):
            fetch(urls, target(), wanted)
    target().unlink()
    note.write_text("")  # cut off by a kill: no note
    assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT
    assert note.read_text().strip() == DIGEST


def test_no_network_names_every_address(server: Server) -> None:
    with pytest.raises(OSError, match=r"cannot be fetched.*127.0.0.1:9/a.*404") as caught:
        fetch(["http://127.0.0.1:9/a", f"{server.url}/b"], target(), DIGEST)
    assert not isinstance(caught.value, FileNotFoundError)
    assert left() == []


def test_offline_only_the_cache_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [f"{server.url}/weights.bin"]
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="SSLZOO_OFFLINE is set"):
        fetch(urls, target(), DIGEST)
    assert server.asked == []
    monkeypatch.setenv("SSLZOO_OFFLINE", "0")
    fetch(urls, target(), DIGEST)
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT


def test_an_unknown_hash_is_asked_for_and_then_kept(server: Server) -> None:
    address = (server.root / "weights.bin").as_uri()
    with pytest.raises(ValueError, match="nobody published a hash"):
        fetch([address], target())
    with pytest.raises(ValueError, match="http:// only"):
        fetch(["http://nowhere.invalid/weights.bin"], target(), "any")
    assert left() == []
    fetch([address], target(), "any")
    assert (target().parent / "weights.bin.sha256").read_text() == f"{DIGEST}\n"
    target().write_bytes(b"changed")
    with pytest.raises(ValueError, match="another file"):
        fetch([address], target(), "any")


def test_hub_addresses_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub = "https://huggingface.co/owner/name/resolve"
    assert resolved("hf://owner/name/a/b.safetensors") == f"{hub}/main/a/b.safetensors"
    assert resolved("hf://owner/name@v1/b.safetensors") == f"{hub}/v1/b.safetensors"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    assert resolved("hf://o/n/b") == "http://127.0.0.1:1/o/n/resolve/main/b"
    for wrong in ("hf://owner/name", "hf://owner", "ftp://host/file"):
        with pytest.raises(ValueError, match=r"wanted, got"):
            resolved(wrong)


def test_an_address_loads_with_the_card_beside_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = SmallResNet((8, 16)).eval()
    folder = server.root / "owner" / "name" / "resolve" / "main"
    folder.mkdir(parents=True)
    path = write(folder, net)
    x = torch.rand(2, 3, 8, 8)
    address = path.as_uri()
    loaded: Any = sslzoo.load(address)
    torch.testing.assert_close(loaded(x), net(x))
    assert loaded.card.name == "tiny"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = sslzoo.load("hf://owner/name/tiny.safetensors", sha256=digest)
    torch.testing.assert_close(loaded(x), net(x))


def test_without_a_network_no_hash_is_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"cannot be fetched: http://127.0.0.1:9/.*refused"):
        sslzoo.load("hf://owner/name/tiny.safetensors")
    for malformed in ("hf://owner/name", "hf://owner/name.safetensors"):
        with pytest.raises(ValueError, match="hf://OWNER/REPOSITORY"):
            sslzoo.load(malformed)
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"tiny.safetensors .* SSLZOO_OFFLINE is set"):
        sslzoo.load("hf://owner/name/tiny.safetensors")


def test_weights_without_a_card_are_asked_for_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = SmallResNet((8, 16)).eval()
    folder = server.root / "owner" / "name" / "resolve" / "main"
    folder.mkdir(parents=True)
    path = write(folder, net)
    path.with_suffix(".json").unlink()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for address in (path.as_uri(), "hf://owner/name/tiny.safetensors"):
        with pytest.raises(ValueError, match="nobody published a hash of tiny"):
            sslzoo.load(address)
        sslzoo.load(address, SmallResNet((8, 16)), sha256="any")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    loaded = sslzoo.load(address, SmallResNet((8, 16)))  # from the cache, and no card is sought
    torch.testing.assert_close(loaded.stem.weight, net.stem.weight)


def test_an_address_without_the_file_is_told_from_one_that_fails() -> None:
    for status, absent in ((403, True), (404, True), (401, False), (500, False)):
        error = urllib.error.HTTPError("https://host/a", status, "", Message(), None)
        assert isinstance(cache._named("https://host/a", error), FileNotFoundError) is absent


def test_a_card_from_elsewhere_names_backbones_only(server: Server) -> None:
    path = write(server.root, SmallResNet((8, 16)), backbone={"class_path": "subprocess.Popen"})
    with pytest.raises(ValueError, match=r"subprocess.Popen.*only"):
        sslzoo.load(path.as_uri())
