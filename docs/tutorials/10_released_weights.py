"""Go on from released weights on your own images.

You have a few hundred images without labels, of four channels and 16 bits, and an encoder that was
trained on other images, of three channels. This tutorial starts a method from it, evaluates the
start weights as row 0, and says whether going on has helped. It needs `pip install scikit-image
scikit-learn` and a minute of a CPU core. The weights come with sslzoo, so that the page can be
built without network; at the end are the lines for DINOv2, DINOv3 and timm's weights.
"""

import argparse
import warnings

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()
warnings.filterwarnings("ignore")

# %% [markdown]
# ## Images of four channels and 16 bits
#
# Skip this cell with your own files (TIFF, `.npy`, HDF5, Zarr, DICOM, PNG). Here they are squares
# of photographs, as reflectances from 0 to 10,000. The fourth channel is made up from the others,
# in the place of near infrared. The folders are classes, which only the evaluation reads.

# %%
from pathlib import Path

import numpy as np
from skimage import data
from sklearn.datasets import load_sample_image

PHOTOS = {
    "astronaut": data.astronaut(),
    "cat": data.chelsea(),
    "coffee": data.coffee(),
    "flower": load_sample_image("flower.jpg"),
    "galaxies": data.hubble_deep_field(),
    "retina": data.retina()[::3, ::3],
    "rocket": data.rocket(),
    "temple": load_sample_image("china.jpg"),
}
rng = np.random.default_rng(0)
for name, photo in PHOTOS.items():
    folder = Path("bands") / name
    folder.mkdir(parents=True, exist_ok=True)
    red, green, blue = np.moveaxis(photo[::2, ::2] * (10_000 / 255), 2, 0)
    bands = np.stack([red, green, blue, np.maximum(0, 1.2 * green - 0.5 * red)]).astype(np.uint16)
    for i in range(60):
        y, x = (rng.integers(0, side - 40) for side in bands.shape[1:])
        np.save(folder / f"{i:02}.npy", bands[:, y : y + 40, x : x + 40])

# %% [markdown]
# ## Check them
#
# On the command line: `sslzoo data check bands --value_range 0 10000`. The mean and deviation that
# it prints are for a run from random weights. Released weights know the normalization that they
# were trained with, and the views must have it; those of this tutorial know values from 0 to 1.

# %%
from sslzoo.data.check import check_data

report = check_data("bands", (0, 10_000))
print(report)

# %% [markdown]
# ## Start
#
# `start_from` fills a backbone of four input channels from weights of three. `channels` says how:
# in turn ("repeat": the first three keep their meaning), or their sum or mean. Which is best for
# your channels can be measured before any training.

# %%
import torch
from lightning import Trainer

from sslzoo.backbones import SmallResNet, start_from
from sslzoo.callbacks import CompareWithStart, FreezeUntil, OnlineKNN, OnlineSpectrum
from sslzoo.data import ImageFolder
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.optim import WarmupCosine
from sslzoo.transforms import channel_views

START = "simclr-small_resnet-cifar10jpeg"
KNN = "val/knn_top1_k5_t0.07"


def images():
    """The folder, a quarter of which is held out."""
    views = channel_views([32], blur=0.0)  # no normalization
    options = {"channels": 4, "value_range": (0, 10_000), "val_fraction": 0.25, "seed": 0}
    return ImageFolder("bands", views, batch_size=60, num_workers=0, **options)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.01)


def simclr(channels):
    """SimCLR from the start weights."""
    backbone = start_from(SmallResNet(in_chans=4), START, channels=channels)
    schedule = WarmupCosine(warmup_fraction=0.2)
    return SimCLR(backbone, simclr_projector(256, 128), 0.2, optimizer=adamw, schedule=schedule)


def trainer(*callbacks):
    return Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[OnlineKNN(k=5), OnlineSpectrum(), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


for channels in ("repeat", "sum", "mean"):
    here = trainer()
    here.validate(simclr(channels), images(), verbose=False)
    print(f"{channels:7} kNN of the start weights {float(here.callback_metrics[KNN]):.3f}")

# %% [markdown]
# ## Go on
#
# `CompareWithStart` evaluates the start weights before the first step. `FreezeUntil` keeps the
# encoder for the first tenth of the run, while the new projector warms up; the rate is a tenth of
# that of a run from random weights.

# %%
from lightning import seed_everything

seed_everything(0, verbose=False)
compare = CompareWithStart()
method = simclr("repeat")
trainer(compare, FreezeUntil("backbone", fraction=0.1)).fit(method, images())
print("\n".join(compare.summary()))

# %% [markdown]
# ## Which encoder to keep
#
# The one of the better kNN, if you have a few labels; with 120 held-out images, a difference of a
# few of them is chance. Without labels, compare the neighbors of some images of both encoders: the
# effective rank shows a collapse, but not which of two healthy encoders is better.

# %%
queries = 15 * len(PHOTOS)
start, best = compare.start[KNN], compare.best[KNN][0]
print(f"kNN of {queries} held-out images: start {start:.3f}, best epoch {best:.3f}")
print("keep", "the run" if best > start else "the start weights")

# %% [markdown]
# ## Released weights
#
# With a network, or a file that you have, only the backbone is another one:
#
#     from sslzoo.backbones import timm_backbone, timm_vit
#
#     timm_vit("vit_small_patch14_reg4_dinov2", pretrained=True, img_size=224, in_chans=4)
#     timm_vit("vit_small_patch16_dinov3", pretrained=True, in_chans=4)
#     timm_vit("vit_small_patch16_224", weights="checkpoint.pth", in_chans=4)
#     timm_backbone("convnext_tiny", pretrained=True, in_chans=4)
#
# and on the command line
#
#     sslzoo fit --config dino/continue_vit_small_10ep --data.root FOLDER
#
# [Which weights](../released_weights.md), [how to go on](../continue.md) with less risk (layers,
# LoRA, distance to the start), and [your files](../own_data.md).
