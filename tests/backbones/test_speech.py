"""Speech encoders equal fairseq's and transformers', and padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslzoo.backbones import (
    ConvFrames,
    ConvPositions,
    SpeechEncoder,
    SpeechTransformer,
    normalize_waveforms,
)
from sslzoo.batch import Padded
from sslzoo.zoo.converters import convert
from tests.golden import assert_close_to_golden, load

FORMS = ["base", "large"]


def golden_encoder(form: str) -> tuple[SpeechEncoder, dict[str, Any]]:
    z = load(f"hubert/encoder_{form}.npz")
    how = z["meta"]["hyper"]
    frames = ConvFrames(
        how["conv_dim"],
        how["conv_kernel"],
        how["conv_stride"],
        how["feat_extract_norm"],
        how["conv_bias"],
    )
    transformer = SpeechTransformer(
        how["hidden"],
        how["layers"],
        how["heads"],
        how["ffn"],
        how["stable_layer_norm"],
        how["pos_kernel"],
        how["pos_groups"],
    )
    encoder = SpeechEncoder(frames, transformer).eval()
    state = {
        name.removeprefix("param:"): torch.from_numpy(value)
        for name, value in z.items()
        if name.startswith("param:")
    }
    kept, dropped = convert(state, "transformers_speech")
    encoder.load_state_dict(kept)
    assert not dropped
    return encoder, z


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_authors_convolutions_and_transformers_layers(form: str) -> None:
    encoder, z = golden_encoder(form)
    frames = encoder.embed(torch.from_numpy(z["wav"]))
    assert_close_to_golden(frames.conv.mT, z["conv_features"])
    positions = encoder.transformer.positions(torch.from_numpy(z["pos_in"]).mT)
    assert_close_to_golden(positions.mT, z["pos_conv_out"])
    layers, lengths = encoder.forward_layers(torch.from_numpy(z["wav"]))
    for i, layer in enumerate(layers):
        assert_close_to_golden(layer, z[f"hidden{i}"])
    last = encoder.forward_frames(torch.from_numpy(z["wav"])).values
    assert_close_to_golden(last, z["last_hidden_state"])
    assert lengths.tolist() == [19, 19]


def fairseq_names(state: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """The names of fairseq's modules, spelled out."""
    norm = {"base": "2", "large": "2.1"}[form]
    pairs = [
        ("frames.convs.{}.", "feature_extractor.conv_layers.{}.0."),
        ("frames.norms.{}.", f"feature_extractor.conv_layers.{{}}.{norm}."),
        ("transformer.layers.{}.q.", "encoder.layers.{}.self_attn.q_proj."),
        ("transformer.layers.{}.k.", "encoder.layers.{}.self_attn.k_proj."),
        ("transformer.layers.{}.v.", "encoder.layers.{}.self_attn.v_proj."),
        ("transformer.layers.{}.out.", "encoder.layers.{}.self_attn.out_proj."),
        ("transformer.layers.{}.norm1.", "encoder.layers.{}.self_attn_layer_norm."),
        ("transformer.layers.{}.norm2.", "encoder.layers.{}.final_layer_norm."),
        ("transformer.layers.{}.fc", "encoder.layers.{}.fc"),
    ]
    whole = {
        "norm.": "layer_norm.",
        "project.": "post_extract_proj.",
        "mask_token": "mask_emb",
        "transformer.positions.": "encoder.pos_conv.0.",
        "transformer.norm.": "encoder.layer_norm.",
    }
    named = {}
    for name, value in state.items():
        starts = dict(whole)
        for ours, theirs in pairs:
            starts |= {ours.format(i): theirs.format(i) for i in range(3)}
        start = next(s for s in starts if name.startswith(s))
        named[starts[start] + name[len(start) :]] = value
    return named


@pytest.mark.parametrize("form", FORMS)
def test_names_of_fairseq_are_converted(form: str) -> None:
    encoder, _ = golden_encoder(form)
    wanted = encoder.state_dict()
    heads = {"quantizer.vars": torch.ones(1), "final_proj.weight": torch.ones(1)}
    teacher = {"_ema": {"layers.0.fc1.weight": torch.ones(1)}}  # data2vec's, a dictionary
    saved = {"model": {**fairseq_names(wanted, form), **heads, **teacher}, "cfg": {}}
    kept, dropped = convert(saved, "fairseq_speech")
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    assert set(dropped) == {*heads, *teacher}


def toy(norm: Any = "group", **options: Any) -> SpeechEncoder:
    torch.manual_seed(0)
    how = {"position_kernel": 6, "position_groups": 2, **options}
    normalize = how.pop("normalize", False)
    frames = ConvFrames((4, 6), (6, 4), (3, 2), norm)
    transformer = SpeechTransformer(8, 2, 2, 12, **how)
    return SpeechEncoder(frames, transformer, normalize).double().eval()


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("group", {}),
        ("layer", {"norm_first": True, "normalize": True}),
        ("group", {"position_depth": 3, "position_kernel": 15, "normalize": True}),
    ],
)
def test_padding_changes_nothing(norm: str, options: dict[str, Any]) -> None:
    """Neither layers nor gradients, whatever the padding contains."""
    encoder = toy(norm, **options)
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(n, generator=generator).double() for n in (200, 131, 64)]
    values = torch.full((3, 260), 7.0).double()
    for row, wave in enumerate(waves):
        values[row, : len(wave)] = wave
    padded = Padded(values, torch.tensor([len(wave) for wave in waves]))
    layers, lengths = encoder.forward_layers(padded)
    alone = [encoder.forward_layers(wave[None])[0] for wave in waves]
    for row, own in enumerate(alone):
        assert lengths[row] == own[0].shape[1]
        for got, want in zip(layers, own, strict=True):
            torch.testing.assert_close(got[row, : lengths[row]], want[0])
    trained = [p for name, p in encoder.named_parameters() if name != "mask_token"]
    together = torch.autograd.grad(encoder(padded).square().sum(), trained)
    single = [encoder(wave[None]).square().sum() for wave in waves]
    apart = torch.autograd.grad(torch.stack(single).sum(), trained)
    torch.testing.assert_close(together, apart)


def test_positions_of_several_layers_are_the_formula() -> None:
    """Convolution, norm without weights, GELU; each by hand."""
    torch.manual_seed(0)
    positions = ConvPositions(4, 15, 2, depth=3).double()
    assert [tuple(conv.weight.shape) for conv in positions.convs] == [(4, 2, 5)] * 3
    x = torch.randn(2, 7, 4).double()
    wanted = x
    for conv in positions.convs:
        wanted = conv(wanted.mT).mT
        mean, spread = wanted.mean(2, keepdim=True), wanted.var(2, correction=0, keepdim=True)
        wanted = torch.nn.functional.gelu((wanted - mean) / (spread + 1e-5).sqrt())
    torch.testing.assert_close(positions(x), wanted)


def test_the_convolutions_gradient_is_scaled() -> None:
    encoder = toy()
    wave = torch.randn(2, 100).double()
    full = torch.autograd.grad(encoder(wave).sum(), [encoder.frames.convs[0].weight])[0]
    encoder.feature_gradient = 0.1
    scaled = torch.autograd.grad(encoder(wave).sum(), [encoder.frames.convs[0].weight])[0]
    torch.testing.assert_close(scaled, 0.1 * full)


def test_a_dropped_layer_passes_its_input_and_gets_zero_gradients() -> None:
    encoder = toy(layer_drop=0.999).train()
    layers, _ = encoder.forward_layers(torch.randn(2, 100).double())
    torch.testing.assert_close(layers[0], layers[-1])
    layers[-1].sum().backward()
    assert (encoder.transformer.layers[0].q.weight.grad == 0).all()


def test_silence_is_finite_and_normalized_waves_have_unit_variance() -> None:
    encoder = toy("layer", normalize=True)
    assert encoder(torch.zeros(2, 100).double()).isfinite().all()
    wave = 5 + 3 * torch.randn(2, 400).double()
    plain, padded = normalize_waveforms(wave), normalize_waveforms(wave, torch.tensor([400, 400]))
    torch.testing.assert_close(plain, padded)
    torch.testing.assert_close(
        plain.std(1, correction=0), torch.ones(2).double(), rtol=1e-4, atol=0
    )


def test_a_layer_can_be_chosen_and_wrong_arguments_are_refused() -> None:
    encoder = toy()
    layers, _ = encoder.forward_layers(torch.ones(1, 100).double())
    encoder.layer = 1
    torch.testing.assert_close(encoder(torch.ones(1, 100).double()), layers[1].mean(1))
    frames = ConvFrames()
    assert (frames.stride, frames.kernel) == (320, 400)
    with pytest.raises(ValueError, match=r"at least 400 samples \(one frame\), got \(1, 399\)"):
        frames(torch.ones(1, 399))
    with pytest.raises(ValueError, match="heads must divide the width 8, got 3"):
        SpeechTransformer(8, 1, 3)
    with pytest.raises(ValueError, match="one entry per layer"):
        ConvFrames((4, 4), (3,), (2,))
