"""A transformer written out by hand, as the reference of encoders and heads with timm's blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def blocks(tokens: Tensor, state: Mapping[str, Tensor], heads: int, eps: float) -> Tensor:
    """Pre-norm blocks `blocks.<i>.` of a state dict, head by head. (B, N, D) -> (B, N, D)."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    x = tokens
    for i in range(depth):
        own = {
            name.removeprefix(f"blocks.{i}."): value
            for name, value in state.items()
            if name.startswith(f"blocks.{i}.")
        }
        q, k, v = linear(norm(x, own, "norm1", eps), own, "attn.qkv").chunk(3, dim=-1)
        size = q.shape[-1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[..., part] @ k[..., part].mT / size**0.5
            mixed.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(mixed, -1), own, "attn.proj")
        hidden = linear(norm(x, own, "norm2", eps), own, "mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + linear(hidden, own, "mlp.fc2")
    return x


def linear(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def norm(x: Tensor, state: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scale = (centered.square().mean(-1, keepdim=True) + eps).sqrt()
    return centered / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def patches(images: Tensor, side: int) -> Tensor:
    """Patches row by row, channels first. (B, C, H, W) -> (B, L, C * P * P)."""
    rows, columns = images.shape[2] // side, images.shape[3] // side
    cut = [
        images[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side].flatten(1)
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(cut, dim=1)
