"""Global batch norm: equal to torch's on one process, and to one process on several ranks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from sslzoo.layers import GlobalBatchNorm, convert_batch_norm, convert_to_group_norm
from tests.no_sync import DEVICE, syncs
from tests.ranks import Ranks

SHAPES = [(12, 3), (12, 3, 4), (12, 3, 2, 5)]


def _norm(groups: int = 1, **options: Any) -> GlobalBatchNorm:
    norm = GlobalBatchNorm(3, groups=groups, **options).double()
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    return norm


def _data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.linspace(1, 3, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return x * scale + scale, torch.randn(shape, generator=generator, dtype=torch.float64)


def _run(norm: GlobalBatchNorm, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    out = norm(x)
    out.backward(grad)
    found = {"out": out.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in norm.named_parameters()}
    found |= {name: b.clone() for name, b in norm.named_buffers()}
    return found  # type: ignore[return-value]


def reference(x: Tensor, groups: int, norm: GlobalBatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Output and running statistics after one step from 0 and 1, group by group."""
    outs, means, variances = [], [], []
    for rows in x.chunk(groups):
        by_channel = rows.transpose(0, 1).flatten(1)
        mean = by_channel.mean(1)
        squares = (by_channel - mean[:, None]).square().sum(1)
        shape = (1, -1, *[1] * (x.dim() - 2))
        deviation = (squares / by_channel.shape[1] + norm.eps).sqrt().view(shape)
        gain, shift = norm.weight.view(shape), norm.bias.view(shape)
        outs.append((rows - mean.view(shape)) / deviation * gain + shift)
        means.append(mean)
        variances.append(squares / (by_channel.shape[1] - 1))
    mean, variance = torch.stack(means).mean(0), torch.stack(variances).mean(0)
    return torch.cat(outs), 0.1 * mean, 0.9 + 0.1 * variance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_value_gradient_and_running_statistics(shape: tuple[int, ...], groups: int) -> None:
    x, grad = _data(shape)
    found = _run(_norm(groups), x, grad)
    fresh, leaf = _norm(groups), x.clone().requires_grad_()
    out, mean, variance = reference(leaf, groups, fresh)
    out.backward(grad)
    wanted = {"out": out.detach(), "input": leaf.grad, "weight": fresh.weight.grad}
    wanted |= {"bias": fresh.bias.grad, "running_mean": mean, "running_var": variance}
    wanted |= {"num_batches_tracked": torch.tensor(1)}
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_gradcheck_of_groups() -> None:
    norm = _norm(3)
    x = _data((6, 3, 2))[0].requires_grad_()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias))


def test_one_group_on_one_process_is_torchs_batch_norm() -> None:
    ours, torchs = _norm(), nn.BatchNorm2d(3).double()
    torchs.load_state_dict(ours.state_dict())
    x, grad = _data(SHAPES[2])
    found, wanted = _run(ours, x, grad), _run(torchs, x, grad)  # type: ignore[arg-type]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _on_rank(
    rank: int, x: Tensor, grad: Tensor, counts: tuple[int, ...], groups: int, affine: bool
) -> dict[str, Tensor]:
    norm = _norm(groups, affine=affine)
    return _run(norm, x.split(counts)[rank], grad.split(counts)[rank])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("counts", [(6, 6), (11, 1), (5, 3, 4), (12, 0)])
def test_ranks_equal_one(
    ranks: Ranks, counts: tuple[int, ...], groups: int, affine: bool, shape: tuple[int, ...]
) -> None:
    x, grad = _data(shape)
    one = _run(_norm(groups, affine=affine), x, grad)
    many = ranks(len(counts), _on_rank, x, grad, counts, groups, affine)
    joined = {name: torch.cat([found[name] for found in many]) for name in ("out", "input")}
    if affine:  # local sums, which DDP adds up
        joined |= {name: sum(found[name] for found in many) for name in ("weight", "bias")}
    for found in many:
        buffers = {name: found[name] for name in one.keys() - {"out", "input", "weight", "bias"}}
        torch.testing.assert_close({**joined, **buffers}, one, rtol=1e-7, atol=1e-10)


def _far_from_zero(rank: int, x: Tensor) -> Tensor:
    return GlobalBatchNorm(3)(x.split([5, 7])[rank])


def test_a_large_mean_costs_no_precision(ranks: Ranks) -> None:
    x = (_data((12, 3))[0] + 1e4).float()
    want = F.batch_norm(x.double(), None, None, None, None, True)
    got = torch.cat(ranks(2, _far_from_zero, x)).double()
    torch.testing.assert_close(got, want, rtol=0, atol=2e-3)  # x itself is only good to 1e-3


def _in_eval(rank: int, x: Tensor) -> Tensor:
    norm = GlobalBatchNorm(3, groups=2).eval()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return norm(x[: rank + 1])


def test_evaluation_uses_the_running_statistics_without_a_collective(ranks: Ranks) -> None:
    x = torch.ones(2, 3)
    first, second = ranks(2, _in_eval, x)
    want = (x - torch.tensor([1.0, 2.0, 3.0])) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close((first, second), (want[:1], want))


def _half(rank: int, x: Tensor) -> tuple[Tensor, bool]:
    mine = x.split([2, 4])[rank].contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = GlobalBatchNorm(3)(mine)
    out.sum().backward()
    kept = [y.is_contiguous(memory_format=torch.channels_last) for y in (out, mine.grad)]
    return out, all(kept)


def test_half_precision_and_channels_last_stay(ranks: Ranks) -> None:
    x = _data((6, 3, 2, 5))[0].bfloat16()
    (first, kept), (second, kept_too) = ranks(2, _half, x)
    got = torch.cat([first, second])
    assert got.dtype == torch.bfloat16
    assert kept
    assert kept_too
    want = F.batch_norm(x.float(), None, None, None, None, True)
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


def test_groups_keep_half_precision_and_channels_last() -> None:
    x = _data((6, 3, 2, 5))[0].bfloat16().to(memory_format=torch.channels_last)
    got = GlobalBatchNorm(3, groups=2)(x)
    assert got.dtype == torch.bfloat16
    assert got.is_contiguous(memory_format=torch.channels_last)
    halves = [F.batch_norm(half.float(), None, None, None, None, True) for half in x.split(3)]
    torch.testing.assert_close(got.float(), torch.cat(halves), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1), (0, 3)])
def test_a_group_may_be_one_row(shape: tuple[int, ...]) -> None:
    assert not GlobalBatchNorm(3, groups=4, affine=False)(torch.ones(shape)).any()


def _make(groups: int) -> GlobalBatchNorm:
    return GlobalBatchNorm(3, groups=groups)


def _on_fake_cuda(norm: GlobalBatchNorm) -> Tensor:
    return norm(torch.randn(4, 3, 2, 2, device=DEVICE, requires_grad=True)).sum()


@pytest.mark.parametrize("groups", [1, 2])
def test_no_host_synchronization(groups: int) -> None:
    assert syncs(_on_fake_cuda, groups, make=_make) == []


@pytest.mark.parametrize("groups", [1, 2])
def test_compiles_without_graph_break(groups: int) -> None:
    x, grad = _data(SHAPES[2])
    compiled = _norm(groups)
    compiled.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_run(compiled, x, grad), _run(_norm(groups), x, grad))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_converted_network_computes_and_saves_the_same(name: str) -> None:
    model, converted = timm.create_model(name), timm.create_model(name)
    converted.load_state_dict(model.state_dict())
    parameters = list(converted.parameters())
    assert convert_batch_norm(converted) is converted
    assert all(a is b for a, b in zip(parameters, converted.parameters(), strict=True))
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {GlobalBatchNorm}
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(converted(x), model(x), rtol=0, atol=0)
    saved, wanted = converted.state_dict(), model.state_dict()
    assert list(saved) == list(wanted)
    assert all(torch.equal(saved[key], wanted[key]) for key in wanted)


def test_conversion_keeps_activation_mode_and_sharing() -> None:
    act = BatchNormAct2d(3, act_layer=nn.SiLU, drop_layer=nn.Identity).eval()
    shared = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    model = nn.ModuleDict({"act": act, "a": shared, "b": shared})
    convert_batch_norm(model, groups=2)
    assert isinstance(model["act"].act, nn.SiLU)
    assert not model["act"].training
    assert model["a"] is model["b"]
    assert model["a"].groups == 2
    assert model["a"].weight is None
    assert model["a"].running_mean is None
    x = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(model["act"](x), act(x))


def test_a_root_batch_norm_returns_its_replacement() -> None:
    root = nn.BatchNorm2d(3)
    new = convert_batch_norm(root, groups=2)
    assert isinstance(new, GlobalBatchNorm)
    assert new.weight is root.weight
    again = convert_batch_norm(new, groups=1)
    assert (again.groups, again.running_mean is root.running_mean) == (1, True)


@pytest.mark.parametrize("groups", [1, 2])
def test_without_momentum_statistics_are_the_mean_over_batches(groups: int) -> None:
    """As `update_bn` asks of every batch norm, and Lightning's StochasticWeightAveraging."""
    batches = [_data((12, 3, 2, 5))[0] * scale for scale in (1.0, 2.0, 4.0)]
    norm = convert_batch_norm(nn.Sequential(nn.BatchNorm2d(3, momentum=None)), groups)[0].double()
    of_each = []
    for x in batches:
        alone = _norm(groups, momentum=1.0)
        alone(x)
        of_each.append(torch.stack([alone.running_mean, alone.running_var]))
        norm(x)
    mean = torch.stack(of_each).mean(0)
    torch.testing.assert_close(torch.stack([norm.running_mean, norm.running_var]), mean)
    model = nn.Sequential(_norm(groups))
    torch.optim.swa_utils.update_bn(batches, model)
    torch.testing.assert_close(torch.stack([model[0].running_mean, model[0].running_var]), mean)
    model.eval()(batches[0])
    torch.testing.assert_close(model[0].running_mean, mean[0])


class _Strange(nn.BatchNorm2d):
    pass


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="got _Strange"):
        convert_batch_norm(nn.Sequential(_Strange(3)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GlobalBatchNorm(3, groups=0)
    with pytest.raises(ValueError, match="must divide the global batch of 5, got 2"):
        GlobalBatchNorm(3, groups=2)(torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"\(n, 3\).*got \(5, 4\)"):
        GlobalBatchNorm(3)(torch.ones(5, 4))


def test_group_norm_with_standardized_weights_is_their_formulas() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    net = convert_to_group_norm(nn.Sequential(conv, norm), groups=2).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    filters = []
    for one in conv.weight:  # each filter by itself
        filters.append((one - one.mean()) / (one.var(correction=0) + 1e-6).sqrt())
    y = F.conv2d(x, torch.stack(filters), conv.bias, 2, 1)
    wanted = torch.empty_like(y)
    for i in range(4):
        for g in (slice(0, 3), slice(3, 6)):
            part = y[i, g]
            part = (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
            wanted[i, g] = part * norm.weight[g, None, None] + norm.bias[g, None, None]
    torch.testing.assert_close(net(x), wanted)


def test_conversion_to_group_norm_draws_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    before = torch.get_rng_state()
    convert_to_group_norm(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_become_group_norm_is_named() -> None:
    with pytest.raises(ValueError, match="must divide the 8 channels, got 16"):
        convert_to_group_norm(nn.Sequential(nn.BatchNorm2d(8)))
    with pytest.raises(ValueError, match="got BatchNormAct2d"):
        convert_to_group_norm(BatchNormAct2d(16))
