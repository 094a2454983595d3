"""Build objects from a file's `class_path` and `init_args`, guided by type hints.

The constructor's type hints decide where a class is allowed: a `class_path` is resolved only for an
argument that takes an object; a string stays a string if the argument is a string.
No parser interprets the values, so nothing else in them (paths of further configs, JSON in a
string, environment variables) is read.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jsonargparse
import torch

from sslzoo.trust.admit import UntrustedError, admit
from sslzoo.trust.renamed import renamed_arguments, renamed_class
from sslzoo.trust.undrawn import undrawn

PLAIN = (bool, int, float, str, type(None))
_SEQUENCES = (list, Sequence, Iterable, Collection)

# Arguments that a file may not set, and their replacements: its weights are in the file, and
# nothing is downloaded or read from elsewhere for it.
_WITHHELD = {
    "pretrained": False,
    "weights": None,
    "download": False,
    "local_files_only": True,
}
# Errors besides ValueError that constructors raise if arguments do not fit.
_UNBUILDABLE = (
    *(TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError),
    *(AssertionError, MemoryError),
)
# The name that starts training from a zoo encoder; here only its network is built.
LOADERS = ("sslzoo.load", "sslzoo.zoo.load", "sslzoo.zoo.load.load", "sslzoo.zoo.loading.load")


def build(spec: Any, base: type, where: str, trust: bool = False, **given: Any) -> Any:
    """Build the object of a `class_path` and its `init_args`, or of a class path alone.

    It draws its initial weights from a generator of its own.

    Args:
        spec: plain data from a file.
        base: required class, such as `nn.Module`.
        where: the file, for errors.
        trust: whether the user wrote the spec, so that any class may be built (`build_trusted`).
        given: arguments from the caller that replace the file's.

    Raises:
        UntrustedError: a class in it, at any depth, may not be named by a file.
        ValueError: an argument is unknown or missing, or a value has the wrong type.
    """
    if trust:
        return build_trusted(spec, base, **given)
    with torch.random.fork_rng(devices=[]):
        try:
            return _Builder(where).make(spec, base, given)
        except RecursionError:
            raise ValueError(f"{where}: classes are nested too deeply to be built") from None


def shell(spec: Any, base: type, where: str) -> Any:
    """Build the module on the meta device, without memory, to check a file against it.

    Args:
        spec: see `build`.
        base: see there.
        where: see there.

    Returns:
        None if that is impossible, since it computes with its initial values.

    Raises:
        UntrustedError, ValueError: see `build`.
    """
    try:
        with undrawn(), torch.device("meta"):
            return build(spec, base, where)
    except ValueError as error:
        if isinstance(error.__cause__, RuntimeError) and "meta" in str(error.__cause__):
            return None
        raise


def build_trusted(spec: dict[str, Any], base: type, **given: Any) -> Any:
    """Build any class or function that the user names, as `sslzoo fit` does.

    Args:
        spec: `class_path` and `init_args`.
        base: required class.
        given: arguments from the caller that replace the spec's.

    Raises:
        ValueError: the class does not exist, is not a `base`, or takes other arguments.
    """
    spec = copy.deepcopy(spec)  # jsonargparse modifies it
    for key in ("init_args", "dict_kwargs"):
        if given and isinstance(spec.get(key), Mapping):
            spec[key] = {name: part for name, part in spec[key].items() if name not in given}
    for name in _class_paths(spec):
        _import(name)
    if given:
        spec["dict_kwargs"] = {**(spec.get("dict_kwargs") or {}), **given}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=base)
    try:
        parsed = parser.parse_object({"made": spec})
        with torch.random.fork_rng(devices=[]):
            return parser.instantiate(parsed)["made"]
    except (jsonargparse.ArgumentError, TypeError) as error:
        text = " ".join(str(error).split()).removeprefix('Parser key "made": ')
        path = spec.get("class_path")
        raise ValueError(f"{path!r} must be a {base.__name__} that can be built: {text}") from None


def _class_paths(spec: Any) -> Iterator[str]:
    """All class paths in a spec, at any depth."""
    if isinstance(spec, Mapping):
        if isinstance(spec.get("class_path"), str):
            yield spec["class_path"]
        spec = list(spec.values())
    if isinstance(spec, list | tuple):
        for part in spec:
            yield from _class_paths(part)


def _import(name: str) -> None:
    """Import the module of a class, which may be nested in another class.

    Raises:
        ValueError: the module cannot be imported.
    """
    module = name.rpartition(".")[0]  # a short name has no module: it refers to an imported class
    while module:
        try:
            importlib.import_module(module)
            return
        except ImportError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise ValueError(f"{module} cannot be imported: {error}") from None
            if error.name == name.partition(".")[0]:
                text = f"{error.name} cannot be imported; put its folder on PYTHONPATH"
                raise ValueError(text) from None
        module = module.rpartition(".")[0]


class _Builder:
    """Builder of the objects of one file.

    Args:
        where: the file, for errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def make(self, spec: Any, base: type, given: Mapping[str, Any]) -> Any:
        name, args = self._split(spec)
        if name in LOADERS:
            return self._network(args, base)
        maker = admit(name, base, self.where)
        arguments = self._arguments(maker, name, args, given)
        try:
            inspect.signature(maker).bind(**arguments)
            return maker(**arguments)
        except _UNBUILDABLE as error:
            line = str(error).partition("\n")[0] or type(error).__name__  # torch adds its stack
            text = f"{self.where}: {name} cannot be built: {_printable(line)}"
            raise ValueError(text) from error
        except ValueError as error:  # it may quote the file
            error.args = (_printable(str(error)),)
            raise

    def _network(self, args: Mapping[str, Any], base: type) -> Any:
        """Build the encoder of the entry or file that a run started from, without its weights."""
        loading = importlib.import_module("sslzoo.zoo.load")  # a higher import layer
        found = loading.network(args.get("name"))
        if not isinstance(found, base):
            raise ValueError(f"{self.where}: a class must be a {base.__name__}, got an encoder")
        return found

    def _split(self, spec: Any) -> tuple[str, dict[str, Any]]:
        """Split a spec into name and arguments; jsonargparse may write a class path alone."""
        if isinstance(spec, str):
            return renamed_class(spec), {}
        if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
            raise ValueError(
                f"{self.where}: an object must be class_path and init_args, got {spec!r:.200}"
            )
        unknown = sorted(set(spec) - {"class_path", "init_args", "dict_kwargs"})
        if unknown:
            raise ValueError(
                f"{self.where}: an object must be class_path and init_args only, got {unknown}"
            )
        args: dict[str, Any] = {}
        for key in ("init_args", "dict_kwargs"):
            part = spec.get(key) or {}
            if not isinstance(part, Mapping) or not all(isinstance(k, str) for k in part):
                raise ValueError(
                    f"{self.where}: {key} must be a dictionary of arguments, got {part!r:.200}"
                )
            args |= part
        name = spec["class_path"]
        return renamed_class(name), renamed_arguments(args) if name.startswith("sslzoo.") else args

    def _arguments(
        self, maker: Any, name: str, args: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Convert each argument to its type hint."""
        hints = hints_of(maker)
        parameters = inspect.signature(maker).parameters
        takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = {name for name, p in parameters.items() if p.kind in by_name}
        unknown = sorted(set(args) - named)
        if unknown and not takes_more:
            raise ValueError(
                f"{self.where}: an argument of {name} must be one of {sorted(named)}, got "
                f"{unknown[0]!r}"
            )
        made = {
            key: self._convert(value, hints.get(key, Any), f"{name}.{key}")
            for key, value in args.items()
            if key not in given
            and key not in _WITHHELD
            and not (key in named and _is_default(value, parameters[key].default))
        }
        withheld = {key: value for key, value in _WITHHELD.items() if key in named}
        return {**made, **withheld, **given}

    def _convert(self, value: Any, hint: Any, at: str) -> Any:
        """Convert a value to its type hint; errors name the argument by `at`."""
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any or isinstance(hint, str | typing.TypeVar):
            return self._plain(value, at)
        if origin in (typing.Union, types.UnionType):
            return self._one_of(value, parts, at)
        if origin is typing.Annotated:
            return self._convert(value, parts[0], at)
        if origin is typing.Literal:
            fits = any(value == one and type(value) is type(one) for one in parts)
            return self._checked(value, fits, hint, at)
        if origin is tuple or hint is tuple:
            return self._tuple(value, parts, at)
        if origin in _SEQUENCES or hint in _SEQUENCES:
            self._checked(value, isinstance(value, list | tuple), hint, at)
            inner = parts[0] if parts else Any
            return [self._convert(one, inner, f"{at}[{i}]") for i, one in enumerate(value)]
        if origin in (dict, Mapping) or hint in (dict, Mapping):
            self._checked(value, isinstance(value, Mapping), hint, at)
            inner = parts[1] if parts else Any
            return {key: self._convert(one, inner, f"{at}.{key}") for key, one in value.items()}
        if origin is Callable or hint is Callable:
            return self._reference(value, parts)
        return self._object(value, hint, at)

    def _object(self, value: Any, hint: Any, at: str) -> Any:
        if hint is type(None) or hint is None:
            return self._checked(value, value is None, "None", at)
        if hint is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            return float(self._checked(value, fits, "float", at))
        if hint is int:
            return self._checked(value, type(value) is int, "int", at)
        if hint in (bool, str):
            return self._checked(value, isinstance(value, hint), hint.__name__, at)
        if not isinstance(hint, type):
            raise ValueError(
                f"{self.where}: {at} must be {hint}, which no file can contain, got {value!r:.200}"
            )
        if not isinstance(value, str | Mapping):
            self._checked(value, False, f"class_path and init_args of a {hint.__name__}", at)
        if isinstance(value, Mapping) and "class_path" not in value:  # its arguments
            value = {"class_path": f"{hint.__module__}.{hint.__qualname__}", "init_args": value}
        return self.make(value, hint, {})

    def _one_of(self, value: Any, hints: Sequence[Any], at: str) -> Any:
        failed = []
        for hint in sorted(hints, key=_rank):  # a string is tried as a string before a class name
            try:
                return self._convert(value, hint, at)
            except UntrustedError:
                raise
            except ValueError as error:
                failed.append(error)
        raise failed[-1]

    def _tuple(self, value: Any, parts: Sequence[Any], at: str) -> tuple[Any, ...]:
        self._checked(value, isinstance(value, list | tuple), "a list", at)
        if not parts or parts[-1] is ...:
            parts = [parts[0] if parts else Any] * len(value)
        self._checked(value, len(value) == len(parts), f"{len(parts)} values", at)
        return tuple(self._convert(v, p, at) for v, p in zip(value, parts, strict=True))

    def _reference(self, value: Any, hint: Sequence[Any]) -> Callable[..., Any]:
        """Build what is called later, with arguments bound.

        It is a factory, such as an optimizer's class; or an object that can be called, if its
        class is not what the call is to return: `sslzoo.optim.LayerDecay`, say, which gives lists.
        """
        name, args = self._split(value)
        given = hint[-1] if hint and isinstance(hint[-1], type) else object
        maker = admit(name, object, self.where, given)
        parents = maker.__mro__ if isinstance(maker, type) and not issubclass(maker, given) else ()
        if any("__call__" in vars(cls) for cls in parents):
            return self.make(value, object, {})
        arguments = self._arguments(maker, name, args, {})
        return partial(maker, **arguments) if arguments else maker

    def _plain(self, value: Any, at: str) -> Any:
        """Plain data for an argument of unknown type; it may not name a class."""
        if isinstance(value, Mapping):
            if "class_path" in value:
                admit(value["class_path"], object, self.where)
            return {key: self._plain(one, f"{at}.{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._plain(one, at) for one in value)
        return self._checked(value, isinstance(value, PLAIN), "plain data", at)

    def _checked(self, value: Any, fits: bool, wanted: Any, at: str) -> Any:
        if not fits:
            at = _printable(at)
            raise ValueError(f"{self.where}: {at} must be {wanted}, got {value!r:.200}")
        return value


def hints_of(maker: Any) -> dict[str, Any]:
    """Type hints of a class's constructor or a function; empty if they do not resolve."""
    constructor = getattr(maker, "__init__") if isinstance(maker, type) else maker  # noqa: B009
    try:
        return typing.get_type_hints(constructor)
    except (NameError, TypeError):
        return {}


def _is_default(value: Any, default: Any) -> bool:
    """Whether a file's value equals the signature's default, or names that object."""
    if isinstance(default, PLAIN):
        return type(value) is type(default) and value == default
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        pairs = zip(value, default, strict=False)
        return len(value) == len(default) and all(_is_default(*pair) for pair in pairs)
    if not isinstance(value, str) or default is inspect.Parameter.empty:
        return False
    module, _, name = value.rpartition(".")
    named = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return named is default


def _printable(text: str) -> str:
    """Remove terminal control characters from a text that may quote the file."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _rank(hint: Any) -> int:
    """Order of the types to try: None first, classes last, since the last error is reported."""
    if hint in (type(None), None):
        return 0
    return 1 if hint in PLAIN or typing.get_origin(hint) is not None else 2
