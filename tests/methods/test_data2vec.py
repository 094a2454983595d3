"""data2vec: steps are the authors' for images, the teacher is that of the code for speech."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, SmallTransformer, small_vit
from sslzoo.batch import Batch, Padded, Tokens
from sslzoo.callbacks.ema import EMA
from sslzoo.distributed import sum_over_ranks
from sslzoo.losses import average_targets, masked_regression
from sslzoo.masks import BlockMasks, SpanMasks, TokenMasks
from sslzoo.masks.token import mask_tokens
from sslzoo.methods import Data2Vec
from sslzoo.optim import LinearBySteps, RunLength, exempt_bias_and_norm
from sslzoo.random import Keys
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks
from tests.toys import build, rows


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
    fed = method.teacher.run(h, with_fed=True)[1]
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


def of_text(masks: Any = None, **options: Any) -> tuple[Data2Vec, Batch]:
    torch.manual_seed(0)
    net = SmallTransformer(
        40, width=8, depth=3, heads=2, max_length=20, norm_first=False, dropout=0.5
    )
    how: dict[str, Any] = {"top_layers": 2, "layer_norm": "layer", "beta": 4.0, "head_layers": 2}
    method = Data2Vec(net, masks, reduction="sum", **{**how, **options})
    text = Tokens(torch.randint(6, 40, (8, 20)), torch.arange(20, 4, -2))
    return method.double(), Batch([text], torch.arange(8))


@pytest.mark.parametrize("masks", [None, TokenMasks(0.3)])
def test_a_step_is_the_codes_for_text(masks: Any) -> None:
    """data2vec_text.py: states (T, B, D), layer norms, [MASK] alone in the loss, by sum."""
    method, batch = of_text(masks)
    method.step = 3
    keys = Keys(batch.index).fold(method.seed, 3)
    (text,) = batch.views
    if masks is None:
        words = text.lengths - 2
        inner = SpanMasks(0.35, 4, 0, False)(keys, words, 18)
        source = text.ids.masked_fill(nn.functional.pad(inner, (1, 1)), 4)
    else:
        source = mask_tokens(text, keys, 4, 40, 0.3).tokens.ids
    torch.nn.init.normal_(method.teacher[1].qkv.weight)  # a teacher that is not the student
    states, h = [], method.backbone.embed(text)
    for block in method.teacher:
        h, fed = block(h, text.mask[:, None, None], None, with_fed=True)
        states.append(fed.transpose(0, 1))
    normed = [nn.functional.layer_norm(x, (8,)) for x in states[-2:]]
    y = (sum(normed) / 2).transpose(0, 1)
    masked = source.eq(4) & text.mask
    assert 4 < masked.sum() < text.lengths.sum() / 2
    assert not masked[:, 0].any()
    assert not masked[torch.arange(8), text.lengths - 1].any()
    x = method.backbone.forward_tokens(Tokens(source, text.lengths), keys.fold("dropout"))
    x = method.final_proj[2](nn.functional.gelu(method.final_proj[0](x[masked])))
    wanted = nn.functional.smooth_l1_loss(x, y[masked], beta=4.0, reduction="none").sum(1).mean()
    (loss,) = method.losses(batch).values()
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())


def test_texts_padding_changes_nothing() -> None:
    method, batch = of_text(TokenMasks(0.2))
    (text,) = batch.views
    texts = [Tokens(text.ids[1:, :size], text.lengths[1:]) for size in (20, 18)]
    a, b = (method.losses(Batch([x], batch.index[1:])).popitem()[1] for x in texts)
    torch.testing.assert_close(a, b)


def _text_on_rank(rank: int, world: int) -> list[Tensor]:
    method, batch = of_text()
    mine = torch.arange(8).tensor_split([5] if world > 1 else [])[rank]
    loss = method.losses(rows(batch, mine))["masked_regression"]
    loss.backward()
    summed = [loss.detach(), *(p.grad for p in method.parameters() if p.requires_grad)]
    return [sum_over_ranks(x) / world for x in summed]


def test_two_ranks_equal_one_for_text(ranks: Ranks) -> None:
    for got in ranks(2, _text_on_rank, 2):
        torch.testing.assert_close(got, _text_on_rank(0, 1))


def test_texts_teacher_is_its_layers_alone() -> None:
    method, _ = of_text()
    assert [name for name, _ in method.teacher.named_parameters() if "embedding" in name] == []
    (pair,) = method.teacher_pairs()
    assert pair[0] is method.backbone.blocks


def test_texts_shorter_than_a_span_are_refused() -> None:
    method, batch = of_text()
    (text,) = batch.views
    short = Tokens(text.ids[:, :6], text.lengths.clamp_max(6))
    with pytest.raises(ValueError, match=r"text of more than 4 tokens .* got at most 4"):
        method.losses(batch._replace(views=[short]))
    method, batch = of_text(SpanMasks(0.2, 1, 1, False))
    assert method.losses(batch._replace(views=[short])).popitem()[1] > 0


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SpeechEncoder, .* mask_token=True, got SmallRes"):
        Data2Vec(SmallResNet((8, 16)))
    with pytest.raises(ValueError, match=r"top_layers must be in \[1, 2\], got 8"):
        build(Data2Vec, top_layers=8)
    with pytest.raises(ValueError, match="masks must be SpanMasks for speech, got BlockMasks"):
        build(Data2Vec, masks=BlockMasks())
    method, batch = toy()
    with pytest.raises(ValueError, match="more than 3 frames"):
        method.losses(batch._replace(views=[batch.views[0][:, :14]]))
