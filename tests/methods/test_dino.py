"""DINO equals two iterations of the authors' own loop: loss, gradient, clipping, AdamW, teacher."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, multi_crop, small_vit, timm_vit
from sslzoo.batch import Batch
from sslzoo.callbacks import EMA, WeightDecaySchedule, clip_per_parameter
from sslzoo.callbacks.freeze import FreezeHead
from sslzoo.heads import DINOHead
from sslzoo.memory import commit_memories
from sslzoo.methods import DINO
from sslzoo.optim import LinearSchedule, RunLength, Schedule, exempt_bias_and_norm
from tests.golden import FOLDER, assert_close_to_golden, load


class Listed(Schedule):
    """One value a step."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __call__(self, step: int, run_length: RunLength) -> float:
        return self.values[step]


def golden_dino(z: dict[str, Any], **options: Any) -> DINO:
    """The authors' small ViT and head, student and teacher alike."""
    hyper = z["meta"]["hyper"]
    vit = small_vit(
        hyper["img_size"][0],
        hyper["patch_size"],
        hyper["embed_dim"],
        hyper["depth"],
        hyper["num_heads"],
    )
    head = DINOHead(hyper["embed_dim"], hyper["out_dim"], hyper["head_hidden"], hyper["bottleneck"])
    method = DINO(vit, head, **options)
    for start, modules in (
        ("backbone", (method.backbone, method.teacher_backbone)),
        ("head", (method.projector, method.teacher_projector)),
    ):
        prefix = f"param:{start}."
        weights = {k[len(prefix) :]: torch.tensor(z[k]).float() for k in z if k.startswith(prefix)}
        for module in modules:
            module.load_state_dict(weights)
    return method


def crops(z: dict[str, Any]) -> list[Tensor]:
    return [torch.tensor(z[f"crop{i}"]).float() for i in range(4)]


def our_name(name: str) -> str:
    return name.replace("head.", "projector.", 1) if name.startswith("head.") else name


def test_multi_crop_features_and_outputs_equal_the_authors() -> None:
    z = load("dino/vit_multicrop.npz")
    method = golden_dino(z)
    features = multi_crop(method.backbone, nn.Identity(), crops(z))
    wanted = torch.stack([torch.tensor(z[f"feat{i}"]) for i in range(4)], dim=1)
    assert_close_to_golden(features, wanted, 1e-5)
    out = multi_crop(method.backbone, method.projector, crops(z))
    assert_close_to_golden(out.transpose(0, 1).flatten(0, 1), z["out"], 1e-5)
    assert_close_to_golden(method(crops(z)[0]), z["feat0"], 1e-5)


def test_two_iterations_equal_the_authors() -> None:
    z, train = load("dino/vit_multicrop.npz"), load("dino/train_epoch.npz")
    hyper, of_loss = train["meta"]["hyper"], train["meta"]["hyper"]["loss_hyper"]
    warm = of_loss["we"] - 1
    method = golden_dino(
        z,
        student_temperature=of_loss["st"],
        teacher_temperature=LinearSchedule(of_loss["wt"], of_loss["tt"], warm, every="epoch"),
        center_momentum=of_loss["cm"],
        momentum=Listed(hyper["momentum"]),
        freeze_last_layer_epochs=hyper["freeze_last_layer"],
        optimizer=lambda groups: torch.optim.AdamW(groups, weight_decay=1.0),
    )
    method.run_length = RunLength(2 * of_loss["ep"], 2)  # two steps an epoch
    optimizer: Any = method.configure_optimizers()
    check_groups(method, hyper)
    ema, _, freeze = method.configure_callbacks()
    assert isinstance(ema, EMA)
    assert isinstance(freeze, FreezeHead)
    decay = WeightDecaySchedule(Listed(hyper["wd"]))
    first = crops(z)
    for step, views in enumerate([first, [crop.flip(0) * 0.5 for crop in first]]):
        for group in optimizer.param_groups:
            group["lr"] = hyper["lr"][step]
        loss = method.losses(Batch(views, torch.arange(2)))["dino"]
        assert_close_to_golden(loss, train["losses"][step], 1e-5)
        optimizer.zero_grad()
        loss.backward()
        grads = [method.get_parameter(our_name(name)).grad for name in hyper["grad_names"]]
        norms = torch.stack([grad.norm() for grad in grads])
        assert_close_to_golden(norms, train["grad_norms"][step])
        clip_per_parameter(method.parameters(), hyper["clip_grad"])
        freeze.drop(method)
        decay.update(method, optimizer)
        optimizer.step()
        ema.update(method, method.step - 1)
        commit_memories(method)
    assert_close_to_golden(method.center.rows, train["center_after"], 1e-5)
    for name, wanted in train.items():
        who, _, parameter = name.partition(":")
        if who in ("student_after", "teacher_after"):
            prefix = "teacher_" if who == "teacher_after" else ""
            got = method.state_dict()[prefix + our_name(parameter)]
            if parameter.endswith("qkv.bias"):  # a key's bias has no gradient but noise in Adam
                got, wanted = (drop_keys(torch.as_tensor(x)) for x in (got, wanted))
            assert_close_to_golden(got, wanted)
    last = method.projector.last_layer.weight_v
    assert torch.equal(last, torch.tensor(z["param:head.last_layer.weight_v"]))


def drop_keys(bias: Tensor) -> Tensor:
    q, _, v = bias.chunk(3)
    return torch.cat([q, v])


def check_groups(method: DINO, hyper: dict[str, Any]) -> None:
    names = {id(p): name for name, p in method.named_parameters()}
    decayed, exempt = exempt_bias_and_norm(method)
    for group, wanted in ((decayed, "regularized"), (exempt, "not_regularized")):
        assert {names[id(p)] for p in group["params"]} == set(map(our_name, hyper[wanted]))


@pytest.mark.parametrize("name", ["vits16", "resnet50"])
def test_names_and_shapes_are_those_of_the_official_checkpoints(name: str) -> None:
    path = FOLDER / f"manifests/dino_{name}_full.json"
    keys = json.loads(path.read_text())["parts"]["teacher"]["keys"]
    of_head = {
        k.split("head.", 1)[1]: shape
        for k, shape in keys.items()
        if "head." in k and "backbone" not in k
    }
    with torch.device("meta"):
        head = DINOHead(384 if name == "vits16" else 2048)
        vit = timm_vit("vit_small_patch16_224")
    assert {k: list(v.shape) for k, v in head.state_dict().items()} == of_head
    if name == "vits16":
        of_vit = {k.split("backbone.")[1]: s for k, s in keys.items() if "backbone." in k}
        assert {k: list(v.shape) for k, v in vit.state_dict().items()} == of_vit


def toy(drop_path_rate: float = 0.0, **options: Any) -> DINO:
    torch.manual_seed(0)
    vit = small_vit(8, 4, width=16, depth=2, num_heads=2, drop_path_rate=drop_path_rate)
    return DINO(vit, DINOHead(16, 10, hidden_dim=12, bottleneck_dim=6), **options).double()


def batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(n, 3, s, s, generator=generator).double() for s in (8, 8, 4, 4)]
    return Batch(views, torch.arange(n))


def test_a_step_is_the_papers_pseudo_code() -> None:
    method = toy(teacher_temperature=LinearSchedule(0.04, 0.07, 2))
    method.run_length, method.step = RunLength(40, 10), 5  # a quarter of the way up
    with torch.no_grad():
        method.backbone.norm.weight.mul_(2)  # student and teacher differ
        method.center.rows.normal_()
    before, views = method.center.read().clone(), batch().views
    teacher = [method.teacher_projector(method.teacher_backbone(view)) for view in views[:2]]
    student = [method.projector(method.backbone(view)) for view in views]
    terms = [
        -(((t - before) / 0.0475).softmax(1) * (s / 0.1).log_softmax(1)).sum(1).mean()
        for i, t in enumerate(teacher)
        for j, s in enumerate(student)
        if i != j
    ]
    loss = method.losses(batch())["dino"]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-10, atol=0)
    commit_memories(method)
    wanted = 0.9 * before + 0.1 * torch.cat(teacher).mean(0)
    torch.testing.assert_close(method.center.read(), wanted)


def test_the_teacher_sees_the_large_crops_alone() -> None:
    method, seen = toy(), []
    method.teacher_backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    method.losses(batch())
    assert seen == [(8, 3, 8, 8)]


def test_drop_path_is_the_students_alone() -> None:
    method = toy(drop_path_rate=0.5)
    for backbone, wanted in ((method.backbone, {0.5}), (method.teacher_backbone, {0.0})):
        found = {part.drop_prob for part in backbone.modules() if isinstance(part, DropPath)}
        assert found == wanted
    assert torch.equal(*[method.teacher(batch().views[:2]) for _ in range(2)])
    assert not torch.equal(*[method.student(batch().views) for _ in range(2)])


def test_frozen_prototypes_are_the_students_and_the_teachers_are_untouched() -> None:
    method = toy()
    method.run_length = RunLength(4, 2)
    *_, freeze = method.configure_callbacks()
    method.losses(batch())["dino"].backward()
    assert isinstance(freeze, FreezeHead)
    freeze.drop(method)
    assert method.projector.last_layer.weight_v.grad is None
    assert all(p.grad is not None for p in method.projector.mlp.parameters())
    assert all(p.grad is None for p in method.teacher_projector.parameters())


def test_a_center_or_sharpening_alone_would_collapse_and_together_they_move_the_targets() -> None:
    """The center takes out what all rows share: without it the targets are nearly equal."""
    method = toy()
    with torch.no_grad():
        method.teacher_projector.mlp[-1].bias.add_(10)  # a direction that all rows share
    teacher = method.teacher_backbone(batch(64).views[0])
    logits = method.teacher_projector(teacher)
    shared = (logits / 0.04).softmax(1).mean(0)
    centered = ((logits - logits.mean(0)) / 0.04).softmax(1).mean(0)
    entropy = [-(p * p.log()).sum() for p in (shared, centered)]
    assert entropy[0] < entropy[1]


def test_convnets_and_their_own_statistics() -> None:
    torch.manual_seed(0)
    method = DINO(SmallResNet((4, 8)), DINOHead(8, 10, 12, 6, norm=True)).double()
    method.losses(batch())["dino"].backward()
    # one forward for each size: two sizes for the student, one for the teacher
    assert int(method.backbone.bn.num_batches_tracked) == 2
    assert int(method.teacher_backbone.bn.num_batches_tracked) == 1
    assert int(method.projector.mlp[1].num_batches_tracked) == 1
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_forward_gives_the_teachers_features() -> None:
    method = toy()
    with torch.no_grad():
        method.backbone.norm.weight.mul_(2)
    view = batch().views[0]
    assert torch.equal(method(view), method.teacher_backbone(view))
    assert not torch.allclose(method(view), method.backbone(view))


def test_bfloat16_autocast_stays_close() -> None:
    method = toy().float()
    views = [view.float() for view in batch().views]
    plain = method.losses(Batch(views, torch.arange(4)))["dino"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.losses(Batch(views, torch.arange(4)))["dino"]
        assert method.student(views).dtype == method.teacher(views[:2]).dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.03, atol=0)


def test_a_head_of_another_width_is_named() -> None:
    with pytest.raises(ValueError, match="in_features 16, the width of its input, got 12"):
        DINO(small_vit(8, 4, width=16, depth=1, num_heads=2), DINOHead(12, 10, 8, 6))
