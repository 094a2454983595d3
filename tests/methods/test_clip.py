"""CLIP and SigLIP: the authors' networks and steps, on one rank and two; views and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import get_act_layer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, TextTransformer, ViT, small_vit
from sslzoo.batch import Batch, Tokens
from sslzoo.distributed import sum_over_ranks
from sslzoo.heads import clip_projection
from sslzoo.methods import CLIP, SigLIP
from sslzoo.optim import (
    RunLength,
    StepWarmup,
    exempt_bias_and_norm,
    exempt_bias_norm_and_positions,
)
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks

METHODS: dict[str, type[CLIP]] = {"clip": CLIP, "siglip": SigLIP}
FILES = {"clip": "clip/model_clip", "siglip": "clip/model_siglip_style"}
# Names of the authors' code, and ours, in the order of replacement.
RENAMED = [
    ("visual.class_embedding", "backbone.cls_token"),
    ("visual.positional_embedding", "backbone.pos_embed"),
    ("visual.proj", "projector.weight"),
    ("visual.conv1", "backbone.patch_embed.proj"),
    ("visual.ln_pre", "backbone.norm_pre"),
    ("visual.ln_post", "backbone.norm"),
    ("visual.transformer.resblocks", "backbone.blocks"),
    ("transformer.resblocks", "text_backbone.blocks"),
    ("token_embedding", "text_backbone.token_embedding"),
    ("positional_embedding", "text_backbone.pos_embed"),
    ("ln_final", "text_backbone.norm"),
    ("text_projection.weight", "text_projector.weight"),
    ("text_projection.bias", "text_projector.bias"),
    ("text_projection", "text_projector.weight"),
    ("logit_scale", "log_scale"),
    ("logit_bias", "bias"),
    (".ln_", ".norm"),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj", ".attn.proj"),
    (".mlp.c_fc", ".mlp.fc1"),
    (".mlp.c_proj", ".mlp.fc2"),
]
MATRICES = ("visual.proj", "text_projection")  # stored as (in, out)


def renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        if name.startswith(theirs) or theirs.startswith("."):
            name = name.replace(theirs, ours, 1)
            if not theirs.startswith(".") and "." not in name.removeprefix(ours)[1:]:
                break
    return name


def ours(name: str, array: Any) -> tuple[str, Tensor]:
    """An array of the authors' as our parameter."""
    value = torch.tensor(np.asarray(array)).float()
    if name in MATRICES:
        value = value.T
    key = renamed(name)
    if key == "backbone.cls_token":
        value = value[None, None]
    return key, value[None] if key in ("backbone.pos_embed", "log_scale", "bias") else value


def group(z: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    found = (ours(key.removeprefix(prefix), z[key]) for key in z if key.startswith(prefix))
    return dict(found)


def network(z: dict[str, Any], cls: type[CLIP]) -> CLIP:
    """The authors' tiny towers, of our parts."""
    hyper = z["meta"]["hyper"]
    width, heads = hyper["width"], hyper["vision_heads"]
    act = "quick_gelu" if hyper.get("quick_gelu") else "gelu"
    net = VisionTransformer(
        *(hyper["image"], hyper["patch"]),
        embed_dim=width,
        depth=hyper["layers"],
        num_heads=heads,
        num_classes=0,
        pre_norm=True,
        dynamic_img_size=True,
        norm_layer=nn.LayerNorm,
        act_layer=get_act_layer(act),
    )
    style = hyper["text"]
    text = TextTransformer(
        *(hyper["vocab"], width, hyper["layers"], hyper["text_heads"], hyper["context"]),
        pool="last" if style.get("pool_type") == "last" else "end",
        causal=not style.get("no_causal_mask", False),
        activation=act,
    )
    dim, bias = hyper["embed_dim"], style.get("proj_bias", False)
    heads_ = nn.Linear(width, dim, bias=False), nn.Linear(width, dim, bias=bias)
    method = cls(ViT(net, init=None), text, *heads_)
    missing, unexpected = method.load_state_dict(group(z, "init:"), strict=False)
    assert (missing, unexpected) == ([], [])
    return method


def tokens(text: Tensor) -> Tokens:
    """The authors pool at the token with the largest id, the end."""
    return Tokens(text, text.argmax(1) + 1)


@pytest.mark.parametrize("name", METHODS)
def test_towers_gradients_and_step_are_the_authors(name: str) -> None:
    z = load(f"{FILES[name]}.npz")
    hyper, method = z["meta"]["hyper"], network(z, METHODS[name])
    image, text = torch.tensor(z["image"]), torch.tensor(z["text"])
    words = tokens(text) if name == "clip" else Tokens(text, torch.full((4,), text.shape[1]))
    assert_close_to_golden(method.embed_image(image), z["image_features"], 5e-6)
    assert_close_to_golden(method.embed_text(words), z["text_features"], 5e-6)
    method._optimizer = partial(
        torch.optim.AdamW, lr=hyper["lr"], weight_decay=hyper["wd"], betas=(0.9, 0.98), eps=1e-6
    )
    optimizer = method.configure_optimizers()
    (loss,) = method.losses(Batch([image, words], torch.arange(4))).values()
    assert_close_to_golden(loss, z["loss"], 2e-6)
    loss.backward()
    named = dict(method.named_parameters())
    grads = group(z, "grad:")
    assert len(grads) == 49 + (name == "siglip") * 2
    for key, want in grads.items():
        if not key.endswith("qkv.bias"):
            assert_close_to_golden(named[key].grad, want, 5e-5)
            continue
        # The softmax cancels the bias of the keys: its gradient is rounding noise.
        got = named[key].grad
        assert got is not None
        for got_part, part in list(zip(got.chunk(3), want.chunk(3), strict=True))[::2]:
            assert_close_to_golden(got_part, part, 5e-5)
    for key in z:
        if key.startswith("gradnorm:"):
            grad = named[renamed(key.removeprefix("gradnorm:"))].grad
            assert grad is not None
            assert_close_to_golden(grad.norm(), z[key], 5e-5)
    exempt = {id(p) for p in optimizer.param_groups[1]["params"]}
    listed = {renamed(key) for key in hyper["no_weight_decay"]}
    assert listed == {key for key, p in named.items() if id(p) in exempt}
    nn.utils.clip_grad_norm_(method.parameters(), hyper["clip"])
    optimizer.step()
    for key, want in group(z, "after:").items():
        if not key.endswith("qkv.bias"):
            assert_close_to_golden(named[key], want, 2e-4)


class Toy(nn.Module):
    """The authors' test input: two linear layers with a ReLU, the second ours as projector."""

    num_ids = 1

    def __init__(self, hyper: dict[str, Any]) -> None:
        super().__init__()
        self.num_features = hyper["h"]
        self.linear = nn.Linear(hyper["din"], hyper["h"])

    def forward(self, x: Tensor | Tokens) -> Tensor:
        return self.linear(x.ids if isinstance(x, Tokens) else x.flatten(1)).relu()


def toy(z: dict[str, Any], cls: type[CLIP], prefix: str = "init:") -> tuple[CLIP, dict[str, str]]:
    hyper = z["meta"]["hyper"]
    heads = (nn.Linear(hyper["h"], hyper["D"]) for _ in range(2))
    method = cls(Toy(hyper), Toy(hyper), *heads)
    names = {"image.0": "backbone.linear", "image.2": "projector"}
    names |= {"text.0": "text_backbone.linear", "text.2": "text_projector"}
    known = {"logit_scale": "log_scale", "logit_bias": "bias"}
    for theirs, own in names.items():
        known |= {f"{theirs}.{part}": f"{own}.{part}" for part in ("weight", "bias")}
    known = {theirs: own for theirs, own in known.items() if f"{prefix}{theirs}" in z}
    state = {own: torch.tensor(z[f"{prefix}{theirs}"]) for theirs, own in known.items()}
    scalars = ("log_scale", "bias")
    method.load_state_dict({k: v[None] if k in scalars else v for k, v in state.items()})
    method._optimizer = partial(
        torch.optim.AdamW,
        lr=hyper["lr"],
        weight_decay=hyper["wd"],
        betas=hyper["betas"],
        eps=hyper["eps"],
    )
    method._parameter_groups = exempt_bias_and_norm
    return method, known


def _steps(rank: int, name: str, world: int) -> list[dict[str, Any]]:
    """Loss, gradients before clipping and parameters of each step; gradients averaged by hand."""
    z = load(f"{name}/two_tower_steps.npz")
    method, _ = toy(z, METHODS[name])
    optimizer = method.configure_optimizers()
    found = []
    for images, texts in zip(torch.tensor(z["image"]), torch.tensor(z["text"]), strict=True):
        i, t = images.chunk(world)[rank], texts.chunk(world)[rank]
        text = Tokens(t, torch.full((len(t),), t.shape[1]))
        batch = Batch([i[:, :, None, None], text], torch.arange(len(i)))
        (loss,) = method.losses(batch).values()
        optimizer.zero_grad()
        loss.backward()
        grads = {}
        for key, p in method.named_parameters():
            assert p.grad is not None
            p.grad = sum_over_ranks(p.grad) / world
            grads[key] = p.grad.clone()
        nn.utils.clip_grad_norm_(method.parameters(), z["meta"]["hyper"]["clip"])
        optimizer.step()
        state = {key: p.detach().clone() for key, p in method.named_parameters()}
        found.append({"loss": loss.detach(), "grads": grads, "state": state})
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("world", [1, 2])
def test_steps_are_the_authors(ranks: Ranks, name: str, world: int) -> None:
    z = load(f"{name}/two_tower_steps.npz")
    _, known = toy(z, METHODS[name])
    groups = ["one_process"] if world == 1 else ["L1G1"] if name == "clip" else ["bidir"]
    results = ranks(world, _steps, name, world)
    for prefix in (*groups, "one_process"):
        for rank, steps in enumerate(results):
            for step, got in enumerate(steps):
                if world == 1 or prefix != "one_process":
                    wanted = z[f"{prefix}_loss"][rank, step]
                    assert_close_to_golden(got["loss"], wanted, 5e-4 if step else 2e-4)
                for theirs, own in known.items():
                    if step == 0:
                        wanted = z[f"{prefix}_grad0:{theirs}"]
                        grad = got["grads"][own].reshape(wanted.shape)
                        assert_close_to_golden(grad, wanted, 2e-5)
                    if step != 1:
                        want = z[f"{prefix}_after{step}:{theirs}"]
                        state = got["state"][own].reshape(want.shape)
                        assert_close_to_golden(state, want, 2e-4)


def test_the_scale_is_clamped_after_each_step() -> None:
    z = load("clip/logit_scale_clamp.npz")
    method, _ = toy(load("clip/two_tower_steps.npz"), CLIP)
    method._optimizer = partial(torch.optim.SGD, lr=0.0)
    optimizer = method.configure_optimizers()
    for before, after in zip(z["before"], z["after"], strict=True):
        method.log_scale.data.fill_(float(before))
        optimizer.step()
        assert method.log_scale.item() == pytest.approx(float(after), abs=1e-7)


def test_schedules_are_the_authors() -> None:
    z = load("clip/schedules.npz")
    hyper = z["meta"]["hyper"]
    steps, warmup = hyper["steps"], hyper["warmup"]
    schedules = {
        "cosine": StepWarmup(warmup),
        "const": StepWarmup(warmup, "constant"),
        "const_cooldown": StepWarmup(warmup, "constant", hyper["cooldown_steps"]),
    }
    for name, schedule in schedules.items():
        got = [hyper["base_lr"] * schedule(step, RunLength(steps, 0)) for step in range(steps)]
        assert_close_to_golden(np.array(got), z[name], 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps and cooldown_steps must be at least 0, got -1 and 0"),
        ({"cooldown_steps": 5}, "'constant', which alone has a cooldown, got 'cosine'"),
        ({"then": "linear"}, "then must be 'cosine', or 'constant', .* got 'linear'"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepWarmup(**options)


def towers(
    image: Callable[[], nn.Module] = lambda: SmallResNet((8, 16)), **changes: Any
) -> dict[str, Any]:
    text = TextTransformer(20, width=8, depth=1, heads=2, max_length=9)
    heads = {"projector": nn.Linear(16, 6), "text_projector": nn.Linear(8, 6)}
    return {"backbone": image(), "text_backbone": text, **heads, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"max_scale": 0.5}, "max_scale must be at least 1, got 0.5"),
        ({"temperature": 1e-4}, r"temperature must be in .* = \[0.01, 1\], .* got 0.0001"),
        ({"temperature": 1.5}, r"temperature must be in .* got 1.5"),
        ({"text_projector": nn.Linear(8, 5)}, "text_projector must have out_features 6, .* got 5"),
        ({"projector": nn.Linear(8, 6)}, "Linear must have in_features 16"),
        (
            {"text_backbone": nn.Linear(2, 2)},
            "num_features of the text_backbone must be an int, got None",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIP(**towers(**changes))


def test_a_bias_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="bias must be a finite number, got nan"):
        SigLIP(**towers(bias=math.nan))


@pytest.mark.parametrize("pad", [-1, 20])
def test_a_padding_outside_of_the_vocabulary_is_refused(pad: int) -> None:
    with pytest.raises(ValueError, match=rf"pad must be in \[0, 20\), got {pad}"):
        TextTransformer(20, width=8, depth=1, heads=2, max_length=9, pool="last", pad=pad)


@pytest.mark.parametrize(
    "views",
    [
        lambda image, text: [image],
        lambda image, text: [image, image],
        lambda image, text: [text, image],
        lambda image, text: [image, Tokens(text.ids[:, None], text.lengths[:, None])],
        lambda image, text: [image.to(torch.uint8), text],
        lambda image, text: [image[:3], text],
        lambda image, text: [image, Tokens(torch.zeros(4, 10).long(), text.lengths)],
    ],
)
def test_views_that_do_not_fit_are_refused(views: Any) -> None:
    method = CLIP(**towers())
    text = Tokens(torch.randint(20, (4, 9)), torch.tensor([9, 3, 7, 5]))
    with pytest.raises(ValueError, match=r"must (be|have)"):
        method.training_step(Batch(views(torch.rand(4, 3, 8, 8), text), torch.arange(4)), 0)


def test_padding_changes_nothing() -> None:
    for options in ({}, {"causal": False}, {"causal": False, "pool": "last", "pad": 1}):
        tower = TextTransformer(20, width=8, depth=2, heads=2, max_length=9, **options).eval()
        text = Tokens(torch.randint(20, (4, 6)), torch.tensor([6, 3, 1, 5]))
        longer = Tokens(torch.cat([text.ids, torch.full((4, 3), 7)], 1), text.lengths)
        other = torch.where(text.mask, text.ids, 11)
        torch.testing.assert_close(tower(longer), tower(text))
        torch.testing.assert_close(tower(Tokens(other, text.lengths)), tower(text))


def test_initial_weights_have_the_authors_deviations() -> None:
    torch.manual_seed(0)
    tower = TextTransformer(1000, width=64, depth=3, heads=4)
    deviations = {
        tower.token_embedding.weight: 0.02,
        tower.pos_embed: 0.01,
        tower.blocks[1].attn.qkv.weight: 64**-0.5,
        tower.blocks[1].attn.proj.weight: 64**-0.5 * 6**-0.5,
        tower.blocks[1].mlp.fc1.weight: 128**-0.5,
        tower.blocks[1].mlp.fc2.weight: 64**-0.5 * 6**-0.5,
        torch.cat([block.mlp.fc1.bias for block in tower.blocks]): (3 * 64) ** -0.5,
        torch.cat([block.mlp.fc2.bias for block in tower.blocks]): (3 * 256) ** -0.5,
    }
    assert tower.blocks[1].attn.qkv.bias.abs().max() == 0
    assert tower.blocks[1].attn.proj.bias.abs().max() == 0
    for weight, wanted in deviations.items():
        assert weight.std().item() == pytest.approx(wanted, rel=0.05)
    vit = small_vit(width=64, depth=2, init="clip")
    deviations = {
        vit.cls_token: 1 / 8,
        vit.pos_embed: 1 / 8,
        vit.blocks[0].attn.qkv.weight: (6 / 256) ** 0.5 / 3**0.5,  # Xavier of (3 D, D)
        vit.blocks[0].attn.proj.weight: (3 * 64) ** -0.5,
        vit.blocks[1].mlp.fc2.weight: (3 * 256) ** -0.5,
        vit.patch_embed.proj.weight: (3 * 48) ** -0.5,
        clip_projection(64, 1000).weight: 1 / 8,
    }
    for weight, wanted in deviations.items():
        assert weight.std().item() == pytest.approx(wanted, rel=0.2)
    with_stem = small_vit(width=64, depth=1, init="clip", stem="conv")
    for table in (with_stem.cls_token, with_stem.pos_embed):
        assert table.std().item() == pytest.approx(1 / 8, rel=0.3)
    assert vit.blocks[0].attn.qkv.bias.abs().max() == vit.blocks[0].attn.proj.bias.abs().max() == 0
    assert clip_projection(4, 4, bias=True).bias.abs().max() == 0
    assert CLIP(**towers()).log_scale.item() == pytest.approx(math.log(1 / 0.07))
    method = SigLIP(**towers())
    assert (method.log_scale.item(), method.bias.item()) == pytest.approx((math.log(10), -10))
    assert exempt_bias_norm_and_positions(method)[1]["weight_decay"] == 0
