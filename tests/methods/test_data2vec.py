"""data2vec: steps are the authors' for images, the teacher is that of the code for speech."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.batch import Batch, Padded
from sslzoo.callbacks.ema import EMA
from sslzoo.losses import average_targets, masked_regression
from sslzoo.masks import BlockMasks, SpanMasks
from sslzoo.methods import Data2Vec
from sslzoo.optim import LinearBySteps, RunLength, exempt_bias_and_norm
from tests.golden import assert_close_to_golden, load
from tests.toys import build


class Toy(nn.Module):
    """The network of the golden steps: x + tanh(linear(x)) per block."""

    def __init__(self, z: dict[str, Any], start: str) -> None:
        super().__init__()
        width = z["tokens"].shape[-1]
        self.mask_token = nn.Parameter(torch.zeros(width))
        layers = z["meta"]["hyper"]["layers"]
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.lm_head = nn.Linear(width, width)
        self.load_state_dict(
            {name: torch.from_numpy(z[f"{start}:{name}"]) for name in self.state_dict()}
        )

    def run(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for block in self.blocks:
            x = x + torch.tanh(block(x))
            outputs.append(x)
        return outputs


def assert_state(net: Toy, z: dict[str, Any], start: str) -> None:
    for name, value in net.state_dict().items():
        assert_close_to_golden(value, z[f"{start}:{name}"])


@pytest.mark.parametrize("form", ["vision_beit", "vision_beit_instance", "vision_beit_layernorm"])
def test_three_steps_are_the_authors_for_images(form: str) -> None:
    z = load(f"data2vec/{form}.npz")
    how = z["meta"]["hyper"]
    student, teacher = Toy(z, "init"), Toy(z, "ema_init").requires_grad_(False)
    layer_norm: Any = "instance" if how.get("target_instance_norm") else "layer"
    layer_norm = layer_norm if how["target_layer_norm_last"] or layer_norm == "instance" else "none"
    norm: Any = "layer" if how.get("post_target_layer_norm") else "none"
    beta = 0.0 if how.get("l2_loss") else how["l1_beta"]
    optimizer = torch.optim.AdamW(
        exempt_bias_and_norm(student),
        betas=how["betas"],
        eps=how["eps"],
        weight_decay=how["weight_decay"],
    )
    momentum = LinearBySteps(how["ema_decay_init"], how["ema_decay"], how["ema_start_at"])
    ema = EMA(momentum, when="after_step")
    pairs: Any = SimpleNamespace(
        teacher_pairs=lambda: [(student, teacher)], run_length=RunLength(3, 3)
    )
    for step in range(3):
        tokens, mask = (torch.from_numpy(z[name][step]) for name in ("tokens", "mask"))
        layers = [teacher.run(tokens)[i] for i in how["target_layers"]]
        targets = average_targets(layers, layer_norm, norm)
        masked = torch.where(mask[..., None], student.mask_token, tokens)
        predictions = student.lm_head(student.run(masked)[-1])
        loss = masked_regression(predictions, targets, mask, 1 / tokens.shape[2], beta)
        assert_close_to_golden(loss, z["loss"][step])
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in student.named_parameters():
                assert_close_to_golden(parameter.grad, z[f"grad0:{name}"])
        nn.utils.clip_grad_norm_(student.parameters(), how["clip_grad"])
        for group in optimizer.param_groups:
            group["lr"] = how["lr"][step]
        optimizer.step()
        ema.update(pairs, step)
        if step in (0, 2):
            assert_state(student, z, f"after{step}")
            assert_state(teacher, z, f"ema{step}")


def test_the_teacher_is_data2vecs_for_speech() -> None:
    """Averaged layers, copied buffers; positions are shared, which is to copy them."""
    z = load("data2vec/ema.npz")

    def net() -> nn.ModuleDict:
        parts = {"pos_conv": nn.Linear(3, 3), "lin": nn.Linear(4, 3), "bn": nn.BatchNorm1d(3)}
        return nn.ModuleDict(parts)

    def state(start: str) -> dict[str, Tensor]:
        names = [name.partition(":")[2] for name in z if name.startswith("init:")]
        return {name: torch.from_numpy(z[f"{start}:{name}"]) for name in names}

    student, teacher = net(), net()
    teacher.load_state_dict(state("init"))
    teacher["pos_conv"] = student["pos_conv"]
    pairs: Any = SimpleNamespace(
        teacher_pairs=lambda: [(student[name], teacher[name]) for name in ("lin", "bn")],
        run_length=RunLength(3, 3),
    )
    ema = EMA(z["meta"]["hyper"]["decay"], when="after_step", copy_buffers=True)
    for part in teacher.children():
        part.requires_grad_(part is student["pos_conv"])
    for step in range(3):
        student.load_state_dict(state(f"student{step}"))
        ema.update(pairs, step)
        for name, value in teacher.state_dict().items():
            assert_close_to_golden(value.float(), z[f"teacher{step}:{name}"])


def toy(**changes: Any) -> tuple[Data2Vec, Batch]:
    method, batch = build(Data2Vec, **changes)
    return method.double(), batch._replace(views=[torch.randn(4, 64).double()])


def test_a_step_is_the_formula_for_speech() -> None:
    method, batch = toy()
    encoder = method.backbone
    drawn = []
    masks = method.masks
    method.masks = lambda *args: drawn.append(masks(*args)) or drawn[0]
    method.masks.check_size = masks.check_size
    (loss,) = method.losses(batch).values()
    frames = encoder.embed(batch.views[0])
    h = encoder.transformer.add_positions(frames.projected)
    fed = method.teacher.run(h)[1]
    normed = [(x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
              for x in fed]  # fmt: skip
    target = torch.stack(normed).mean(0)
    x = torch.where(drawn[0][..., None], encoder.mask_token, frames.projected)
    context = encoder.transformer(x)
    error = (method.final_proj(context) - target)[drawn[0]].square().sum(1) / 8**0.5
    torch.testing.assert_close(loss, error.mean())


def test_padding_changes_nothing() -> None:
    method, _ = toy(masks=SpanMasks(0.6, 3, same_count=False))
    wave = torch.randn(2, 48).double()
    alone = method.losses(Batch([wave], torch.arange(2)))["masked_regression"]
    padded = torch.cat([wave, torch.full((2, 30), 9.0).double()], dim=1)
    view = Padded(padded, torch.tensor([48, 48]))
    method.masks = _Same(method.masks, 48)
    torch.testing.assert_close(method.losses(Batch([view], torch.arange(2))).popitem()[1], alone)


class _Same:
    """The masks that unpadded waveforms of `samples` have, for padded ones."""

    def __init__(self, masks: Any, samples: int) -> None:
        self.masks, self.size = masks, 10
        self.check_size = masks.check_size

    def __call__(self, keys: Any, lengths: Tensor, size: int) -> Tensor:
        mask = self.masks(keys, lengths, int(lengths.max()))
        return nn.functional.pad(mask, (0, size - mask.shape[1]))


def test_images_train_and_the_teacher_has_no_dropout() -> None:
    torch.manual_seed(0)
    vit = small_vit(16, 4, width=16, depth=3, num_heads=2, mask_token=True, drop_path_rate=0.5)
    masks = BlockMasks((0.6,), (0.0,))
    options: dict[str, Any] = {"layer_norm": "layer", "target_norm": "layer", "beta": 2.0}
    method = Data2Vec(vit, masks, 2, reduction="mean", momentum=0.9, **options)
    batch = Batch([torch.rand(6, 3, 16, 16)], torch.arange(6))
    assert method.train().takes.size == (16, 16)
    blocks = [method.teacher.forward_blocks(batch.views[0], 2, norm=False) for _ in range(2)]
    torch.testing.assert_close(*blocks)
    (loss,) = method.losses(batch).values()
    loss.backward()
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    assert all(method.get_parameter(name).grad is not None for name in trained)
    assert all(not p.requires_grad for p in method.teacher.parameters())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="SpeechEncoder or a ViT with mask_token=True, got Small"):
        Data2Vec(SmallResNet((8, 16)))
    with pytest.raises(ValueError, match=r"top_layers must be in \[1, 2\], got 8"):
        build(Data2Vec, top_layers=8)
    with pytest.raises(ValueError, match="masks must be SpanMasks for speech, got BlockMasks"):
        build(Data2Vec, masks=BlockMasks())
    method, batch = toy()
    with pytest.raises(ValueError, match="more than 3 frames"):
        method.losses(batch._replace(views=[batch.views[0][:, :14]]))
