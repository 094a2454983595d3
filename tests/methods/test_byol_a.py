"""BYOL-A: the authors' views, encoders and training; the memory, ranks and bad input."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sslzoo.backbones import AudioNTT
from sslzoo.batch import Batch
from sslzoo.heads import MLP, byol_mlp
from sslzoo.losses import regression
from sslzoo.memory import commit_memories
from sslzoo.methods import BYOLA
from sslzoo.methods.byol_a import (
    crop_boxes,
    linear_fader,
    log_mixup_exp,
    resize_crops,
    standardize,
)
from sslzoo.optim import all_alike
from sslzoo.transforms import LogMelImage
from sslzoo.transforms.audio.log_mel import mel_filters
from sslzoo.transforms.audio.log_mel_image import slaney_filters
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks


def of(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    z = load(f"byola/{name}.npz")
    return z, {key: torch.tensor(value) for key, value in z.items() if key != "meta"}


def method(memory: int = 6, **options: Any) -> BYOLA:
    net = AudioNTT(16, 12, dropout=0.0)
    heads = byol_mlp(12, 10, 6), byol_mlp(6, 10, 6)
    return BYOLA(net, *heads, shape=(16, 24), memory_size=memory, **options)


@pytest.mark.parametrize("front_end", ["torchaudio", "librosa"])
def test_front_ends_are_the_authors(front_end: Any) -> None:
    z, arrays = of("log_mel")
    hyper = z["meta"]["hyper"]
    mel = LogMelImage(16000, 64, 1024, 160, hyper["f_min"], hyper["f_max"], front_end)
    make = {"torchaudio": mel_filters, "librosa": slaney_filters}[front_end]
    filters = make(64, 513, 16000, hyper["f_min"], hyper["f_max"])
    wanted = arrays[f"filterbank_{front_end}"]
    assert_close_to_golden(filters, wanted if front_end == "torchaudio" else wanted.T, 2e-5)
    got = mel([arrays["wav"][None]], None)[0][0]  # type: ignore[arg-type]
    assert_close_to_golden(got, z[f"lms_{front_end}"], 2e-5)
    normalized = LogMelImage(
        16000, 64, 1024, 160, 60, 7800, front_end, mean=-5.0, std=2.0
    ).evaluation(arrays["wav"][None])
    assert isinstance(normalized, Tensor)
    assert_close_to_golden(normalized[0], (z[f"lms_{front_end}"] + 5) / 2, 5e-5)


def test_nnaudios_front_end_is_librosas_with_reflected_ends() -> None:
    """As its class says: Slaney's filters of area 1, and a spectrogram with reflection."""
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(1, 16_000)
    other, ours = (LogMelImage(front_end=f).spectrum(wave) for f in ("librosa", "nnaudio"))
    inside = slice(4, -4)  # frames that no padding reaches
    torch.testing.assert_close(ours[..., inside], other[..., inside])
    assert not torch.allclose(ours[..., 0], other[..., 0])
    mirrored = torch.cat([wave[:, 1:1025].flip(1), wave], dim=1)
    whole = LogMelImage(front_end="librosa", hop=1024).spectrum(mirrored)
    at_zero = LogMelImage(front_end="nnaudio", hop=1024).spectrum(wave)
    torch.testing.assert_close(at_zero[..., 0], whole[..., 1])


def test_operations_are_the_authors() -> None:
    z, a = of("log_mixup_exp")
    for alpha, wanted in zip(a["alpha"], z["out"], strict=True):
        assert_close_to_golden(log_mixup_exp(a["xa"], a["xb"], float(alpha)), wanted, 1e-6)
    z, a = of("random_resize_crop")
    boxes = crop_boxes(a["u"], a["v"], 16, 24)
    height, width = a["params"][:, 2], a["params"][:, 3]
    assert torch.equal(boxes[:, 2:], a["params"][:, 2:])
    # The second number is the first one used where the box has all bands.
    v = torch.where((height == 16)[:, None], a["v"].flip(1), a["v"])
    assert torch.equal(crop_boxes(a["u"], v, 16, 24), a["params"])
    assert ((height <= 16) & (width <= 36)).all()
    assert_close_to_golden(resize_crops(a["x"], a["params"]), z["out"], 2e-6)
    z, a = of("linear_fader_v2")
    assert_close_to_golden(linear_fader(a["x"], a["u"]), z["out"], 1e-6)
    z, a = of("normalize_batch")
    assert_close_to_golden(torch.cat(standardize([a["x"]])), z["out"], 1e-6)
    assert_close_to_golden((a["x"] + 5.4919195) / 5.0389895, z["precomputed"], 1e-6)
    z, a = of("byol_loss")
    rows = [regression(x[None], y[None]) for x, y in zip(a["x"], a["y"], strict=True)]
    assert_close_to_golden(torch.stack(rows), z["loss"], 1e-6)


def test_the_memory_is_the_authors_for_one_clip_a_step() -> None:
    z, a = of("mixup_memory")
    own = method(memory=3)
    v = [torch.zeros(1, dtype=torch.float64), *a["v"].split(1)]
    for step, clip in enumerate(a["x"]):
        got = own.mixed(clip[None], a["u"][step : step + 1], v[step])
        assert_close_to_golden(got[0], z["out"][step], 2e-6)
        own.memory.stage(clip.flatten()[None])
        commit_memories(own)
    rows = own.memory.read().roll(-int(own.memory.pointer), 0)
    assert_close_to_golden(rows.view(3, 1, 16, 24), z["bank"], 0)
    # The code's other form mixes the logarithms themselves; it does not train with it.
    linear, b = of("mixup_memory_linear")
    share = float(b["u"][1]) * 0.4
    assert_close_to_golden((1 - share) * b["x"][1] + share * b["x"][0], linear["out"][1], 1e-6)


def test_two_views_are_the_authors_where_the_memory_is_theirs() -> None:
    z, a = of("two_views")
    own, offsets, mixes = method(), list(a["v_offset"]), list(a["v_mix"])
    for clip in range(5):
        x = a["pre_norm"][clip][None]
        for view in range(2):
            number = 2 * clip + view
            v = mixes.pop(0)[None] if number else torch.zeros(1, dtype=torch.float64)
            mixed = own.mixed(x, a["u_mix"][number : number + 1], v)
            own.memory.stage(x.flatten(1))
            commit_memories(own)
            height, width = a["crop_params"][number, 2:]
            place = [offsets.pop(0) if room else 0.0 for room in (height < 16, width < 36)]
            u = a["u_crop"][number : number + 1]
            boxes = crop_boxes(u, torch.tensor([place], dtype=torch.float64), 16, 24)
            assert torch.equal(boxes[0], a["crop_params"][number])
            assert_close_to_golden(resize_crops(mixed, boxes)[0], z["views"][clip, view], 5e-6)
    assert offsets == []
    assert mixes == []


@pytest.mark.parametrize("version", [1, 2])
def test_encoders_are_the_authors(version: int) -> None:
    z, a = of(f"encoder_v{version}")
    hyper = z["meta"]["hyper"]
    options = {"blocks": 2, "hidden": hyper["mlp_hidden_d"], "skip": True} if version == 2 else {}
    net = AudioNTT(hyper["n_mels"], hyper["d"], dropout=0.0, **options)
    own = net.state_dict()
    state = {k.removeprefix("param:"): v for k, v in a.items() if k.startswith("param:")}
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})
    assert_close_to_golden(net.train()(a["x"]), z["out_train"], 5e-6)
    for key, value in a.items():
        if key.startswith("bn_after:"):
            assert_close_to_golden(net.state_dict()[key.removeprefix("bn_after:")], value, 5e-6)
    assert_close_to_golden(net.eval()(a["x"]), z["out_eval"], 5e-6)
    assert net.num_features == z["out_eval"].shape[1]


# Before a batch norm, also that of the predictor, their gradients are rounding noise.
NOISE = {"projector.layers.0.bias", "projector.layers.3.bias", "predictor.layers.0.bias"}
NAMES = {
    "online_encoder.net.": "backbone.",
    "online_encoder.projector.net.": "projector.",
    "online_predictor.net.": "predictor.",
    "target_encoder.net.": "teacher_backbone.",
    "target_encoder.projector.net.": "teacher_projector.",
}


def group(arrays: dict[str, Tensor], prefix: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a group under our names; the layers of heads by their order."""
    found = {}
    for full, value in arrays.items():
        name = full.removeprefix(prefix)
        start = next((s for s in NAMES if full.startswith(prefix + s)), None)
        if start is None:
            continue
        rest = name.removeprefix(start)
        if "projector" in start or "predictor" in start:
            first = next(k for k in own if k.startswith(NAMES[start]))
            inner = first.removeprefix(NAMES[start]).rpartition("0.")[0]
            rest = inner + rest
        found[NAMES[start] + rest] = value
    return found


def test_training_is_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    z, a = of("train_steps")
    hyper = z["meta"]["hyper"]
    net = AudioNTT(hyper["n_mels"], hyper["d"], dropout=0.0)
    heads = [MLP([n, hyper["hidden"], hyper["proj"]]) for n in (hyper["d"], hyper["proj"])]
    own = BYOLA(
        *(net, *heads),
        shape=(hyper["n_mels"], hyper["T"]),
        memory_size=4,
        momentum=hyper["decay"],
        optimizer=partial(torch.optim.Adam, lr=hyper["lr"]),
        parameter_groups=all_alike,
    )
    state = own.state_dict()
    init = group(a, "init:", state)
    assert set(init) == {key for key in state if not key.startswith("memory.")}
    own.load_state_dict({k: v.to(state[k].dtype) for k, v in init.items()}, strict=False)
    optimizer = own.configure_optimizers()
    for step, views in enumerate(a["views"]):
        given = iter(views)
        monkeypatch.setattr(own, "augment", lambda clips, keys, given=given: next(given))
        (loss,) = own.losses(Batch([views[0]], torch.arange(len(views[0])))).values()
        assert_close_to_golden(loss, z["loss"][step], 1e-4 if step else 2e-5)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            named = dict(own.named_parameters())
            for key, wanted in group(a, "grad0:", state).items():
                if key not in NOISE:
                    assert_close_to_golden(named[key].grad, wanted, 5e-5)
        optimizer.step()
        for student, teacher in own.teacher_pairs():
            for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
                q.data.lerp_(p.data, 1 - hyper["decay"])
    after = own.state_dict()
    for key, wanted in group(a, "after1:", state).items():
        if key.endswith(("bias", "running_mean")):
            # Adam moves by the rate whatever the gradient is, also one that a batch norm cancels.
            assert (after[key] - wanted).abs().max() < 4 * hyper["lr"]
        elif "num_batches" not in key:
            assert_close_to_golden(after[key], wanted, 1e-3)


def test_an_empty_memory_changes_nothing_and_a_half_full_one_is_read_to_its_end() -> None:
    own, clips = method(), torch.randn(4, 1, 16, 24)
    u, v = torch.full((4,), 0.9), torch.tensor([0.0, 0.4, 0.6, 0.99])
    assert torch.equal(own.mixed(clips, u, v), clips)
    own.memory.stage(torch.arange(1.0, 3.0)[:, None].expand(2, 384))
    commit_memories(own)
    share = 0.4 * 0.9
    wanted = [log_mixup_exp(torch.tensor(b), clips[i], share) for i, b in enumerate((1.0, 1, 2, 2))]
    torch.testing.assert_close(own.mixed(clips, u, v), torch.stack(wanted))


def _standardized(rank: int, views: list[Tensor], counts: tuple[int, ...]) -> list[Tensor]:
    return standardize([view.split(counts)[rank] for view in views])


@pytest.mark.parametrize("counts", [(3, 3), (1, 5), (2, 1, 3)])
def test_statistics_are_those_of_the_global_batch(ranks: Ranks, counts: tuple[int, ...]) -> None:
    views = [torch.randn(6, 1, 4, 5, dtype=torch.float64) for _ in range(2)]
    results = ranks(len(counts), _standardized, views, counts)
    for number, wanted in enumerate(standardize(views)):
        got = torch.cat([result[number] for result in results])
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: method(mix=1.0), "mix must be"),
        (lambda: method(memory=0), "size of the queue must be at least 1"),
        (lambda: method(fade=-1.0), "fade must be at least 0"),
        (lambda: AudioNTT(4), "bands must be at least 8 for 3 blocks, got 4"),
        (lambda: AudioNTT(64, 1024, 2, skip=True), "dim must be above 1024"),
        (lambda: LogMelImage(high=9000.0), "low < high <= rate / 2, got 60.0 and 9000.0"),
        (lambda: LogMelImage(std=0.0), "std must be greater than 0"),
        (lambda: LogMelImage(front_end="nnaudio2"), "front_end must be"),  # type: ignore[arg-type]
        (lambda: LogMelImage().spectrum(torch.zeros(1, 400)), "more than 512 samples .* got 400"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_clips_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="16x24 pixels"):
        method().training_step(Batch([torch.rand(4, 1, 16, 20)], torch.arange(4)), 0)
    assert np.prod(method().memory.rows.shape) == 6 * 384
