"""Reading as an attacker sees it: whatever a file asks for, it is data and changes nothing."""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.zoo import safe_read
from sslzoo.zoo.safe_read import read, refuse_nan

GADGETS = [
    ("os", "system", "touch {0}"),
    ("posix", "system", "touch {0}"),
    ("nt", "system", "touch {0}"),
    ("subprocess", "getoutput", "touch {0}"),
    ("builtins", "exec", "open('{0}', 'w')"),
    ("builtins", "eval", "open('{0}', 'w')"),
    ("builtins", "__import__", "os"),
    ("builtins", "getattr", "{0}"),
    ("importlib", "import_module", "antigravity"),
    ("runpy", "run_path", "{0}"),
    ("pathlib", "Path.touch", "{0}"),
    ("pathlib", "Path", "{0}"),
    ("io", "open", "{0}"),
    ("webbrowser", "open", "{0}"),
    ("functools", "partial", "{0}"),
    ("torch", "save", "{0}"),
    ("torch", "load", "{0}"),
    ("torch.hub", "load", "{0}"),
    ("torch.jit", "load", "{0}"),
    ("torch._utils", "__builtins__", "{0}"),
    ("torch.serialization", "os.system", "touch {0}"),
    ("torch.storage", "_load_from_bytes", "{0}"),
    ("numpy", "load", "{0}"),
    ("numpy.core.multiarray", "fromfile", "{0}"),
    ("sslzoo.zoo.safe_read", "_read_pickle", "{0}"),
    ("lib.NCEAverage", "NCEAverage.mro", "{0}"),
    ("Only persistent_load of storage", "system", "touch {0}"),
    ("asks for", "system", "touch {0}"),
]
# Every way in which a pickle can name and call something.
CALLS: dict[str, Callable[[str, str, str], bytes]] = {
    "reduce": lambda m, n, a: b"\x80\x02" + name(m, n) + text(a) + b"\x85R.",
    "stack global": lambda m, n, a: b"\x80\x04" + text(m) + text(n) + b"\x93" + text(a) + b"\x85R.",
    "inst": lambda m, n, a: b"(" + text(a) + b"i" + f"{m}\n{n}\n".encode() + b".",
    "obj": lambda m, n, a: b"(" + name(m, n) + text(a) + b"o.",
    "new object": lambda m, n, a: b"\x80\x02" + name(m, n) + text(a) + b"\x85\x81.",
    "in a dict": lambda m, n, a: b"\x80\x02}" + text("a") + name(m, n) + text(a) + b"\x85Rs.",
    "persistent": lambda m, n, a: (
        b"\x80\x02(" + text("module") + name(m, n) + text(a) + text(a) + b"tQ" + text(a) + b"\x85R."
    ),
}


def name(module: str, qualname: str) -> bytes:
    return f"c{module}\n{qualname}\n".encode()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def old_torch(content: bytes) -> bytes:
    """A torch file of before 1.6 around a pickle that names a module, which torch refuses."""
    content = b"(" + text("module") + name("lib.NCEAverage", "NCEAverage") + b"NNtQ0" + content
    about = [safe_read._OLD_MAGIC, safe_read._OLD_PROTOCOL, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in about) + content + pickle.dumps([], 2)


def zipped(content: bytes) -> bytes:
    """A torch file of today around a pickle."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        for part, raw in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{part}", raw)
    return held.getvalue()


def tar(content: bytes) -> bytes:
    """A torch file of before 0.1 around a pickle, with a path that leads out of its folder."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as file:
        for part in ("storages", "tensors", "pickle", "../escaped"):
            about = tarfile.TarInfo(part)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return held.getvalue()


FORMS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "pickle": (".pkl", bytes),
    "bare": (".pth", bytes),
    "old": (".pth", old_torch),
    "zip": (".pth", zipped),
    "tar": (".pth", tar),
}

_SEEN: list[str] = []
_WATCHING = False


def _notice(event: str, args: tuple[Any, ...]) -> None:
    if not _WATCHING:
        return
    writes = event == "open" and not (isinstance(args[1], str) and args[1] in ("r", "rb"))
    writes = writes and not (args[1] is None and not args[2] & 3)
    starts = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "webbrowser.", "urllib.")
    if writes or event in ("exec", "compile") or event.startswith(starts):
        _SEEN.append(f"{event} {args!r}"[:200])


@contextmanager
def watched() -> Iterator[list[str]]:
    """What happens meanwhile of what a file must not make happen."""
    global _WATCHING
    if not _SEEN and _notice not in _HOOKED:
        _HOOKED.append(_notice)
        sys.addaudithook(_notice)
    _SEEN.clear()
    _WATCHING = True
    try:
        yield _SEEN
    finally:
        _WATCHING = False


_HOOKED: list[Any] = []


@pytest.fixture(autouse=True)
def _warm(tmp_path: Path) -> None:
    """What torch imports at its first load is not what a file does."""
    (tmp_path / "warm").mkdir()
    for form, (suffix, wrap) in FORMS.items():
        path = tmp_path / "warm" / f"{form}{suffix}"
        path.write_bytes(wrap(b"\x80\x02cos\nsystem\n."))
        with pytest.raises(ValueError):  # noqa: PT011
            read(path)


@pytest.mark.parametrize("form", FORMS)
def test_no_gadget_runs(tmp_path: Path, form: str) -> None:
    suffix, wrap = FORMS[form]
    canary = tmp_path / "canary"
    for module, qualname, argument in GADGETS:
        for how, call in CALLS.items():
            path = tmp_path / f"{form}{suffix}"
            path.write_bytes(wrap(call(module, qualname, argument.format(canary))))
            with watched() as seen, pytest.raises(ValueError) as caught:  # noqa: PT011
                read(path)
            assert seen == [], (module, qualname, how)
            assert len(str(caught.value).splitlines()) == 1
            path.unlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["warm"]


KNOWN = [
    *safe_read._KNOWN,
    *(("numpy.core.multiarray", each) for each in safe_read._MULTIARRAY),
    *((module, "FlatMapping") for module in safe_read._HAIKU),
    ("byol.utils.optimizers", "State"),
    ("optax", "State"),
    ("byol.byol_experiment", "_ByolExperimentState"),
]
OLD_KNOWN = [
    *safe_read._OLD_NAMES,
    *(("torch", each) for each in safe_read._OLD_STORAGES),
    *(
        (module, each)
        for module, _, each in (n.rpartition(".") for n in safe_read._PICKLED_MODULES)
    ),
]
CHANGES = [
    b"}" + text("changed") + b"I1\nsb.",
    b"N}" + text("changed") + b"I1\ns\x86b.",
    b"N}" + text("__call__") + b"I1\ns\x86b.",
    b"N}" + text("__setstate__") + b"I1\ns\x86b.",
    b"N}" + text("__defaults__") + b"I1\n\x85s\x86b.",
]


@pytest.mark.parametrize("form", ["pickle", "old", "zip"])
def test_no_name_that_a_file_may_use_can_be_changed(tmp_path: Path, form: str) -> None:
    """Pickle's BUILD sets attributes of whatever stands on the stack, classes and functions too."""
    suffix, wrap = FORMS[form]
    known = KNOWN if form == "pickle" else OLD_KNOWN
    unpickler: Any = (
        safe_read._Unpickler(io.BytesIO())
        if form == "pickle"
        else safe_read._OldUnpickler(io.BytesIO(), 0)
    )
    for module, qualname in known:
        before = _attributes(unpickler.find_class(module, qualname))
        for change in CHANGES:
            path = tmp_path / f"{form}{suffix}"
            path.write_bytes(wrap(b"\x80\x02" + name(module, qualname) + change))
            with pytest.raises(ValueError, match=r"could run code|not a valid"):
                read(path)
            assert _attributes(unpickler.find_class(module, qualname)) == before, qualname


def _attributes(made: Any) -> dict[str, Any]:
    if not callable(made):
        return {}
    names = set(dir(made)) - {"__doc__", "__annotations__"}
    return {each: repr(getattr(made, each, None)) for each in names if "method-w" not in each}


def test_the_registry_of_extensions_is_no_way_in(tmp_path: Path) -> None:
    """What another library registered and used once is called without its name."""
    copyreg.add_extension("os", "system", 241)
    try:
        copyreg._extension_cache[241] = __import__("os").system  # type: ignore[attr-defined]
        for suffix, wrap in (FORMS["pickle"], FORMS["old"], FORMS["zip"]):
            path = tmp_path / f"file{suffix}"
            path.write_bytes(
                wrap(b"\x80\x02\x82\xf1" + text(f"touch {tmp_path}/canary") + b"\x85R.")
            )
            with watched() as seen, pytest.raises(ValueError):  # noqa: PT011
                read(path)
            assert seen == []
    finally:
        copyreg._extension_cache.pop(241)  # type: ignore[attr-defined]
        copyreg.remove_extension("os", "system", 241)


def _memory(module: nn.Module) -> None:
    nn.Module.__init__(module)
    module.register_buffer("memory", torch.ones(5, 8))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A module of the authors' code."""
    about = {"__module__": "lib.NCEAverage", "__init__": _memory}
    module: Any = type(sys)("lib.NCEAverage")
    module.NCEAverage = type("NCEAverage", (nn.Module,), about)
    for each, held in (("lib", type(sys)("lib")), ("lib.NCEAverage", module)):
        monkeypatch.setitem(sys.modules, each, held)
    made: nn.Module = module.NCEAverage()
    return made


@pytest.mark.filterwarnings("ignore:.*source code.*")
def test_an_old_file_gives_what_torch_gives(tmp_path: Path, memory: nn.Module) -> None:
    base = torch.arange(24.0)
    saved = {
        "module": memory,
        "state": nn.BatchNorm2d(3).state_dict(),
        "shared": [base.view(4, 6), base.view(4, 6).t(), base[5:9], base[::3]],
        "kinds": [torch.arange(3).to(kind) for kind in safe_read._OLD_STORAGES.values()],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": {"epoch": 3, "names": ("a", None), "rate": 0.5, "set": {1}, "text": "ä"},
    }
    path = tmp_path / "old.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    held = read(path)
    assert type(held.pop("module")).__name__ == "_PickledModule"
    saved.pop("module")
    assert held["plain"] == saved["plain"]
    assert list(held["state"]) == list(saved["state"])
    for key in ("shared", "kinds", "empty", "scalar", "parameter"):
        torch.testing.assert_close(held[key], saved[key], check_stride=True)
    assert held["shared"][0].data_ptr() == held["shared"][1].data_ptr()
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"not a valid|could run"):
            read(path)


def storage_of(count: int, size: int, stride: int, offset: int) -> bytes:
    """An old file's tensor of that many numbers, viewed so."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
    tensor = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + number(count) + b"NtQ"
    tensor += number(offset) + number(size) + b"\x85" + number(stride) + b"\x85\x89NtR"
    return old_torch(b"\x80\x02" + tensor + b".")


# A storage's length, and the size, stride and offset of the tensor in it.
OUTSIDE = [
    *[(2**40, 1, 1, 0), (2**62, 1, 1, 0), (-1, 1, 1, 0), (4, 5, 1, 0), (4, 1, 1, 4)],
    *[(4, 1, 1, -1), (4, 2, 2**62, 0), (4, -1, 1, 0), (4, 2, -1, 1)],
]


@pytest.mark.parametrize("about", OUTSIDE)
def test_an_old_file_cannot_reach_past_its_own_bytes(
    tmp_path: Path, about: tuple[int, int, int, int]
) -> None:
    (tmp_path / "old.pth").write_bytes(storage_of(*about))
    with pytest.raises(ValueError, match="is not a valid"):
        read(tmp_path / "old.pth")


def test_a_dictionary_within_itself_is_read_once(tmp_path: Path) -> None:
    held: dict[str, Any] = {"a": torch.ones(2), "mask": torch.tensor([-torch.inf])}
    for _ in range(60):  # 2^60 ways lead to the tensors
        held = {"left": held, "right": held}
    held["itself"] = held
    torch.save(held, tmp_path / "net.pth")
    refuse_nan(read(tmp_path / "net.pth"), "net.pth")
    with pytest.raises(ValueError, match=r"net.pth must not have NaN, got NaN in 'a.b'"):
        refuse_nan({"a": {"b": torch.tensor(torch.nan)}, "itself": held}, "net.pth")
