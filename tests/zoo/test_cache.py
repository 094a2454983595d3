"""The cache: downloads that are whole or not there, whoever else asks and whatever breaks."""

from __future__ import annotations

import errno
import hashlib
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sslzoo
from sslzoo.backbones import SmallResNet
from sslzoo.zoo import cache, download
from sslzoo.zoo.cache import fetch, hash_in_name, place, resolved
from sslzoo.zoo.catalog import entries
from sslzoo.zoo.weights_file import locate
from tests.zoo.servers import Site, serving, status
from tests.zoo.test_load import small_card, write

CONTENT = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    with serving() as site:
        site.files["/weights.bin"] = CONTENT
        yield site


def target() -> Path:
    return place("entry", "weights.bin")


def left() -> list[str]:
    """What lies in the cache; beside what was kept also its lock, which is empty."""
    files = [path.name for path in cache.home().rglob("*") if path.is_file()]
    kept = sorted(name for name in files if not name.endswith(".lock"))
    assert kept or not list(cache.home().rglob("*")), "not even a folder"
    return kept


def test_a_file_is_fetched_once(server: Site) -> None:
    urls = [f"{server.url}/weights.bin"]
    for _ in range(2):
        assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT
    assert server.asked == ["/weights.bin"]
    assert left() == ["weights.bin", "weights.bin.sha256"]


def test_two_at_once_download_once(server: Site) -> None:
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


def test_a_killed_download_is_begun_anew(server: Site) -> None:
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


def test_a_download_that_breaks_off_leaves_nothing(server: Site) -> None:
    server.cut = 100_000
    with pytest.raises(OSError, match=r"100000 of 2097152 bytes came"):
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert left() == []


def test_a_wrong_hash_leaves_nothing(server: Site) -> None:
    with pytest.raises(ValueError, match=f"must be {'0' * 64}, got"):
        fetch([f"{server.url}/weights.bin"], target(), "0" * 64)
    with pytest.raises(ValueError, match=r"md5 of .* must be 00000000, got"):
        fetch([f"{server.url}/weights.bin"], target(), DIGEST, md5="00000000")
    assert left() == []


def test_a_damaged_file_is_fetched_again_where_its_hash_is_known(
    server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"{server.url}/weights.bin"]
    for wanted, md5 in ((DIGEST[:8], None), (None, None), (None, hashlib.md5(CONTENT).hexdigest())):
        fetch(urls, target(), DIGEST)
        target().write_bytes(CONTENT[:-1])
        assert fetch(urls, target(), wanted, md5).read_bytes() == CONTENT
        assert left() == ["weights.bin", "weights.bin.sha256"]
    target().write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"got [0-9a-f]*, and it has no URL"):
        fetch([], target(), DIGEST)
    with pytest.raises(ValueError, match=r"must be 0{64}, got"):
        fetch(urls, target(), "0" * 64)
    assert target().read_bytes() == CONTENT[:-1], "replaced by a right one only"
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"must be .*, and SSLZOO_OFFLINE is set"):
        fetch(urls, target(), DIGEST)


@pytest.mark.parametrize("digest", ["", "0", DIGEST[:7], "x" * 8, DIGEST + "0"])
def test_a_hash_too_short_to_tell_is_refused(server: Site, tmp_path: Path, digest: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    for ask in (
        lambda: fetch([path.as_uri()], target(), digest),
        lambda: cache.check(path, digest),
        lambda: sslzoo.load("simclr-small_resnet-cifar10jpeg", sha256=digest),
        lambda: sslzoo.zoo.locate(path.as_uri(), digest),
    ):
        with pytest.raises(ValueError, match="sha256 must be 8 to 64 hex digits"):
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
    server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FULL, f"{server.url}/weights.bin", DIGEST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no space for weights.bin in" in done.stderr
    assert left() == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

    usage = download.shutil.disk_usage(cache.home().parent)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"no space for weights.bin") as caught:
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)
    assert caught.value.errno == errno.ENOSPC
    assert left() == []


def test_mirrors_are_tried_in_turn(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mirror"
    owned = folder / target().parent.name
    owned.mkdir(parents=True)
    (folder / "wrong.bin").write_bytes(b"something else")
    (folder / "weights.bin").write_bytes(CONTENT)
    nobody, wrong = "http://127.0.0.1:9/weights.bin", (folder / "wrong.bin").as_uri()
    urls = [nobody, f"{server.url}/absent", wrong, f"{server.url}/weights.bin"]
    assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT
    target().unlink()
    monkeypatch.setenv("SSLZOO_MIRROR", str(folder))
    asked = len(server.asked)
    assert fetch([nobody], target(), DIGEST).read_bytes() == CONTENT
    assert len(server.asked) == asked, "a mirror may be a folder"
    target().unlink()
    monkeypatch.setenv("SSLZOO_MIRROR", server.url)
    assert fetch([nobody], target(), DIGEST).read_bytes() == CONTENT
    assert server.asked[asked:] == ["/entry/weights.bin", "/weights.bin"]
    (owned / "weights.bin").write_bytes(b"of this owner")
    cache.forget(target())
    monkeypatch.setenv("SSLZOO_MIRROR", str(folder))
    assert fetch([nobody], target()).read_bytes() == b"of this owner"
    cache.forget(target())
    (owned / "weights.bin").unlink()
    with pytest.raises(OSError, match="cannot be fetched"):  # a bare name could be anybody's
        fetch([nobody], target())


@pytest.mark.parametrize("offline", ["0", "1"])
@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_file_that_is_put_where_the_error_says_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: str, sha256: str | None
) -> None:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SSLZOO_OFFLINE", offline)
    nobody = ["http://127.0.0.1:9/weights.bin"]
    with pytest.raises(OSError, match=re.escape(nobody[0])) as caught:
        fetch(nobody, target(), sha256)
    (where,) = re.findall(r"put it at FOLDER/(\S+) with SSLZOO_MIRROR=FOLDER", str(caught.value))
    (tmp_path / where).parent.mkdir()
    (tmp_path / where).write_bytes(CONTENT)
    monkeypatch.setenv("SSLZOO_MIRROR", str(tmp_path))
    assert fetch(nobody, target(), sha256).read_bytes() == CONTENT


def test_every_cached_file_has_its_hash_beside_it(server: Site) -> None:
    urls = [f"{server.url}/weights.bin"]
    fetch(urls, target(), DIGEST)
    note = target().with_name("weights.bin.sha256")
    assert note.read_text().strip() == DIGEST
    target().unlink()
    note.write_text("")  # cut off by a kill: no note
    assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT
    assert note.read_text().strip() == DIGEST


def test_no_network_names_every_address(server: Site) -> None:
    with pytest.raises(OSError, match=r"cannot be fetched.*127.0.0.1:9/a.*404") as caught:
        fetch(["http://127.0.0.1:9/a", f"{server.url}/b"], target(), DIGEST)
    assert not isinstance(caught.value, FileNotFoundError)
    assert left() == []


def test_offline_only_the_cache_answers(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [f"{server.url}/weights.bin"]
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="SSLZOO_OFFLINE is set"):
        fetch(urls, target(), DIGEST)
    assert server.asked == []
    monkeypatch.setenv("SSLZOO_OFFLINE", "0")
    fetch(urls, target(), DIGEST)
    monkeypatch.setenv("SSLZOO_OFFLINE", "1")
    assert fetch(urls, target(), DIGEST).read_bytes() == CONTENT


def test_the_first_use_is_trusted_said_and_enforced(
    server: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    urls, note = [f"{server.url}/weights.bin"], target().with_name("weights.bin.sha256")
    for _ in range(2):
        assert fetch(urls, target(), who="entry").read_bytes() == CONTENT
    assert capsys.readouterr().err == (
        f"entry: no published hash; recorded sha256 {DIGEST} in {note}; it is enforced from "
        "now on\n"
    )
    server.files["/weights.bin"] = b"a new version"
    assert fetch(urls, target()).read_bytes() == CONTENT
    target().unlink()  # the note still says what is wanted
    for wanted in (None, "any"):
        with pytest.raises(ValueError, match=rf"unlike at its first use.*{note}") as caught:
            fetch(urls, target(), wanted)
        assert "b'a new version'" in str(caught.value)
    note.unlink()
    assert fetch(urls, target()).read_bytes() == b"a new version"
    note.unlink()  # nothing tells that the file is the one that was trusted
    assert fetch(urls, target()).read_bytes() == b"a new version"
    assert len(server.asked) == 5


def test_strict_asks_for_a_hash(server: Site) -> None:
    urls = [f"{server.url}/weights.bin"]
    with pytest.raises(ValueError, match=r"weights.bin must have a published hash .* pass sha256="):
        fetch(urls, target(), strict=True)
    with pytest.raises(FileNotFoundError, match="HTTP 404"):  # told first: no hash would help
        fetch([f"{server.url}/absent"], target(), strict=True)
    with pytest.raises(OSError, match="refused"):
        fetch(["http://127.0.0.1:9/weights.bin"], target(), strict=True)
    with pytest.raises(ValueError, match="must be given for an http:// URL"):
        fetch(["http://nowhere.invalid/weights.bin"], target())
    assert left() == []
    for wanted in (DIGEST, "any"):
        assert fetch(urls, target(), wanted, strict=True).read_bytes() == CONTENT
        cache.forget(target())


def test_a_published_hash_goes_over_that_of_the_first_use(server: Site) -> None:
    urls = [f"{server.url}/weights.bin"]
    server.files["/weights.bin"] = b"tampered with"
    fetch(urls, target())
    server.files["/weights.bin"] = CONTENT
    assert fetch(urls, target(), DIGEST[:8]).read_bytes() == CONTENT
    target().write_bytes(b"damaged")  # the whole hash was written down
    server.files["/weights.bin"] = b"tampered with"
    with pytest.raises(ValueError, match=f"must be {DIGEST}, got"):
        fetch(urls, target(), DIGEST[:8])


def test_the_hash_in_a_name_is_enforced(server: Site) -> None:
    for name, found in {
        "60k_epoch4-d0f474de.pt": "d0f474de",
        "resnet-0123456789abcdef.pth.tar": "0123456789abcdef",
        "net-20220825-b8fa0ee6.pth": "b8fa0ee6",
        "net-20220825.pth": None,  # a date
        "net-abc.pth": None,
        "net_d0f474de.pth": None,
        "mae-vit_base-imagenet.pth": None,
    }.items():
        assert hash_in_name(name) == found
    right = place("entry", f"net-{DIGEST[:8]}.bin")
    assert fetch([f"{server.url}/weights.bin"], right, strict=True).read_bytes() == CONTENT
    for wanted in (None, "any"):
        with pytest.raises(ValueError, match="must be d0f474de, got"):
            fetch([f"{server.url}/weights.bin"], place("entry", "net-d0f474de.bin"), wanted)


def test_what_cannot_be_read_takes_no_place(server: Site) -> None:
    server.files["/weights.bin"] = b"<!DOCTYPE html><html><body>Log in, please"

    def parse(path: Path) -> None:
        assert path.suffix == ".bin"
        raise ValueError(f"{path} is not a whole file")

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fetch([f"{server.url}/weights.bin"], target(), parse=parse)
    for part in (server.url, str(target()), "an HTML page (perhaps", "b'<!DOCTYPE html>"):
        assert part in str(caught.value)
    assert ".part" not in str(caught.value)
    assert left() == []
    server.files["/weights.bin"] = CONTENT
    assert fetch([f"{server.url}/weights.bin"], target(), parse=Path.stat).read_bytes() == CONTENT


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/home", "/proc/home"])
def test_a_cache_that_cannot_be_written_is_said(
    server: Site, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("SSLZOO_HOME", home)
    with pytest.raises(OSError, match=rf"the cache {home} cannot be written.*set SSLZOO_HOME"):
        fetch([f"{server.url}/weights.bin"], target(), DIGEST)


NO_NAMES = ["", ".", "..", "../..", "a/b", "/etc", "a\\b", "a\0b", "a\nb", "x" * 300, "\ud800"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_name_leads_out_of_the_cache(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for owner, file in ((name, "weights.bin"), ("entry", name)):
        with pytest.raises(ValueError, match="name must be plain"):
            place(owner, file)
    for field in ("name", "file"):
        with pytest.raises(ValueError, match=f"{field} must be a plain file name"):
            sslzoo.zoo.card_of(small_card(**{field: name}), "here")
    assert list(tmp_path.rglob("*")) == []


def test_every_entry_has_its_place() -> None:
    for card in entries().values():
        assert place(card.name, card.file).is_relative_to(cache.home())


def test_hub_addresses_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub = "https://huggingface.co/owner/name/resolve"
    assert resolved("hf://owner/name/a/b.safetensors") == f"{hub}/main/a/b.safetensors"
    assert resolved("hf://owner/name@v1/b.safetensors") == f"{hub}/v1/b.safetensors"
    assert resolved("hf://owner/name@refs%2Fpr%2F1/b c") == f"{hub}/refs%2Fpr%2F1/b%20c"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    assert resolved("hf://o/n/b") == "http://127.0.0.1:1/o/n/resolve/main/b"
    for wrong in ("hf://owner/name", "hf://owner", "ftp://host/file", "https://", "https:///a"):
        with pytest.raises(ValueError, match=r"must .*, got"):
            resolved(wrong)


def hub(site: Site, net: Any, tmp_path: Path, **changes: Any) -> Path:
    """Weights and card in a repository of a Hub."""
    folder = tmp_path / "repository"
    folder.mkdir(exist_ok=True)
    path = write(folder, net, **changes)
    for file in folder.iterdir():
        site.files[f"/owner/name/resolve/main/{file.name}"] = file.read_bytes()
    return path


def test_a_file_of_the_hub_loads_with_its_card(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    net = SmallResNet((8, 16)).eval()
    path = hub(server, net, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_ofmine")
    loaded: Any = sslzoo.load("hf://owner/name/tiny.safetensors")
    torch.testing.assert_close(loaded.stem.weight, net.stem.weight)
    assert loaded.card.name == "tiny"
    assert {about["Authorization"] for about in server.headers} == {"Bearer hf_ofmine"}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sslzoo.load("hf://owner/name/tiny.safetensors", sha256=digest)
    with pytest.raises(ValueError, match="sha256 must be that of the card"):
        sslzoo.load("hf://owner/name@main/tiny.safetensors", sha256="0" * 64)
    assert capsys.readouterr().err == "", "the card's hash is published"


def test_the_hub_is_left_alone_offline(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for variable in ("HF_HUB_OFFLINE", "SSLZOO_OFFLINE"):
        monkeypatch.setenv(variable, "1")
        with pytest.raises(FileNotFoundError, match=rf"tiny.safetensors .* {variable} is set"):
            sslzoo.load("hf://owner/name/tiny.safetensors")
        monkeypatch.delenv(variable)
    assert server.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch([f"{server.url}/weights.bin"], target(), DIGEST).read_bytes() == CONTENT


def test_without_a_network_no_hash_is_asked_for(
    server: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        OSError,
        match=r"cannot be fetched: http://127.0.0.1:9/.*refused.*download it by hand.*file=PATH",
    ):
        sslzoo.load("hf://owner/name/tiny.safetensors")
    for malformed in ("hf://owner/name", "hf://owner/name.safetensors", "hf://x"):
        with pytest.raises(ValueError, match="hf://OWNER/REPOSITORY"):
            sslzoo.load(malformed)


def test_weights_without_a_card_are_trusted_at_first_use(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    net = SmallResNet((8, 16)).eval()
    hub(server, net, tmp_path)
    del server.files["/owner/name/resolve/main/tiny.json"]
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    address = "hf://owner/name/tiny.safetensors"
    with pytest.raises(ValueError, match=r"tiny.safetensors must have a published hash"):
        locate(address, strict=True)
    assert left() == []
    for sha256 in ("any", None):
        sslzoo.load(address, SmallResNet((8, 16)), sha256=sha256)
    assert capsys.readouterr().err.count("no published hash; recorded sha256") == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    loaded: Any = sslzoo.load(address, SmallResNet((8, 16)))  # from the cache; no card is sought
    torch.testing.assert_close(loaded.stem.weight, net.stem.weight)


def test_any_reaches_a_file_whose_card_has_no_hash(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    hub(server, SmallResNet((8, 16)), tmp_path, sha256=None)
    address = "hf://owner/name/tiny.safetensors"
    with pytest.raises(ValueError, match=r"tiny.safetensors must have a published hash"):
        locate(address, strict=True)
    assert left() == []
    found = locate(address, "any", strict=True)
    assert found.card is not None
    assert left() == [
        f"tiny{end}" for end in (".json", ".json.sha256", ".safetensors", ".safetensors.sha256")
    ]


def test_an_entry_is_held_to_its_card_before_it_is_kept(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    net = SmallResNet((8, 16))
    folder = cache.home() / "entries"
    folder.mkdir(parents=True)
    path = write(folder, net, sha256=None, urls=[f"{server.url}/tiny.safetensors"])
    right, before = path.read_bytes(), left()
    path.unlink()
    before.remove("tiny.safetensors")
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    first = next(iter(state))
    broken = {
        "does not fit SmallResNet": {**state, "more": torch.ones(1)},
        "1 of another shape": {**state, first: torch.ones(1)},
        "got NaN or infinity": {**state, first: state[first] / 0},
        "floats for integers": {**state, first: state[first].long()},
    }
    for said, tensors in broken.items():
        save_file(tensors, path)
        server.files["/tiny.safetensors"] = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=rf"{server.url}/tiny.safetensors: .*{said}"):
            sslzoo.load("tiny")
        assert left() == before
    server.files["/tiny.safetensors"] = right
    sslzoo.load("tiny")
    assert capsys.readouterr().err.startswith("tiny: no published hash; recorded sha256 ")


def test_a_file_of_this_machine_is_read_where_it_is(server: Site, tmp_path: Path) -> None:
    path = tmp_path / "net #1.safetensors"
    for _ in range(2):
        net = SmallResNet((8, 16)).to(memory_format=torch.contiguous_format)
        save_file(net.state_dict(), path)
        loaded: Any = sslzoo.load(path.as_uri(), SmallResNet((8, 16)))
        torch.testing.assert_close(loaded.stem.weight, net.stem.weight)
    with pytest.raises(ValueError, match="must have a published hash"):
        locate(path.as_uri(), strict=True)
    assert locate(path.as_uri(), "any", strict=True).path == path
    with pytest.raises(ValueError, match=r"must be 0{64}, got"):
        locate(path.as_uri(), "0" * 64)
    assert left() == []


@pytest.mark.parametrize("code", [403, 404, 410, 401, 429, 500])
def test_an_address_without_the_file_is_told_from_one_that_fails(server: Site, code: int) -> None:
    server.files["/weights.bin"] = status(code)
    with pytest.raises(OSError, match=f"HTTP {code}") as caught:
        fetch([f"{server.url}/weights.bin"], target())
    assert isinstance(caught.value, FileNotFoundError) is (code in (403, 404, 410))
    assert left() == []


def test_a_card_from_elsewhere_names_backbones_only(
    server: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub(server, SmallResNet((8, 16)), tmp_path, backbone={"class_path": "subprocess.Popen"})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for address in (path.as_uri(), "hf://owner/name/tiny.safetensors"):
        with pytest.raises(ValueError, match=r"got .subprocess\.Popen., which is defined in"):
            sslzoo.load(address)
    assert left() == []
