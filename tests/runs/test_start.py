"""Every method starts from given weights, student and teacher alike, or is left as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import sslzoo
from sslzoo.backbones import ViT, small_vit
from sslzoo.heads import DINOHead, MAEDecoder
from sslzoo.masks import BlockMasks
from sslzoo.memory import MemoryBank, Queue
from sslzoo.methods import BYOL, DINO, IBOT, MAE, SSLMethod
from tests.callbacks.toy import FILTERS
from tests.toys import build, every_method

pytestmark = FILTERS


def battery() -> Any:
    return pytest.mark.parametrize("cls", every_method(), ids=lambda cls: cls.__name__)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def given(method: SSLMethod, path: Path) -> dict[str, Tensor]:
    """Other weights of the method's backbone, in a file."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.rand(x.shape, generator=generator) if x.is_floating_point() else x.clone()
        for name, x in method.backbone.state_dict().items()
    }
    save_file(weights, path)
    return weights


@battery()
def test_weights_of_the_factory_reach_student_and_teacher(cls: type[SSLMethod]) -> None:
    """The constructor draws nothing anew over the weights that its backbone has."""
    first, _ = build(cls)
    backbone = copy.deepcopy(first.backbone)
    for name, x in backbone.state_dict().items():
        if x.is_floating_point() and "running" not in name:
            x.copy_(torch.rand(x.shape, generator=torch.Generator().manual_seed(len(name))))
    wanted = state(backbone)
    method, _ = build(cls, backbone=backbone)
    assert same(state(method.backbone), wanted)
    for student, teacher in method.teacher_pairs():
        assert same(state(student), state(teacher))


@battery()
def test_a_file_fills_student_and_teacher_and_no_head(cls: type[SSLMethod], tmp_path: Path) -> None:
    method, _ = build(cls)
    before, pairs = state(method), method.teacher_pairs()
    wanted = given(method, tmp_path / "weights.safetensors")
    about = sslzoo.start_from(method, tmp_path / "weights.safetensors")
    assert about["heads"] == "new"
    assert len(about["sha256"]) == 64
    assert same(state(method.backbone), wanted)
    encoder: Any = method.encoder()
    assert same(state(encoder), wanted), "row 0 is the source's"
    for student, teacher in pairs:
        assert same(state(student), state(teacher))
    filled = [method.backbone, *(teacher for _, teacher in pairs)]
    inside = {x.data_ptr() for part in filled for x in part.state_dict().values()}  # ties too
    heads = {n: x for n, x in method.state_dict().items() if x.data_ptr() not in inside}
    assert all(torch.equal(x, before[name]) for name, x in heads.items())
    assert method.step == 0


@battery()
def test_a_run_of_the_method_gives_heads_too(cls: type[SSLMethod], tmp_path: Path) -> None:
    source, _ = build(cls, seed=1)
    for x in source.parameters():
        x.data.add_(0.5)
    trainer = Trainer(logger=False, accelerator="cpu", max_epochs=1, enable_progress_bar=False)
    trainer.strategy.connect(source)
    trainer.save_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    method, _ = build(cls)
    fresh = state(method)
    sslzoo.start_from(method, tmp_path / "run.ckpt", heads="given")
    rows = [
        f"{prefix}."
        for prefix, part in method.named_modules()
        if isinstance(part, (Queue, MemoryBank)) or "Cluster" in type(part).__name__
    ]
    for name, x in state(method).items():
        own = fresh if name.startswith(tuple(rows)) else source.state_dict()
        assert torch.equal(x, own[name]), name


def refused(method: SSLMethod, source: Any, match: str, **how: Any) -> None:
    before = state(method)
    with pytest.raises(ValueError, match=match) as caught:
        sslzoo.start_from(method, source, **how)
    assert "\n" not in str(caught.value)
    assert same(state(method), before), "nothing is half-loaded"


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    dino, byol = build(DINO)[0], build(BYOL)[0]
    path = tmp_path / "weights.safetensors"
    given(byol, path)
    refused(dino, path, "weights must fit ViT")
    refused(byol, path, "heads must be 'new' unless", heads="given")
    refused(byol, path, "heads must be", heads="old")
    refused(byol, tmp_path, "must have checkpoints/last.ckpt")
    with pytest.raises(OSError, match="nowhere"):
        sslzoo.start_from(byol, "nowhere")
    with pytest.raises(ValueError, match=r"must have encoder\(\) or backbone"):
        sslzoo.start_from(nn.Module(), path)  # type: ignore[arg-type]


def test_heads_of_other_sizes_are_refused(tmp_path: Path) -> None:
    source, _ = build(DINO)
    wide, _ = build(DINO, projector=DINOHead(16, 12, hidden_dim=12, bottleneck_dim=6))
    trainer = Trainer(logger=False, accelerator="cpu", max_epochs=1, enable_progress_bar=False)
    trainer.strategy.connect(source)
    trainer.save_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    refused(wide, tmp_path / "run.ckpt", "pass heads='new' to take the encoder", heads="given")
    sslzoo.start_from(wide, tmp_path / "run.ckpt")
    assert same(state(wide.backbone), state(source.teacher_backbone))


def test_positions_are_resampled_and_never_redrawn(tmp_path: Path) -> None:
    """MAE's own positions are fixed; a learned table of another grid is resampled."""
    large = small_vit(16, 4, 16, 1, 2)
    save_file(state(large), tmp_path / "vit.safetensors")
    method, _ = build(DINO, backbone=small_vit(8, 4, 16, 1, 2))
    about = sslzoo.start_from(method, tmp_path / "vit.safetensors")
    assert "pos_embed resampled" in about["loaded"]
    assert torch.equal(method.backbone.pos_embed, method.teacher_backbone.pos_embed)
    cls, patches = large.pos_embed[:, :1], method.backbone.pos_embed[:, 1:]
    assert torch.equal(method.backbone.pos_embed[:, :1], cls)
    assert patches.shape == (1, 4, 16)


def with_registers(mask_token: bool) -> ViT:
    torch.manual_seed(0)
    sizes: Any = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    net = VisionTransformer(**sizes, reg_tokens=3, num_classes=0, dynamic_img_size=True)
    return ViT(net, mask_token=mask_token)


def test_masked_methods_go_on_from_nets_with_registers() -> None:
    """As DINOv2's: registers are no patches."""
    ibot, batch = build(IBOT, backbone=with_registers(True), masks=BlockMasks([0.5], [0.0]))
    taken: list[torch.Size] = []
    ibot.backbone.norm.register_forward_hook(lambda m, i, o: taken.append(o.shape))
    ibot.losses(batch)["patch"].backward()
    assert taken[0][1] == 1 + 3 + 9
    seen: list[Tensor] = []
    ibot.projector.bottleneck = lambda x: seen.append(x) or x  # type: ignore[method-assign, func-returns-value]
    mask = torch.zeros(8, 4, dtype=torch.bool)
    views = torch.stack(batch.views[:2], 1).flatten(0, 1)[:8, :, :8, :8]
    order = torch.arange(4).expand(8, 4)
    ibot.student(views, mask, order, [])
    wanted = ibot.backbone.forward_tokens(views, mask=mask)
    assert torch.equal(seen[1], wanted[:, 4:])
    assert torch.equal(seen[0].flatten(0, 1), wanted[:, 0])
    mae, batch = build(MAE, backbone=with_registers(False), decoder=MAEDecoder(16, 2, 4, 8, 1, 2))
    mae.losses(batch)["masked_pixels"].backward()
    assert mae.backbone.reg_token.grad is not None
