"""Image backbones: the authors' blocks, the stem for small images, and the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, SmallConvNet, SmallResNet, cifar_resnet, timm_backbone
from tests.golden import assert_close_to_golden, load

Layer = tuple[nn.Module, nn.Module]


def blocks() -> dict[str, tuple[nn.Module, list[str]]]:
    """timm's block for each golden file, and its layers in the order of the file's variables."""
    identity = Bottleneck(16, 4, base_width=16 * 4)
    strided = Bottleneck(6, 4, stride=2, downsample=downsample_conv(6, 16, 1, stride=2))
    basic = BasicBlock(6, 4, stride=2, downsample=downsample_conv(6, 4, 1, stride=2))
    main = ["1", "2", "3"]
    return {
        "resnet_bottleneck_s1_noproj": (identity, main),
        "resnet_bottleneck_s2": (strided, ["downsample", *main]),
        "resnet_residual_s2": (basic, ["1", "2", "downsample"]),
    }


def layer(block: Any, name: str) -> Layer:
    if name == "downsample":
        return block.downsample[0], block.downsample[1]
    return getattr(block, f"conv{name}"), getattr(block, f"bn{name}")


def nchw(array: Any) -> Tensor:
    return torch.tensor(array).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "name", ["resnet_bottleneck_s1_noproj", "resnet_bottleneck_s2", "resnet_residual_s2"]
)
def test_timm_block_equals_simclr(name: str) -> None:
    z = load(f"simclr/{name}.npz")
    block, order = blocks()[name]
    arrays = [z[key] for key in sorted(k for k in z if k.startswith("w"))]
    after = {int(k[5:7]): z[k] for k in z if k.startswith("after")}
    for i, which in enumerate(order):
        conv, norm = layer(block, which)
        kernel = torch.tensor(arrays[3 * i]).permute(3, 2, 0, 1)
        assert conv.weight.shape == kernel.shape
        conv.weight.data = kernel.contiguous()
        norm.weight.data = torch.tensor(arrays[3 * i + 1])
        norm.bias.data = torch.tensor(arrays[3 * i + 2])
    out = block(nchw(z["x"]))
    assert_close_to_golden(out, nchw(z["out_train"]), 1e-5)
    first = 3 * len(order)
    for i, which in enumerate(order):
        _, norm = layer(block, which)
        assert_close_to_golden(norm.running_mean, after[first + 2 * i], 1e-5)
        norm.running_var.copy_(torch.tensor(after[first + 2 * i + 1]))  # theirs is biased
    assert_close_to_golden(block.eval()(nchw(z["x"])), nchw(z["out_eval"]), 1e-5)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        (lambda: SmallResNet(), 32),
        (lambda: SmallConvNet((4, 8), 16, 27, 3), 27),
        (lambda: cifar_resnet("resnet18"), 32),
        (lambda: timm_backbone("resnet10t"), 32),
        (lambda: timm_backbone("vit_tiny_patch16_224", img_size=32), 32),
    ],
    ids=["small", "convolutions", "cifar", "resnet10t", "vit"],
)
def test_forward_gives_num_features(backbone: Any, size: int) -> None:
    net = backbone().eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, size, size)).shape == (2, net.num_features)


def test_small_net_has_the_documented_size() -> None:
    net = SmallResNet()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.2e6, rel=0.01)
    assert net.num_features == 256
    assert net.forward_map(torch.rand(2, 3, 32, 32)).shape == (2, 256, 4, 4)


def test_small_convolutions_keep_where_things_are() -> None:
    net = SmallConvNet().eval()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.6e6, rel=0.02)
    image = torch.zeros(2, 1, 28, 28)
    image[0, 0, 4, 4] = image[1, 0, 20, 20] = 1
    first, second = net(image)
    assert not torch.allclose(first, second)
    assert SmallConvNet(size=(20, 28))(torch.rand(3, 1, 20, 28)).shape == (3, 512)
    with pytest.raises(ValueError, match=r"must be \(B, C, 28, 28\), .* got \(2, 1, 32, 32\)"):
        net(torch.rand(2, 1, 32, 32))
    with pytest.raises(ValueError, match="widths must be one or more"):
        SmallConvNet(())


def test_every_norm_is_global() -> None:
    for net in (
        timm_backbone("resnet10t", bn_groups=2),
        cifar_resnet(bn_groups=2),
        SmallResNet(bn_groups=2),
    ):
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert all(isinstance(m, GlobalBatchNorm) and m.groups == 2 for m in norms)


WITHOUT_BATCH_STATISTICS = {
    "small": lambda: SmallResNet((16, 32), norm="group"),
    "cifar": lambda: cifar_resnet("resnet18", norm="group"),
    "timm": lambda: timm_backbone("resnet18", norm="group"),
}


@pytest.mark.parametrize("kind", WITHOUT_BATCH_STATISTICS)
def test_with_group_norm_a_sample_does_not_see_the_others(kind: str) -> None:
    net = WITHOUT_BATCH_STATISTICS[kind]().double().train()
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
    assert not list(net.buffers())
    assert not [m for m in net.modules() if type(m) is nn.Conv2d]


def test_group_norm_keeps_the_names_and_values_of_the_parameters() -> None:
    torch.manual_seed(0)
    batch = timm_backbone("resnet18")
    torch.manual_seed(0)
    group = timm_backbone("resnet18", norm="group")
    wanted = dict(batch.named_parameters())
    assert [name for name, _ in group.named_parameters()] == list(wanted)
    assert all(torch.equal(p, wanted[name]) for name, p in group.named_parameters())
    assert group.layer1[-1].bn2.weight.abs().sum() == 0, "last scale of each block starts at 0"


def test_group_norm_has_no_groups_of_the_batch() -> None:
    with pytest.raises(ValueError, match="bn_groups must be 1 with norm 'group', got 8"):
        timm_backbone("resnet10t", bn_groups=8, norm="group")
    with pytest.raises(ValueError, match=r"one of \['batch', 'group'\], got 'none'"):
        SmallResNet(norm="none")  # type: ignore[arg-type]


def test_cifar_stem_keeps_the_resolution() -> None:
    net = cifar_resnet("resnet18").eval()
    assert net.forward_features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)
    assert net.layer1[-1].bn2.weight.abs().sum() == 0, "last scale of each block starts at 0"


def test_unknown_name_lists_close_ones() -> None:
    with pytest.raises(ValueError, match=r"got 'resnet51'.*resnet"):
        timm_backbone("resnet51")
