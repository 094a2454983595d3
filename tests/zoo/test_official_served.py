"""Every official entry, from a file of its official layout that a local https server has.

The server answers under the entry's own address, host and path; the file holds random numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import torch

import sslzoo
from sslzoo.zoo import cache, catalog, entries
from sslzoo.zoo.card import Card
from sslzoo.zoo.verifying import fixed_sample
from tests.zoo.official_files import (
    FORMS,
    encoder_bytes,
    is_listed,
    one_of_integers,
    one_wider,
    without_one,
    write_official,
)

OFFICIAL = {
    name: card for name, card in entries().items() if card.layout is not None and is_listed(name)
}
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in</body></html>\n"


# -- a server of https under the names of other hosts


class Web(NamedTuple):
    port: int
    files: dict[str, Path]  # address -> what lies there
    asked: list[str]


def certificate(folder: Path, hosts: list[str]) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with")
    made, key = folder / "certificate.pem", folder / "key.pem"
    names = ",".join(f"DNS:{host}" for host in hosts)
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", f"subjectAltName={names}"]
    subprocess.run([*command, "-out", made, "-keyout", key], check=True, capture_output=True)
    return made, key


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Path]]:
    files: dict[str, Path] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = f"https://{self.headers['Host']}{self.path}"
            asked.append(address)
            if address not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(files[address].stat().st_size))
            self.end_headers()
            with files[address].open("rb") as file:
                shutil.copyfileobj(file, self.wfile, 1 << 20)

        def log_message(self, *args: Any) -> None:
            pass

    hosts = sorted({str(urlsplit(url).hostname) for c in OFFICIAL.values() for url in c.urls})
    made, key = certificate(tmp_path_factory.mktemp("certificate"), hosts)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield Web(http.server_port, files, asked), made
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def web(server: tuple[Web, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """All hosts are the local server, whose certificate is trusted; the cache is empty."""
    state, made = server
    find = socket.getaddrinfo

    def local(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return find("127.0.0.1", state.port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    for variable in ("SSLZOO_MIRROR", "SSLZOO_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    yield state
    state.files.clear()
    state.asked.clear()


# -- what is loaded

# One entry and form of each layout, the smallest; the others are loaded before a release, from
# files in which the heads, the memory and the optimizer take their room too.
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))  # files of up to 4 GB
CASES = [(name, form) for name, card in OFFICIAL.items() for form in FORMS[str(card.layout)]]
_SMALLEST = {
    (card.layout, form): min(
        (n for n, other in OFFICIAL.items() if other.layout == card.layout), key=encoder_bytes
    )
    for name, card in OFFICIAL.items()
    for form in FORMS[str(card.layout)]
}
LARGE = 100_000_000


def chosen(name: str, form: str) -> bool:
    layout = OFFICIAL[name].layout
    # A pickle that takes 7 s (test_converters.py reads one of its layout), and a file of 88 MB
    # (test_released_vits.py loads a small one).
    if layout in ("byol", "dinov2"):
        return False
    return _SMALLEST[layout, form] == name and encoder_bytes(name) < LARGE


CASES_OF_EACH_LAYOUT = pytest.mark.parametrize(
    ("name", "form"),
    [pytest.param(*case, marks=() if chosen(*case) else SLOW) for case in CASES],
)


def published(card: Card) -> str | None:
    """The beginning of the hash that the authors published, perhaps in the file's name."""
    named = re.search(r"-([0-9a-f]{8,64})\.", card.file)
    return card.md5 or card.sha256 or (named[1] if named else None)


def publish(monkeypatch: pytest.MonkeyPatch, name: str, hashes: dict[str, str]) -> None:
    """Let an entry have other hashes, where one is published."""
    card = OFFICIAL[name]
    if published(card) is None:
        return
    kind = "md5" if card.md5 else "sha256"
    changed = dataclasses.replace(card, **{kind: hashes[kind]})
    others = [other for other in OFFICIAL.values() if other is not card]
    monkeypatch.setattr(catalog, "official_cards", lambda: (*others, changed))


def hashes_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return {kind: hashlib.new(kind, content).hexdigest() for kind in ("md5", "sha256")}


def offer(web: Web, monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> dict[str, str]:
    """Put the file where the entry's card says it is; what `load` is to be told besides."""
    if not OFFICIAL[name].urls:
        return {"file": str(path)}
    if path.is_file():
        publish(monkeypatch, name, hashes_of(path))
        web.files[OFFICIAL[name].urls[0]] = path
    return {}


def kept() -> list[str]:
    """What lies in the cache, locks aside (they are empty and stay)."""
    files = [path for path in cache.home().rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.suffix != ".lock")


def test_every_layout_of_an_official_entry_has_a_form() -> None:
    assert FORMS.keys() == {card.layout for card in OFFICIAL.values()}


@CASES_OF_EACH_LAYOUT
def test_an_official_entry_loads_by_name_in_one_line(
    name: str,
    form: str,
    web: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    heads = not chosen(name, form) and encoder_bytes(name) < 2_000_000_000
    path = write_official(name, form, tmp_path / "served", others=heads)
    record_property("bytes", sum(file.stat().st_size for file in path.parent.glob(path.name + "*")))
    told = offer(web, monkeypatch, name, path)
    encoder: Any = sslzoo.load(name, **told)
    assert web.asked == OFFICIAL[name].urls[:1]
    card = encoder.card
    assert card.name == name
    with torch.no_grad():
        features = encoder(encoder.preprocess(fixed_sample(card)))
    assert features.shape == (1, card.num_features)
    assert features.isfinite().all()
    assert features.std() > 0
    record_property("features", str(tuple(features.shape)))


BROKEN = {
    "cut off": {},
    "a weight less": {"change": without_one},
    "a weight of another shape": {"change": one_wider},
    "a weight of whole numbers": {"change": one_of_integers},
    "a page": {},
    "a command": {"command": "touch RAN"},
}


WEIGHT = {"a weight less", "a weight of another shape", "a weight of whole numbers"}


def is_quick(name: str, form: str, how: str) -> bool:
    """Encoders of which a weight is wrong have to be written whole."""
    most = 60_000_000
    pickled = FORMS[str(OFFICIAL[name].layout)][form].writer == "pickle"
    return chosen(name, form) and (
        how not in WEIGHT or (encoder_bytes(name) < most and not pickled)
    )


@pytest.mark.parametrize(
    ("name", "form", "how"),
    [
        pytest.param(*case, how, marks=() if is_quick(*case, how) else SLOW)
        for case in CASES
        for how in BROKEN
        if how != "a command" or OFFICIAL[case[0]].layout != "simclr"  # TensorFlow has no pickles
    ],
)
def test_a_broken_official_file_is_refused_in_one_sentence(
    name: str, form: str, how: str, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = "zeros" if how in WEIGHT else "small"
    path = write_official(name, form, tmp_path / "served", encoder=encoder, **BROKEN[how])
    files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}.*"))
    for file in files:
        content = file.read_bytes()
        if how == "cut off":
            file.write_bytes(content[: len(content) * 2 // 3])
        elif how == "a page":
            file.write_bytes(HTML)
    told = offer(web, monkeypatch, name, path)
    with pytest.raises((ValueError, OSError)) as caught:
        sslzoo.load(name, **told)
    said = str(caught.value)
    assert path.name in said
    assert "\n" not in said
    assert len(said) < 1000, said
    assert not (tmp_path / "RAN").exists()
    assert not kept()


@pytest.mark.parametrize("name", [n for n, c in OFFICIAL.items() if published(c)])
def test_a_published_hash_is_enforced(
    name: str, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = OFFICIAL[name]
    size = "zeros" if encoder_bytes(name) < 60_000_000 else "small"
    path = write_official(name, "", tmp_path / "served", encoder=size)
    web.files[card.urls[0]] = path
    asked: list[dict[str, str]] = [{}, {"sha256": "any"}]
    if card.md5 or card.sha256:  # a name's hash is less than the user's word
        asked.append({"sha256": hashes_of(path)["sha256"]})
    for told in asked:
        with pytest.raises(ValueError, match=f"must be {published(card)}"):
            sslzoo.load(name, **told)
    assert not kept()
