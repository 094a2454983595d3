"""Probes: logistic regression, the attentive probe, inner layers and training, by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from sslzoo.backbones import timm_backbone
from sslzoo.batch import Batch
from sslzoo.eval.linear import linear_probe, standardize
from sslzoo.eval.protocols.accuracy import top_k
from sslzoo.eval.protocols.attentive import AttentiveProbe
from sslzoo.eval.protocols.layers import Layers, layer_names, pooled
from sslzoo.eval.protocols.logistic import SWEEP, logistic_scores
from sslzoo.eval.protocols.probe import (
    Pass,
    Training,
    linear_classifier,
    probe_scores,
    train_probes,
)
from sslzoo.optim.schedule import RunLength


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    return 2 * torch.eye(3, 4)[label] + torch.randn(n, 4, generator=draw), label


def test_the_sweep_has_the_papers_45_values() -> None:
    assert len(SWEEP) == 45
    assert (SWEEP[0], SWEEP[-1]) == (pytest.approx(1e-6), pytest.approx(1e5))
    ratios = [b / a for a, b in zip(SWEEP, SWEEP[1:], strict=False)]
    assert min(ratios) == pytest.approx(max(ratios))


def test_scores_are_the_linear_probes_and_scikit_learns() -> None:
    (x, y), (asked, truth) = blobs(90, 0), blobs(60, 1)
    for l2 in ([0.1], [1e-3, 1e-1, 10.0]):
        scores = logistic_scores(x, y, asked, 3, l2)
        assert top_k(scores, truth) == linear_probe(x, y, asked, truth, 3, l2)
    one = logistic_scores(x, y, asked, 3, [0.1])
    known, test = standardize(x, asked)
    reference = LogisticRegression(C=1 / (0.1 * 90), tol=1e-8, max_iter=1000).fit(known, y)
    wanted = torch.from_numpy(reference.predict_proba(test))
    torch.testing.assert_close(one.softmax(1).double(), wanted, atol=2e-4, rtol=0)


def test_several_labels_are_one_regression_per_class() -> None:
    (x, y), (asked, _) = blobs(90, 0), blobs(20, 1)
    several = torch.stack([(y == c).long() for c in range(3)], 1)
    scores = logistic_scores(x, several, asked, 3, [0.05])
    known, test = standardize(x, asked)
    for c in range(3):
        reference = LogisticRegression(C=1 / (0.05 * 90), tol=1e-8).fit(known, several[:, c])
        wanted = torch.from_numpy(reference.decision_function(test))
        torch.testing.assert_close(scores[:, c].double(), wanted, atol=5e-3, rtol=0)
    # Difficult objects change nothing (here all samples again, so that standardizing is the same).
    masked = torch.cat([several, torch.full_like(several, -1)])
    again = logistic_scores(torch.cat([x, x]), masked, asked, 3, [0.05])
    torch.testing.assert_close(again, scores, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"labels must be \(n, C\) = \(90, 2\), got \(90, 3\)"):
        logistic_scores(x, several, asked, 2)


def test_attention_is_the_weighted_mean_by_hand() -> None:
    probe = AttentiveProbe(2, 2, 1, complete=False)
    with torch.no_grad():
        for layer in (probe.q, probe.proj, probe.classifier):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
        probe.kv.weight.copy_(torch.eye(2).repeat(2, 1))
        probe.kv.bias.zero_()
        probe.query.copy_(torch.tensor([[[1.0, 0.0]]]))
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    weight = torch.tensor([2.0, 0.0]).div(2**0.5).softmax(0)
    torch.testing.assert_close(probe(tokens)[0], torch.stack([2 * weight[0], 3 * weight[1]]))


def test_the_complete_block_is_torchs_attention() -> None:
    torch.manual_seed(0)
    probe = AttentiveProbe(8, 3, 2)
    for parameter in probe.parameters():
        nn.init.normal_(parameter, std=0.3)
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([probe.q.weight, probe.kv.weight]))
        reference.in_proj_bias.copy_(torch.cat([probe.q.bias, probe.kv.bias]))
        reference.out_proj.load_state_dict(probe.proj.state_dict())
    tokens = torch.randn(4, 5, 8)
    query, keys = probe.query.expand(4, -1, -1), probe.norm1(tokens)
    mixed = query + reference(query, keys, keys)[0]
    mixed = mixed + probe.fc2(nn.functional.gelu(probe.fc1(probe.norm2(mixed))))
    torch.testing.assert_close(probe(tokens), probe.classifier(mixed[:, 0]))
    assert probe(tokens).shape == (4, 3)


def test_a_resnets_stages_are_conv1_to_conv5() -> None:
    encoder = timm_backbone("resnet18").eval()
    names = layer_names(encoder)
    assert names[1:] == ["layer1", "layer2", "layer3", "layer4"]
    read = Layers(encoder, names, most=1000)
    found = read(torch.rand(2, 3, 64, 64))
    assert [x.shape[1] for x in found] == [64 * 9, 64 * 9, 128 * 4, 256, 512]
    assert all(not part._forward_hooks for part in encoder.modules())
    with pytest.raises(ValueError, match="neither a ResNet nor has blocks"):
        layer_names(nn.Linear(2, 2))


def test_pooling_by_hand() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert pooled(maps, 4).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert pooled(maps, 1).tolist() == [[7.5]]
    assert pooled(torch.tensor([[[1.0], [3.0]]]), 9).tolist() == [[2.0]]


def loader(x: torch.Tensor, y: torch.Tensor) -> Pass:
    parts = zip(x.split(4), torch.arange(len(x)).split(4), y.split(4), strict=True)
    return Pass([Batch([a], i, b) for a, i, b in parts], lambda batch: batch)


def test_training_is_sgd_by_hand() -> None:
    x, y = blobs(10, 2)
    probe = linear_classifier(4, 3, 0.0, norm=False)
    training = Training("sgd", 64.0, epochs=2, batch_size=8, milestones=(1,))
    assert training.lr == 2.0
    encoder = nn.Identity()
    train_probes(
        encoder, lambda v: [encoder(v)], [probe], lambda e: loader(x, y), 10, training, "cpu"
    )
    weight, bias = torch.zeros(3, 4), torch.zeros(3)
    speed = [torch.zeros(3, 4), torch.zeros(3)]
    for lr in (2.0, 2.0, 0.2, 0.2):
        rows = slice(0, 8) if len(speed) == 2 else slice(8, 10)
        error = (x[rows] @ weight.T + bias).softmax(1) - torch.eye(3)[y[rows]]
        grads = [error.T @ x[rows] / len(error), error.mean(0)]
        speed[:2] = [0.9 * v + g for v, g in zip(speed, grads, strict=False)]
        weight, bias = weight - lr * speed[0], bias - lr * speed[1]
        speed = speed[:2] + ([torch.zeros(0)] if len(speed) == 2 else [])
    assert isinstance(probe, nn.Linear)
    torch.testing.assert_close(probe.weight.detach(), weight)
    torch.testing.assert_close(probe.bias.detach(), bias)
    (scores,), labels = probe_scores(encoder, lambda v: [v], [probe], loader(x, y), "cpu")
    assert torch.equal(labels, y)
    torch.testing.assert_close(scores, x @ weight.T + bias)


def test_rates_follow_the_papers() -> None:
    length = RunLength(20, 10)
    cosine = Training(epochs=2, warmup_epochs=1)
    assert [cosine.factor(step, length) for step in (0, 5, 10, 15)] == pytest.approx(
        [0, 0.5, 1, 0.5]
    )
    steps = Training(milestones=(1,))
    assert [steps.factor(step, length) for step in (0, 9, 10)] == pytest.approx([1, 1, 0.1])


def test_samples_without_a_class_are_refused() -> None:
    x, _ = blobs(4, 0)
    bare = Pass([Batch([x], torch.arange(4))], lambda batch: batch)
    with pytest.raises(ValueError, match=r"one class per sample \(B,\), got none"):
        probe_scores(nn.Identity(), lambda v: [v], [nn.Identity()], bare, "cpu")
