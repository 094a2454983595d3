"""GumbelQuantizer: a product quantizer with a straight-through Gumbel softmax.

Baevski, Zhou, Mohamed and Auli, wav2vec 2.0, NeurIPS 2020, https://arxiv.org/abs/2006.11477,
section 2. Reference code: facebookresearch/fairseq at 3d262bb, modules/gumbel_vector_quantizer.py.

Deviations:
    draws: keyed by the caller; the code draws them from the process's generator.

Shapes: G groups, V entries per group, D width of a quantized vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslzoo.checks import check_whole
from sslzoo.layers.precision import at_least_float32


class Quantized(NamedTuple):
    """Quantized vectors.

    Attributes:
        values: (..., D), with the gradient of the soft choice in training.
        codes: (..., G) int64, the entry that was chosen in each group.
        probabilities: (..., G, V) softmax of the logits without noise and temperature, whose mean
            is the entries' use.
        chosen: (..., G) int64, the entry with the largest logit, without noise.
    """

    values: Tensor
    codes: Tensor
    probabilities: Tensor
    chosen: Tensor


class GumbelQuantizer(nn.Module):
    """Choose one of V entries in each of G groups, and concatenate them.

    Args:
        in_features: width of the vectors that are quantized.
        num_entries: V; 320 in the paper.
        groups: G; 2 in the paper.
        out_features: D, a multiple of G; 256 in base models, 768 in large ones.
        share_entries: whether all groups have the same entries (the code's combine_groups).

    Raises:
        ValueError: a size is below 1, or D is not a multiple of G.
    """

    def __init__(
        self,
        in_features: int,
        num_entries: int = 320,
        groups: int = 2,
        out_features: int = 256,
        share_entries: bool = False,
    ) -> None:
        super().__init__()
        check_whole("in_features", in_features, 1)
        check_whole("num_entries", num_entries, 2)
        check_whole("groups", groups, 1)
        check_whole("out_features", out_features, 1)
        if out_features % groups:
            raise ValueError(
                f"out_features must be a multiple of groups {groups}, got {out_features}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.num_entries, self.groups, self.share_entries = num_entries, groups, share_entries
        sets = 1 if share_entries else groups
        self.entries = nn.Parameter(torch.rand(sets, num_entries, out_features // groups))
        self.logits = nn.Linear(in_features, groups * num_entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(
        self, x: Tensor, temperature: float = 1.0, exponential: Tensor | None = None
    ) -> Quantized:
        """Quantize vectors.

        Args:
            x: (..., in_features).
            temperature: of the soft choice.
            exponential: (..., G, V) standard exponential draws E of training, whose -log E is the
                Gumbel noise; None: no noise, the largest logit (evaluation).
        """
        logits = at_least_float32(self.logits(x).unflatten(-1, (self.groups, self.num_entries)))
        chosen = logits.argmax(-1)
        if exponential is None:
            return Quantized(self.pick(chosen), chosen, logits.softmax(-1), chosen)
        soft = ((logits - exponential.to(logits.dtype).log()) / temperature).softmax(-1)
        codes = soft.argmax(-1)
        choice = F.one_hot(codes, self.num_entries) - soft.detach() + soft
        entries = self.entries.to(choice.dtype).expand(self.groups, -1, -1)
        values = torch.einsum("...gv,gvd->...gd", choice, entries).flatten(-2)
        return Quantized(values, codes, logits.softmax(-1), chosen)

    def pick(self, codes: Tensor) -> Tensor:
        """The vectors of given entries. Shapes: (..., G) int64 -> (..., D)."""
        groups = torch.arange(self.groups, device=codes.device) * (not self.share_entries)
        return self.entries[groups, codes].flatten(-2)

    def codes_of(self, number: Tensor) -> Tensor:
        """The entries of numbers in 0..V^G - 1, the first group's first. (...) -> (..., G)."""
        digits = [number // self.num_entries**i for i in range(self.groups - 1, -1, -1)]
        return torch.stack(digits, dim=-1) % self.num_entries
