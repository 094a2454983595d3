"""Weighted layer sum: the weights are learned, and equal a plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslzoo.backbones import AudioNTT, SequenceEncoder, WaveEncoder
from sslzoo.batch import Padded
from sslzoo.eval.protocols.layer_sum import (
    LayerSum,
    LayerSumTraining,
    Normalization,
    fit_layer_sum,
    mean_of_frames,
    stacked_layers,
)
from sslzoo.heads import Recurrent
from tests.data.audio.test_alignments import encoder


def test_the_sum_is_that_of_softmax_weights() -> None:
    probe = LayerSum(3, 4, 5)
    assert probe.layer_weights.tolist() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        probe.weights.copy_(torch.tensor([0.0, 1.0, -1.0]))
    x = torch.randn(6, 3, 4)
    weights = torch.tensor([0.0, 1.0, -1.0]).exp()
    weights = weights / weights.sum()
    summed = weights[0] * x[:, 0] + weights[1] * x[:, 1] + weights[2] * x[:, 2]
    torch.testing.assert_close(probe(x), probe.classifier(summed))


def test_the_layer_with_the_classes_gets_the_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    x = torch.randn(120, 3, 8, generator=draw)
    x[:, 1] += 2 * torch.eye(8)[labels]
    training = LayerSumTraining(epochs=15, lr=0.05)
    probe = fit_layer_sum(x, labels, 4, training)
    assert probe.layer_weights.argmax() == 1
    assert float(probe.layer_weights[1]) > 0.7
    assert (probe(x).argmax(1) == labels).float().mean() > 0.9
    again = fit_layer_sum(x, labels, 4, training)
    assert torch.equal(probe.weights, again.weights)
    assert not torch.equal(probe.weights, fit_layer_sum(x, labels, 4, training, seed=1).weights)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_are_the_input_and_every_output(norm_first: bool) -> None:
    net, wave = encoder(norm_first), torch.randn(2, 300)
    made = stacked_layers(net)(wave)
    layers, lengths = net.forward_layers(wave)
    assert made.values.shape == (2, 13, 3, 8)
    assert torch.equal(made.lengths, lengths)
    torch.testing.assert_close(made.values[:, :, 1], layers[1])
    torch.testing.assert_close(made.values[:, :, 2], net.forward_frames(wave).values)
    normed = stacked_layers(net, "layer_norm")(wave).values
    torch.testing.assert_close(normed[:, :, 1], F.layer_norm(layers[1], (8,)))


@pytest.mark.parametrize("normalize", ["standardize", "layer_norm"])
def test_padding_changes_no_mean(normalize: Normalization) -> None:
    net, waves = encoder(), [torch.randn(200), torch.randn(330)]
    padded = Padded(nn.utils.rnn.pad_sequence(waves, True), torch.tensor([200, 330]))
    stack = stacked_layers(net, normalize)

    def mean(view: Tensor | Padded) -> Tensor:
        made = stack(view)
        return mean_of_frames(made._replace(values=made.values.flatten(2)))

    alone = torch.cat([mean(wave[None]) for wave in waves])
    torch.testing.assert_close(mean(padded), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean_of_frames(net.forward_frames(padded)), net(padded))


def test_an_encoder_of_frames_has_one_layer() -> None:
    net = AudioNTT(8, 80).eval()
    image = torch.randn(2, 1, 8, 32)
    assert torch.equal(stacked_layers(net)(image).values[:, :, 0], net.forward_frames(image))


@pytest.mark.parametrize("width", [6, 5])
def test_the_layers_of_cpc_are_frames_and_contexts_of_one_width(width: int) -> None:
    net = SequenceEncoder(WaveEncoder(6, (10, 8), (5, 4), (2, 2)), Recurrent(6, width)).eval()
    wave = torch.randn(2, 90)
    frames, contexts = net.forward_parts(wave)
    (z, c), lengths = net.forward_layers(Padded(wave, torch.tensor([90, 60])))
    assert lengths.tolist() == net.num_frames(torch.tensor([90, 60])).tolist()
    torch.testing.assert_close(z[0], frames[0])
    torch.testing.assert_close(c[0], contexts[0])
    made = stacked_layers(net)(wave).values
    wanted = [frames, contexts] if width == 6 else [contexts]
    assert made.shape[2] == len(wanted)
    for layer, own in enumerate(wanted):
        torch.testing.assert_close(made[:, :, layer], own)


def test_what_a_layer_sum_cannot_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"forward_layers or forward_frames .* got Linear"):
        stacked_layers(nn.Linear(2, 2))

    class Uneven(nn.Module):
        def forward_layers(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
            return [x, x[..., :1]], torch.tensor([2])

    with pytest.raises(ValueError, match=r"one width for a weighted sum, got \[3, 1\]"):
        stacked_layers(Uneven())(torch.randn(1, 2, 3))
    with pytest.raises(ValueError, match="use a lower lr than inf"):
        fit_layer_sum(torch.randn(8, 2, 3), torch.arange(8) % 2, 2, LayerSumTraining(lr=torch.inf))
    with pytest.raises(ValueError, match="normalize must be"):
        LayerSumTraining(normalize="batch")  # type: ignore[arg-type]
