"""Gram anchoring: an earlier teacher keeps the patches' similarities of the student.

Simeoni et al., DINOv3, 2025, https://arxiv.org/abs/2508.10104, section 4. Written from the paper;
the reference code, facebookresearch/dinov3 at 6876159, has a license of its own.

Deviations:
    views: the Gram teacher's crops are resized from the image at once; the reference code resizes
        the box to the larger of both sizes and then again.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sslzoo.backbones.drop_path import without_drop_path
from sslzoo.callbacks.rehearsal import require
from sslzoo.checks import check_choice, check_interval, check_whole
from sslzoo.losses import gram, resize_tokens
from sslzoo.losses.gram import Level, Negatives
from sslzoo.optim import Schedule, as_schedule


class GramAnchoring(nn.Module):
    """The Gram teacher, a frozen copy of an earlier momentum teacher, and its loss.

    Args:
        weight: weight of the loss at each optimizer step; 2 in the 7B recipe, after a cosine from 0
            (`RiseAndCosine`), 1.5 in its high-resolution phase.
        from_step: optimizer step at which the Gram teacher is copied from the momentum teacher and
            the loss begins; 0: from the start, with the weights that the run starts from.
        refresh_every: optimizer steps between later copies; 0: none. 10,000 in the 7B recipe.
        max_refreshes: number of later copies; 3 in the 7B recipe.
        level: see `losses.gram`; "image" in the 7B recipe.
        negatives: see `losses.gram`; "keep" in the 7B recipe.
        normalize: see `losses.gram`.
        patches: which patches count: "all", or with `level="batch"` those that are "masked" or
            "unmasked" for the student.
        own_crops: whether the last two views are the Gram teacher's, the large crops at another
            size (`multi_crop_views(gram_size=)`); otherwise it sees the large crops.
        interpolation: how its features are resized to the student's grid; "bicubic" in the recipes.
        antialias: whether that resize is antialiased.
        follow: whether the current momentum teacher is the Gram teacher; nothing is copied.
        backbone: the Gram teacher, with weights of its own, instead of the first copy.

    Raises:
        ValueError: an option is unknown, negative, or does not fit the others.
    """

    def __init__(
        self,
        weight: Schedule | float = 2.0,
        from_step: int = 0,
        refresh_every: int = 0,
        max_refreshes: int = 0,
        level: Level = "image",
        negatives: Negatives = "keep",
        normalize: bool = True,
        patches: Literal["all", "masked", "unmasked"] = "all",
        own_crops: bool = False,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        antialias: bool = False,
        follow: bool = False,
        backbone: nn.Module | None = None,
    ):
        super().__init__()
        check_choice("level", level, ("image", "batch"))
        check_choice("negatives", negatives, ("keep", "remove", "remove_teacher"))
        check_choice("patches", patches, ("all", "masked", "unmasked"))
        check_choice("interpolation", interpolation, ("bicubic", "bilinear"))
        numbers = {"from_step": from_step, "refresh_every": refresh_every}
        for name, value in {**numbers, "max_refreshes": max_refreshes}.items():
            check_whole(name, value, 0)
        if (refresh_every > 0) != (max_refreshes > 0):
            raise ValueError(
                "refresh_every and max_refreshes must both be 0 or both above, got "
                f"{refresh_every} and {max_refreshes}"
            )
        if patches != "all" and level == "image":
            raise ValueError(f"patches must be 'all' with level='image', got {patches!r}")
        if follow and (backbone is not None or refresh_every):
            raise ValueError("backbone and refresh_every must be left out with follow=True")
        if not isinstance(weight, Schedule):
            check_interval("weight", weight, 0, math.inf, "[)")
        self.weight, self.from_step = as_schedule(weight), from_step
        self.refresh_every, self.max_refreshes = refresh_every, max_refreshes
        self.level, self.negatives, self.normalize = level, negatives, normalize
        self.patches, self.own_crops, self.follow = patches, own_crops, follow
        self.interpolation, self.antialias = interpolation, antialias
        self.is_given = backbone is not None
        self.backbone = None if backbone is None else _frozen(backbone)

    def attach(self, teacher: nn.Module) -> None:
        """Make the first Gram teacher from the momentum teacher; a method calls it once.

        Raises:
            ValueError: a given backbone has another width, or other parameters and is refreshed.
        """
        if self.backbone is None:
            self.backbone = None if self.follow else _frozen(copy.deepcopy(teacher))
            return
        ours, theirs = (
            {name: p.shape for name, p in net.named_parameters()}
            for net in (self.backbone, teacher)
        )
        if not callable(getattr(self.backbone, "forward_tokens", None)):
            raise ValueError(
                "backbone of the Gram teacher must be a ViT with forward_tokens, got "
                f"{type(self.backbone).__name__}"
            )
        width = cast(Any, teacher).num_features
        if cast(Any, self.backbone).num_features != width:
            raise ValueError(
                f"backbone of the Gram teacher must have num_features {width}, the student's, got "
                f"{cast(Any, self.backbone).num_features}"
            )
        if self.refresh_every and ours != theirs:
            raise ValueError(
                "backbone of the Gram teacher must be the student's net to be refreshed, got other "
                "parameters; set refresh_every: 0"
            )

    def is_due(self, step: int) -> bool:
        """Whether the momentum teacher is copied after `step` optimizer steps."""
        since = step - self.from_step
        if self.follow or since < 0:
            return False
        if since == 0:
            return not self.is_given
        return bool(self.refresh_every) and (
            since % self.refresh_every == 0 and since // self.refresh_every <= self.max_refreshes
        )

    def update(self, teacher: nn.Module, step: int) -> None:
        """Copy the momentum teacher if it is due; a plain loop calls it after each step."""
        if self.backbone is not None and self.is_due(step):
            self.backbone.load_state_dict(teacher.state_dict())

    def forward(
        self,
        student: Tensor,
        crops: Tensor,
        grid: tuple[int, int],
        teacher: nn.Module,
        mask: Tensor,
    ) -> Tensor:
        """The loss without its weight.

        Args:
            student: (n, L, D) patches of the large crops, after the final norm.
            crops: (n, C, H, W) crops that the Gram teacher sees, without masks.
            grid: height and width of the student's grid.
            teacher: the momentum teacher, for `follow`.
            mask: (n, L) bool, the student's masked patches.
        """
        net: Any = teacher if self.follow else self.backbone
        with torch.no_grad():
            tokens = net.forward_tokens(crops)[:, net.num_prefix :]
            height, width = (side // net.patch_size for side in crops.shape[2:])
            how = self.interpolation, self.antialias
            targets = resize_tokens(tokens, (height, width), grid, *how)
        counted = {"all": None, "masked": mask, "unmasked": ~mask}[self.patches]
        return gram(student, targets, self.level, self.negatives, self.normalize, counted)


def _frozen(backbone: nn.Module) -> nn.Module:
    return without_drop_path(backbone.requires_grad_(False))


class RefreshGramTeacher(Callback):
    """Copy the momentum teacher to the Gram teacher at its steps, after the update by `EMA`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(pl_module, "RefreshGramTeacher", "gram", "teacher_backbone", "step")
        method = cast(Any, pl_module)  # start weights may have been loaded since it was made
        method.gram.update(method.teacher_backbone, method.step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = cast(Any, pl_module)
        method.gram.update(method.teacher_backbone, method.step)
