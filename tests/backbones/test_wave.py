"""WaveEncoder and SequenceEncoder: the official model, padding, pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sslzoo.backbones import FrameNorm, SequenceEncoder, WaveEncoder
from sslzoo.batch import Padded
from sslzoo.heads import Recurrent
from tests.golden import assert_close_to_golden, load


def test_golden_model_of_cpc_audio() -> None:
    data = load("cpc/cpc_audio_model.npz")
    model = SequenceEncoder(
        WaveEncoder(12, paddings=(3, 2, 1, 1, 1), norm="channel"), Recurrent(12, 10, "lstm")
    )
    names = {
        "gEncoder.conv": "encoder.convs.",
        "gEncoder.batchNorm": "encoder.norms.",
        "gAR.baseNet.": "context.",
    }
    weights = {}
    for name, value in data.items():
        if name.startswith("param:"):
            (old,) = (old for old in names if name[6:].startswith(old))
            weights[names[old] + name[6 + len(old) :]] = torch.from_numpy(value)
    model.load_state_dict(weights)
    x = torch.from_numpy(data["x"]).requires_grad_()
    z, c = model.forward_parts(x[:, 0])
    assert_close_to_golden(z, data["z"])
    assert_close_to_golden(c, data["c"])
    (c.square().sum() + z.square().sum()).backward()
    assert_close_to_golden(x.grad, data["grad_x"])


def test_frame_norm_is_the_unbiased_norm_of_each_frame() -> None:
    x = torch.randn(2, 4, 3)
    got = FrameNorm(4)(x)
    for frame in range(3):
        own = x[1, :, frame]
        wanted = (own - own.mean()) / (own.var() + 1e-5).sqrt()
        torch.testing.assert_close(got[1, :, frame], wanted)


def encoder(**options: Any) -> WaveEncoder:
    torch.manual_seed(0)
    return WaveEncoder(6, (10, 8, 4), (5, 4, 2), (2, 2, 1), **options)


@pytest.mark.parametrize("norm", ["none", "channel", "batch"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_changes_no_feature(norm: Any, pool: Any) -> None:
    model = SequenceEncoder(encoder(norm=norm), Recurrent(6, 5), pool).eval()
    lengths = [400, 233, 71]
    waves = [torch.randn(n) for n in lengths]
    padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    together = Padded(padded, torch.tensor(lengths))
    features, frames = model(together), model.forward_frames(together)
    for i, wave in enumerate(waves):
        alone = model.forward_frames(wave[None])
        assert frames.lengths[i] == alone.lengths[0] == alone.values.shape[1]
        torch.testing.assert_close(frames.values[i, : alone.lengths[0]], alone.values[0])
        torch.testing.assert_close(features[i], model(wave[None])[0])
        pooled = alone.values[0].mean(0) if pool == "mean" else alone.values[0, -1]
        torch.testing.assert_close(features[i], pooled)


def test_the_paper_takes_ten_milliseconds_a_frame() -> None:
    with torch.device("meta"):
        net = WaveEncoder()
        assert net(torch.empty(2, 20480)).shape == (2, 128, 512)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_is_torchs(cell: Any, layers: int) -> None:
    torch.manual_seed(0)
    ours = Recurrent(3, 4, cell, layers)
    theirs = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[cell](3, 4, layers, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(ours(x), theirs(x)[0])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), ours(x))


def test_wrong_parts_are_named() -> None:
    with pytest.raises(ValueError, match="got None of Linear"):
        SequenceEncoder(nn.Linear(2, 2), Recurrent(2))
    with pytest.raises(ValueError, match=r"in_features 6 .* Recurrent has 5 and 256"):
        SequenceEncoder(encoder(), Recurrent(5))
    with pytest.raises(ValueError, match="got 'max'"):
        SequenceEncoder(encoder(), Recurrent(6), "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cell must be one of .*'rnn'\], got 'RNN'"):
        Recurrent(2, 2, "RNN")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0, 256 and 1"):
        Recurrent(0)
    with pytest.raises(ValueError, match=r"per layer, got \[3\], \[2, 2\] and \[1\]"):
        WaveEncoder(4, (3,), (2, 2), (1,))
    with pytest.raises(ValueError, match="got 'layer'"):
        WaveEncoder(4, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels must be at least 2, got 1"):
        FrameNorm(1)
    with pytest.raises(ValueError, match=r"must be \(B, L\), got \(2, 1, 40\)"):
        encoder()(torch.zeros(2, 1, 40))


def test_instance_norm_is_torchs_and_padding_does_not_change_it() -> None:
    torch.manual_seed(0)
    ours = WaveEncoder(6, (4, 4), (2, 2), (1, 1), "instance").double()
    for norm in ours.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 40, dtype=torch.float64)
    h = x[:, None]
    for conv, norm in zip(ours.convs, ours.norms, strict=True):
        theirs = nn.InstanceNorm1d(6, affine=True).double()
        theirs.load_state_dict(norm.state_dict())
        h = theirs(conv(h)).relu()
    torch.testing.assert_close(ours(x), h.transpose(1, 2))
    lengths = torch.tensor([40, 22, 6])
    x *= torch.arange(40) < lengths[:, None]
    padded, frames = ours(x, lengths), ours.num_frames(lengths).tolist()
    for i, (length, count) in enumerate(zip(lengths.tolist(), frames, strict=True)):
        torch.testing.assert_close(padded[i, :count], ours(x[i : i + 1, :length])[0])
        assert not padded[i, count:].any()


def test_sequences_of_vectors_are_encoded_without_their_padding() -> None:
    torch.manual_seed(0)
    net = encoder(in_features=3, norm="channel")
    x, lengths = torch.randn(2, 400, 3), torch.tensor([240, 400])
    frames = net(x * (torch.arange(400) < lengths[:, None])[..., None], lengths)
    short = net(x[:1, :240])
    assert short.shape[1] == net.num_frames(lengths)[0]
    torch.testing.assert_close(frames[:1, : short.shape[1]], short)
    with pytest.raises(ValueError, match=r"\(B, L, 3\), as in_features says, got \(2, 9, 4\)"):
        net(torch.randn(2, 9, 4))
    with pytest.raises(ValueError, match=r"\(B, L, 3\), .* got \(2, 9\)"):
        net(torch.randn(2, 9))
    with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
        encoder(in_features=0)
