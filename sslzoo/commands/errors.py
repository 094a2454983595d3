"""Errors of the command: one sentence for what the user can mend, `--debug` for the traceback."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import sslzoo

DEBUG = "--debug"
# Packages that check the user's arguments, besides ours.
_CHECKS = ("jsonargparse", "lightning", "torch/optim", "torch/utils/data", "timm")
_NAMED = {"OutOfMemoryError", "MisconfigurationException", "UnpicklingError", "AddressError"}
_HINT = {"OutOfMemoryError": "; reduce the batch size, such as --data.batch_size=64"}
_PLACE = re.compile(r"Parser key \"([^\"]+)\":|given class_path '([^']+)'")
_TYPE = re.compile(r"(?:<class ')?(?:builtins\.)?([\w.]+)(?:'>)?$")
_WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}
_WORDS |= {"list": "a list", "dict": "a dictionary"}
_FRAMES = ("Subtypes:", "Errors:", "Given value", "Does not validate", "Expected a path but")


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one sentence without the usage."""

    def error(self, message: str) -> NoReturn:
        refuse(self.prog, message, self._option_string_actions)


def refuse(prog: str, message: str, options: Iterable[str] = ()) -> NoReturn:
    """End the command with status 2 and one sentence that names its help.

    Args:
        prog: the command, such as "sslzoo eval".
        message: of argparse or jsonargparse.
        options: the names that exist; those similar to an unrecognized one are named.
    """
    text = sentence(message)
    unknown = re.match(r"unrecognized arguments: (--[\w.]+)", text)
    close = (
        difflib.get_close_matches(unknown[1], list(options), n=2, cutoff=0.75) if unknown else []
    )
    if close:
        text += f"; similar: {', '.join(close)}"
    print(f"{prog.split()[0]}: {text.rstrip('.')}; see {prog} --help", file=sys.stderr)
    raise SystemExit(2)


def sentence(message: str) -> str:
    """Shorten an error, such as jsonargparse's tree of all subtypes, to one sentence."""
    if "Parser key" not in message and "Does not validate" not in message:
        return " ".join(message.split())
    keys = [found[1] for found in _PLACE.finditer(message) if found[1]]
    name = ".".join(keys)
    own, kinds = _leaves(message)
    if own:
        text = own[0]
        return text if not name or name.rpartition(".")[2] in text else f"{name}: {text}"
    wanted = " or ".join(dict.fromkeys(kinds)) or "of another type"
    return f"{name or 'the value'} must be {wanted}, got {_got(message)}"


def _leaves(message: str) -> tuple[list[str], list[str]]:
    """The texts that say what is wrong, and the types that would be right."""
    own, kinds = [], []
    for line in re.split(r"\n|Parser key \"[^\"]+\":", message):
        text = line.strip().removeprefix("- ").strip()
        if not text or text.startswith(_FRAMES) or text.startswith("Problem with given class"):
            continue
        if "expects a function or a callable class:" in text:
            text = text.rpartition("expects a function or a callable class:")[2].strip()
        text = re.sub(r"\.? Got value: .*", "", text).strip()
        if text.startswith("Expected a "):
            kinds += _kind(text.removeprefix("Expected a "))
        elif text.startswith("Import path does not correspond to a subclass of"):
            kinds.append(f"a class path of a {text.split()[-1]}")
        elif text:
            own.append(text)
    return own, kinds


def _kind(text: str) -> list[str]:
    """The type that a line of jsonargparse expects, in words."""
    if text.startswith("dot import path"):
        return ["a class path"]
    if text.startswith("typing.Literal"):
        return [text.removeprefix("typing.Literal").strip("[]")]
    found = _TYPE.match(text)
    name = found[1].rpartition(".")[2] if found else text
    return [] if name == "NoneType" else [_WORDS.get(name, name)]


def _got(message: str) -> str:
    """The innermost value that was given."""
    values = re.findall(r"Given value: (.*)|Got value: (.*)|Given value: .*val='([^']*)'", message)
    flat = [text for found in values for text in found if text]
    plain = [text for text in flat if "(" not in text] or re.findall(r"val='([^']*)'", message)
    return repr(plain[0].strip().rstrip(".")) if plain else "another"


def line(error: BaseException) -> str:
    """An error's message in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    caught = "Original Traceback" in str(error)  # in a worker of a DataLoader
    last = re.sub(r"^(\w+\.)+(?=\w+: )", "", lines[-1])  # without the class's package
    text = last if caught else sentence(str(error)) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return text + _HINT.get(type(error).__name__, "")


def is_users(error: BaseException) -> bool:
    """Whether the user can mend an error: the system's, an argument's, or one that we raise."""
    if isinstance(error, OSError | ImportError) or type(error).__name__ in _NAMED:
        return True
    if not isinstance(error, ValueError | TypeError | RuntimeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(frames[-1].filename) if frames else Path()
    if file.is_relative_to(Path(sslzoo.__file__).parent):
        return isinstance(error, ValueError)
    return any(f"site-packages/{package}/" in file.as_posix() for package in _CHECKS)


@contextmanager
def one_sentence(
    who: str, debug: bool, of: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """End the command with one sentence, with status 1, for an error that the user can mend.

    Args:
        who: beginning of the sentence, such as "sslzoo eval".
        debug: print the traceback too.
        of: errors that are the user's wherever they are raised.
    """
    try:
        yield
    except SystemExit as end:
        if debug and end.code not in (0, None):
            traceback.print_exception(end.__context__ or end)
        raise
    except KeyboardInterrupt:
        print("sslzoo: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # `sslzoo zoo list | head`
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        if debug or not (isinstance(error, of) or is_users(error)):
            raise
        print(f"{who}: {line(error)}", file=sys.stderr)
        raise SystemExit(1) from error


def without_debug(args: Sequence[str]) -> tuple[list[str], bool]:
    """Remove `--debug` from the arguments; also say whether it was there."""
    kept = [arg for arg in args if arg != DEBUG]
    return kept, len(kept) < len(args)
