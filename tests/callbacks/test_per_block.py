"""PerBlock: the gradients, draws and names of plain blocks, with less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from timm.layers import DropPath
from torch import Tensor, nn

from sslzoo.backbones import small_vit, timm_swin
from sslzoo.callbacks import Freeze, FreezeUntil, PerBlock
from sslzoo.methods import BYOL, DINOv2
from sslzoo.sharding import blocks_of
from tests.callbacks.toy import FILTERS
from tests.test_every_method import batches, fit, toy, trainer
from tests.toys import build, every_method

pytestmark = FILTERS
WITH_BLOCKS = [cls for cls in every_method() if blocks_of(build(cls)[0])]


def draw(module: nn.Module) -> None:
    """Let every dropout and drop path draw."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.3
        elif isinstance(part, DropPath):
            part.drop_prob = 0.3


def step(module: nn.Module, loss: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradients and the generator's state after a step."""
    torch.manual_seed(1)
    module.zero_grad()
    value = loss()
    value.backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return value.detach(), grads, torch.get_rng_state()


@pytest.mark.parametrize("cls", WITH_BLOCKS, ids=lambda cls: cls.__name__)
def test_recomputed_blocks_have_the_same_gradients_draws_and_names(cls: Any) -> None:
    method, batch = build(cls)
    draw(method)

    def loss() -> Tensor:
        return torch.stack(list(method.losses(batch).values())).sum()

    plain, names = step(method, loss), list(method.state_dict())
    blocks = PerBlock()
    blocks.apply(method)
    assert list(method.state_dict()) == names
    torch.testing.assert_close(step(method, loss), plain, rtol=0, atol=0)
    blocks.remove()
    assert [type(part) for part in method.modules()] == [type(p) for p in build(cls)[0].modules()]


SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "patch_size": 2}
NETS: dict[str, Any] = {
    "drop path": lambda: small_vit(8, 2, 16, 2, 2, drop_path_rate=0.4, mask_token=True),
    "subsets": lambda: small_vit(
        8, 2, 16, 2, 2, drop_path_rate=0.4, drop_path="subset", mask_token=True
    ),
    "swin": lambda: timm_swin(img_size=16, window_size=4, drop_path_rate=0.4, options=SWIN),
}


COMPILED = [
    pytest.param(name, backend, id=f"{name}, {backend}", marks=marks)
    for name, backend, marks in (
        ("subsets", "eager", ()),
        ("subsets", "inductor", pytest.mark.slow),
        ("swin", "aot_eager", pytest.mark.slow),
    )
]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo asks for it
@pytest.mark.parametrize(
    ("net", "backend"), [*(pytest.param(name, None, id=name) for name in NETS), *COMPILED]
)
def test_masked_networks_have_the_same_gradients_and_draws(net: str, backend: str | None) -> None:
    module = NETS[net]()
    draw(module)
    size = int(module.grid) * module.patch_size
    x = torch.randn(6, 3, size, size)
    mask = torch.rand(6, (size // 2) ** 2) < 0.5

    def loss() -> Tensor:
        return module.forward_map(x, mask).square().mean()

    plain = step(module, loss)
    blocks = PerBlock() if backend is None else PerBlock(compile=True, backend=backend)
    blocks.apply(module)
    got = step(module, loss)
    torch.testing.assert_close(got[:2], plain[:2], rtol=1e-4, atol=2e-6)
    if backend != "inductor":  # whose generator goes on elsewhere, after the same draws
        assert torch.equal(got[2], plain[2])


def test_blocks_keep_their_inputs_only() -> None:
    def saved(module: nn.Module) -> int:
        sizes: list[int] = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(torch.randn(4, 3, 32, 32))
        return sum(sizes)

    vit = small_vit(width=32, depth=6)
    plain = saved(vit)
    PerBlock().apply(vit)
    assert saved(vit) < plain / 5


def test_a_run_has_checkpointed_blocks_and_leaves_plain_ones(monkeypatch: Any) -> None:
    counts: list[int] = []
    inner = torch.utils.checkpoint.checkpoint

    def counted(*args: Any, **options: Any) -> Any:
        counts.append(1)
        return inner(*args, **options)

    monkeypatch.setattr("sslzoo.callbacks.per_block.checkpoint", counted)
    method, data = toy(DINOv2)
    kinds = [type(block) for block in blocks_of(method)]
    run = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[PerBlock()],
    )
    fit(run, method, batches(data, 12, 0, 1))
    students = len(method.backbone.blocks)
    assert len(counts) == 3 * 2 * students  # three steps, large and small crops; no teacher
    assert [type(block) for block in blocks_of(method)] == kinds
    copy.deepcopy(method.backbone)


class Fails(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise RuntimeError("no memory")


def test_a_run_that_fails_leaves_plain_blocks_and_trained_parameters() -> None:
    method, data = toy(DINOv2)
    kinds = [type(part) for part in method.modules()]
    trained = [p.requires_grad for p in method.parameters()]
    callbacks = [PerBlock(), Freeze(0, statistics=True), FreezeUntil("backbone", epochs=1), Fails()]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            fit(trainer(1, callbacks=callbacks), method, batches(data, 12, 0, 1))
        assert [type(part) for part in method.modules()] == kinds
        assert [p.requires_grad for p in method.parameters()] == trained


def test_a_block_may_take_its_inputs_by_name() -> None:
    vit = small_vit(8, 4, 8, 2, 2)
    draw(vit)
    x = torch.randn(3, 5, 8, requires_grad=True)

    def loss() -> Tensor:
        return vit.blocks[0](x=x).square().sum()

    plain = step(vit, loss)
    PerBlock().apply(vit)
    torch.testing.assert_close(step(vit, loss), plain, rtol=0, atol=0)


def test_what_has_no_blocks_and_what_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must have transformer blocks for PerBlock, got BYOL"):
        PerBlock().apply(build(BYOL)[0])
    with pytest.raises(ValueError, match="checkpointing or compile must be True"):
        PerBlock(checkpointing=False)
