"""Recurrent: a GRU, LSTM or plain RNN as the context network of a sequence.

CPC's context network for audio: a GRU in the paper (https://arxiv.org/abs/1807.03748), an LSTM in
facebookresearch/CPC_audio at b98a1bd, whose --arMode also has both others. The state is zero at the
start of each sequence.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sslzoo.checks import check_at_least, check_choice


class NoContext(nn.Identity):
    """The frames themselves as contexts, CPC_audio's --arMode no_ar. (B, T, D) -> (B, T, D).

    Args:
        width: D.

    Raises:
        ValueError: for a width below 1.
    """

    def __init__(self, width: int):
        super().__init__()
        check_at_least("width", width, 1)
        self.in_features = self.out_features = width


Cell = Literal["gru", "lstm", "rnn"]
_MODULES = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


class Recurrent(nn.Module):
    """A GRU, LSTM or plain RNN. Shapes: (B, T, D) -> (B, T, D').

    Parameters have the names, shapes and initialization of torch's modules; unlike `nn.GRU`, the
    functional call compiles to one graph.

    Args:
        in_features: D.
        out_features: D'; 256 in the paper and in CPC_audio.
        cell: "gru", "lstm", or "rnn", a plain one with tanh.
        layers: number of layers; 1 in the paper.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 256,
        cell: Cell = "gru",
        layers: int = 1,
    ):
        super().__init__()
        check_choice("cell", cell, get_args(Cell))
        if min(in_features, out_features, layers) < 1:
            raise ValueError(
                "in_features, out_features and layers must be at least 1, got "
                f"{in_features}, {out_features} and {layers}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.cell, self.layers = cell, layers
        made = _MODULES[cell](in_features, out_features, layers)
        for name, parameter in made.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        weights = [
            getattr(self, f"{kind}_l{layer}")
            for layer in range(self.layers)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        x = x.to(weights[0].dtype)  # autocast on a CPU leaves recurrences alone
        start = x.new_zeros(self.layers, len(x), self.out_features)
        options = (True, self.layers, 0.0, self.training, False, True)  # with bias, batch first
        if self.cell == "lstm":
            return torch.lstm(x, (start, start), weights, *options)[0]
        recur = torch.gru if self.cell == "gru" else torch.rnn_tanh
        return recur(x, start, weights, *options)[0]
