"""AudioNTT: BYOL-A's encoders of log-mel spectrograms.

Niizumi et al., BYOL for Audio, IJCNN 2021, https://arxiv.org/abs/2103.06695, and TASLP 2023,
https://arxiv.org/abs/2204.07402.
Reference code: nttcslab/byol-a at 3e65c92, byol_a/models.py and v2/byol_a2/models.py, whose names
the parameters have.

Shapes: B clips, M mel bands, T frames, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslzoo.checks import check_at_least, check_interval
from sslzoo.layers import GlobalBatchNorm

CHANNELS = 64


class AudioNTT(nn.Module):
    """Blocks of convolution, batch norm, ReLU and max-pool, then two layers per frame.

    The features are the maximum plus the mean over the frames.

    Args:
        bands: M.
        dim: D; 2048 in the first version, 3072 in the second.
        blocks: convolutions, each of which halves bands and frames; 3 in the first version, 2 in
            the second.
        hidden: width between the two layers; None: D, as in the first version; 2048 in the second.
        skip: whether a frame's convolutional features come before those of the layers, which then
            have D - 64 (M // 2^blocks) channels: the second version.
        dropout: dropout probability between the layers, by torch's generator.

    Attributes:
        num_features: D.

    Raises:
        ValueError: there are too few bands for the blocks, or D is too small for `skip`.
    """

    def __init__(
        self,
        bands: int = 64,
        dim: int = 2048,
        blocks: int = 3,
        hidden: int | None = None,
        skip: bool = False,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_at_least("blocks", blocks, 1)
        check_interval("dropout", dropout, 0, 1, "[)")
        if bands >> blocks < 1:
            raise ValueError(
                f"bands must be at least {1 << blocks} for {blocks} blocks, got {bands}"
            )
        layers: list[nn.Module] = []
        for wide in (1, *[CHANNELS] * (blocks - 1)):
            layers += [nn.Conv2d(wide, CHANNELS, 3, padding=1), GlobalBatchNorm(CHANNELS)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        width = CHANNELS * (bands >> blocks)
        out = dim - width if skip else dim
        if out < 1:
            raise ValueError(f"dim must be above {width}, the convolutional features, got {dim}")
        hidden = hidden or out
        self.fc = nn.Sequential(
            *(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, out), nn.ReLU()),
        )
        self.num_features, self.skip, self.blocks = dim, skip, blocks

    def num_frames(self, lengths: Tensor) -> Tensor:
        """The number of frames of spectrograms of T frames. Shapes: (B,) int64 -> (B,)."""
        return lengths >> self.blocks

    def forward_frames(self, x: Tensor) -> Tensor:
        """Features per frame, of every 2^blocks frames of the input. (B, 1, M, T) -> (B, T', D).

        Raises:
            ValueError: T is less than 2^blocks.
        """
        if x.shape[-1] < 1 << self.blocks:
            raise ValueError(
                f"spectrograms must have at least {1 << self.blocks} frames for {self.blocks} "
                f"blocks, got {tuple(x.shape)}; give longer windows"
            )
        frames = self.features(x).permute(0, 3, 2, 1).flatten(2)  # bands outside, channels inside
        out = self.fc(frames)
        return torch.cat([frames, out], dim=-1) if self.skip else out

    def forward(self, x: Tensor) -> Tensor:
        frames = self.forward_frames(x)
        return frames.amax(1) + frames.mean(1)
