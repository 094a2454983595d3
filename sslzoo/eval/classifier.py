"""Classifier: a linear layer on a pre-trained encoder and, optionally, its head's first layers.

The features may come from several blocks (`LastBlocks`), and a batch norm may precede the linear
layer, as in the linear protocols of ViTs.

It is built from its parts, so that its checkpoint loads without that of the pre-training run;
`load_weights` fills in a run's weights. Shapes: B samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sslzoo.backbones import Swin, ViT
from sslzoo.batch import View
from sslzoo.checks import check_num_features
from sslzoo.layers import GlobalBatchNorm
from sslzoo.trust import fill, module_of, read_checkpoint


class Headed(nn.Module):
    """A backbone that includes the first layers of its projector.

    SimCLR v2 is fine-tuned from the first of the head's three layers (arXiv 2006.10029, section
    2; `ft_proj_selector=1` in the code).

    Args:
        backbone: module (B, ...) -> (B, num_features).
        projector: the pre-trained head; it must have `first`, as `heads.simclr_v2_projector` does.
        num_layers: number of its layers to keep, each with its norm and ReLU.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, num_layers: int = 1):
        super().__init__()
        self.backbone = backbone
        self.num_layers = num_layers
        self.head: nn.Sequential = cast(Any, projector).first(num_layers)
        widths = [layer.out_features for layer in self.head if isinstance(layer, nn.Linear)]
        self.num_features = int([cast(Any, backbone).num_features, *widths][-1])

    def forward(self, x: View) -> Tensor:
        return self.head(self.backbone(x))


class LastBlocks(nn.Module):
    """A backbone that concatenates the class tokens of a ViT's last blocks.

    These are DINO's linear features (facebookresearch/dino, eval_linear.py): four blocks of a
    ViT-S; one block of a ViT-B with the mean of its patch tokens.

    Args:
        backbone: a `ViT` with a class token, such as from `backbones.timm_vit`.
        num_blocks: number of blocks.
        mean_patches: whether to append the mean of the last block's patch tokens.

    Raises:
        ValueError: the backbone is not such a ViT.
    """

    def __init__(self, backbone: nn.Module, num_blocks: int = 4, mean_patches: bool = False):
        super().__init__()
        if not isinstance(backbone, ViT) or not backbone.num_prefix:
            raise ValueError(
                f"backbone must be a ViT with a class token, got {type(backbone).__name__}"
            )
        self.backbone = backbone
        self.num_blocks, self.mean_patches = num_blocks, mean_patches
        self.num_features = backbone.num_features * (num_blocks + mean_patches)

    def forward(self, x: Tensor) -> Tensor:
        behind = self.backbone.forward_blocks(x, self.num_blocks)
        parts = [tokens[:, 0] for tokens in behind]
        if self.mean_patches:
            parts.append(behind[-1][:, self.backbone.num_prefix :].mean(dim=1))
        return torch.cat(parts, dim=1)


class Classifier(nn.Module):
    """Linear classifier on a backbone's features. Shapes: (B, ...) -> (B, C).

    Args:
        backbone: a module with `num_features`; `Headed` keeps layers of the pre-trained head.
        num_classes: C.
        init_std: standard deviation of the linear layer's initial weights, with zero bias
            (SimCLR: 0.01).
        norm: whether a batch norm without scale and shift precedes the linear layer. It is over the
            global batch (in MAE's linear protocol over each GPU's rows).
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, init_std: float = 0.01, norm: bool = False
    ):
        super().__init__()
        width = check_num_features(backbone, "backbone")
        self.backbone = backbone
        self.norm = GlobalBatchNorm(width, eps=1e-6, affine=False) if norm else nn.Identity()
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.classifier.weight, std=init_std)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: View) -> Tensor:
        return self.classifier(self.norm(self.backbone(x)))


def load_weights(model: Classifier, path: str, whole: bool = False) -> None:
    """Load trained weights into a classifier.

    Args:
        model: filled completely from a run that trained the same kind of classifier; from a run
            that pre-trained its backbone (and head), all but norm and linear layer are filled. A
            ViT's norm after the mean of patches is not filled either (`ViT.taken_from`).
        path: a Lightning checkpoint whose class has been imported, or the .safetensors of an
            encoder (which has no head).
        whole: refuse a file without a trained linear layer, which a teacher needs.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the parameters do not match; the message names them.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights must be an existing file, got {path!r}")
    if path.endswith(".safetensors"):
        if whole:
            raise ValueError(f"{path!r} must be a checkpoint of a classifier, got an encoder")
        if isinstance(model.backbone, Headed):
            raise ValueError(
                f"{path!r} must hold {model.backbone.num_layers} layers of the projector for "
                "Headed, got an encoder; use the run's checkpoint, or the backbone without Headed"
            )
        return _fill_encoder(model, load_file(path), path)
    run = module_of(read_checkpoint(path), path)
    parts = dict(run.named_children())
    trained = parts.get("model")
    if isinstance(trained, Classifier):
        return fill(model, trained.state_dict(), path)
    if whole:
        raise ValueError(
            f"{path!r} must be a checkpoint of a classifier, got one of {type(run).__name__}"
        )
    encoder = getattr(run, "encoder", None)
    if not callable(encoder):
        raise ValueError(
            f"the method in {path!r} must have encoder(), got {type(run).__name__} without it"
        )
    if not isinstance(model.backbone, Headed):
        return _fill_encoder(model, encoder().state_dict(), path)
    if "projector" not in parts:
        raise ValueError(
            f"the method in {path!r} must have a projector for Headed, got {type(run).__name__} "
            "without it"
        )
    _fill_encoder(model, encoder().state_dict(), path)
    head = cast(Any, parts["projector"]).first(model.backbone.num_layers)
    return fill(model.backbone.head, head.state_dict(), path)


def _encoder_of(model: Classifier) -> nn.Module:
    """The part of the backbone that was pre-trained."""
    backbone = model.backbone
    return backbone.backbone if isinstance(backbone, Headed | LastBlocks) else backbone


def _fill_encoder(model: Classifier, saved: Mapping[str, Tensor], path: str) -> None:
    """`fill` the part of the backbone that was pre-trained."""
    encoder = _encoder_of(model)
    fill(encoder, encoder.taken_from(saved) if isinstance(encoder, ViT | Swin) else saved, path)
