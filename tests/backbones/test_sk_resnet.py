"""SimCLR v2's ResNets: the authors' blocks, the published sizes, TensorFlow's padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, simclr_v2_resnet, timm_backbone
from sslzoo.backbones.sk_resnet import SelectiveKernelConv, adapt_block
from sslzoo.layers import convert_batch_norm
from tests.backbones.test_image import nchw
from tests.golden import assert_close_to_golden, load


def golden_block(name: str) -> tuple[nn.Module, list[nn.Module]]:
    """Our block for a golden file, and its layers in the order of the file's variables."""
    sk_ratio = 0.0625 if "_sk_" in name else 0.0
    basic, stride = "residual" in name, 2 if name.endswith("s2") else 1
    block: Any = (BasicBlock if basic else Bottleneck)(6, 4, stride)
    adapt_block(block, True, sk_ratio)
    convert_batch_norm(block)
    shortcut = [m for m in block.downsample if isinstance(m, nn.Conv2d | GlobalBatchNorm)]
    if basic:
        return block, [block.conv1, block.bn1, block.conv2, block.bn2, *shortcut]
    middle = [block.conv2, block.bn2]
    if sk_ratio:
        conv = block.conv2
        middle = [conv.conv, conv.bn, conv.mixing[0], conv.mixing[1], conv.mixing[3]]
    return block, [*shortcut, block.conv1, block.bn1, *middle, block.conv3, block.bn3]


def fill(layers: list[nn.Module], z: dict[str, Any]) -> None:
    """Kernels, scales and offsets of the file, which stand in the layers' order."""
    arrays = iter([z[key] for key in sorted(k for k in z if k.startswith("w"))])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            kernel = torch.tensor(next(arrays)).permute(3, 2, 0, 1)
            assert layer.weight.shape == kernel.shape
            layer.weight.data = kernel.contiguous()
        else:
            assert isinstance(layer, GlobalBatchNorm)
            layer.weight.data = torch.tensor(next(arrays))
            layer.bias.data = torch.tensor(next(arrays))


@pytest.mark.parametrize(
    "name",
    [
        "resnet_sk_bottleneck_s1",
        "resnet_sk_bottleneck_s2",
        "resnet_bottleneck_s2",
        "resnet_residual_s2",
    ],
)
def test_block_equals_the_authors(name: str) -> None:
    z = load(f"simclr/{name}.npz")
    block, layers = golden_block(name)
    fill(layers, z)
    norms = [m for m in layers if isinstance(m, GlobalBatchNorm)]
    counts: dict[nn.Module, int] = {}
    for norm in norms:
        norm.register_forward_pre_hook(
            lambda m, args: counts.update({m: args[0].numel() // args[0].shape[1]})
        )
    assert_close_to_golden(block(nchw(z["x"])), nchw(z["out_train"]), 1e-5)
    after = [z[key] for key in sorted(k for k in z if k.startswith("after"))]
    for i, norm in enumerate(norms):
        assert_close_to_golden(norm.running_mean, after[2 * i], 1e-5)
        # TensorFlow keeps the biased variance, torch the unbiased one.
        theirs, n = torch.tensor(after[2 * i + 1]), counts[norm]
        assert_close_to_golden(norm.running_var, 0.9 + (theirs - 0.9) * n / (n - 1), 1e-5)
        norm.running_var.copy_(theirs)
    assert_close_to_golden(block.eval()(nchw(z["x"])), nchw(z["out_eval"]), 1e-5)


def on_meta(depth: int, width: int, sk_ratio: float) -> nn.Module:
    with torch.device("meta"):
        return simclr_v2_resnet(depth, width, sk_ratio)


@pytest.mark.parametrize(
    ("depth", "width", "plain", "selective"),
    [
        (50, 1, 24, 35),
        (50, 2, 94, 140),
        (101, 1, 43, 65),
        (101, 2, 170, 257),
        (152, 1, 58, 89),
        (152, 2, 233, 354),
        (152, 3, None, 795),
    ],
)
def test_sizes_are_the_papers(depth: int, width: int, plain: int | None, selective: int) -> None:
    """Millions, table 1; with the running statistics counted, every figure is the paper's."""
    for sk_ratio, reported in ((0.0, plain), (0.0625, selective)):
        if reported is not None:
            state = on_meta(depth, width, sk_ratio).state_dict()
            count = sum(t.numel() for t in state.values() if t.is_floating_point())
            assert round(count / 1e6) == reported


def test_parameters_are_as_many_as_the_codes() -> None:
    for sk_ratio, wanted in ((0.0, 23_508_032), (0.0625, 35_215_584)):
        assert sum(p.numel() for p in on_meta(50, 1, sk_ratio).parameters()) == wanted


def test_plain_resnet50_has_timms_parameters() -> None:
    with torch.device("meta"):
        theirs = timm_backbone("resnet50")
    ours = on_meta(50, 1, 0.0)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_shortcut_pools_as_tensorflow(size: int, stride: int) -> None:
    block: Any = Bottleneck(6, 4, stride)
    adapt_block(block, True, 0.0625)
    x = torch.randn(2, 6, size, size)
    padded, inside = (F.pad(m, (0, 1, 0, 1)) for m in (x, torch.ones_like(x)))
    total = F.avg_pool2d(padded, 2, stride, divisor_override=1)
    # VALID after padding counts the zeros; SAME counts the pixels that exist.
    count = F.avg_pool2d(inside, 2, 1, divisor_override=1) if stride == 1 else 4
    torch.testing.assert_close(block.downsample[0](x), total / count)


def same_max_pool(x: Tensor) -> Tensor:
    """TensorFlow's SAME for 3x3 of stride 2, window by window."""
    size = x.shape[-1]
    out = -(-size // 2)
    before = max((out - 1) * 2 + 3 - size, 0) // 2
    starts = [i * 2 - before for i in range(out)]
    rows = [
        torch.stack(
            [x[..., max(r, 0) : r + 3, max(c, 0) : c + 3].amax((-2, -1)) for c in starts], dim=-1
        )
        for r in starts
    ]
    return torch.stack(rows, dim=-2)


@pytest.mark.parametrize("size", [8, 7])
def test_stem_pools_as_tensorflow(size: int) -> None:
    net: Any = simclr_v2_resnet(14)
    x = torch.randn(2, 3, size, size)
    assert torch.equal(net.maxpool(x), same_max_pool(x))


@pytest.mark.parametrize(
    ("depth", "sk_ratio", "cifar_stem", "num_features"),
    [
        (14, 0.0625, False, 2048),
        (14, 0.0625, True, 2048),
        (14, 0.0, False, 2048),
        (18, 0.0625, True, 512),
        (18, 0.0, False, 512),
    ],
)
def test_gradient_reaches_every_parameter(
    depth: int, sk_ratio: float, cifar_stem: bool, num_features: int
) -> None:
    torch.manual_seed(0)
    net = simclr_v2_resnet(depth, 1, sk_ratio, cifar_stem=cifar_stem, zero_init_last=False)
    features = net(torch.randn(4, 3, 32, 32))
    assert features.shape == (4, num_features)
    assert net.num_features == num_features
    features.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_width_multiplies_every_channel() -> None:
    narrow, wide = (on_meta(14, width, 0.0625) for width in (1, 2))
    for (name, a), (_, b) in zip(narrow.named_parameters(), wide.named_parameters(), strict=True):
        for dim, (m, n) in enumerate(zip(a.shape[:2], b.shape[:2], strict=True)):
            kept = (name == "conv1.0.weight" and dim == 1) or m == n == 32  # the mixing's least
            assert n == (m if kept else 2 * m), name


def test_cifar_stem_keeps_the_resolution() -> None:
    net: Any = simclr_v2_resnet(14, 1, 0.0625, cifar_stem=True).eval()
    assert net.forward_features(torch.rand(1, 3, 32, 32)).shape == (1, 2048, 4, 4)


def test_streams_are_mixed_by_weights_that_sum_to_one() -> None:
    conv = SelectiveKernelConv(4, 8, 1, 0.0625).eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        conv.conv.weight[8:] = conv.conv.weight[:8]  # equal streams, and any weights
        torch.testing.assert_close(conv(x), F.relu(conv.bn(conv.conv(x)))[:, :8])


def test_mixing_is_in_the_maps_precision() -> None:
    conv = SelectiveKernelConv(4, 8, 1, 0.0625)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(2, 4, 6, 6)).dtype == torch.bfloat16


def test_weights_start_as_the_codes() -> None:
    torch.manual_seed(0)
    net: Any = simclr_v2_resnet(14, 1, 0.0625)
    weight = net.layer4[0].conv2.conv.weight
    assert weight.std().item() == pytest.approx((512 * 9) ** -0.5, rel=0.01)
    assert weight.abs().max().item() <= 2 * (512 * 9) ** -0.5 / 0.8796 * 1.0001
    assert net.layer4[0].bn3.weight.abs().sum() == 0, "last scale of each block starts at 0"
    kept: Any = simclr_v2_resnet(14, zero_init_last=False)
    assert (kept.layer4[0].bn3.weight == 1).all()


def test_norms_are_global_and_maps_channels_last() -> None:
    net = simclr_v2_resnet(14, 1, 0.0625, bn_groups=2)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(m, GlobalBatchNorm) and m.groups == 2 for m in norms)
    assert all((m.eps, m.momentum) == (1e-5, 0.1) for m in norms)
    weights = [p for p in net.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


@pytest.mark.slow
def test_compiles_without_a_graph_break() -> None:
    net = torch.compile(simclr_v2_resnet(14, 1, 0.0625), backend="eager", fullgraph=True)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 2048)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"depth must be one of \[14, 18, .*, got 51"):
        simclr_v2_resnet(51)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        simclr_v2_resnet(width=0)
    with pytest.raises(ValueError, match=r"sk_ratio must be in \[0, 1\], got 2"):
        simclr_v2_resnet(sk_ratio=2)
