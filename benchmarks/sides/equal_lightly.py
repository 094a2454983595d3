"""Equal time, lightly: its documented parts, put together as its examples do it.

Transforms are those of each method for images of 32 pixels, without blur and, where the
documentation recommends it for CIFAR, with half the color jitter; SwAV and DINO have two crops.
Heads, queues and prototypes have the sizes of sslzoo's recipe, losses their defaults ("lightly") or
the recipe's numbers ("lightly-recipe"). Every view has a forward of its own.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from lightly import loss as losses
from lightly import transforms
from lightly.models import modules, utils
from lightly.models.modules import heads
from lightly.transforms.utils import IMAGENET_NORMALIZE
from lightly.utils.scheduler import CosineWarmupScheduler, cosine_schedule
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from benchmarks.sides.equal_time import Features, Order, main, train
from benchmarks.sides.train_lightly import SmallNet

SIZE, WIDTH = 32, 256
LOSS_NUMBERS = {"temperature": "temperature", "off_diagonal_weight": "lambda_param"}


class Example(pytorch_lightning.LightningModule):
    """What the examples share: net, optimizer and schedule.

    Args:
        order: see `benchmarks.equal_time.order_of`.
        steps: of the run.
    """

    def __init__(self, order: Order, steps: int) -> None:
        super().__init__()
        self.order, self.steps = order, steps
        self.recipe = order["recipe"]["model"]["init_args"]
        self.backbone = self.net()
        self.build()

    def net(self) -> nn.Module:
        net = SmallNet()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):  # as sslzoo's SmallResNet starts
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return net

    def build(self) -> None:
        """Make heads and loss."""
        raise NotImplementedError

    def widths(self, part: str) -> tuple[int, int]:
        """Hidden and output width of a head of the recipe."""
        given = self.recipe[part]["init_args"]
        if "sizes" in given:
            return given["sizes"][1], given["sizes"][-1]
        out = given["out_dim"] if "out_dim" in given else given["dim"]
        return given.get("hidden_dim") or given["in_dim"], out

    def numbers(self) -> dict[str, float]:
        """What the loss gets of the recipe."""
        if self.order["side"] == "lightly":
            return {}
        return {
            ours: self.recipe[name] for name, ours in LOSS_NUMBERS.items() if name in self.recipe
        }

    def configure_optimizers(self) -> Any:
        named = self.recipe["optimizer"]
        kind = getattr(torch.optim, named["class_path"].rpartition(".")[2])
        optimizer = kind(self.parameters(), **named["init_args"])
        schedule = self.recipe["schedule"]["init_args"]
        scheduler = CosineWarmupScheduler(
            optimizer,
            warmup_epochs=round(schedule["warmup_fraction"] * self.steps),
            max_epochs=self.steps,
            end_value=schedule.get("end_factor", 0.0),
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Teacher(Example):
    """An example with a momentum encoder of backbone and projection head."""

    def add_teacher(self, head: nn.Module | None = None) -> None:
        """Copy the backbone, and the head unless the example makes the teacher's anew."""
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = head or copy.deepcopy(self.projection_head)
        utils.deactivate_requires_grad(self.backbone_momentum)
        utils.deactivate_requires_grad(self.projection_head_momentum)

    def move_teacher(self) -> None:
        given = self.recipe["momentum"]["init_args"]
        start, end = (given["value"],) * 2 if "value" in given else (given["start"], given["end"])
        momentum = cosine_schedule(self.global_step, self.steps, start, end)
        utils.update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        utils.update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)

    def project(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x))

    def project_momentum(self, x: Tensor) -> Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


class SimCLR(Example):
    """Two views, NT-Xent."""

    def build(self) -> None:
        self.projection_head = modules.SimCLRProjectionHead(WIDTH, *self.widths("projector"))
        self.criterion = self.loss()

    def loss(self) -> nn.Module:
        return losses.NTXentLoss(**self.numbers())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x0, x1), _ = batch
        z0 = self.projection_head(self.backbone(x0))
        z1 = self.projection_head(self.backbone(x1))
        return self.criterion(z0, z1)


class DCL(SimCLR):
    """SimCLR with the decoupled loss."""

    def loss(self) -> nn.Module:
        return losses.DCLLoss(**self.numbers())


class BarlowTwins(SimCLR):
    """Two views, cross-correlation."""

    def build(self) -> None:
        self.projection_head = modules.BarlowTwinsProjectionHead(WIDTH, *self.widths("projector"))
        self.criterion = losses.BarlowTwinsLoss(**self.numbers())


class VICReg(SimCLR):
    """Two views, variance, invariance and covariance."""

    def build(self) -> None:
        self.projection_head = heads.VICRegProjectionHead(WIDTH, *self.widths("projector"))
        self.criterion = losses.VICRegLoss(**self.numbers())


class MoCo(Teacher):
    """Queries against keys of a momentum encoder and a memory bank; asymmetric."""

    def build(self) -> None:
        hidden, out = self.widths("projector")
        self.projection_head = modules.MoCoProjectionHead(WIDTH, hidden, out)
        bank = (self.recipe["queue_size"], out)
        self.criterion = losses.NTXentLoss(memory_bank_size=bank, **self.numbers())
        self.add_teacher()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x_query, x_key), _ = batch
        self.move_teacher()
        return self.criterion(self.project(x_query), self.project_momentum(x_key))


class BYOL(Teacher):
    """Predictions of a momentum encoder's projections; symmetric."""

    def build(self) -> None:
        hidden, out = self.widths("projector")
        self.projection_head = modules.BYOLProjectionHead(WIDTH, hidden, out)
        self.prediction_head = modules.BYOLPredictionHead(out, *self.widths("predictor"))
        self.criterion = losses.NegativeCosineSimilarity()
        self.add_teacher()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x0, x1), _ = batch
        self.move_teacher()
        p0, p1 = (self.prediction_head(self.project(x)) for x in (x0, x1))
        z0, z1 = (self.project_momentum(x) for x in (x0, x1))
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class TiCo(Teacher):
    """Invariance to a momentum encoder, and covariance contrast."""

    def build(self) -> None:
        self.projection_head = heads.TiCoProjectionHead(WIDTH, *self.widths("projector"))
        self.criterion = losses.TiCoLoss()
        self.add_teacher()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x0, x1), _ = batch
        self.move_teacher()
        return self.criterion(self.project(x0), self.project_momentum(x1))


class SimSiam(Example):
    """Predictions of the other view's projection, without gradient; symmetric."""

    def build(self) -> None:
        hidden, out = self.widths("projector")
        self.projection_head = modules.SimSiamProjectionHead(WIDTH, hidden, out)
        narrow, _ = self.widths("predictor")
        self.prediction_head = modules.SimSiamPredictionHead(out, narrow, out)
        self.criterion = losses.NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(x)) for x in batch[0])
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))


class NNCLR(Example):
    """Nearest neighbors in a memory bank as positives."""

    def build(self) -> None:
        hidden, out = self.widths("projector")
        self.projection_head = modules.NNCLRProjectionHead(WIDTH, hidden, out)
        self.prediction_head = modules.NNCLRPredictionHead(out, *self.widths("predictor"))
        self.memory_bank = modules.NNMemoryBankModule(size=(self.recipe["queue_size"], out))
        self.criterion = losses.NTXentLoss(**self.numbers())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(x)) for x in batch[0])
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        z0 = self.memory_bank(z0.detach(), update=False)
        z1 = self.memory_bank(z1.detach(), update=True)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))


class SwAV(Example):
    """Swapped predictions of two crops' codes."""

    def build(self) -> None:
        hidden, out = self.widths("projector")
        self.projection_head = modules.SwaVProjectionHead(WIDTH, hidden, out)
        self.prototypes = modules.SwaVPrototypes(out, n_prototypes=self.recipe["num_prototypes"])
        self.criterion = losses.SwaVLoss(**self.numbers())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.prototypes.normalize()
        projected = [self.projection_head(self.backbone(x)) for x in batch[0]]
        logits = [self.prototypes(nn.functional.normalize(z, dim=1, p=2)) for z in projected]
        return self.criterion(logits[:2], logits[2:])


class DINO(Teacher):
    """Self-distillation of two crops."""

    def build(self) -> None:
        given = self.recipe["projector"]["init_args"]
        sizes = (given[name] for name in ("hidden_dim", "bottleneck_dim", "out_dim"))
        head = partial(modules.DINOProjectionHead, WIDTH, *sizes, batch_norm=given["norm"])
        self.projection_head = head(freeze_last_layer=1)
        self.recipe_epochs = self.order["recipe"]["trainer"]["max_epochs"]
        self.criterion = losses.DINOLoss(output_dim=given["out_dim"])
        self.add_teacher(head())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = batch[0]
        self.move_teacher()
        teacher = [self.project_momentum(x) for x in views[:2]]
        student = [self.project(x) for x in views]
        return self.criterion(teacher, student, epoch=self.epoch)

    @property
    def epoch(self) -> int:
        """The epoch of the recipe, of whose length the run is a part."""
        return self.recipe_epochs * self.global_step // self.steps

    def on_after_backward(self) -> None:
        self.projection_head.cancel_last_layer_gradients(current_epoch=self.epoch)


class MAE(Example):
    """Reconstruction of masked patches by a light decoder."""

    def net(self) -> nn.Module:
        given = self.recipe["backbone"]["init_args"]
        vit = VisionTransformer(
            img_size=SIZE,
            patch_size=given["patch_size"],
            embed_dim=given["width"],
            depth=given["depth"],
            num_heads=4,  # small_vit's default
            num_classes=0,
        )
        return modules.MaskedVisionTransformerTIMM(vit=vit)

    def build(self) -> None:
        given = self.recipe["decoder"]["init_args"]
        self.patch_size = given["patch_size"]
        self.decoder_embed = nn.Linear(given["token_dim"], given["width"])
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(
            num_patches=given["grid"] ** 2,
            embed_dim=given["width"],
            depth=given["depth"],
            num_heads=given["num_heads"],
        )
        self.decoder_pred = nn.Linear(given["width"], 3 * self.patch_size**2)
        self.criterion = nn.MSELoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (images,), _ = batch
        shape = (len(images), self.backbone.sequence_length)
        keep, mask = utils.random_token_mask(shape, self.recipe["mask_ratio"], device=self.device)
        tokens = utils.repeat_token(self.decoder.mask_token, shape)
        encoded = self.decoder_embed(self.backbone.encode(images=images, idx_keep=keep))
        decoded = self.decoder(utils.set_at_index(tokens, keep, encoded))
        predicted = self.decoder_pred(utils.get_at_index(decoded, mask))
        patches = utils.patchify(images, self.patch_size)
        return self.criterion(predicted, utils.get_at_index(patches, mask - 1))  # no class token


def _simclr() -> Any:
    return transforms.SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0)


def _byol() -> Any:
    return transforms.BYOLTransform(
        transforms.BYOLView1Transform(input_size=SIZE, gaussian_blur=0.0),
        transforms.BYOLView2Transform(input_size=SIZE, gaussian_blur=0.0),
    )


def _swav() -> Any:
    return transforms.SwaVTransform(
        crop_sizes=(SIZE,),
        crop_counts=(2,),
        crop_min_scales=(0.14,),
        crop_max_scales=(1.0,),
        cj_strength=0.5,
        gaussian_blur=0.0,
    )


def _dino() -> Any:
    return transforms.DINOTransform(
        global_crop_size=SIZE, n_local_views=0, cj_strength=0.5, gaussian_blur=(0.0, 0.0, 0.0)
    )


METHODS = {
    "simclr": (SimCLR, _simclr),
    "moco": (MoCo, lambda: transforms.MoCoV2Transform(input_size=SIZE, gaussian_blur=0.0)),
    "byol": (BYOL, _byol),
    "simsiam": (SimSiam, lambda: transforms.SimSiamTransform(input_size=SIZE, gaussian_blur=0.0)),
    "barlow_twins": (BarlowTwins, _byol),
    "vicreg": (VICReg, lambda: transforms.VICRegTransform(input_size=SIZE, gaussian_blur=0.0)),
    "swav": (SwAV, _swav),
    "nnclr": (NNCLR, _simclr),
    "dino": (DINO, _dino),
    "mae": (MAE, lambda: transforms.MAETransform(input_size=SIZE)),
    "tico": (TiCo, _byol),  # TiCoTransform is an alias
    "dcl": (DCL, _simclr),
}


def data_of(order: Order) -> DataLoader:
    _, transform = METHODS[order["method"]]
    return DataLoader(
        ImageFolder(str(Path(order["data"]) / "train"), transform()),
        batch_size=order["recipe"]["data"]["init_args"]["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=order["workers"],
        persistent_workers=order["workers"] > 0,
    )


@torch.no_grad()
def features(module: Example, loader: DataLoader) -> Features:
    """Of the backbone in eval mode, on images with ImageNet's normalization."""
    view = T.Compose([T.Resize(SIZE), T.CenterCrop(SIZE), T.ToTensor()])
    view.transforms.append(T.Normalize(**IMAGENET_NORMALIZE))
    parts: list[Tensor] = []
    module.eval()
    for name in ("train", module.order["val_dir"]):
        images = DataLoader(ImageFolder(str(Path(module.order["data"]) / name), view), 500)
        found = [(module.backbone(x), label) for x, label in images]
        parts += [torch.cat(column) for column in zip(*found, strict=True)]
    module.train()
    return tuple(parts)  # type: ignore[return-value]


def side(order: Order) -> dict[str, Any]:
    method, _ = METHODS[order["method"]]
    return train(order, pytorch_lightning, data_of, method, features)


if __name__ == "__main__":
    main(side)
