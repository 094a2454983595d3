"""UnitHead: HuBERT's cosine scores of the units of one or several sets.

Hsu et al., HuBERT, 2021, https://arxiv.org/abs/2106.07447, section II. Reference code:
facebookresearch/fairseq at 3d262bb, models/hubert/hubert.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslzoo.checks import check_positive, check_whole
from sslzoo.layers.precision import l2_normalize, no_autocast


class UnitHead(nn.Module):
    """Cosine between a projected frame and the embedding of each unit, over a temperature.

    Args:
        in_features: width of a frame.
        num_units: number of units in each set.
        dim: width of the embeddings; 256 in base models, 768 in large ones.
        untied: whether each set has a projection of its own (the code's untie_final_proj).
        temperature: 0.1 in the paper.

    Attributes:
        embeddings: (sum of num_units, dim), uniform in [0, 1) at the start.
    """

    def __init__(
        self,
        in_features: int,
        num_units: Sequence[int],
        dim: int = 256,
        untied: bool = False,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if not num_units:
            raise ValueError("num_units must have one number per set of units, got none")
        for number in num_units:
            check_whole("num_units", number, 2)
        check_whole("dim", dim, 1)
        check_positive("temperature", temperature)
        self.in_features, self.num_units = in_features, tuple(num_units)
        self.untied, self.temperature = untied, temperature
        self.project = nn.Linear(in_features, dim * (len(num_units) if untied else 1))
        self.embeddings = nn.Parameter(torch.rand(sum(num_units), dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Logits of each set. Shapes: (..., in_features) -> S times (..., C)."""
        sets = len(self.num_units)
        z = self.project(x)
        parts = z.chunk(sets, dim=-1) if self.untied else [z] * sets
        embeddings = self.embeddings.split(self.num_units)
        with no_autocast(x):
            return [
                l2_normalize(part) @ l2_normalize(own).T / self.temperature
                for part, own in zip(parts, embeddings, strict=True)
            ]
