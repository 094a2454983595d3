"""Encoders of transformers: tiny random ones of every kind, without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from sslzoo.backbones import HFEncoder, HFMaps, HFSpeech, HFTokens, HFWhisper, hf, hf_encoder  # noqa: E402
from sslzoo.batch import Padded, Tokens  # noqa: E402

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24}
CONVS: dict[str, Any] = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4)}
CONVS |= {"num_feat_extract_layers": 2}
CONVS |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "conv_bias": False}
SQUARE = {"image_size": 16, "patch_size": 4}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
WORDS = {"vocab_size": 40, "max_position_embeddings": 32}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, **WORDS}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, **SQUARE}

SPEECH = {
    "wav2vec2": {**SMALL, **CONVS},
    "hubert": {**SMALL, **CONVS, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "wavlm": {**SMALL, **CONVS},
    "data2vec-audio": {**SMALL, **CONVS, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
}
TOKENS = {
    "vit": ({**SMALL, **SQUARE}, 1),
    "deit": ({**SMALL, **SQUARE}, 2),
    "dinov2": ({**SMALL, **SQUARE}, 1),
    "dinov2_with_registers": ({**SMALL, **SQUARE, "num_register_tokens": 3}, 4),
    "dinov3_vit": ({**SMALL, **SQUARE, "num_register_tokens": 2}, 3),
    "swin": (SWIN, 0),
    "clip_vision_model": ({**SMALL, **SQUARE}, 1),
    "siglip_vision_model": ({**SMALL, **SQUARE}, 0),
}
MAPS = {
    "convnext": STAGES,
    "dinov3_convnext": {"hidden_sizes": [8, 16], "depths": [1, 1]},
    "resnet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
}
TEXT = {
    "bert": {**SMALL, **WORDS},
    "roberta": {**SMALL, **WORDS},
    "distilbert": DISTIL,
    "mpnet": {**SMALL, **WORDS},
}


def kinds(every: Any, fast: tuple[str, ...]) -> Any:
    """Parametrize `kind`; those that are not of `fast` run before a release."""
    cases = [pytest.param(k, marks=() if k in fast else pytest.mark.slow) for k in every]
    return pytest.mark.parametrize("kind", cases)


def saved(folder: Path, kind: str, options: dict[str, Any], **about: Any) -> str:
    """A folder with the config and the weights of a tiny random net."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    if about:
        (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return str(folder)


def trains(backbone: nn.Module, features: torch.Tensor) -> None:
    """Whether each parameter that may be trained has a gradient."""
    features.square().sum().backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@kinds(SPEECH, ("wav2vec2", "hubert"))
def test_speech(tmp_path: Path, kind: str) -> None:
    about = {"sampling_rate": 8000, "do_normalize": True}
    backbone = hf(saved(tmp_path, kind, SPEECH[kind], **about))
    assert isinstance(backbone, HFSpeech)
    assert (backbone.rate, backbone.normalize, backbone.num_features) == (8000, True, 16)
    waves = torch.randn(4, 400)
    torch.manual_seed(0)
    trains(backbone, backbone(waves))
    backbone.eval()
    lengths = torch.tensor([400, 250, 40, 250])
    padded = torch.where(torch.arange(400) < lengths[:, None], waves, torch.tensor(9.0))
    features = backbone(Padded(padded, lengths))
    torch.testing.assert_close(features[0], backbone(waves[:1])[0])
    torch.testing.assert_close(features[1], backbone(waves[1:2, :250])[0])
    torch.testing.assert_close(features[2], backbone(waves[2:3, :40])[0])
    layers, frames = backbone.forward_layers(Padded(padded, lengths))
    assert len(layers) == 3
    assert frames.tolist() == [19, 12, 1, 12]
    given = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=8000)
    wanted = given(waves[0].numpy(), sampling_rate=8000, return_tensors="pt").input_values
    torch.testing.assert_close(
        backbone.forward_frames(waves[:1]).values, backbone.model(wanted).last_hidden_state,
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip
    for view in (waves[:1, :9], Padded(padded[:1], torch.tensor([9]))):
        with pytest.raises(
            ValueError, match=r"got 1 of 1 that are not, the first \(row 0\) with 9"
        ):
            backbone(view)
    with pytest.raises(ValueError, match=r"got 1 of 2 that are not, the first \(row 1\) with 9"):
        backbone(Padded(padded[:2], torch.tensor([400, 9])))


def test_whispers_spectrogram_is_transformers(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "decoder_layers": 1}
    sizes |= {"encoder_ffn_dim": 24, "decoder_attention_heads": 2, "max_source_positions": 50}
    sizes |= {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    folder = saved(tmp_path, "whisper", {**sizes, "decoder_start_token_id": 1})
    backbone = hf(folder)
    assert isinstance(backbone, HFWhisper)
    assert (backbone.rate, backbone.num_features, backbone.window) == (16000, 16, 16000)
    waves = torch.rand(2, 9000) - 0.5
    trains(backbone, backbone(waves))
    backbone.eval()
    given = transformers.WhisperFeatureExtractor(chunk_length=1)
    wanted = given(list(waves.numpy()), sampling_rate=16000, return_tensors="pt").input_features
    torch.testing.assert_close(backbone.log_mel(waves), wanted, rtol=1e-4, atol=1e-4)
    lengths = torch.tensor([9000, 3000])
    both = backbone.forward_frames(Padded(waves, lengths))
    assert both.lengths.tolist() == [29, 10]
    torch.testing.assert_close(
        backbone(Padded(waves, lengths))[1], backbone(waves[1:, :3000])[0], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="at most 16000 samples"):
        backbone(torch.zeros(1, 16001))


@kinds(TOKENS, ("dinov2_with_registers", "swin"))
def test_vision_transformers(tmp_path: Path, kind: str) -> None:
    options, prefix = TOKENS[kind]
    about = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    backbone = hf(saved(tmp_path, kind, options, **about))
    assert isinstance(backbone, HFTokens)
    assert backbone.expected_mean == [0.5] * 3
    assert (backbone.num_prefix, backbone.num_features) == (prefix, 16)
    images = torch.randn(2, 3, 16, 16)
    trains(backbone, backbone(images))
    side = 2 if kind == "swin" else 4
    backbone.eval()
    assert backbone.forward_map(images).shape == (2, 16, side, side)
    tokens = backbone.forward_tokens(images)
    assert tokens.shape[1] == prefix + side**2
    torch.testing.assert_close(backbone(images), tokens[:, 0] if prefix else tokens.mean(1))
    wide = torch.randn(2, 3, 16, 32)
    assert backbone.forward_map(wide).shape == (2, 16, side, 2 * side)
    mean = hf(str(tmp_path), pooling="mean").eval()
    torch.testing.assert_close(mean(images), tokens[:, prefix:].mean(1))
    if kind == "swin":
        with pytest.raises(ValueError, match="pooling must be 'mean' for SwinModel"):
            hf(str(tmp_path), pooling="cls")


@kinds(MAPS, ("convnext",))
def test_convolutional_nets(tmp_path: Path, kind: str) -> None:
    backbone = hf(saved(tmp_path, kind, MAPS[kind]))
    assert isinstance(backbone, HFMaps)
    images = torch.randn(2, 3, 32, 64)
    features = backbone(images)
    assert features.shape == (2, backbone.num_features) == (2, 16)
    trains(backbone, features)
    found = backbone.forward_map(images)
    assert found.shape[:2] == (2, backbone.map_features)
    assert found.shape[3] == 2 * found.shape[2]


@kinds(TEXT, ("roberta",))
def test_text(tmp_path: Path, kind: str) -> None:
    backbone = hf(saved(tmp_path, kind, TEXT[kind]), num_ids=41, pooling="mean")
    assert isinstance(backbone, HFEncoder)
    assert (backbone.num_features, backbone.num_ids) == (16, 41)
    ids, lengths = torch.randint(3, 40, (3, 9)), torch.tensor([9, 4, 6])
    trains(backbone, backbone(Tokens(ids, lengths)))
    backbone.eval()
    features = backbone(Tokens(ids, lengths))
    torch.testing.assert_close(backbone(Tokens(ids[1:2, :4], lengths[1:2])), features[1:2])
    layers, counts = backbone.forward_layers(Tokens(ids, lengths))
    assert len(layers) == 3
    assert counts.tolist() == [9, 4, 6]
    torch.testing.assert_close(layers[-1], backbone.forward_tokens(Tokens(ids, lengths)))


CAUSAL = {
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "clip_text_model": {**SMALL, "vocab_size": 40, "max_position_embeddings": 32},
}


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_first_token_that_sees_no_other_is_no_feature(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind, CAUSAL[kind])
    for make in (hf, hf_encoder):
        with pytest.raises(ValueError, match=r"pooling must be 'mean' for \w+, whose first token"):
            make(folder)
    backbone: Any = hf(folder, pooling="mean")
    assert backbone.training
    assert backbone.max_length == 32


def test_positions_bound_the_length(tmp_path: Path) -> None:
    assert hf(saved(tmp_path, "bert", TEXT["bert"])).max_length == 32
    roberta = {**TEXT["roberta"], "max_position_embeddings": 34}
    backbone: Any = hf(saved(tmp_path, "roberta", roberta))
    assert backbone.max_length == 32
    backbone(Tokens(torch.randint(3, 40, (1, 32)), torch.tensor([32])))


def test_an_encoder_saved_without_its_decoder(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    net = transformers.T5EncoderModel(transformers.T5Config(vocab_size=40, **sizes)).eval()
    net.save_pretrained(tmp_path)
    ids = torch.randint(3, 40, (2, 7))
    backbone = hf(str(tmp_path), pooling="mean").eval()
    found = backbone(Tokens(ids, torch.tensor([7, 7])))
    torch.testing.assert_close(found, net(input_ids=ids).last_hidden_state.mean(1))


def test_broken_folders_are_named_in_a_sentence(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", TEXT["bert"])
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json must be JSON"):
        hf(folder)
    (tmp_path / "preprocessor_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(ValueError, match=f"the weights of {folder} must be whole, with the shapes"):
        hf(folder)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:500])
    with pytest.raises(ValueError, match=f"the weights of {folder} must be whole"):
        hf(folder)
    with pytest.raises(OSError, match=r"name must be of the Hub .* or an existing folder"):
        hf(str(tmp_path / "other"))
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="num_ids must be at least 1, got 0"):
        hf(folder, num_ids=0)


def test_without_weights_only_the_configuration_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, "wav2vec2", SPEECH["wav2vec2"], sampling_rate=8000, do_normalize=True)
    (tmp_path / "model.safetensors").unlink()
    backbone = hf(folder, pretrained=False, local_files_only=True)
    assert (backbone.rate, backbone.normalize) == (8000, True)
    with pytest.raises(OSError, match="weights in safetensors"):
        hf(folder)


def test_pickles_and_foreign_code_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", TEXT["bert"])
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"must have its weights in safetensors, .* got none"):
        hf(folder)
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="brings code of its own, which is never run"):
        hf(folder)
    assert not ran.exists()


def test_lacking_weights_and_other_encoders_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "a", "bert", TEXT["bert"])
    weights = load_file(tmp_path / "a" / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"got none for 1, such as .*layer.1.output.dense"):
        hf(folder)
    ast = {**SMALL, "num_mel_bins": 16, "max_length": 32}
    with pytest.raises(ValueError, match=r"must be of an encoder of waveforms, .* ASTModel"):
        hf(saved(tmp_path / "b", "audio-spectrogram-transformer", ast))
    towers = {"text_config": {**SMALL, **WORDS}, "vision_config": {**SMALL, **SQUARE}}
    with pytest.raises(ValueError, match=r"towers for images and text; sslzoo.zoo.load_image_text"):
        hf(saved(tmp_path / "c", "clip", towers))
