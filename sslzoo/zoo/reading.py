"""Reading: tensors out of a file, without running code that the file brings.

Safetensors and JSON hold data only. torch's own files are read with `weights_only=True`; other
pickles through an unpickler that knows stand-ins for arrays of numbers and for the containers of
one code base, and refuses every other name.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


def read(path: Path) -> Any:
    """What a file holds: tensors by name, perhaps within further dictionaries.

    Args:
        path: .safetensors; a torch file; .pkl, a pickle of numpy arrays (BYOL's); or the prefix
            of a TensorFlow checkpoint (beside it lie PREFIX.index and PREFIX.data-*).

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the file is cut short or damaged, or asks for code to be run.
    """
    if Path(f"{path}.index").is_file():
        return read_tensorflow(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pkl", ".pickle"):
        return _read_pickle(path)
    return _read_torch(path)


def tensors_by_name(held: Any, who: str) -> Mapping[str, torch.Tensor]:
    """What a file holds, where it is that.

    Args:
        held: what `read` gave, or a part of it.
        who: has tensors by name, for the error: "a 'moco' checkpoint".

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(held, Mapping):
        raise ValueError(f"{who} has tensors by name, the file has a {type(held).__name__}")
    wrong = {type(name).__name__ for name in held if not isinstance(name, str)}
    wrong |= {type(v).__name__ for v in held.values() if not isinstance(v, torch.Tensor)}
    if wrong:
        raise ValueError(f"{who} has tensors by name, the file has {sorted(wrong)} too")
    return held


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


class _PickledModule(nn.Module):
    """Stands in for a module whose class is in the authors' code; what it holds is left out."""

    def forward(self) -> None:
        raise ValueError("this module was pickled with code that is not here")


# lemniscate.pytorch pickles its memory as a module, and that module its sampler.
_PICKLED_MODULES = (
    "lib.NCEAverage.NCEAverage",
    "lib.LinearAverage.LinearAverage",
    "lib.alias_multinomial.AliasMethod",
)

# What torch raises where a file is cut short or its bytes are others'.
_DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError),
    *(struct.error, OverflowError, MemoryError, AssertionError),
)

# What torch says of a name that it would have to call.
_CODE = re.compile(r"GLOBAL|call reduce|[Cc]an only build|class")


def _read_torch(path: Path) -> Any:
    stand_ins: list[Any] = [(kind, name) for name, kind in _STAND_INS.items()]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Only persistent_load of storage" in str(error):
            return _read_old_torch(path)
        names = [line.strip() for line in str(error).split("\n") if _CODE.search(line)]
        if not names:
            raise ValueError(f"{path} is not a whole torch file: {_last_line(error)}") from None
        raise ValueError(
            f"{path} holds more than tensors and plain values, and reading it could run code: "
            f"{names[0]}"
        ) from None
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a whole torch file: {_last_line(error)}") from None


_OLD_NAMES = {
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _OldUnpickler(pickle.Unpickler):
    """For torch's files of before 1.6 with modules in them, which `weights_only=True` refuses."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in _STAND_INS:
            return _STAND_INS[f"{module}.{name}"]
        if (module, name) in _OLD_NAMES:
            return _OLD_NAMES[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_old_torch(path: Path) -> Any:
    def load(file: Any, **options: Any) -> Any:
        return _OldUnpickler(file, **options).load()

    allowed = SimpleNamespace(__name__="allowed", Unpickler=_OldUnpickler, load=load)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
            return torch.load(path, "cpu", pickle_module=allowed, weights_only=False)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and reading it could run code: {error}"
        ) from None
    except _DAMAGED as error:
        raise ValueError(f"{path} is not a whole torch file: {_last_line(error)}") from None


def _last_line(error: Exception | str) -> str:
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return lines[-1] if lines else "it ends too early"


class _Nothing:
    """Stands in for an object that nobody asks for (a training's arguments); it holds nothing."""

    def __new__(cls, *values: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert:
    """Takes the place of a container that nobody asks for (an optimizer's state)."""

    def __new__(cls, *values: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.values = (state,)


class _Mapping(dict):
    """Haiku's immutable mapping, as a dict."""

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.update(next((v for v in part.values() if isinstance(v, dict)), part))


ByolState = namedtuple(
    "ByolState", ["online_params", "target_params", "online_state", "target_state", "opt_state"]
)


class _Dtype:
    """A numpy dtype of numbers. numpy's own would take a state that the file makes up."""

    def __init__(self, name: Any, *more: Any) -> None:
        if not (isinstance(name, str) and re.fullmatch(r"[biufc]\d{1,2}", name)):
            raise pickle.UnpicklingError(f"it asks for an array of {name!r}, not of numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"it asks for numbers in the order {state[1]!r}")
        self.order = state[1]

    def array(self, shape: Any, raw: Any, fortran: Any = False) -> np.ndarray:
        """The numbers in a buffer that has just their size."""
        numbers = np.frombuffer(raw, f"{self.order}{self.name}")
        return numbers.reshape(shape, order="F" if fortran else "C").copy()


class _Array:
    """A numpy array. numpy's own would take pointers, as an array of objects, from the file."""

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
}
_MULTIARRAY = {
    "_reconstruct": _Array,
    "scalar": lambda dtype, raw: dtype.array((), raw).item(),
}
# What torch's files may name besides tensors: the arguments of the training, and the scalars of
# numpy that a schedule left in the optimizer.
_STAND_INS: dict[str, Any] = {
    **dict.fromkeys(_PICKLED_MODULES, _PickledModule),
    **dict.fromkeys(("argparse.Namespace", "pathlib.PosixPath"), _Nothing),
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Inert,
    **{
        f"numpy.{core}.multiarray.{name}": kind
        for core in ("core", "_core")
        for name, kind in _MULTIARRAY.items()
    },
}
_HAIKU = ("haiku._src.data_structures", "haiku._src.utils")


class _Unpickler(pickle.Unpickler):
    """Knows stand-ins for numpy's arrays and for the containers of DeepMind's BYOL."""

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
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_pickle(path: Path) -> Any:
    try:
        return _Unpickler(io.BytesIO(path.read_bytes())).load()
    except pickle.UnpicklingError as error:
        if "asks for" in str(error):
            raise ValueError(
                f"{path} holds more than arrays, and reading it could run code: {error}"
            ) from None
        raise ValueError(f"{path} is not a whole pickle: {error}") from None
    except (EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a whole pickle: {error}") from None
    except (OverflowError, MemoryError) as error:  # a length that damage made huge
        raise ValueError(f"{path} is not a whole pickle: {error}") from None


# In a process of its own: TensorFlow 2.21 crashes triton, which torchvision 0.29 imports.
_TENSORFLOW = """
import sys, numpy, tensorflow
reader = tensorflow.train.load_checkpoint(sys.argv[1])
kinds = reader.get_variable_to_dtype_map()
names = [name for name, kind in kinds.items() if kind != tensorflow.string]
numpy.savez(sys.argv[2], **{name: reader.get_tensor(name) for name in names})
"""


def read_tensorflow(prefix: Path) -> dict[str, np.ndarray]:
    """Every variable of a TensorFlow checkpoint that is numbers, by name.

    Args:
        prefix: such as FOLDER/model.ckpt-37535, without .index.

    Raises:
        ImportError: the `convert` extra is not installed.
        ValueError: the checkpoint is cut short or damaged.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"reading the TensorFlow checkpoint {prefix} needs `pip install 'sslzoo[convert]'`"
        )
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder, "arrays.npz")
        command = [sys.executable, "-c", _TENSORFLOW, str(prefix), str(arrays)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise ValueError(
                f"{prefix} is not a whole TensorFlow checkpoint: {_last_line(done.stderr)}"
            )
        with np.load(arrays) as saved:
            return dict(saved)
