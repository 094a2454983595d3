"""MSN's encoder, schedules and groups equal the authors'; its masks, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning import Trainer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sslzoo.backbones import SmallResNet, ViT, small_vit
from sslzoo.batch import Batch
from sslzoo.callbacks import EMA, ClipTogether, WeightDecaySchedule
from sslzoo.heads import MLP
from sslzoo.losses import msn, msn_targets
from sslzoo.methods import MSN
from sslzoo.optim import (
    CosineSchedule,
    LinearSchedule,
    RunLength,
    ScheduleLR,
    StretchedSchedule,
    WarmupCosine,
)
from tests.golden import assert_close_to_golden, load

HEAD = {"fc.fc1.": "0.", "fc.bn1.": "1.", "fc.fc2.": "3.", "fc.bn2.": "4.", "fc.fc3.": "6."}


def authors() -> tuple[MSN, dict[str, Any]]:
    """The authors' toy encoder with its head, and its arrays."""
    z = load("msn/encoder.npz")
    hyper = z["meta"]["hyper"]
    net = VisionTransformer(
        img_size=hyper["img_size"],
        patch_size=hyper["patch_size"],
        num_classes=0,
        embed_dim=hyper["embed_dim"],
        depth=hyper["depth"],
        num_heads=hyper["num_heads"],
        dynamic_img_size=True,
    )
    vit = ViT(net, resample="exact")
    head = MLP(
        [hyper["embed_dim"], hyper["hidden"], hyper["hidden"], hyper["out"]], activation="gelu"
    )
    state = {
        key.removeprefix("param:"): torch.tensor(value)
        for key, value in z.items()
        if key.startswith("param:")
    }
    state = {key: x.float() if x.is_floating_point() else x for key, x in state.items()}
    vit.load_state_dict({key: x for key, x in state.items() if not key.startswith("fc.")})
    head.layers.load_state_dict(
        {
            key.replace(name, number): x
            for key, x in state.items()
            for name, number in HEAD.items()
            if key.startswith(name)
        }
    )
    return MSN(vit, head, 8, drop_fraction=hyper["patch_drop"]), z


def test_the_student_is_the_authors() -> None:
    method, z = authors()
    big, small = (torch.tensor(z[name]).float() for name in ("big", "small"))
    kept = int(16 * (1 - method.drop_fraction))
    keep = torch.tensor(z["permutation"])[:kept]
    assert len(method.draw_patches(big)) == kept == 11
    out = method.anchors([big, small, small.flip(0)], keep)
    assert_close_to_golden(out.transpose(0, 1).flatten(0, 1), z["out"], 5e-6)
    layers = method.projector.layers
    for name, number in (("fc.bn1", 1), ("fc.bn2", 4)):  # of two batches, one per size
        for which in ("running_mean", "running_var"):
            assert_close_to_golden(
                getattr(layers[number], which), z[f"bn_after:{name}.{which}"], 1e-6
            )
    assert z["h_equals_z"]


def test_the_evaluated_features_are_the_authors() -> None:
    method, z = authors()
    big, small = (torch.tensor(z[name]).float() for name in ("big", "small"))
    method.anchors([big, small, small], torch.tensor(z["permutation"])[:11])  # running statistics
    method.eval()
    assert_close_to_golden(method.projector(method.backbone(big)), z["eval_big"], 2e-6)
    vit: Any = method.backbone
    vit.norm = nn.Identity()  # their last blocks are not normalized
    blocks = [tokens[:, 0] for tokens in vit.forward_blocks(big, 2)]
    assert_close_to_golden(torch.cat(blocks, dim=1), z["forward_blocks2"], 2e-6)


def test_schedules_and_groups_are_the_authors() -> None:
    z = load("msn/schedules.npz")
    hyper = z["meta"]["hyper"]
    length = RunLength(hyper["ipe"] * hyper["epochs"], hyper["ipe"])
    method = small()
    start, end = hyper["start_lr"] / hyper["lr"], hyper["final_lr"] / hyper["lr"]
    cosine = WarmupCosine(hyper["warmup"], start_factor=start, end_factor=end)
    optimizer = torch.optim.AdamW(
        method._parameter_groups(method), lr=hyper["lr"], weight_decay=hyper["wd"]
    )
    (decayed, exempt) = optimizer.param_groups
    assert any(p is method.prototypes.weight for p in exempt["params"])
    assert not any(p.ndim == 1 for p in decayed["params"])
    assert any(p is method.backbone.pos_embed for p in decayed["params"])
    rates = ScheduleLR(optimizer, StretchedSchedule(cosine, first_step=1), length)
    method.run_length = length
    decay = WeightDecaySchedule(
        StretchedSchedule(CosineSchedule(hyper["wd"], hyper["final_wd"]), first_step=1)
    )
    temperature = StretchedSchedule(LinearSchedule(hyper["start_T"], hyper["final_T"]))
    found: dict[str, list[Any]] = {name: [] for name in z if z[name] is not z["meta"]}
    for step in range(length.total_steps):
        method.step = step
        decay.update(method, optimizer)
        lrs, wds = (
            [group[key] for group in (decayed, exempt, exempt)] for key in ("lr", "weight_decay")
        )
        found["lr"].append(lrs[0])
        found["wd"].append(wds[0])
        found["group_lr"].append(lrs)
        found["group_wd"].append(wds)
        found["momentum"].append(method.momentum(step, length))
        found["sharpen"].append(temperature(step, length))
        optimizer.step()
        rates.step()
    assert len(found) == 6
    for name, values in found.items():
        assert_close_to_golden(torch.tensor(values, dtype=torch.float64), z[name], 1e-12)


def small(**options: Any) -> MSN:
    torch.manual_seed(0)
    vit = small_vit(8, 2, width=16, depth=2, num_heads=2, resample="exact")
    head = MLP([16, 12, 6], bias=False, activation="gelu")
    return MSN(vit, head, **{"num_prototypes": 5, **options})


def batch(n: int = 6, sizes: tuple[int, ...] = (8, 8, 4, 4)) -> Batch:
    draw = torch.Generator().manual_seed(0)
    views = [torch.randn(n, 3, size, size, generator=draw) for size in sizes]
    return Batch(views, torch.arange(n))


def test_the_kept_patches_depend_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method, views = small(), batch().views
    first = method.draw_patches(views[0])
    assert torch.equal(first, method.draw_patches(views[0][:2]))
    assert len(first) == 13
    assert len(first.unique()) == 13
    method.step = 1
    assert not torch.equal(first, method.draw_patches(views[0]))
    method.step = 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert not torch.equal(first, method.draw_patches(views[0]))


def test_focal_views_are_whole_and_the_target_sees_every_patch() -> None:
    method, data = small(drop_fraction=0.9).eval(), batch()
    keep = method.draw_patches(data.views[1])
    z = method.anchors(data.views[1:], keep)
    for v, view in enumerate(data.views[2:], 1):
        torch.testing.assert_close(z[:, v], method.projector(method.backbone(view)))
    assert not torch.allclose(z[:, 0], method.projector(method.backbone(data.views[1])))
    whole = method.teacher_projector(method.teacher_backbone(data.views[0]))
    wanted = msn_targets(whole, method.prototypes.weight, 0.1, 0.25)
    torch.testing.assert_close(method.target(data.views[0]), wanted)


def test_one_size_with_several_random_views_and_no_focal_one() -> None:
    method, data = small(random_views=2), batch(sizes=(8, 8, 8))
    terms = method.losses(data)
    t, keep = small(random_views=2).target(data.views[0]), method.draw_patches(data.views[1])
    z = small(random_views=2).anchors(data.views[1:], keep)
    wanted = msn(z, method.prototypes.weight, t, 0.1)
    torch.testing.assert_close(terms["cross_entropy"], wanted.cross_entropy)


def test_the_target_network_has_batch_statistics_and_moves_after_the_step() -> None:
    method, data = small(), batch().views[0]
    (ema,) = method.configure_callbacks()
    assert isinstance(ema, EMA)
    assert ema.when == "after_step"
    mean = method.teacher_projector.layers[1].running_mean.clone()
    method.target(data)
    assert not torch.equal(mean, method.teacher_projector.layers[1].running_mean)
    assert method.teacher_projector.training


def test_terms_have_their_weights() -> None:
    data = batch()
    one = small(entropy_weight=1.0).losses(data)
    two = small(mean_entropy_weight=3.0, entropy_weight=0.25).losses(data)
    assert torch.equal(one["cross_entropy"], two["cross_entropy"])
    torch.testing.assert_close(two["mean_entropy"], 3 * one["mean_entropy"])
    torch.testing.assert_close(two["entropy"], 0.25 * one["entropy"])


def test_the_norm_that_is_clipped_is_without_the_prototypes() -> None:
    method, clip = small(), ClipTogether(1.0)
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 10.0)
    optimizer = torch.optim.SGD(method._parameter_groups(method), lr=0.1)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    clip.on_train_start(trainer, method)
    clip.on_before_optimizer_step(trainer, method, optimizer)
    own = method.prototypes.weight
    assert own.grad.unique().tolist() == [10.0]
    grads = [p.grad for p in method.parameters() if p.grad is not None and p is not own]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)
    with pytest.raises(ValueError, match=r"besides must be modules .*, got 'head'"):
        ClipTogether(1.0, ["head"]).on_train_start(trainer, method)
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        ClipTogether(0)


def test_bad_input_is_refused_in_one_sentence() -> None:
    views = batch().views
    for options, match in (
        ({"num_prototypes": 1}, "num_prototypes must be at least 2, got 1"),
        ({"random_views": 0}, "random_views must be at least 1, got 0"),
        ({"drop_fraction": 1.0}, r"drop_fraction must be in \[0, 1\), got 1.0"),
        ({"sinkhorn_iterations": -1}, "sinkhorn_iterations must be at least 0, got -1"),
        ({"random_views": 1.5}, "random_views must be a whole number, got 1.5"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"sharpening": [1]}, r"sharpening must be a number or a Schedule .*, got \[1\]"),
        ({"momentum": [1]}, r"momentum must be a number or a Schedule .*, got \[1\]"),
        ({"entropy_weight": -1}, r"entropy_weight must be in \[0, inf\), got -1"),
        ({"mean_entropy_weight": -1}, r"mean_entropy_weight must be in \[0, inf\), got -1"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**options)
    with pytest.raises(
        ValueError, match=r"backbone must be a ViT with a class token .*SmallResNet"
    ):
        MSN(SmallResNet((4, 8)), MLP([8, 4]))
    with pytest.raises(ValueError, match=r"in_features 16, .* got 8"):
        MSN(small().backbone, MLP([8, 4]))
    method = small()
    with pytest.raises(ValueError, match="MSN must have at least 2 views per sample, got 1"):
        method.takes.check(Batch(views[:1], torch.arange(6)), "MSN")
    with pytest.raises(ValueError, match="the first 2 views of MSN must have one shape"):
        method.takes.check(Batch([views[0], views[2]], torch.arange(6)), "MSN")
    with pytest.raises(ValueError, match="the first views of MSN must be the largest, got"):
        method.takes.check(batch(sizes=(4, 4, 8)), "MSN")
    with pytest.raises(ValueError, match="multiples of the patch, 2 pixels, got 5 x 5"):
        method.losses(batch(sizes=(8, 8, 5)))
    with pytest.raises(ValueError, match=r"drop_fraction must leave a patch of the 16 .* got 0.95"):
        small(drop_fraction=0.95).losses(batch())
    with pytest.raises(ValueError, match=r"factor must be at least 1 .*, got 0.5 and 0"):
        StretchedSchedule(LinearSchedule(0.0, 1.0), 0.5)


def test_a_stretched_schedule_stops_before_its_end() -> None:
    stretched, length = StretchedSchedule(LinearSchedule(0.996, 1.0)), RunLength(100, 10)
    assert stretched(100, length) == pytest.approx(0.9992)
    assert stretched(0, length) == 0.996


def test_features_other_than_the_class_token_are_refused() -> None:
    vit = small_vit(8, 2, width=16, depth=1, num_heads=2, pool="mean")
    with pytest.raises(ValueError, match=r"must be its class token, .* got pool 'mean' of ViT"):
        MSN(vit, MLP([16, 12, 6]), num_prototypes=5)


def test_the_recipe_starts_as_the_authors_do() -> None:
    torch.manual_seed(0)
    vit = small_vit(32, 4, width=64, depth=1, num_heads=2, init="msn")
    patch = vit.patch_embed.proj
    assert patch.weight.std().item() == pytest.approx(math.sqrt(2 / 48), rel=0.05)
    assert not patch.bias.any()
    head = MLP([64, 64, 64], activation="gelu", init_std=0.02)
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not layer.bias.any()
