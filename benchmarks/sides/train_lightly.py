"""Training, lightly: its SimCLR example with the same nets, and single steps of a ResNet.

Put together as lightly's documentation does it: SimCLRTransform in a DataLoader's workers, one
forward a view, SimCLRProjectionHead, NTXentLoss, pytorch_lightning's Trainer in its defaults.
"""

from __future__ import annotations

import tempfile
from typing import Any, cast

import pytorch_lightning
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn

from benchmarks.rounds import Rounds
from benchmarks.sides.same import fill, images, pace, step_views


class Block(nn.Module):
    """The block of sslzoo's SmallResNet, of torch's own layers."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, narrow, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.shortcut = nn.Conv2d(wide, narrow, 1, 2, bias=False)
        self.bn3 = nn.BatchNorm2d(narrow)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.bn3(self.shortcut(x)))


class SmallNet(nn.Module):
    """sslzoo's SmallResNet with its default widths, of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairs))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.relu(self.bn(self.stem(x)))).mean((2, 3))


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Decoded images in memory, handed out as PIL as torchvision's CIFAR10 does."""

    def __init__(self, count: int) -> None:
        self.pixels = images(count, 32).permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.pixels[i])), i


class SimCLR(pytorch_lightning.LightningModule):
    """lightly's example, with sslzoo's small recipe in its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SmallNet()
        self.projection_head = SimCLRProjectionHead(256, 256, 128)
        self.criterion = NTXentLoss(temperature=0.2)
        fill(self.backbone, self.projection_head)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x0, x1), _ = batch
        z0 = self.projection_head(self.backbone(x0))
        z1 = self.projection_head(self.backbone(x1))
        return self.criterion(z0, z1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.003, weight_decay=0.01)


def fit(
    rounds: Rounds,
    count: int,
    batch: int,
    steps: int,
    workers: int,
    device: str = "cpu",
    precision: str = "32-true",
) -> None:
    pytorch_lightning.seed_everything(0)
    loader = torch.utils.data.DataLoader(
        Pictures(count),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    model = SimCLR()
    size = sum(p.numel() for p in model.backbone.parameters())
    pacing = pace(pytorch_lightning.Callback, rounds, steps, batch, parameters=size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pytorch_lightning.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=10,
            precision=cast(Any, precision),
            callbacks=[pacing],
            default_root_dir=folder,
            enable_checkpointing=False,
        )
        trainer.fit(model, loader)


def _resnet(net: str, size: int) -> Any:
    """torchvision's, with CIFAR's stem for small images."""
    resnet = getattr(torchvision.models, net)()
    if size <= 64:
        resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    return resnet


def resnet_step(
    rounds: Rounds, net: str, size: int, batch: int, bf16: bool, device: str = "cpu"
) -> None:
    """Forward, backward and SGD step of SimCLR on given views; one forward a view.

    The loss that is compared is that of one forward of both views, as sslzoo normalizes them.
    """
    resnet = _resnet(net, size)
    width = resnet.fc.in_features
    resnet.fc = nn.Identity()
    head = SimCLRProjectionHead(width, width, 128)
    count = fill(resnet)
    fill(head)
    model = nn.Sequential(resnet, head).to(device)
    criterion = NTXentLoss(temperature=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x0, x1 = step_views(batch, size, device)

    def together() -> float:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            return criterion(*model(torch.cat([x0, x1])).chunk(2)).item()

    def work() -> dict[str, Any]:
        first = {"loss": together(), "parameters": count} if rounds.number == 0 else {}
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = criterion(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return first

    rounds.repeat(work, batch)
