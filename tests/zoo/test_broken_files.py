"""Files that are broken, odd or hostile, from everywhere: one sentence, and nothing is kept."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import sslzoo
from sslzoo.backbones import SmallResNet
from sslzoo.zoo import cache
from tests.zoo.servers import Site, serving
from tests.zoo.test_load import small_card

NET = SmallResNet((8, 16)).to(memory_format=torch.contiguous_format)
STATE = {name: value.clone() for name, value in NET.state_dict().items()}
FIRST = "stem.weight"
PLACES = ("path", "file", "http")


def torch_file(content: Any, **options: Any) -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, held, **options)
    return held.getvalue()


def header(text: bytes, length: int | None = None, rest: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def one(dtype: str, shape: Any, offsets: Any) -> bytes:
    text = json.dumps({FIRST: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return header(text, rest=b"\0" * 64)


def packed(content: bytes) -> bytes:
    """The zip of a torch file with its entries compressed."""
    held = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    return held.getvalue()


def zip_of(content: bytes) -> bytes:
    """A torch file whose pickle is this."""
    held = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_file({}))) as old,
        zipfile.ZipFile(held, "w") as new,
    ):
        for part in old.infolist():
            is_pickle = part.filename.endswith("data.pkl")
            new.writestr(part.filename, content if is_pickle else old.read(part))
    return held.getvalue()


# {((((...)))): 1}
DEEP_KEY = b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u."


def program() -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), held)
    return held.getvalue()


def with_first(value: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**STATE, FIRST: value}


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def sparse() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return STATE[FIRST].to_sparse()


PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>"
SHAPE = STATE[FIRST].shape

SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "a login page": lambda: PAGE,
    "empty": lambda: b"",
    "one byte": lambda: b"x",
    "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n",
    "cut off": lambda: save(STATE)[:-10],
    "too long": lambda: save(STATE) + b"more",
    "a huge header": lambda: header(b"{}", length=2**63 - 1),
    "a header past the end": lambda: header(b"{}", length=1000),
    "a header that is no JSON": lambda: header(b"{nonsense}"),
    "a header of arrays": lambda: header(b"[1, 2]"),
    "a deep header": lambda: header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "absurd sizes": lambda: one("F32", [2**40, 2**40], [0, 64]),
    "overflowing sizes": lambda: one("F32", [2**32, 2**32], [0, 0]),
    "offsets backwards": lambda: one("F32", [16], [64, 0]),
    "offsets past the end": lambda: one("F32", [160], [0, 640]),
    "negative sizes": lambda: one("F32", [-1], [0, 64]),
    "an unknown type": lambda: one("F99", [16], [0, 64]),
    "a type of half bytes": lambda: one("F4", [128], [0, 64]),
    "no tensors": lambda: header(b"{}"),
    "a torch file": lambda: torch_file(STATE),
    "another shape": lambda: save(with_first(torch.ones(3))),
    "zero size": lambda: save(with_first(torch.ones(0))),
    "a missing tensor": lambda: save({n: v for n, v in STATE.items() if n != FIRST}),
    "one more tensor": lambda: save({**STATE, "more": torch.ones(1)}),
    "NaN": lambda: save(with_first(STATE[FIRST] * float("nan"))),
    "infinity": lambda: save(with_first(STATE[FIRST] / 0)),
    "half NaN": lambda: save(with_first((STATE[FIRST] * float("nan")).half())),
    "float8 NaN": lambda: save(with_first(torch.full(SHAPE, torch.nan).to(torch.float8_e5m2))),
    "whole numbers": lambda: save(with_first(STATE[FIRST].long())),
    "complex": lambda: save(with_first(STATE[FIRST].to(torch.complex64))),
}

TORCH: dict[str, Callable[[], bytes]] = {
    "a login page": lambda: PAGE,
    "empty": lambda: b"",
    "one byte": lambda: b"x",
    "text": lambda: b"Not found\n" * 100,
    "cut off": lambda: torch_file(STATE)[:-100],
    "cut in half": lambda: torch_file(STATE)[:3000],
    "an old one cut off": lambda: torch_file(STATE, _use_new_zipfile_serialization=False)[:-50],
    "an old one cut in half": lambda: torch_file(STATE, _use_new_zipfile_serialization=False)[:900],
    "a zip bomb": lambda: packed(torch_file({FIRST: torch.zeros(2_000_000)})),
    "another zip": lambda: packed(torch_file({})).replace(b"data.pkl", b"else.pkl"),
    "a program": program,
    "a list": lambda: torch_file([1, 2]),
    "a number": lambda: torch_file(3),
    "a tensor": lambda: torch_file(torch.ones(3)),
    "numbers as names": lambda: torch_file({3: torch.ones(3)}),
    "text as weights": lambda: torch_file({FIRST: "weights"}),
    "a plain pickle": lambda: pickle.dumps({FIRST: [1.0]}),
    "a class": lambda: torch_file({FIRST: Path("x")}),
    "safetensors": lambda: save(STATE),
    "sparse": lambda: torch_file(with_first(sparse())),
    "quantized": lambda: torch_file(with_first(quantized())),
    "nested": lambda: torch_file(with_first(nested())),
    "meta": lambda: torch_file(with_first(STATE[FIRST].to("meta"))),
    "repeated": lambda: torch_file(with_first(torch.zeros(1).expand(SHAPE))),
    "complex": lambda: torch_file(with_first(STATE[FIRST].to(torch.complex64))),
    "NaN": lambda: torch_file(with_first(STATE[FIRST] * float("nan"))),
    "zero size": lambda: torch_file(with_first(torch.ones(0))),
    "a key too deep to be hashed": lambda: zip_of(DEEP_KEY),
    "an old one with such a key": lambda: torch_file(
        {}, _use_new_zipfile_serialization=False
    ).replace(b"\x80\x02}q\x00.", DEEP_KEY),
}

CARDS: dict[str, Callable[[], bytes]] = {
    "a login page": lambda: PAGE,
    "empty": lambda: b"",
    "deep": lambda: b"[" * 100_000,
    "fairly deep": lambda: card(score={"a": eval("[" * 90 + "]" * 90)}),
    "huge": lambda: card(note="x" * 2_000_000),
    "NaN": lambda: card(score={"a": float("nan")}),
    "infinity": lambda: card(score={"a": 1.0}).replace(b"1.0}", b"1e999}"),
    "a huge number": lambda: card(epochs=1).replace(b'"epochs": 1', b'"epochs": ' + b"9" * 5000),
    "not UTF-8": lambda: card(data="\xff").replace(b"\\u00ff", b"\xff"),
    "UTF-16": lambda: card().decode().encode("utf-16"),
    "a key twice": lambda: card().replace(b'"name"', b'"name": "x", "name"'),
    "a list": lambda: b"[]",
    "a number": lambda: b"3",
    "null": lambda: b"null",
    "no key": lambda: b"{}",
    "an unknown key": lambda: card(hash="x"),
    "another type": lambda: card(num_features="16"),
    "a path": lambda: card(file="../../x.safetensors"),
    "an escape sequence": lambda: card(data="\x1b[2Jcleared"),
    "half a character": lambda: card(data="\ud800"),
    "another width": lambda: card(num_features=17),
    "a hash of another": lambda: card(sha256="0" * 64),
    "no such class": lambda: card(backbone={"class_path": "sslzoo.backbones.Nothing"}),
    "a wrong argument": lambda: card(
        backbone={"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"width": 3}}
    ),
    "more channels than memory": lambda: card(preprocessing={"size": 32, "channels": 10**12}),
    "more channels than numbers": lambda: card(preprocessing={"size": 32, "channels": 10**30}),
    "a mean that is no float": lambda: card(preprocessing={"size": 32, "mean": [10**400] * 3}),
    "an argument that an assertion refuses": lambda: card(
        backbone={
            "class_path": "torch.nn.MultiheadAttention",
            "init_args": {"embed_dim": 10, "num_heads": 3},
        }
    ),
    "a width that is no number of torch's": lambda: card(
        backbone={"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [10**30]}}
    ),
}


def card(**changes: Any) -> bytes:
    return json.dumps(small_card(**changes)).encode()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    with serving() as site:
        yield site


def put(site: Site, folder: Path, place: str, files: dict[str, bytes]) -> str:
    """Files at a place, and what leads to the first of them there."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
        site.files[f"/{name}"] = content
    first = next(iter(files))
    return {
        "path": str(folder / first),
        "file": (folder / first).as_uri(),
        "http": f"{site.url}/{first}",
    }[place]


def refused(name: str, **options: Any) -> str:
    """The sentence with which a name is refused; the cache is as it was."""
    before = sorted(cache.home().rglob("*"))
    with pytest.raises((ValueError, OSError)) as caught:
        sslzoo.load(name, **options)
    said = str(caught.value)
    assert said
    assert len(said.splitlines()) == 1, said
    assert len(said) < 2000
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, SystemError)
    assert sorted(cache.home().rglob("*")) == before
    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SAFETENSORS)
def test_broken_safetensors(server: Site, tmp_path: Path, kind: str, place: str) -> None:
    files = {"tiny.safetensors": SAFETENSORS[kind](), "tiny.json": card()}
    said = refused(put(server, tmp_path, place, files))
    assert "tiny.safetensors" in said or FIRST in said
    if place == "http":
        assert server.url in said
        assert "begins with b" in said or "it is empty" in said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TORCH)
def test_broken_torch_files(server: Site, tmp_path: Path, kind: str, place: str) -> None:
    """As those of an entry whose card names a layout, so that they are held to it."""
    files = {"tiny.pth": TORCH[kind]()}
    address = put(server, tmp_path, place, files)
    if place == "path":
        refused(address, backbone=SmallResNet((8, 16)))
        return
    entries = cache.home() / "entries"
    entries.mkdir(parents=True)
    about = card(file="tiny.pth", layout="torchvision", urls=[address])
    (entries / "tiny.json").write_bytes(about)
    said = refused("tiny")
    assert "tiny.pth" in said
    assert address in said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", CARDS)
def test_broken_cards(server: Site, tmp_path: Path, kind: str, place: str) -> None:
    files = {"tiny.safetensors": save(STATE), "tiny.json": CARDS[kind]()}
    refused(put(server, tmp_path, place, files))


def test_a_whole_file_loads_from_every_place(server: Site, tmp_path: Path) -> None:
    for place in PLACES:
        files = {"tiny.safetensors": save(STATE), "tiny.json": card()}
        loaded: Any = sslzoo.load(put(server, tmp_path, place, files))
        torch.testing.assert_close(loaded.stem.weight, STATE[FIRST])


NO_NAMES: list[Any] = [
    *(None, 3, 1.5, b"path", [], {}, True),
    *("", " ", ".", "..", "/", "a\0b", "a\nb", "x" * 300, "x" * 100_000, "\ud800"),
    *("file:///etc/hosts", "file:///", "file://", "file:///etc", "file:///dev/zero", "/dev/zero"),
    *("file://elsewhere/etc/hosts", "file:///a%00b", "file:///nowhere.safetensors"),
    *("https://", "https:///x", "https://h:port/x", "https://[::1/x", "http://", "://", "a://b"),
    *("hf://", "hf://x", "hf://x/y", "hf://x/y/", "hf://../../x", "ftp://h/x", "data://x"),
    *("https://127.0.0.1:9/", "https://127.0.0.1:9/..", "https://127.0.0.1:9/a\\b"),
    *("https://127.0.0.1:9/x.safetensors", "HTTP://nowhere.invalid/x", "https://\ud800/x"),
    *("https://127.0.0.1:9/" + "x" * 300, "hf://a/b/..", "hf://a/b/c\nd"),
]


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name)[:30])
def test_what_is_no_name_is_one_sentence(server: Site, name: Any) -> None:
    said = refused(name)
    if not isinstance(name, str):
        assert said.startswith("name must be ")
        assert said.endswith(f"got {name!r}")


@pytest.mark.parametrize("file", [3, "", "a\0b", "/etc", "/dev/zero", "/nowhere"])
def test_what_is_no_file_of_an_entry_is_one_sentence(server: Site, file: Any) -> None:
    refused("dino-vits16-imagenet", file=file)


def test_paths_are_taken(server: Site, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(save(STATE))
    path.with_suffix(".json").write_bytes(card())
    loaded: Any = sslzoo.load(path)  # type: ignore[arg-type]
    torch.testing.assert_close(loaded.stem.weight, STATE[FIRST])


def test_a_broken_file_leaves_the_next_one_alone(tmp_path: Path) -> None:
    """Torch keeps sparse tensors that it has not checked in a list of the process."""
    (tmp_path / "broken.pth").write_bytes(torch_file({"a": sparse(), "b": Fraction(1, 2)}))
    (tmp_path / "whole.pth").write_bytes(torch_file(STATE))
    with pytest.raises(ValueError, match="could run code"):
        sslzoo.load(str(tmp_path / "broken.pth"), SmallResNet((8, 16)))
    assert torch._utils._sparse_tensors_to_validate == []
    sslzoo.load(str(tmp_path / "whole.pth"), SmallResNet((8, 16)))
