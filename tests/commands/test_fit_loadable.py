"""A run that could not be loaded again is refused before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.commands.fit import run
from sslzoo.heads import MLP
from sslzoo.methods import SimCLR
from tests.commands.command import arguments
from tests.toys import Pooled

# LightningCLI calls what jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)


class Rule:
    """What no YAML can hold."""

    size = 3


OBJECTS = [Rule()]  # which have no name to be imported by


class Untyped(Pooled):
    def __init__(self, num_features: int = 256, rule=OBJECTS[0]) -> None:  # type: ignore[no-untyped-def]
        super().__init__(num_features)


class Typed(Pooled):
    def __init__(self, num_features: int = 256, rule: Rule = OBJECTS[0]) -> None:
        super().__init__(num_features)


class Listed(Pooled):
    def __init__(self, num_features: int = 256, rules: list = OBJECTS[:]) -> None:
        super().__init__(num_features)


class Lambda(Pooled):
    def __init__(
        self, num_features: int = 256, rule: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__(num_features)


class Writable(Pooled):
    """What jsonargparse can write: a type, a function by name, several numbers."""

    def __init__(
        self,
        num_features: int = 256,
        dtype: torch.dtype = torch.float32,
        act: Callable[[Tensor], Tensor] = nn.functional.relu,
        norm: type[nn.Module] = nn.BatchNorm2d,
        sizes: tuple[int, ...] = (1, 2),
        limit: float = float("inf"),
    ) -> None:
        super().__init__(num_features)


class Remembers(SimCLR):
    """Adds to what its checkpoint stores."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, optimizer: Any = None) -> None:
        super().__init__(backbone, projector)
        self.hparams.update(table={"rules": [1, OBJECTS[0]]})


def fit(folder: Path, out: Path, *changes: str) -> None:
    run([*arguments(folder, out, "simclr"), "--trainer.max_epochs=1", *changes])


@pytest.mark.parametrize(
    ("cls", "argument"),
    [(Untyped, "rule"), (Typed, "rule"), (Listed, r"rules\.0"), (Lambda, "rule")],
)
def test_default_that_cannot_be_written_is_named(
    cls: type[Pooled], argument: str, folder: Path, tmp_path: Path
) -> None:
    changes = f"--model.init_args.backbone={__name__}.{cls.__name__}"
    name = rf"model\.init_args\.backbone\.init_args\.{argument}"
    with pytest.raises(ValueError, match=f"{name} must be .* loaded again"):
        fit(folder, tmp_path / "run", changes)
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_hyperparameter_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    method = f"--model={__name__}.Remembers"
    with pytest.raises(ValueError, match=r"model\.table\.rules\.1 must be .* got <.*Rule"):
        fit(folder, tmp_path / "run", method)
    assert not (tmp_path / "run").exists(), "nothing is written"


@pytest.mark.filterwarnings("ignore")
def test_what_can_be_written_trains(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, f"--model.init_args.backbone={__name__}.Writable")
    again = f"--config={tmp_path / 'version_0' / 'config.yaml'}"
    run(["validate", again, f"--ckpt_path={next(tmp_path.rglob('*.ckpt'))}"])


def test_module_built_in_python_may_hold_objects() -> None:
    method = SimCLR(Typed(16), MLP([16, 8]))
    assert set(method.hparams) >= {"temperature"}
    assert "backbone" not in method.hparams
