"""LoRA: only the additions train, and every state dict has merged weights with plain names."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from sslzoo.callbacks import LoRA
from sslzoo.methods import BYOL, DINO
from tests.callbacks.test_freeze import States
from tests.callbacks.toy import FILTERS
from tests.toys import build, data_like, rows

pytestmark = FILTERS


def fit(
    callbacks: list[Any], epochs: int = 2, path: Any = None, out: Any = None
) -> tuple[Any, States]:
    torch.manual_seed(0)
    method, batch = build(DINO, momentum=0.9)
    method._optimizer = partial(torch.optim.AdamW, lr=0.01)
    data, states = data_like(batch, 12), States()
    batches = [rows(data, slice(i, i + 4)) for i in (0, 4, 8)]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[*callbacks, states, *([Save(out)] if out else [])],
    )
    trainer.fit(method.double(), DataLoader(batches, batch_size=None), ckpt_path=path)
    return method, states


class Save(States):
    """Saves a checkpoint at the end of training, before the layers are plain again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


def test_states_are_merged_and_plain_and_only_linear_layers_move() -> None:
    pytest.importorskip("peft")
    start = build(DINO)[0].double().state_dict()
    method, states = fit([LoRA(2)])
    final = states.seen[-1]
    assert final.keys() == start.keys() == method.state_dict().keys()
    for name, x in method.state_dict().items():
        if name.startswith("backbone."):  # the teacher moves after the state was seen
            assert torch.equal(x, final[name]), name
    moved = {n for n in start if n.startswith("backbone.") and not torch.equal(start[n], final[n])}
    assert moved == {
        f"backbone.blocks.{block}.{layer}.weight"
        for block in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    for name in moved:
        difference = final[name] - start[name]
        assert torch.linalg.matrix_rank(difference, rtol=1e-9) <= 2, name
    teacher = {n for n in start if n.startswith("teacher_backbone.")}
    assert any(not torch.equal(start[n], final[n]) for n in teacher), "EMA moves it"
    assert all(p.requires_grad for p in method.backbone.parameters())


def test_a_resumed_run_ends_the_same_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    whole, _ = fit([LoRA(2)])
    fit([LoRA(2)], epochs=1, out=tmp_path / "one.ckpt")
    resumed, _ = fit([LoRA(2)], path=tmp_path / "one.ckpt")
    for name, x in resumed.state_dict().items():
        assert torch.equal(x, whole.state_dict()[name]), name


def test_a_checkpoint_loads_without_peft(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("peft")
    method, _ = fit([LoRA(2)], out=tmp_path / "end.ckpt")
    monkeypatch.setitem(sys.modules, "peft", None)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    plain, _ = build(DINO)
    plain.double().load_state_dict(saved)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(plain.eval()(x), method.eval()(x), rtol=0, atol=0)


def test_layers_that_do_not_exist_are_refused() -> None:
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"which has \['fc1', 'fc2', 'proj', 'qkv'\], got \['k'\]"):
        LoRA(layers=["k"]).wrap(build(DINO)[0])
    with pytest.raises(ValueError, match="SmallResNet, which has none"):
        LoRA().wrap(build(BYOL)[0])


def test_layers_that_a_failed_run_left_wrapped_are_not_wrapped_twice() -> None:
    pytest.importorskip("peft")
    method, _ = build(DINO)
    plain = method.state_dict()
    lora = LoRA()
    lora.wrap(method)
    with pytest.raises(ValueError, match=r"must not be wrapped already for LoRA, got blocks\.0"):
        LoRA().wrap(method)
    lora.wrap(method)
    lora.merge()
    assert not any(hasattr(part, "base_layer") for part in method.modules())
    torch.testing.assert_close(method.state_dict(), plain, rtol=0, atol=0)


def test_without_peft_one_sentence_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'sslzoo\[lora\]'"):
        LoRA().wrap(build(DINO)[0])
