"""Admit: decide which class or function a name in a file may refer to.

A card, a checkpoint's hyper-parameters and the config of a run are data from a file. They may name

- classes that are defined in the packages of `PACKAGES`,
- the public functions of sslzoo's packages that return such an object (`simclr_views`), and
- classes of the user's own program that it has imported already, if a subclass of a class of
  these packages is expected (a backbone, a method, a data module).

A name is resolved through real submodules only, never through a module's own imports, and the
object must be the one that its `__module__` and `__qualname__` refer to. Nothing outside these
packages is imported for a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import site
import sys
import sysconfig
import typing
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

FACTORY_PACKAGES = (
    "sslzoo.backbones",
    "sslzoo.data",
    "sslzoo.eval",
    "sslzoo.heads",
    "sslzoo.layers",
    "sslzoo.losses",
    "sslzoo.masks",
    "sslzoo.memory",
    "sslzoo.methods",
    "sslzoo.optim",
    "sslzoo.transforms",
)
PACKAGES = (
    *FACTORY_PACKAGES,
    "sslzoo.callbacks.gram",  # a part of a method, unlike other callbacks
    "torch.nn",
    "torch.optim",
)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class UntrustedError(ValueError):
    """A file names a class or function that is not allowed."""

    def __init__(self, name: object, why: str, where: str) -> None:
        super().__init__(
            f"{where} must name only classes of sslzoo, torch.nn and torch.optim, or your own that "
            f"your program has imported, got {name!r}, which {why}; if you trust the file, pass "
            "trust=True (--trust on the command line)"
        )


def admit(name: Any, base: type, where: str, result: type = object) -> Any:
    """Resolve a name in a file to its class or function, if it is allowed.

    Args:
        name: dotted, such as "sslzoo.backbones.SmallResNet".
        base: required base class of the object (or of its return value); `object` for a reference
            that is called later, such as an optimizer's.
        where: the file, for the error.
        result: for a reference, the type that the call must return; `object`: unknown, and then
            the user's own classes are not allowed.

    Raises:
        UntrustedError: the name refers to something that the module's docstring does not list.
        ValueError: the name does not exist, or is not a subclass of `base`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UntrustedError(name, "is not the dotted name of a class", where)
    if _within(name, PACKAGES):
        found = _ours(name, where)
    else:
        found = _of_the_user(name, result if base is object else base, where)
    given = found if isinstance(found, type) else _returned(found)
    if base is not object and not _is_protocol(base) and not _is_subclass(given, base):
        raise ValueError(f"{where}: a class must be a {base.__name__}, got {name!r}")
    return found


def _ours(name: str, where: str) -> Any:
    found = _follow(name, where)
    if isinstance(found, type):
        fine = True
    else:
        fine = isinstance(found, FunctionType) and _is_public(found)
    if not fine:
        raise UntrustedError(name, "is neither a class nor a public factory function", where)
    module, qualname = found.__module__, found.__qualname__
    if not _within(module, PACKAGES):
        raise UntrustedError(name, f"is defined in {module}", where)
    if _attribute(sys.modules[module], qualname) is not found:
        raise UntrustedError(name, f"is not the {module}.{qualname} that it claims to be", where)
    return found


def _follow(name: str, where: str) -> Any:
    """Resolve a name to an attribute: through submodules first, then nested classes."""
    root = next(package for package in PACKAGES if _within(name, [package]))
    module = importlib.import_module(root)
    parts = name.removeprefix(root).strip(".").split(".")
    try:
        while len(parts) > 1 and _is_submodule(module, parts[0]):
            module = importlib.import_module(f"{module.__name__}.{parts.pop(0)}")
    except ImportError as error:
        raise ValueError(f"{where} names {name!r}, which cannot be imported: {error}") from None
    found = _attribute(module, ".".join(parts))
    if found is None:
        raise UntrustedError(name, "does not exist in that package", where)
    return found


def _is_submodule(module: ModuleType, name: str) -> bool:
    if not hasattr(module, "__path__"):
        return False
    return importlib.util.find_spec(f"{module.__name__}.{name}") is not None


def _attribute(module: ModuleType, qualname: str) -> Any:
    """Attribute of a module or of a class in it; None if the path goes through other objects."""
    first, *rest = qualname.split(".")
    found = vars(module).get(first)
    for part in rest:
        found = vars(found).get(part) if isinstance(found, type) else None
    return found


def _is_public(function: FunctionType) -> bool:
    """Whether one of our packages lists this function in its `__all__`."""
    name = function.__name__
    packages = (importlib.import_module(package) for package in FACTORY_PACKAGES)
    return any(
        name in package.__all__ and getattr(package, name) is function for package in packages
    )


def _of_the_user(name: str, base: type, where: str) -> type:
    """Find a class that the running program has imported from the user's own code."""
    path, _, qualname = name.rpartition(".")
    while path and path not in sys.modules:
        path, _, last = path.rpartition(".")
        qualname = f"{last}.{qualname}"
    module = sys.modules.get(path)
    found = None if module is None else _attribute(module, qualname)
    if module is not None and isinstance(found, FunctionType) and _is_users_own(module):
        raise UntrustedError(name, "is a function", where)
    if module is None or not isinstance(found, type):
        raise UntrustedError(name, "is not a class of sslzoo or torch", where)
    if not _is_users_own(module) or not _is_home_or_exports(module, found):
        raise UntrustedError(name, f"is defined in {found.__module__}", where)
    if base is object or _is_protocol(base):
        why = "is your own class for an argument without a type hint"
        raise UntrustedError(name, why, where)
    if not _is_subclass(found, base):
        raise UntrustedError(name, f"is not the {base.__name__} that is required there", where)
    return found


def _is_home_or_exports(module: ModuleType, found: type) -> bool:
    """Whether a module defines a class, or a module of the same package that is imported does."""
    if found.__module__ == module.__name__:
        return True
    home = sys.modules.get(found.__module__)
    package = module.__name__.partition(".")[0]
    return (
        home is not None
        and _within(home.__name__, [package])
        and _attribute(home, found.__qualname__) is found
    )


def _is_users_own(module: ModuleType) -> bool:
    """Whether a module belongs neither to Python, nor to an installed package, nor to sslzoo."""
    file = getattr(module, "__file__", None)
    if _within(module.__name__, ["sslzoo"]):
        return False
    if file is None:
        return module.__name__ == "__main__"
    paths = sysconfig.get_paths()
    installed = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    return not any(Path(file).resolve().is_relative_to(Path(p).resolve()) for p in installed)


def _returned(function: FunctionType) -> Any:
    return typing.get_type_hints(function).get("return")


def _is_subclass(found: Any, base: type) -> bool:
    return typing.get_origin(found) is None and isinstance(found, type) and issubclass(found, base)


def _is_protocol(base: type) -> bool:
    return bool(getattr(base, "_is_protocol", False))


def _within(name: str, packages: typing.Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
