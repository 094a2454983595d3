"""CPC: the official arrays, which frames are drawn, whose contexts predict, ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import FrameMLP, SequenceEncoder, WaveEncoder
from sslzoo.batch import Batch, Padded
from sslzoo.distributed import row_layout
from sslzoo.heads import LinearSteps, NoContext, Recurrent
from sslzoo.losses import cpc_info_nce
from sslzoo.methods import CPC
from sslzoo.random import Keys
from tests.golden import assert_close_to_golden, load
from tests.losses.parity import assert_ranks_equal_one
from tests.ranks import Ranks


class Frames(nn.Module):
    """An encoder for arrays whose frames are features already, as a user may write one."""

    num_features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x


class Double(nn.Module):
    """A context without a memory."""

    in_features = out_features = 3

    def forward(self, z: Tensor) -> Tensor:
        return 2 * z


def method(**options: Any) -> CPC:
    torch.manual_seed(0)
    predictor = LinearSteps(3, 3, options.pop("num_steps", 2))
    return CPC(SequenceEncoder(Frames(), Double()), predictor, **options)


def drawn(mode: Any, batch: int = 3, frames: int = 5, count: int = 4000) -> tuple[Tensor, Tensor]:
    """(B, P, K) sequences and frames of the negatives of contexts (or targets) 1 and 3."""
    keys = Keys(torch.arange(batch))
    layout = row_layout(batch)
    places = torch.tensor([[1], [3]])
    index = method(negatives=mode, num_negatives=count)._draw(keys, layout, places, frames)
    assert index.shape == (batch, 2, count)
    return index // frames, index % frames


@pytest.mark.parametrize(
    "mode", ["batch", "not_target", "other_frames", "other_sequences", "same_sequence"]
)
def test_negatives_come_from_where_the_mode_says_equally_often(mode: Any) -> None:
    sequence, frame = drawn(mode)
    for sample in range(3):
        for place, own in enumerate((1, 3)):
            wanted = {
                (s, t)
                for s in range(3)
                for t in range(5)
                if not (mode == "not_target" and (s, t) == (sample, own))
                and not (mode == "other_frames" and t == own)
                and not (mode == "other_sequences" and s == sample)
                and not (mode == "same_sequence" and s != sample)
            }
            pairs = sequence[sample, place] * 5 + frame[sample, place]
            counts = pairs.bincount(minlength=15)
            assert {(i // 5, i % 5) for i in counts.nonzero()[:, 0].tolist()} == wanted
            spread = counts[counts > 0] * len(wanted) / 4000
            assert spread.min() > 0.75
            assert spread.max() < 1.25


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("mode", ["batch", "not_target"])
def test_the_loss_is_that_of_step_after_step(mode: Any, whole: bool) -> None:
    """Greedy InfoMax averages each step over its own contexts; CPC_audio cuts all alike."""
    ours = method(negatives=mode, num_negatives=6, num_steps=3, whole_steps=whole)
    x = torch.randn(4, 7, 3)
    batch = Batch([x], torch.arange(4))
    drew: list[Tensor] = []
    draw = ours._draw
    ours._draw = lambda *given: drew.append(draw(*given)) or drew[-1]  # type: ignore[assignment]
    got = ours.losses(batch)["info_nce"]
    places = 4 if whole else 6
    negatives = drew[0].view(4, places, -1, 6).expand(-1, -1, 3, -1)  # anew for a step, or shared
    every = x.flatten(0, 1)
    predictions = ours.predictor(2 * x)
    losses = []
    for k in range(1, 4):
        terms = []
        for i in range(4):
            for t in range(places if whole else 7 - k):
                candidates = [x[i, t + k], *(every[j] for j in negatives[i, t, k - 1].tolist())]
                scores = torch.stack(candidates) @ predictions[i, t, k - 1]
                terms.append(-scores.log_softmax(0)[0])
        losses.append(torch.stack(terms).mean())
    torch.testing.assert_close(got, torch.stack(losses).mean())
    summed = method(negatives=mode, num_negatives=6, num_steps=3, whole_steps=whole, sum_steps=True)
    torch.testing.assert_close(summed.losses(batch)["info_nce"], 3 * got)


def test_the_mean_score_is_the_dot_product_by_the_width() -> None:
    x = torch.randn(4, 7, 3)
    by_mean = method(score="mean").losses(Batch([x], torch.arange(4)))["info_nce"]
    scaled = method()
    scaled.scale = 1 / 3
    assert torch.equal(by_mean, scaled.losses(Batch([x], torch.arange(4)))["info_nce"])


def recurrent_loss(x: Tensor, index: Tensor) -> Tensor:
    """Of the paper's kind of net: convolutions, then a GRU."""
    torch.manual_seed(0)
    backbone = SequenceEncoder(WaveEncoder(4, (4, 4), (2, 2), (1, 1)), Recurrent(4, 5))
    net = CPC(backbone, LinearSteps(5, 4, 2), num_negatives=6).double()
    return net.losses(Batch([x], index))["info_nce"]


@pytest.mark.parametrize("counts", [(3, 3), (1, 5)])
def test_ranks_equal_one(ranks: Ranks, counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 24, dtype=torch.float64)
    assert_ranks_equal_one(ranks, recurrent_loss, [x, torch.arange(6)], 1, counts)


def test_silence_has_a_finite_loss_and_gradient() -> None:
    torch.manual_seed(0)
    backbone = SequenceEncoder(WaveEncoder(4, (4, 4), (2, 2), (1, 1), "channel"), Recurrent(4, 5))
    net = CPC(backbone, LinearSteps(5, 4, 2), num_negatives=6)
    loss = net.losses(Batch([torch.zeros(3, 24)], torch.arange(3)))["info_nce"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "all"}, "got 'all' and 'dot'"),
        ({"score": "cosine"}, "got 'batch' and 'cosine'"),
        ({"num_negatives": 0}, "num_negatives must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**options)


def test_what_cannot_be_predicted_is_named() -> None:
    with pytest.raises(ValueError, match="more than 2 frames, the steps predicted, got 2"):
        method().losses(Batch([torch.zeros(4, 2, 3)], torch.arange(4)))
    with pytest.raises(ValueError, match=r"at least 2 sequences .*, got 1"):
        method(negatives="other_sequences").losses(Batch([torch.zeros(1, 4, 3)], torch.arange(1)))
    backbone = SequenceEncoder(Frames(), Double())
    with pytest.raises(ValueError, match=r"predictor must map 3 to 3 .* from 3 to 4"):
        CPC(backbone, LinearSteps(3, 4))
    with pytest.raises(ValueError, match="WaveEncoder with frame_features None"):
        CPC(WaveEncoder(3), LinearSteps(3, 3))


@pytest.mark.parametrize("mode", ["", "_reverse"])
def test_golden_criterion_of_cpc_audio(mode: str) -> None:
    data = load(f"cpc/cpc_audio_criterion{mode}.npz")
    c, z = (torch.from_numpy(data[name]).requires_grad_() for name in "cz")
    steps, window = data["meta"]["hyper"]["nPredicts"], data["meta"]["hyper"]["window"]
    weight = torch.cat(
        [torch.from_numpy(data[f"param:wPrediction.predictors.{k}.weight"]) for k in range(steps)]
    )
    predictor = LinearSteps(6, 6, steps)
    predictor.linear.weight = nn.Parameter(weight)
    past, future = (c.flip(1), z.flip(1)) if mode else (c, z)
    negatives = torch.from_numpy(data["neg_flat_idx"]).transpose(1, 2)  # (B, P, K)
    predictions = predictor(past[:, :window])
    positives = torch.arange(window)[:, None] + torch.arange(1, steps + 1)

    def loss(weights: Tensor) -> Tensor:
        given = (predictions, future, positives, negatives)
        return cpc_info_nce(*given, scale=1 / 6, weights=weights)

    of_step = torch.eye(steps)[:, None].expand(-1, window, -1) / window
    losses = torch.stack([loss(weights) for weights in of_step])
    assert_close_to_golden(losses[None], data["loss"])
    loss(torch.full((window, steps), 1 / window)).backward()
    assert_close_to_golden(c.grad, data["grad_c"])
    assert_close_to_golden(z.grad, data["grad_z"])
    for k, grad in enumerate(predictor.linear.weight.grad.chunk(steps)):
        assert_close_to_golden(grad, data[f"grad:wPrediction.predictors.{k}.weight"])


def gim_negatives(data: dict[str, Any], k: int, batch: int, length: int) -> Tensor:
    """(B, L - k, 4) frames of the flattened batch: what step k's negatives are in the code."""
    method = data["meta"]["hyper"]["sampling_method"]
    left = length - k
    if method == 0:  # the offset from the target, among this step's targets
        offset = torch.from_numpy(data[f"draw{k - 1}"]).view(4, -1).T + 1
        flat = (torch.arange(batch * left)[:, None] + offset) % (batch * left)
        return (flat // left * length + flat % left + k).view(batch, left, 4)
    draws = torch.stack([torch.from_numpy(data[f"draw{i}"]) for i in range(4)], dim=-1)
    if method == 1:  # one set for all steps, cut at the front of the flattened batch
        return draws[batch * k :].view(batch, left, 4)
    return torch.arange(batch)[:, None, None] * length + draws[None, k:]


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_golden_loss_of_greedy_infomax(sampling: int) -> None:
    data = load(f"cpc/gim_audio_infonce_m{sampling}.npz")
    c, z = (torch.from_numpy(data[name]).requires_grad_() for name in "cz")
    batch, length, width = z.shape
    steps = data["meta"]["hyper"]["prediction_step"]
    predictor = LinearSteps(c.shape[2], width, steps)
    predictor.linear.weight = nn.Parameter(torch.from_numpy(data["param:predictor.weight"]))
    predictions = predictor(c)
    losses = [
        cpc_info_nce(
            predictions[:, :-k, k - 1],
            z,
            torch.arange(k, length),
            gim_negatives(data, k, batch, length),
        )
        for k in range(1, steps + 1)
    ]
    loss = torch.stack(losses).mean()
    assert_close_to_golden(loss, data["loss"])
    loss.backward()
    assert_close_to_golden(c.grad, data["grad_c"])
    assert_close_to_golden(z.grad, data["grad_z"])
    assert_close_to_golden(predictor.linear.weight.grad, data["grad:predictor.weight"])


class Told(nn.Module):
    """An encoder or context of given frames."""

    def __init__(self, frames: Tensor) -> None:
        super().__init__()
        self.frames, self.num_features = frames, frames.shape[2]
        self.in_features = self.out_features = frames.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.frames


def test_golden_step_in_reverse() -> None:
    """The whole method: CPC_audio's --cpc_mode reverse."""
    data = load("cpc/cpc_audio_criterion_reverse.npz")
    c, z = (torch.from_numpy(data[name]).requires_grad_() for name in "cz")
    steps = data["meta"]["hyper"]["nPredicts"]
    weights = [data[f"param:wPrediction.predictors.{k}.weight"] for k in range(steps)]
    predictor = LinearSteps(6, 6, steps)
    predictor.linear.weight = nn.Parameter(torch.cat([*map(torch.from_numpy, weights)]))
    backbone = SequenceEncoder(Told(z), Told(c.flip(1)), reverse=True)
    options = {"negatives": "other_frames", "score": "mean", "whole_steps": True}
    net = CPC(backbone, predictor, num_negatives=5, sum_steps=True, **options)
    drawn = torch.from_numpy(data["neg_flat_idx"]).transpose(1, 2)
    net._draw = lambda *_: drawn  # type: ignore[method-assign]
    loss = net.losses(Batch([torch.zeros(3, 10)], torch.arange(3)))["info_nce"]
    assert_close_to_golden(loss, data["loss"].sum())
    loss.backward()
    assert_close_to_golden(c.grad, data["grad_c"])
    assert_close_to_golden(z.grad, data["grad_z"])


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_reverse_is_the_method_on_reversed_frames(cell: Any) -> None:
    torch.manual_seed(0)
    nets = [
        CPC(SequenceEncoder(Frames(), Recurrent(3, 4, cell), reverse=reverse), LinearSteps(4, 3, 2))
        for reverse in (False, True)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(4, 7, 3)
    forward, backward = (
        net.losses(Batch([view], torch.arange(4)))
        for net, view in zip(nets, (x.flip(1), x), strict=True)
    )
    torch.testing.assert_close(forward, backward)
    contexts = nets[1].backbone.forward_parts(x)[1]
    x[:, 3:] += 1
    moved = nets[1].backbone.forward_parts(x)[1]
    assert not torch.isclose(moved[:, :3], contexts[:, :3]).all(dim=2).any(), "later frames count"
    x[:, :3] -= 5
    torch.testing.assert_close(nets[1].backbone.forward_parts(x)[1][:, 3:], moved[:, 3:])


def test_padding_does_not_change_a_reversed_sequence() -> None:
    torch.manual_seed(0)
    backbone = SequenceEncoder(FrameMLP(3, 4), Recurrent(4, 5), reverse=True)
    x, lengths = torch.randn(2, 6, 3), torch.tensor([4, 6])
    features = backbone(Padded(x, lengths))
    for i, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(features[i], backbone(x[i : i + 1, :length])[0])
    with pytest.raises(ValueError, match=r"pool must be 'mean' with reverse=True, .* got 'last'"):
        SequenceEncoder(FrameMLP(3, 4), Recurrent(4, 5), "last", reverse=True)


def test_a_plain_rnn_is_its_recurrence() -> None:
    torch.manual_seed(0)
    x, state, one = torch.randn(2, 5, 3), torch.zeros(2, 4), Recurrent(3, 4, "rnn")
    for t in range(5):
        state = torch.tanh(
            x[:, t] @ one.weight_ih_l0.T + one.bias_ih_l0
            + state @ one.weight_hh_l0.T + one.bias_hh_l0
        )  # fmt: skip
        torch.testing.assert_close(one(x)[:, t], state)


def test_without_a_context_network_the_frames_are_the_contexts() -> None:
    x = torch.randn(4, 7, 3)
    frames, contexts = SequenceEncoder(Frames(), NoContext(3)).forward_parts(x)
    assert torch.equal(frames, contexts)
    with pytest.raises(ValueError, match=r"in_features 3 .* has 4"):
        SequenceEncoder(Frames(), NoContext(4))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        NoContext(0)


def test_padded_training_views_are_refused() -> None:
    """Frames of the padding would be targets and negatives."""
    backbone = SequenceEncoder(WaveEncoder(4, (4,), (2,), (1,)), Recurrent(4, 3))
    view = Padded(torch.rand(2, 64), torch.tensor([64, 20]))
    with pytest.raises(ValueError, match=r"windows without padding .*; set short of the data"):
        CPC(backbone, LinearSteps(3, 4, 2)).losses(Batch([view], torch.arange(2)))
