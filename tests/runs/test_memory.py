"""Memory plans: what a real step holds, and a plan of a ViT that fits on no GPU."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sslzoo.batch import Batch
from sslzoo.callbacks import PerBlock
from sslzoo.commands.configs import find_config, known_configs
from sslzoo.distributed import imagined_ranks, is_distributed
from sslzoo.methods import IJEPA, WMSE, BarlowTwins, DINOv2, SimCLR
from sslzoo.runs.memory import memory_plan, plan_of
from sslzoo.trust import read_config
from tests.callbacks.toy import quiet
from tests.commands.command import run
from tests.ranks import Ranks
from tests.test_every_method import rows
from tests.toys import build, data_like


def made(cls: Any) -> tuple[Any, Batch]:
    method, batch = build(cls)
    method._optimizer = partial(torch.optim.AdamW, lr=1e-3)
    batch = data_like(batch, 12)
    views = [view.float() for view in batch.views]
    return method, batch._replace(views=views)


def measured(method: Any, batch: Batch) -> dict[str, int]:
    """Bytes of a step in one process."""
    held: dict[int, Tensor] = {}
    known = {x.data_ptr() for x in (*method.parameters(), *method.buffers())}

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        terms = method.losses(batch)
    kept = sum(x.untyped_storage().nbytes() for key, x in held.items() if key not in known)
    torch.stack(list(terms.values())).sum().backward()
    optimizer = method._optimizer([p for p in method.parameters() if p.requires_grad])
    optimizer.step()
    size = lambda tensors: sum(x.numel() * x.element_size() for x in tensors)  # noqa: E731
    return {
        "parameters": size(p for p in method.parameters() if p.requires_grad),
        "gradients": size(p.grad for p in method.parameters() if p.grad is not None),
        "optimizer": size(x for state in optimizer.state.values() for x in state.values()),
        "teacher": size(p for p in method.parameters() if not p.requires_grad),
        "buffers": size(method.buffers()),
        "activations": kept,
    }


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cls", [DINOv2, IJEPA], ids=lambda cls: cls.__name__)
def test_a_plan_is_what_a_step_holds(cls: Any, checkpointing: bool) -> None:
    method, batch = made(cls)
    if checkpointing:
        PerBlock().apply(method)
    wanted = measured(method, batch)
    on_meta = tree_map_only(Tensor, lambda x: x.to("meta"), batch)
    plan = plan_of(made(cls)[0].to("meta"), on_meta, checkpointing=checkpointing)._asdict()
    activations = wanted.pop("activations")
    assert {name: plan[name] for name in wanted} == wanted
    assert plan["activations"] == pytest.approx(activations, rel=0.1)
    assert plan["gathered"] == 0


def of_rank(rank: int, cls: Any) -> int:
    quiet()
    method, batch = made(cls)
    return measured(method, rows(batch, slice(6 * rank, 6 * rank + 6)))["activations"]


@pytest.mark.parametrize("cls", [SimCLR, BarlowTwins, WMSE], ids=lambda cls: cls.__name__)
def test_a_plan_counts_what_is_gathered(cls: Any, ranks: Ranks) -> None:
    wanted = ranks(2, of_rank, cls)
    method, batch = made(cls)
    on_meta = tree_map_only(Tensor, lambda x: x.to("meta"), rows(batch, slice(0, 6)))
    with imagined_ranks(2):
        plan = plan_of(method.to("meta"), on_meta)
    assert [plan.activations] * 2 == pytest.approx(wanted, rel=0.1)
    assert not is_distributed()


KINDS = {
    "digits": "quickstart",
    "boxes": "vicregl/folder_small_10ep",
    "sub-batches": "w_mse/folder_small_10ep",
    "modalities": "cmc/nyu_small_core_view_6ep",
}


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_recipes_of_every_kind_of_images_are_planned(name: str) -> None:
    plan = memory_plan(read_config(Path(find_config(name))), 8)
    assert min(plan.parameters, plan.activations) > 0


@pytest.mark.slow  # 200 recipes
@pytest.mark.parametrize("name", known_configs())
def test_every_recipe_is_planned_or_refused_in_one_sentence(name: str) -> None:
    said = ""
    try:
        memory_plan(read_config(Path(find_config(name))), 8)
    except (ValueError, OSError) as error:
        said = str(error)
    assert re.search("^$|must be a module of images alone|in the Hub's cache", said)
    assert "\n" not in said


def giant() -> dict[str, Any]:
    """DINOv2's ViT-g/14: 1.1 billion parameters."""
    vit = {"name": "vit_giant_patch14_dinov2", "img_size": 224, "init": "dinov2"}
    backbone = {
        "class_path": "sslzoo.backbones.timm_vit",
        "init_args": {**vit, "mask_token": True, "options": {"drop_path_rate": 0.0}},
    }
    head = {"in_dim": 1536, "out_dim": 65536}
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
    model = {
        "class_path": "sslzoo.methods.DINOv2",
        "init_args": {
            "backbone": backbone,
            "projector": {"class_path": "sslzoo.heads.DINOHead", "init_args": head},
            "masks": {"class_path": "sslzoo.masks.StratifiedBlockMasks"},
            "optimizer": adamw,
        },
    }
    crops = {"recipe": "dinov2", "sizes": [224, 98], "counts": [2, 8]}
    scales = {"scales": [[0.32, 1.0], [0.05, 0.32]]}
    transform = {
        "class_path": "sslzoo.transforms.multi_crop_views",
        "init_args": {**crops, **scales},
    }
    data = {"root": None, "batch_size": 1024, "transform": transform}
    return {"model": model, "data": {"class_path": "sslzoo.data.ImageNet", "init_args": data}}


@pytest.mark.slow  # 40 blocks, ten views and twice
def test_a_vit_g_fits_where_it_is_sharded_alone() -> None:
    whole = memory_plan(giant(), 64, sharded=False, checkpointing=True)
    shared = memory_plan(giant(), 64, checkpointing=True)
    assert whole.parameters > 1.1e9 * 4
    assert whole.optimizer == pytest.approx(2 * whole.parameters, rel=1e-3)
    states = [plan.parameters + plan.gradients + plan.optimizer for plan in (whole, shared)]
    assert states[1] == pytest.approx(states[0] / 64, rel=0.05)


def test_the_command_prints_both_columns(tmp_path: Any) -> None:
    config = "mae/folder_small_vit_10ep"
    done = run(["memory", "--config", config, "--ranks", "2", "--batch_size", "8"], tmp_path)
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["GiB", "per", "rank", "DDP", "FullyShard"]
    assert [row.split("  ")[0] for row in rows][-1] == "total"
    for other in ("cpc/arrays_small_30ep", "clip/folder_small_20ep"):
        done = run(["memory", "--config", other], tmp_path, check=False)
        assert "must be a module of images" in done.stderr
    done = run(["memory", "--config", config, "--ranks", "0"], tmp_path, check=False)
    assert "batch_size must be at least the number of ranks" in done.stderr
