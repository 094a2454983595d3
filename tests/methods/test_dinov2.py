"""DINOv2: whole steps, masks, rates and training equal the authors' arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, small_vit, timm_swin
from sslzoo.backbones.drop_path import add_to_subset
from sslzoo.batch import Batch
from sslzoo.callbacks import EMA, WeightDecaySchedule, clip_per_module
from sslzoo.callbacks.gram import GramAnchoring
from sslzoo.heads import DINOHead
from sslzoo.losses import gram as gram_of
from sslzoo.losses import resize_tokens
from sslzoo.masks import BlockMasks, StratifiedBlockMasks
from sslzoo.memory import commit_memories
from sslzoo.methods import DINOv2
from sslzoo.optim import (
    CosineSchedule,
    LayerDecay,
    LinearSchedule,
    RunLength,
    Schedule,
    ScheduleLR,
    WarmupCosine,
    ZeroRateFirst,
)
from sslzoo.random import Keys
from tests.golden import assert_close_to_golden, load
from tests.losses.test_koleo import reference as own_koleo
from tests.ranks import Ranks
from tests.test_every_method import fit, trainer
from tests.toys import build

INPUTS = "dinov2/meta_arch_inputs.npz"


class Given(StratifiedBlockMasks):
    """Masks that were drawn elsewhere, crop by crop."""

    def __init__(self, masks: Any) -> None:
        super().__init__()
        self.given = torch.as_tensor(masks)

    def bounds(self, strata: Sequence[int], total: int, num_patches: int) -> list[int]:
        return self.given.sum(dim=1).tolist()

    def __call__(self, keys: Keys, strata: Tensor, total: int, height: int, width: int) -> Tensor:
        return self.given


def golden_method(z: dict[str, Any], form: str, masks: Any, **options: Any) -> DINOv2:
    """The authors' weights; `form` is center_shared, sk_separate, ..."""
    hyper, (centering, heads) = z["meta"]["hyper"], form.split("_")
    vit = small_vit(
        hyper["img_size"],
        hyper["patch_size"],
        hyper["embed_dim"],
        hyper["depth"],
        hyper["num_heads"],
        mask_token=True,
        registers=hyper["registers"],
        layer_scale=hyper["layerscale_init"],
    )
    projectors = [
        DINOHead(24, h["K"], h["hidden"], h["bottleneck"], norm_last_layer=False)
        for h in (hyper["head"], hyper["ibot_head_separate"])
    ]
    method = DINOv2(
        vit,
        projectors[0],
        projectors[1] if heads == "separate" else None,
        Given(masks),
        "sinkhorn" if centering == "sk" else "center",
        **options,
    )
    for kind, prefix in (("student", ""), ("teacher", "teacher_")):
        start = f"{kind}_{heads}:"
        state = {
            prefix + ours(name.removeprefix(start)): torch.tensor(value).float()
            for name, value in z.items()
            if name.startswith(start)
        }
        state[f"{prefix}backbone.mask_token"].unsqueeze_(0)
        report = method.load_state_dict(state, strict=False)
        assert report.unexpected_keys == []
        heads_of_student = ("backbone.", "projector.", "patch_projector.")
        others = ("teacher_",) if kind == "student" else heads_of_student
        assert all(name.startswith((*others, "center", "patch_ce")) for name in report.missing_keys)
    return method


def ours(name: str) -> str:
    renamed = {"dino_head": "projector", "ibot_head": "patch_projector"}
    head, _, rest = name.partition(".")
    return f"{renamed.get(head, head)}.{rest}".replace("register_tokens", "reg_token")


def crops(z: dict[str, Any], ranks: slice) -> Batch:
    """The crops of some ranks, their images behind one another."""
    views = [
        torch.tensor(np.concatenate(list(part[ranks, i]))).float()
        for part in (z["global_crops"], z["local_crops"])
        for i in range(part.shape[1])
    ]
    return Batch(views, torch.arange(len(views[0])))


def masks_of(z: dict[str, Any], ranks: slice) -> Tensor:
    """Crop by crop, of some ranks."""
    return torch.tensor(z["masks"][ranks]).unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2)


def assert_step_is_golden(
    method: DINOv2, terms: dict[str, Tensor], koleo: Tensor, z: dict[str, Any], form: str, rank: int
) -> None:
    total = torch.stack([*terms.values(), koleo]).sum()
    total.backward()
    found = {
        "total": total,
        "dino": terms["cls"],
        "koleo_loss": koleo / 2,
        "ibot_loss": terms["patch"] / 2,
    }
    wanted = {name: z[f"{form}:loss.{name}"][rank] for name in ("total", "koleo_loss", "ibot_loss")}
    parts = ("dino_local_crops_loss", "dino_global_crops_loss")
    wanted["dino"] = sum(z[f"{form}:loss.{name}"][rank] for name in parts)
    for name, value in wanted.items():
        assert_close_to_golden(found[name], value, 1e-6)
    parameters = dict(method.named_parameters())
    start, compared = f"{form}:grad.", 0
    for name, grad in z.items():
        if name.startswith(start):
            parameter = parameters[ours(name.removeprefix(start))]
            assert parameter.grad is not None
            got = parameter.grad.view(grad[rank].shape)
            assert_close_to_golden(got, grad[rank], 2e-5)
            compared += 1
    assert compared == (45 if "separate" in form else 37)


FORMS = ["center_shared", "center_separate", "sk_shared", "sk_separate"]


@pytest.mark.parametrize("form", FORMS)
def test_a_step_equals_the_authors(form: str) -> None:
    inputs, z = load(INPUTS), load("dinov2/meta_arch_1rank.npz")
    both = slice(0, 2)
    method = golden_method(inputs, form, masks_of(inputs, both))
    terms = method.losses(crops(inputs, both))
    assert_step_is_golden(method, terms, terms.pop("koleo"), z, form, 0)
    commit_memories(method)
    assert_close_to_golden(method.center.rows[None], z[f"{form}:center"], 1e-6)
    assert_close_to_golden(method.patch_center.rows[None, None], z[f"{form}:pcenter"], 1e-6)


def _step_on_rank(rank: int, form: str) -> Tensor:
    """The authors' form: KoLeo of the rank's own samples. Returns the mean of the patches."""
    inputs, z = load(INPUTS), load("dinov2/meta_arch_2rank.npz")
    own = slice(rank, rank + 1)
    method = golden_method(inputs, form, masks_of(inputs, own), koleo_weight=0.0)
    batch = crops(inputs, own)
    terms = method.losses(batch)
    u = torch.stack(batch.views[:2], dim=1).flatten(0, 1)
    m, chosen, _ = method.mask(batch)
    _, _, cls, _ = method.student(u, m, chosen, [])
    koleo = 0.1 * (own_koleo(cls[:, 0]) + own_koleo(cls[:, 1]))
    assert_step_is_golden(method, terms, koleo, z, form, rank)
    commit_memories(method)
    assert_close_to_golden(method.center.rows, z[f"{form}:center"][rank], 1e-6)
    if "center" not in form:
        assert not z[f"{form}:pcenter"].any()
        assert not method.patch_center.rows.any()
        return method.patch_center.rows
    head = method.teacher_patch_projector or method.teacher_projector
    tokens = method.teacher_backbone.forward_tokens(u)[:, method.num_prefix :]
    return head(tokens.flatten(0, 1)[chosen]).mean(dim=0).detach()


@pytest.mark.parametrize("form", FORMS)
def test_a_step_on_two_ranks_equals_the_authors(form: str, ranks: Ranks) -> None:
    means = torch.stack(ranks(2, _step_on_rank, form))
    z = load("dinov2/meta_arch_2rank.npz")
    if "center" in form:  # unweighted over ranks; ours weights by masked patches
        assert_close_to_golden(0.1 * means.mean(0), z[f"{form}:pcenter"][0, 0, 0], 1e-5)


class Table(Schedule):
    """A number per step."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __call__(self, step: int, run_length: RunLength) -> float:
        return self.values[step]


def test_two_training_steps_equal_the_authors() -> None:
    inputs, z = load(INPUTS), load("dinov2/train_step.npz")
    hyper, both = z["meta"]["hyper"], slice(0, 2)
    groups = LayerDecay(hyper["layerwise_decay"], None, hyper["patch_embed_lr_mult"], True)
    method = golden_method(inputs, "center_shared", masks_of(inputs, both), parameter_groups=groups)
    method.run_length = RunLength(2, 1)
    made = method._parameter_groups(method)
    betas: Any = tuple(hyper["betas"])
    optimizer = torch.optim.AdamW(made, 1.0, betas, hyper["eps"], weight_decay=0.04)
    rates = ScheduleLR(optimizer, Table(hyper["lr"]), method.run_length)
    decay, ema = (
        WeightDecaySchedule(Table(hyper["wd"])),
        EMA(Table(hyper["momentum"]), "after_step"),
    )
    for step in range(2):
        batch = crops(inputs, both)
        batch = Batch([view * 0.5**step for view in batch.views], batch.index)
        optimizer.zero_grad()
        loss = torch.stack(list(method.losses(batch).values())).sum()
        loss.backward()
        assert_close_to_golden(loss, z["losses"][step], 1e-6)
        norms = torch.stack(clip_per_module(method, hyper["clip_grad"]))
        assert_close_to_golden(norms, z["grad_norms"][step], 1e-5)
        decay.update(method, optimizer)
        last = [group["lr"] for group in optimizer.param_groups if "zero_epochs" in group]
        assert last == [hyper["last_layer_lr"][step]]
        optimizer.step()
        ema.update(method, step)
        commit_memories(method)
        method.step += 1
        if step == 0:
            rates.step()
    parameters = dict(method.named_parameters())
    for name, wanted in z.items():
        kind, _, theirs = name.partition(":")
        if kind in ("student_after", "teacher_after"):
            got = parameters[("teacher_" if kind == "teacher_after" else "") + ours(theirs)]
            got = got.view(wanted.shape)
            if theirs.endswith("qkv.bias"):  # the keys' have no gradient but rounding noise
                q, _, v = got.chunk(3)
                got, wanted = torch.cat((q, v)), np.concatenate((wanted[:24], wanted[48:]))
            assert_close_to_golden(got, wanted, 1e-5)


def test_rates_and_decays_equal_the_authors() -> None:
    z = load("dinov2/param_groups.npz")
    vit = small_vit(
        32, 8, width=24, depth=2, num_heads=3, mask_token=True, registers=2, layer_scale=0.1
    )
    heads = [DINOHead(24, 10, 12, 6, norm_last_layer=False) for _ in range(2)]
    method = DINOv2(vit, *heads, parameter_groups=LayerDecay(0.9, None, 0.2, True))
    found = {
        id(p): (group["lr_scale"], float(group.get("weight_decay") != 0), "zero_epochs" in group)
        for group in method._parameter_groups(method)
        for p in group["params"]
    }
    parameters = dict(method.named_parameters())
    for part in ("backbone", "backbone_chunked", "dino_head", "ibot_head"):
        module = part.removesuffix("_chunked")
        names = [name.replace("blocks.0.0", "blocks.0") for name in z[f"{part}_names"]]
        names = [name.replace("blocks.1.1", "blocks.1") for name in names]
        got = [found[id(parameters[ours(f"{module}.{name}")])] for name in names]
        for i, what in enumerate(("lr_multiplier", "wd_multiplier", "is_last_layer")):
            wanted = z[f"{part}_{what}"].astype(float)
            assert_close_to_golden(torch.tensor([row[i] for row in got]), wanted, 1e-7)
        assert len(set(got)) == z[f"{part}_n_fused_groups"]


def test_schedules_equal_the_authors() -> None:
    z = load("dinov2/schedules.npz")
    cosine, cfg = (z["meta"]["hyper"][name] for name in ("cosine", "cfg"))
    optim, teacher = cfg["optim"], cfg["teacher"]
    length = cfg["train"]["OFFICIAL_EPOCH_LENGTH"]
    run = RunLength(optim["epochs"] * length, length)

    def values(schedule: Schedule, name: str) -> Tensor:
        return torch.tensor([schedule(i, run) for i in range(len(z[name]))], dtype=torch.float64)

    def check(got: Tensor, name: str) -> None:
        assert_close_to_golden(got, z[name], 1e-12)

    lr = WarmupCosine(
        optim["warmup_epochs"], end_factor=optim["min_lr"] / optim["lr"], warmup_has_peak=True
    )
    rates = optim["lr"] * values(lr, "lr")
    check(rates, "lr")
    check(values(CosineSchedule(optim["weight_decay"], optim["weight_decay_end"]), "wd"), "wd")
    ema = CosineSchedule(teacher["momentum_teacher"], teacher["final_momentum_teacher"])
    check(values(ema, "momentum"), "momentum")
    rise = teacher["warmup_teacher_temp"], teacher["teacher_temp"]
    epochs = teacher["warmup_teacher_temp_epochs"]
    check(values(LinearSchedule(*rise, epochs, inclusive=True), "teacher_temp"), "teacher_temp")

    parameter = torch.nn.Parameter(torch.zeros(1))
    group = {"params": [parameter], "zero_epochs": optim["freeze_last_layer_epochs"]}
    scheduler = ScheduleLR(torch.optim.SGD([group], optim["lr"]), lr, run)
    last = []
    for _ in z["last_layer_lr"]:
        last += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    check(torch.tensor(last, dtype=torch.float64), "last_layer_lr")

    base, freeze = cosine["base"], cosine["freeze"]  # a freeze is a run that begins later
    shape = WarmupCosine(
        cosine["warmup"],
        start_factor=cosine["start"] / base,
        end_factor=cosine["final"] / base,
        warmup_has_peak=True,
    )
    rest = RunLength(cosine["total"] - freeze, 1)
    steps = range(len(z["cosine_freeze"]))
    got = [0.0 if i < freeze else base * shape(i - freeze, rest) for i in steps]
    check(torch.tensor(got, dtype=torch.float64), "cosine_freeze")


@pytest.mark.parametrize("norm", [False, True])
def test_the_head_equals_the_authors(norm: bool) -> None:
    z = load(f"dinov2/head_bn{int(norm)}.npz")
    head = DINOHead(24, 10, 12, 6, norm=norm, norm_last_layer=False)
    params = {n.removeprefix("param:"): torch.tensor(v) for n, v in z.items() if "param:" in n}
    before = {n: v.clone() for n, v in params.items() if "running" not in n and "num_b" not in n}
    report = head.load_state_dict(before, strict=False)
    assert all("running" in name or "num_batches" in name for name in report.missing_keys)
    x = torch.tensor(z["x"], requires_grad=True)
    out = head(x)
    out.backward(torch.tensor(z["upstream"]))
    assert_close_to_golden(out, z["out"], 1e-5)
    assert_close_to_golden(x.grad, z["grad_x"], 1e-5)
    grads = {name: p.grad for name, p in head.named_parameters()}
    assert {f"grad:{name}" for name in grads} == {name for name in z if name.startswith("grad:")}
    assert sorted(grads) == sorted(z["meta"]["hyper"]["trainable"])
    noise = ("mlp.0.bias", "mlp.3.bias") if norm else ()  # before a batch norm
    for name, grad in grads.items():
        if name in noise:
            assert grad.abs().max() < 1e-5
        else:
            assert_close_to_golden(grad, z[f"grad:{name}"], 2e-5)


def test_stochastic_depth_equals_the_authors() -> None:
    z = load("dinov2/stochastic_depth.npz")
    x, weight = torch.tensor(z["x"]), torch.tensor(z["weight"])
    rate, order = z["meta"]["hyper"]["rate"], torch.tensor(z["permutation"])
    got = add_to_subset(x, lambda part: (part @ weight).tanh(), rate, order)
    assert_close_to_golden(got, z["out"], 1e-6)


def test_masks_have_the_authors_statistics() -> None:
    z = load("dinov2/masking_stats.npz")
    hyper, grid = z["meta"]["hyper"], z["meta"]["hyper"]["grid"]
    masks = StratifiedBlockMasks(tuple(hyper["mask_ratio_min_max"]), 1.0)
    counts, frequency = [], []
    for i, target in enumerate(z["targets"].tolist()):
        share = (target + 0.5) / grid**2  # a ratio that asks for just this number
        exact = StratifiedBlockMasks((share, share), 1.0)
        keys = Keys(torch.arange(400)).fold(i)
        drawn = exact(keys, torch.zeros(400, dtype=torch.int64), 400, grid, grid)
        counts.append(drawn.sum(1))
        frequency.append(drawn.float().mean(0))
    n = torch.stack(counts).double()
    assert ((n.mean(1) - torch.tensor(z["count_mean"])).abs() < 1.0).all()
    assert (n.std(1) - torch.tensor(z["count_std"])).abs().max() < 1.0
    assert n.max(1).values.tolist() == z["count_max"].tolist()
    assert (n.min(1).values.numpy() <= z["targets"]).all()
    mean = torch.stack(frequency).mean(0).view(grid, grid)
    assert (mean - torch.tensor(z["position_frequency"])).abs().max() < 0.06
    masks = StratifiedBlockMasks(fraction=hyper["mask_sample_probability"])
    order = torch.arange(16).flip(0)
    assert sum(masks.bounds(order.tolist(), 16, 196)) == z["collate_upperbound"]
    sums = []
    for batch in range(60):
        keys = Keys(torch.arange(16)).fold("collate", batch)
        drawn = masks(keys, order, 16, grid, grid).sum(1)
        assert (drawn <= torch.tensor(masks.bounds(order.tolist(), 16, 196))).all()
        sums.append(drawn.sort().values)
    theirs = torch.tensor(z["collate_sorted_counts"]).double()
    got = torch.stack(sums).double()
    assert (got.mean(0) - theirs.mean(0)).abs().max() < 2.0
    assert torch.equal(got[:, :8], theirs[:, :8])


# -- what is ours


def toy(**options: Any) -> tuple[DINOv2, Batch]:
    return build(DINOv2, **options)


def batch_of(method: DINOv2, n: int = 6, sizes: Sequence[int] = (12, 12, 4)) -> Batch:
    generator = torch.Generator().manual_seed(3)
    views = [torch.randn(n, 3, s, s, generator=generator) for s in sizes]
    return Batch(views, torch.arange(n))


def test_masks_are_of_the_global_batch_and_rows_hold_all_of_them() -> None:
    method, _ = toy()
    batch = batch_of(method, 10)
    m, chosen, w = method.mask(batch)
    assert m.shape == (20, 9)
    assert 0 < (m.any(dim=1)).sum() <= 10
    assert (w > 0).sum() == m.sum()
    assert m.flatten()[chosen[w > 0]].all()
    method.step = 1
    assert not torch.equal(method.mask(batch)[0], m)


def _masks_on_rank(rank: int, counts: tuple[int, ...]) -> Tensor:
    method, _ = toy()
    batch = batch_of(method, sum(counts))
    start = sum(counts[:rank])
    own = slice(start, start + counts[rank])
    return method.mask(Batch([view[own] for view in batch.views], batch.index[own]))[0]


@pytest.mark.parametrize("counts", [(5, 5), (7, 3)])
def test_masks_of_ranks_are_those_of_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    one = _masks_on_rank(0, (10,))
    assert torch.equal(torch.cat(ranks(2, _masks_on_rank, counts)), one)


def test_a_batch_without_masks_trains_and_leaves_the_patches_center() -> None:
    for centering in ("center", "sinkhorn"):
        method, batch = toy(masks=StratifiedBlockMasks(fraction=0.0), centering=centering)
        terms = method.losses(batch)
        assert terms["patch"] == 0
        torch.stack(list(terms.values())).sum().backward()
        commit_memories(method)
        assert not method.patch_center.rows.any()
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def gram_toy(**options: Any) -> tuple[DINOv2, Batch]:
    method, _ = toy(gram=GramAnchoring(**options))
    sizes = (12, 12, 4, 24, 24) if options.get("own_crops") else (12, 12, 4)
    return method, batch_of(method, sizes=sizes)


@pytest.mark.parametrize("own_crops", [False, True])
@pytest.mark.parametrize("patches", ["all", "masked"])
def test_gram_anchoring_compares_with_the_gram_teachers_crops(
    own_crops: bool, patches: Any
) -> None:
    level: Any = "image" if patches == "all" else "batch"
    method, batch = gram_toy(weight=2.0, own_crops=own_crops, level=level, patches=patches)
    assert method.gram is not None
    with torch.no_grad():
        method.backbone.norm.weight.mul_(torch.rand(16) * 2)  # type: ignore[union-attr,operator]
    got = method.losses(batch)["gram"]
    net, end = method.gram.backbone, batch.views[-2:] if own_crops else batch.views[:2]
    u, last = (torch.stack(pair, 1).flatten(0, 1) for pair in (batch.views[:2], end))
    m, _, _ = method.mask(batch)
    student = method.backbone.forward_tokens(u, mask=m)[:, 2:]  # type: ignore[operator]
    teacher = net.forward_tokens(last)[:, 2:]  # type: ignore[operator,union-attr]
    if own_crops:
        teacher = resize_tokens(teacher, (6, 6), (3, 3))
    want = 2 * gram_of(student, teacher, level, mask=m if patches == "masked" else None)
    torch.testing.assert_close(got, want)


def weights(net: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_gram_teacher_is_copied_at_its_steps() -> None:
    gram = GramAnchoring(from_step=2, refresh_every=3, max_refreshes=2)
    assert [step for step in range(20) if gram.is_due(step)] == [2, 5, 8]
    fixed = GramAnchoring()
    assert [step for step in range(20) if fixed.is_due(step)] == [0]
    method, _ = toy(gram=gram)
    batch = batch_of(method, 12)
    method._optimizer = lambda params: torch.optim.SGD(params, lr=0.1)
    seen: dict[int, bool] = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            net, teacher = module.gram.backbone, module.teacher_backbone
            seen[module.step] = torch.equal(weights(net), weights(teacher))

    fit(trainer(7, callbacks=[Look()], devices=1), method, [batch] * 2)
    assert [step for step, same in seen.items() if same] == [0, 2, 5, 8]


def test_gram_anchoring_begins_with_its_step() -> None:
    method, batch = gram_toy(from_step=3)
    assert method.losses(batch)["gram"] == 0
    method.step = 3
    with torch.no_grad():
        method.backbone.norm.weight.mul_(torch.rand(16) * 2)  # type: ignore[union-attr,operator]
    assert method.losses(batch)["gram"] > 0


def test_a_gram_teacher_of_ones_own() -> None:
    vit: Any = small_vit(24, 4, width=16, depth=1, num_heads=2)
    method, _ = toy(gram=GramAnchoring(backbone=vit))
    assert method.gram is not None
    assert method.gram.backbone is vit
    assert not any(p.requires_grad for p in vit.parameters())
    assert method.losses(batch_of(method))["gram"] > 0
    follow, _ = toy(gram=GramAnchoring(follow=True))
    assert follow.gram is not None
    assert follow.gram.backbone is None
    assert follow.losses(batch_of(follow))["gram"] > 0


def test_the_last_layers_rate_is_0_at_first_while_its_averages_move() -> None:
    method, _ = toy(schedule=WarmupCosine())
    batch, before = batch_of(method, 12), method.projector.last_layer.weight_v.detach().clone()
    method._optimizer = lambda params: torch.optim.AdamW(params, lr=0.01)
    run = trainer(1, devices=1)
    fit(run, method, [batch] * 2)
    layer = method.projector.last_layer
    assert torch.equal(layer.weight_v, before)
    assert run.optimizers[0].state[layer.weight_v]["exp_avg"].any()
    assert run.optimizers[0].state[layer.weight_g]["exp_avg"].any()


def _wrong() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"koleo_weight": -1.0}, r"koleo_weight must be in \[0, inf\), got -1\.0"
    yield {"patch_weight": float("nan")}, r"patch_weight must be in \[0, inf\), got nan"
    yield {"centering": "none"}, "centering must be one of"
    yield {"patch_projector": DINOHead(15, 10, 8, 6)}, "in_features 16, .*got 15"
    vit = small_vit(12, 4, width=16, depth=1, num_heads=2)
    yield {"backbone": vit}, "mask_token=True, got ViT"
    vit = small_vit(12, 4, width=24, depth=1, num_heads=2)
    yield {"gram": GramAnchoring(backbone=vit)}, "num_features 16, the student's, got 24"
    swin = timm_swin("swin_tiny_patch4_window7_224", img_size=32, window_size=2)
    yield {"backbone": swin}, "backbone must have a class token, got Swin"
    net = SmallResNet((8, 16))
    yield {"gram": GramAnchoring(backbone=net)}, "a ViT with forward_tokens, got SmallResNet"
    yield {"projector": nn.Linear(16, 10)}, "projector must be a DINOHead, got Linear"
    yield {"masks": BlockMasks()}, "masks must be StratifiedBlockMasks, got BlockMasks"
    yield {"gram": 2.0}, "gram must be a GramAnchoring, got float"
    yield {"student_temperature": 0.0}, "student_temperature must be above 0, got 0.0"
    yield {"teacher_temperature": [0.04]}, r"must be a number or a Schedule .*, got \[0.04\]"
    yield (
        {"freeze_last_layer_epochs": -1.0},
        r"_epochs must be in \[0, inf\), got -1.0",
    )
    yield {"freeze_last_layer_epochs": "1"}, "freeze_last_layer_epochs must be a number, got '1'"
    yield {"teacher_temperature": 0}, "teacher_temperature must be above 0, got 0"
    yield {"center_momentum": 1.0}, r"center_momentum must be in \[0, 1\), got 1.0"
    vit = small_vit(12, 4, width=16, depth=1, num_heads=2, mask_token=True, pool="mean")
    yield {"backbone": vit}, "must be its class token, .* got pool 'mean' of ViT"


@pytest.mark.parametrize(("options", "message"), list(_wrong()), ids=lambda x: str(x)[:20])
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": "masked"}, "patches must be 'all' with level='image', got 'masked'"),
        ({"refresh_every": 3}, "both be 0 or both above, got 3 and 0"),
        ({"follow": True, "refresh_every": 3, "max_refreshes": 1}, "left out with follow=True"),
        ({"from_step": -1}, "from_step must be at least 0, got -1"),
        ({"level": "crop"}, "level must be one of"),
        ({"weight": -1.0}, r"weight must be in \[0, inf\), got -1.0"),
        ({"weight": [1, 2]}, r"weight must be a number, got \[1, 2\]"),
    ],
)
def test_wrong_gram_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GramAnchoring(**options)


def test_wrong_views_are_named() -> None:
    method, _ = toy()
    with pytest.raises(ValueError, match=r"room for a mask of 4 patches .* got 2 x 2 patches"):
        method.losses(batch_of(method, sizes=(8, 8)))
    with pytest.raises(ValueError, match=r"grid .* got 10 x 10|multiples of the patch"):
        method.losses(batch_of(method, sizes=(13, 13)))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        method.losses(batch_of(method, 1))
    # Small first, or the Gram teacher's without it.
    for sizes in ((8, 8, 12), (12, 12, 4, 24, 24), (12, 12, 4, 12, 12)):
        with pytest.raises(ValueError, match=r"first two of DINOv2 must be smaller .* own_crops"):
            method.losses(batch_of(method, sizes=sizes))
    other, _ = gram_toy(own_crops=True)
    with pytest.raises(ValueError, match="at least as large as the first ones"):
        other.losses(batch_of(other, sizes=(12, 12, 4, 4, 4)))
    with pytest.raises(ValueError, match="last two views must be the Gram teacher's"):
        other.losses(batch_of(other, sizes=(12, 12, 4, 4, 24)))
    with pytest.raises(ValueError, match="at least 4 views"):
        other.takes.check(batch_of(other, sizes=(12, 12, 4)), "DINOv2")


def test_groups_name_a_part_that_is_missing() -> None:
    method, _ = toy()
    with pytest.raises(ValueError, match=r"modules of the method .*'projector'.*got 'head'"):
        ZeroRateFirst(["head"])(method)


def test_start_weights_that_are_loaded_later_are_the_gram_teachers() -> None:
    gram = GramAnchoring()
    method, _ = toy(gram=gram)
    with torch.no_grad():  # as `--start_from` fills student and teacher
        for parameter in method.teacher_backbone.parameters():
            parameter.add_(0.5)
    wanted = weights(method.teacher_backbone)
    method._optimizer = lambda params: torch.optim.SGD(params, lr=0.1)
    fit(trainer(1, devices=1), method, [batch_of(method)])
    assert torch.equal(weights(gram.backbone), wanted)
