"""FreezeUntil and Freeze: keep a module, or its first layers, at the weights that it has.

Batch norms of what is frozen use and keep their running statistics, in the teacher too: otherwise
frozen features would change with the data.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from lightning import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from sslzoo.callbacks.rehearsal import require
from sslzoo.callbacks.temporary import Temporary
from sslzoo.checks import check_at_least
from sslzoo.optim import RunLength, depth_of


class Clock(Protocol):
    """Protocol of the methods that `FreezeUntil` accepts."""

    step: int
    run_length: RunLength

    def get_submodule(self, target: str) -> nn.Module: ...


def submodule(method: Any, name: str) -> nn.Module:
    """A module of a method by name.

    Raises:
        ValueError: the method does not have it.
    """
    try:
        return cast(nn.Module, method.get_submodule(name))
    except AttributeError as error:
        raise ValueError(
            f"module must be a submodule of {type(method).__name__}, got {name!r}"
        ) from error


def with_teacher(method: Any, name: str) -> list[nn.Module]:
    """A module of a method, and the module of its teacher that is a copy of it."""
    module = submodule(method, name)
    pairs = method.teacher_pairs() if hasattr(method, "teacher_pairs") else []
    copies = [
        teacher.get_submodule(inner)
        for student, teacher in pairs
        for inner, part in student.named_modules()
        if part is module
    ]
    return [module, *copies]


def statistics_of(module: nn.Module) -> list[nn.Module]:
    """The batch norms with running statistics in a module."""
    return [m for m in module.modules() if getattr(m, "running_mean", None) is not None]


class FreezeFirst(Temporary):
    """Base of the callbacks that freeze one module at the start of a run; see `FreezeUntil`."""

    def __init__(self, module: str, epochs: float = 0.0, steps: int = 0, fraction: float = 0.0):
        given = (epochs, steps, fraction)
        if sum(map(bool, given)) > 1 or min(given) < 0 or fraction > 1:
            raise ValueError(
                "epochs, steps and fraction must be at least 0, at most one of them above 0, and "
                f"fraction at most 1, got {epochs}, {steps} and {fraction}"
            )
        self.module, self.epochs, self.steps, self.fraction = module, epochs, steps, fraction
        self._norms: list[nn.Module] | None = None  # those that this callback has put into eval

    def is_frozen(self, method: Clock) -> bool:
        """Whether the module is frozen in the method's next step."""
        length = method.run_length
        steps = self.steps or self.fraction * length.total_steps or length.steps(self.epochs)
        return method.step < steps

    def hold(self, method: Clock) -> None:
        """Set the mode of the batch norms; a plain loop calls it before each forward pass."""
        if self.is_frozen(method):
            norms = [m for each in with_teacher(method, self.module) for m in statistics_of(each)]
            changed = [norm for norm in norms if norm.training]
            for norm in changed:
                norm.eval()
            self._norms = [*(self._norms or []), *changed]
        elif self._norms:
            for norm in self._norms:
                norm.train()
            self._norms = None

    def drop(self, method: Clock) -> None:
        """Drop the gradients while frozen; a plain loop calls it before `optimizer.step()`."""
        if self.is_frozen(method):
            for parameter in submodule(method, self.module).parameters():
                parameter.grad = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, type(self).__name__, "step", "run_length")
        submodule(pl_module, self.module)  # fail at once if the name is wrong

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.hold(cast(Any, pl_module))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self.drop(cast(Any, pl_module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for norm in self._norms or []:
            norm.train()
        self._norms = None


class FreezeUntil(FreezeFirst):
    """Freeze one module during the first epochs, optimizer steps or fraction of the run.

    Its gradients are dropped before the optimizer step, so that the optimizer skips it: no decay,
    no momentum, as in DINO's and SwAV's code. Gradients still flow through it to the rest of the
    network. Its batch norms, and those of the teacher's copy, are in eval mode meanwhile. With
    `module="backbone"`, new heads warm up on fixed features.

    Args:
        module: name within the method: "head.last_layer" (DINO), "prototypes" (SwAV), "backbone".
        epochs: duration in epochs (fractions allowed); 1 in DINO.
        steps: duration in optimizer steps, instead; 313 in SwAV.
        fraction: duration as a fraction of the run, instead; it fits data of any size.

    Raises:
        ValueError: several durations, a negative one or a fraction above 1 are given; the method
            does not have the module.
    """


class FreezeHead(FreezeFirst):
    """FreezeUntil that a method brings for its own head.

    Lightning drops the trainer's callbacks of the types that a method configures, and of their base
    classes: a user's FreezeUntil of the backbone would be lost.
    """


class Freeze(Temporary):
    """Freeze an encoder's stem and first blocks, or its running statistics, for the whole run.

    The layers' parameters get no gradient and are in no group of the optimizer; their batch norms,
    and those of the teacher's copy, stay in eval mode. A mask token, which is new, is trained.

    Args:
        blocks: number of blocks, as `sslzoo.optim.depth_of` counts them; 0: the stem alone; None:
            no parameter.
        module: name of the encoder within the method.
        statistics: whether all batch norms of the encoder use and keep the running statistics of
            the start weights. Those of a short run are of augmented views, not of the images that
            are evaluated.

    Raises:
        ValueError: the method does not have the module, its layers are unknown or fewer.
    """

    def __init__(
        self, blocks: int | None = 0, module: str = "backbone", statistics: bool = False
    ) -> None:
        check_at_least("blocks", blocks or 0, 0)
        self.blocks, self.module, self.statistics = blocks, module, statistics
        self._frozen: list[nn.Parameter] = []
        self._norms: list[tuple[nn.Module, bool]] = []  # with their modes before the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.freeze(pl_module)

    def freeze(self, method: nn.Module) -> None:
        """Freeze the layers; without a Trainer, call it before the optimizer is made."""
        encoder = submodule(method, self.module)
        names: set[str] = set()
        if self.blocks is not None:
            layers, last = depth_of(encoder)
            if self.blocks >= last:
                raise ValueError(
                    f"blocks must be below {last}, the number of layers of "
                    f"{type(encoder).__name__} after its stem, got {self.blocks}"
                )
            names = {n for n, at in layers.items() if at <= self.blocks and "mask_token" not in n}
        named = dict(encoder.named_parameters())
        self._frozen = [named[name] for name in sorted(names) if named[name].requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        norms = [
            norm
            for each in with_teacher(method, self.module)
            for prefix, part in each.named_modules()
            if self.statistics or _is_within(prefix, part, names)
            for norm in statistics_of(part)
        ]
        self._norms = [(norm, norm.training) for norm in dict.fromkeys(norms)]

    def hold(self) -> None:
        """Put the frozen batch norms into eval mode; a plain loop calls it before each step."""
        for norm, _ in self._norms:
            norm.eval()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.hold()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for norm, was_training in self._norms:
            norm.train(was_training)
        self._frozen, self._norms = [], []


def _is_within(prefix: str, module: nn.Module, names: set[str]) -> bool:
    """Whether a module has parameters, all of them among those named."""
    own = {f"{prefix}.{inner}".lstrip(".") for inner, _ in module.named_parameters()}
    return bool(own) and own <= names
