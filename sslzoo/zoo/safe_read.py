"""Safe reading: load tensors from a file without executing code that it contains.

Safetensors and JSON hold data only. torch's own files are read with `weights_only=True`; other
pickles through an unpickler that has stand-ins for numeric arrays and for the containers of one
code base, and refuses every other name. No file can change an object outside its own contents.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file

from sslzoo.file_kind import other_kind
from sslzoo.trust import refuse_deep_pickles


def read(path: Path) -> Any:
    """Read a file's contents: tensors by name, possibly in nested dictionaries.

    Args:
        path: .safetensors; a torch file; .pkl, a pickle of numpy arrays (BYOL's); or the prefix
            of a TensorFlow checkpoint (with the files PREFIX.index and PREFIX.data-*).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated or damaged, or would execute code.
    """
    if Path(f"{path}.index").is_file():
        return read_tensorflow(path)
    if not path.is_file():
        kind = "a folder or a device" if path.exists() else "no file"
        raise FileNotFoundError(f"there is {kind} at {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pkl", ".pickle"):
        return _read_pickle(path)
    return _read_torch(path)


def tensors_by_name(held: Any, who: str) -> Mapping[str, torch.Tensor]:
    """Return a file's contents if they are tensors by name, otherwise raise.

    Args:
        held: the result of `read`, or a part of it.
        who: description of the contents for the error, such as "a 'moco' checkpoint".

    Raises:
        ValueError: the contents are something else.
    """
    if not isinstance(held, Mapping):
        raise ValueError(f"{who} must have tensors by name, got a {type(held).__name__}")
    wrong = {type(name).__name__ for name in held if not isinstance(name, str)}
    wrong |= {type(v).__name__ for v in held.values() if not isinstance(v, torch.Tensor)}
    if wrong:
        raise ValueError(f"{who} must have tensors by name, got also {sorted(wrong)}")
    for name, tensor in held.items():
        odd = _oddity(tensor)
        if odd is not None:
            raise ValueError(f"{who} must have plain tensors, got {odd} as {name!r}")
    return held


_PACKED = re.compile(r"float4|bits|int[1-7]$")  # types smaller than a byte, which torch cannot cast


def _oddity(tensor: torch.Tensor) -> str | None:
    """Describe a tensor that is not a plain numeric array in memory; None if it is one."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout}"
    if tensor.is_quantized:
        return "a quantized tensor"
    if _PACKED.search(str(tensor.dtype)):
        return f"a tensor of {tensor.dtype}"
    if tensor.device.type != "cpu":
        return f"a tensor on the device {tensor.device}, without its numbers"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return f"a tensor of shape {tuple(tensor.shape)} that repeats fewer numbers"
    return None


def check_finite(state: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise if weights contain NaN or infinity.

    Args:
        state: plain tensors by name.
        where: the weights' origin, for the error.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    for name, tensor in state.items():
        if not _finite(tensor):
            raise ValueError(f"{where} must be finite, got NaN or infinity in {name!r}")


def _finite(tensor: torch.Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no extremes
    return all(bool(extreme.isfinite()) for extreme in wide.aminmax())  # 12 times isfinite's speed


def refuse_nan(held: Any, where: str) -> None:
    """Refuse a file of unknown layout if any tensor contains NaN.

    Infinity is allowed: masks contain it, and it is unknown which tensors are weights.

    Args:
        held: the result of `read`.
        where: the file, for the error.

    Raises:
        ValueError: a tensor at any depth contains NaN.
    """
    waiting, seen = [("", held)], set()
    while waiting:
        name, part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            if _oddity(part) is None and not _finite(part) and bool(part.isnan().any()):
                raise ValueError(f"{where} must not have NaN, got NaN in {name.lstrip('.')!r}")
        elif isinstance(part, Mapping):
            waiting += [(f"{name}.{key}"[:200], value) for key, value in part.items()]
        elif isinstance(part, list | tuple):
            waiting += [(name, value) for value in part]


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors' own; torch's, if the header was accepted
        raise _not_whole(path, "safetensors file", error) from None


def _not_whole(path: Path, kind: str, error: BaseException | str) -> ValueError:
    text = other_kind(path) or (_last_line(error) if str(error) else type(error).__name__)
    return ValueError(f"{path} is not a valid {kind}: {text}")


def _code(path: Path, what: str, named: str) -> ValueError:
    named = _printable(named).rstrip(".")
    return ValueError(
        f"{path} must hold only {what}, since others could run code: {named}; save the "
        "state_dict() of a module instead"
    )


class _StandIn:
    """Empty stand-in for an object whose class is in the authors' code."""

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _PickledModule(_StandIn):
    """Stand-in for a module of the authors' code."""


# lemniscate.pytorch pickles its memory as a module, and that module its sampler.
_PICKLED_MODULES = (
    "lib.NCEAverage.NCEAverage",
    "lib.LinearAverage.LinearAverage",
    "lib.alias_multinomial.AliasMethod",
)

# torch's message about a name that it would have to call.
_CODE = re.compile(r"GLOBAL|call reduce|[Cc]an only build|class")


def _read_torch(path: Path) -> Any:
    _refuse_packed(path)
    refuse_deep_pickles(path)
    stand_ins: list[Any] = [(kind, name) for name, kind in _STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles, which are read anyway
            return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Only persistent_load of storage" in str(error):
            return _read_old_torch(path)
        said = str(error).partition("\n\nCheck the documentation")[0]  # without torch's advice
        names = [line.partition(" Please ")[0] for line in said.split("\n") if _CODE.search(line)]
        if not names:
            raise _not_whole(path, "torch file", said) from None
        raise _code(path, "tensors and plain values", names[0]) from None
    except Exception as error:  # torch raises anything for forged arguments
        raise _not_whole(path, "torch file", error) from None
    finally:
        # torch empties this list at the end of a load, but not if the load fails; then the next
        # load, of a valid file, would fail because of the broken one's leftovers.
        torch._utils._sparse_tensors_to_validate.clear()


def _refuse_packed(path: Path) -> None:
    """Refuse a compressed zip, since torch does not compress and it could be a zip bomb.

    Raises:
        ValueError: an entry is compressed, two share their bytes, or it is a program.
    """
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
    except Exception:  # not a zip, or none that zipfile can parse
        _refuse_archive(path)
        return  # an older format, or torch raises the error
    if any(part.filename.rpartition("/")[2] == "constants.pkl" for part in parts):
        raise ValueError(
            f"{path} must hold only tensors, since others could run code: it is a TorchScript "
            "program; save its state_dict() instead"
        )
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError(
            f"{path} is not a valid torch file: its {len(parts)} entries are larger than the file"
        )


def _refuse_archive(path: Path) -> None:
    """Refuse a tar, torch's format of 2016: torch creates a folder before it checks the file."""
    try:
        tarfile.open(path, "r:").close()
    except Exception:  # not a tar, or none that tarfile can parse
        return
    raise ValueError(f"{path} is not a valid torch file: it is a tar archive, as of torch 0.1")


class _Closed(pickle._Unpickler):  # the pure-Python one, whose opcodes can be replaced
    """Unpickler whose file can name, call and change only stand-ins made for it."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"it asks for the registered extension {code}")

    def load_build(self) -> None:
        """Restrict BUILD: pickle's own sets attributes of any object, classes and functions too."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _StandIn):
            made.__setstate__(state)
        elif type(made) is not OrderedDict:  # its state is the modules' versions
            raise pickle.UnpicklingError(f"it asks for a change of {made!r:.100}")

    dispatch[pickle.BUILD[0]] = load_build


def _unpickled(unpickler: _Closed, path: Path, what: str) -> Any:
    """Unpickle a file with the given unpickler.

    Raises:
        ValueError: the pickle contains anything else than `what`, or is damaged.
    """
    try:
        return unpickler.load()
    except pickle.UnpicklingError as error:
        if "asks for" in str(error):
            raise _code(path, what, str(error)) from None
        raise _not_whole(path, "pickle", error) from None
    except Exception as error:  # forged arguments may raise anything
        raise _not_whole(path, "pickle", error) from None


# -- torch files from before 1.6 that contain modules, which `weights_only=True` refuses

_OLD_MAGIC, _OLD_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_OLD_STORAGES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _old_tensor(storage: Any, offset: int, size: Any, stride: Any, *more: Any) -> torch.Tensor:
    return torch.as_strided(storage, size, stride, offset)  # within the storage, or an error


_OLD_NAMES: dict[tuple[str, str], Any] = {
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _old_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _old_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *more: data,
}


class _OldUnpickler(_Closed):
    """Unpickler that collects the flat, still empty storages that a file's tensors are views of."""

    def __init__(self, file: Any, most: int) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[Any, torch.Tensor] = {}
        self.left = most

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _STAND_INS:
            return _STAND_INS[f"{module}.{name}"]
        if module in ("torch", "torch.cuda") and name in _OLD_STORAGES:
            return _OLD_STORAGES[name]
        if (module, name) in _OLD_NAMES:
            return _OLD_NAMES[module, name]
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        kind, *about = pid
        if kind == "module":
            return about[0]  # the module's class; its source text is ignored
        dtype, key, _, count, view = about
        if key not in self.storages:
            self.left -= count * dtype.itemsize
            if kind != "storage" or count < 0 or self.left < 0:
                raise ValueError(f"a storage of {count} numbers is larger than the file")
            self.storages[key] = torch.zeros(count, dtype=dtype)
        storage = self.storages[key]
        return storage if view is None else storage[view[1] : view[1] + view[2]]


def _read_old_torch(path: Path) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file:

        def load(unpickler: _Closed | None = None) -> Any:
            what = "tensors and plain values"
            return _unpickled(unpickler or _OldUnpickler(file, 0), path, what)

        magic, protocol, about = load(), load(), load()
        unpickler = _OldUnpickler(file, size)
        held = load(unpickler)
        keys = load()
        try:
            if (magic, protocol, about["little_endian"]) != (_OLD_MAGIC, _OLD_PROTOCOL, True):
                raise ValueError("it has another protocol or byte order")
            for key in keys:
                _fill_storage(unpickler.storages[key], file)
        except Exception as error:
            raise _not_whole(path, "torch file", error) from None
    return held


def _fill_storage(storage: torch.Tensor, file: Any) -> None:
    (count,) = struct.unpack("<q", file.read(8))
    if count != len(storage):
        raise ValueError(f"it has {count} numbers for a storage of {len(storage)}")
    raw = file.read(count * storage.element_size())
    if raw:
        storage.copy_(torch.frombuffer(bytearray(raw), dtype=storage.dtype))


def _last_line(error: BaseException | str) -> str:
    text = str(error).partition(" This is an internal miniz error")[0]  # torch's guesses
    lines = [line for line in text.split("\n") if line.strip()]
    return _printable(lines[-1]) if lines else "it ends too early"


def _printable(text: str) -> str:
    """Remove terminal control characters from a line that may quote the file."""
    return "".join(c if c.isprintable() else "?" for c in text.strip()[:300])


# -- pickles of numpy arrays


class _Inert(_StandIn):
    """Empty stand-in for a container that is not needed (an optimizer's state)."""

    def __init__(self, *values: Any) -> None:
        self.values: Sequence[Any] = values

    def __setstate__(self, state: Any) -> None:
        self.values = (state,)


class _Mapping(dict, _StandIn):
    """Stand-in for Haiku's immutable mapping, as a dict."""

    def __init__(self, *values: Any) -> None:
        dict.__init__(self, *values)

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.update(next((v for v in part.values() if isinstance(v, dict)), part))


ByolState = namedtuple(
    "ByolState", ["online_params", "target_params", "online_state", "target_state", "opt_state"]
)


class _Dtype(_StandIn):
    """Stand-in for a numeric numpy dtype; numpy's own would accept a forged state."""

    def __init__(self, name: Any, *more: Any) -> None:
        if not (isinstance(name, str) and re.fullmatch(r"[biufc]\d{1,2}", name)):
            raise pickle.UnpicklingError(f"it asks for an array of {name!r}, not of numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it asks for numbers in the order {state[1]!r}")
        self.order = state[1]

    def array(self, shape: Any, raw: Any, fortran: Any = False) -> np.ndarray:
        """Array of the numbers in a buffer of exactly their size."""
        numbers = np.frombuffer(raw, f"{self.order}{self.name}")
        return numbers.reshape(shape, order="F" if fortran else "C").copy()


class _Array(_StandIn):
    """Stand-in for a numpy array; numpy's own would accept pointers (object arrays)."""

    def __init__(self, *how: Any) -> None:
        self.numbers = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.numbers = dtype.array(shape, raw, fortran)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numbers, dtype=dtype, copy=copy)


_KNOWN = {
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("collections", "OrderedDict"): dict,
    ("__builtin__", "bytes"): lambda: b"",  # the empty buffer of protocol 2
}
_MULTIARRAY = {
    "_reconstruct": _Array,
    "scalar": lambda dtype, raw: dtype.array((), raw).item(),
}
# Classes that torch files may name besides tensors: the training's arguments, and numpy scalars
# that a schedule left in the optimizer.
_STAND_INS: dict[str, Any] = {
    **dict.fromkeys(_PICKLED_MODULES, _PickledModule),
    **dict.fromkeys(("argparse.Namespace", "pathlib.PosixPath"), _StandIn),
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Inert,
    **{
        f"numpy.{core}.multiarray.{name}": kind
        for core in ("core", "_core")
        for name, kind in _MULTIARRAY.items()
    },
}
_HAIKU = ("haiku._src.data_structures", "haiku._src.utils")


class _Unpickler(_Closed):
    """Unpickler with stand-ins for numpy's arrays and the containers of DeepMind's BYOL."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in _MULTIARRAY:
            return _MULTIARRAY[name]
        if name == "_ByolExperimentState":
            return ByolState
        if module in _HAIKU:
            return _Mapping
        if module.endswith("utils.optimizers") or module.split(".")[0] == "optax":
            return _Inert
        return super().find_class(module, name)


def _read_pickle(path: Path) -> Any:
    refuse_deep_pickles(path, single=True)
    return _unpickled(_Unpickler(io.BytesIO(path.read_bytes())), path, "arrays")


# In a process of its own: TensorFlow 2.21 crashes triton, which torchvision 0.29 imports.
_TENSORFLOW = """
import sys
sys.path = [folder for folder in sys.path if folder]  # no module of the current folder
import numpy, tensorflow
reader = tensorflow.train.load_checkpoint(sys.argv[1])
kinds = reader.get_variable_to_dtype_map()
names = [name for name, kind in kinds.items() if kind != tensorflow.string]
numpy.savez(sys.argv[2], **{name: reader.get_tensor(name) for name in names})
"""


def read_tensorflow(prefix: Path) -> dict[str, np.ndarray]:
    """Read every numeric variable of a TensorFlow checkpoint by name.

    Args:
        prefix: the checkpoint's prefix, such as FOLDER/model.ckpt-37535, without .index.

    Raises:
        ImportError: the `convert` extra is not installed.
        ValueError: the checkpoint is truncated or damaged.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"reading the TensorFlow checkpoint {prefix} needs the package tensorflow, which is "
            "not installed; run: pip install 'sslzoo[convert]'"
        )
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder, "arrays.npz")
        command = [sys.executable, "-c", _TENSORFLOW, str(prefix), str(arrays)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise ValueError(
                f"{prefix} is not a valid TensorFlow checkpoint: {_last_line(done.stderr)}"
            )
        with np.load(arrays) as saved:
            return dict(saved)
