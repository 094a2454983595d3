"""ResNets of any width and stem, padded as torch or as TensorFlow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslzoo.backbones import scaled_resnet, timm_backbone


def shapes(net: Any) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


def test_width_one_has_timms_parameters() -> None:
    with torch.device("meta"):
        assert shapes(scaled_resnet()) == shapes(timm_backbone("resnet50"))
        assert shapes(scaled_resnet(101)) == shapes(timm_backbone("resnet101"))


def test_width_and_stem_are_free_of_each_other() -> None:
    with torch.device("meta"):
        half: Any = scaled_resnet(width=0.5, stem_dim=64, in_chans=2)
        double: Any = scaled_resnet(width=2)
    assert half.num_features == 1024
    assert shapes(half)["conv1.weight"] == (64, 2, 7, 7)
    assert shapes(half)["layer1.0.conv1.weight"] == (32, 64, 1, 1)
    assert double.num_features == 4096
    assert shapes(double)["conv1.weight"] == (128, 3, 7, 7)


@pytest.mark.parametrize("size", [8, 9])
def test_same_padding_is_tensorflows(size: int) -> None:
    """The larger half of an odd border lies to the right and at the bottom."""
    net: Any = scaled_resnet(padding="same")
    conv = net.layer2[0].conv2
    x = torch.rand(1, 128, size, size)
    total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
    padded = F.pad(x, [total // 2, total - total // 2] * 2)
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=2))
    assert net(torch.rand(2, 3, 4 * size, 4 * size)).shape == (2, 2048)


def test_errors_name_what_is_wanted() -> None:
    for args, text in (
        ({"depth": 18}, "depth must be one of"),
        ({"width": 0.3}, "positive integer, got width 0.3"),
        ({"padding": "valid"}, "got 'valid'"),
    ):
        with pytest.raises(ValueError, match=text):
            scaled_resnet(**args)  # type: ignore[arg-type]


def test_timm_takes_further_options() -> None:
    with torch.device("meta"):
        net: Any = timm_backbone("vit_small_patch16_224", options={"num_heads": 12, "depth": 1})
    assert net.blocks[0].attn.num_heads == 12
