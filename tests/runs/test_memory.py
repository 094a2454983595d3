"""Memory plans: what a real step holds, and a plan of a ViT that fits on no GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sslzoo.batch import Batch
from sslzoo.callbacks import PerBlock
from sslzoo.methods import IJEPA, DINOv2
from sslzoo.runs.memory import memory_plan, plan_of
from tests.commands.command import run
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
    done = run(["memory", "--config", "cpc/arrays_small_30ep"], tmp_path, check=False)
    assert "must be a module of images" in done.stderr
    done = run(["memory", "--config", config, "--ranks", "0"], tmp_path, check=False)
    assert "batch_size must be at least the number of ranks" in done.stderr
