"""Arguments of the training command: configs by name, and the folder of a config's runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from sslzoo.commands.checkpoints import implied_config
from sslzoo.commands.configs import config_folders, find_config, similar_configs
from sslzoo.run_folder import is_version

VERBS = ("fit", "validate", "test", "predict")
HELPS = ("--help", "-h", "--print_config")


def with_config_paths(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Replace each `--config NAME` by its path; return the arguments and the last path.

    Configs move to the front, after the subcommand, so that all other arguments override them
    wherever they are given. Without any, `--ckpt_path FILE` implies the config of FILE's run.
    """
    configs, others = _taken(args, ("--config", "-c"))
    paths = [_existing_config(name) for name in configs]
    given = _taken(others, ("--ckpt_path",))[0]
    described = any(arg.partition("=")[0] in ("--model", "--data") for arg in others)
    helps = any(arg in HELPS or arg.partition("=")[0].endswith(".help") for arg in others)
    alone = bool(others[:1]) and others[0] in VERBS and not (paths or described or helps)
    if alone and given:
        paths = [implied_config(given[-1])]
    elif alone:
        raise ValueError(
            f"--config must be given, such as `sslzoo {others[0]} --config quickstart` (`sslzoo "
            "configs` lists them), got none"
        )
    named = [f"--config={path}" for path in paths]
    return others[:1] + named + others[1:], paths[-1] if paths else None


def _taken(args: Sequence[str], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Values of an option, given as `--name VALUE` or `--name=VALUE`, and all other arguments."""
    values: list[str] = []
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name in names and (equals == "" or name.startswith("--")):
            values.append(value if equals else next(rest, ""))
        else:
            others.append(arg)
    return values, others


def _existing_config(name: str) -> str:
    path = find_config(name)
    if not Path(path).is_file():
        similar = ", ".join(similar_configs(name)) or "quickstart"
        raise ValueError(
            "--config must be a file or the name of a shipped config, such as "
            f"{similar} (`sslzoo configs` lists them), got {name!r}"
        )
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid config: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a dictionary, got {type(content).__name__}")
    return path


def runs_of(config: str | None) -> str:
    """The folder of a config's runs: runs/<its name>, or, for a run's saved config, that run's."""
    if config is None:
        return "runs"
    path = Path(config).resolve()
    for folder in config_folders():
        if path.is_relative_to(folder.resolve()):
            return str(Path("runs") / path.relative_to(folder.resolve()).with_suffix(""))
    if path.stem == "config" and is_version(path.parent):
        return str(path.parent.parent)
    return str(Path("runs") / path.stem)
