"""Few labels: a linear probe, fine-tuning and distillation with 1 % and 10 % of the labels.

You have many images and few labels. This tutorial pre-trains SimCLR on 4,000 digits without labels,
and then uses 40 (1 %) or 400 (10 %) labels in three ways. It needs the extra `demo`
(`pip install 'sslzoo[demo]'`), two CPU cores, a minute, and no network.
"""

# %% [markdown]
# ## Pre-train without labels
#
# The network and the views are small, so that the whole tutorial runs in a minute.

# %%
import copy
import logging

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from sslzoo.backbones import SmallResNet
from sslzoo.callbacks import OnlineAccuracy
from sslzoo.data import MNIST5k
from sslzoo.eval import Classifier, Distill, FineTune
from sslzoo.eval.features import extract, take_fraction
from sslzoo.eval.linear import linear_probe
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.optim import WarmupCosine
from sslzoo.transforms import RandomResizedCrop, View, digit_views
from sslzoo.transforms.image.views import Views

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
SIDE, WIDTHS = 14, (8, 16, 32, 64)


def adamw(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)


def backbone() -> SmallResNet:
    return SmallResNet(WIDTHS, in_chans=1)


def fit(name: str, method: LightningModule, data: MNIST5k, epochs: int, *callbacks: object) -> None:
    """Train, and print the accuracy if there is one."""
    seed_everything(0, verbose=False)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks], **quiet)
    trainer.fit(method, datamodule=data)
    if "val/top1" in trainer.callback_metrics:
        print(f"{name}: top-1 {float(trainer.callback_metrics['val/top1']):.3f}")


two_views = MNIST5k(digit_views(SIDE), batch_size=200, channels=1)
simclr = SimCLR(
    backbone(), simclr_projector(64), 0.2, optimizer=adamw, schedule=WarmupCosine(warmup_epochs=1)
)
fit("pre-trained", simclr, two_views, 8)

# %% [markdown]
# ## A linear probe
#
# The encoder stays as it is; a logistic regression reads its features. `take_fraction` draws the
# same share of each class, and seed 0 is the subset on which `train_fraction` trains below.

# %%
loaders = two_views.eval_dataloaders()


def probe(encoder: torch.nn.Module, fraction: float) -> float:
    train, test = (extract(encoder, part, loaders) for part in (loaders.bank, loaders.query))
    if fraction < 1:
        train = take_fraction(train, fraction, seed=0)
    return linear_probe(train.features, train.label, test.features, test.label, 10)


seed_everything(0, verbose=False)
untrained = backbone()
for fraction in (0.01, 0.1, 1.0):
    scores = probe(untrained, fraction), probe(simclr.encoder(), fraction)
    print(f"linear probe, {fraction:.0%} of the labels: untrained {scores[0]:.3f}, "
          f"pre-trained {scores[1]:.3f}")  # fmt: skip

# %% [markdown]
# ## Fine-tuning
#
# `FineTune` trains the whole network by cross-entropy. Its weights "random" leave those of the
# given network as they are, new ones or a copy of the pre-trained encoder; from the command they
# are a checkpoint, as shown below. `train_fraction` of the data module keeps that share of the
# labels, the same in every run.

# %%
crops = Views([View(RandomResizedCrop(SIDE, (0.6, 1.0), flip=0.0), [])])
tuned = {}
for fraction, epochs in ((0.01, 60), (0.1, 20)):
    few = MNIST5k(crops, batch_size=40, channels=1, train_fraction=fraction)
    for weights, start in (("from scratch", untrained), ("pre-trained", simclr.encoder())):
        tuned[fraction] = Classifier(copy.deepcopy(start), 10)
        method = FineTune(tuned[fraction], "random", optimizer=adamw)
        accuracy = OnlineAccuracy(every_n_epochs=epochs)
        fit(f"fine-tuned, {fraction:.0%}, {weights}", method, few, epochs, accuracy)

# %% [markdown]
# ## Distillation
#
# The fine-tuned network labels all 4,000 images with probabilities, and a student learns these:
# SimCLR v2's third step. No label is read. The student starts from the pre-trained weights. Four
# epochs bring it to its teacher's accuracy, not above it; the paper's students train for hundreds.

# %%
everything = MNIST5k(crops, batch_size=200, channels=1)
for fraction, teacher in tuned.items():
    student = Classifier(copy.deepcopy(simclr.encoder()), 10)
    method = Distill(student, teacher, "random", optimizer=adamw)
    accuracy = OnlineAccuracy(every_n_epochs=4)
    fit(f"distilled, from the {fraction:.0%} teacher", method, everything, 4, accuracy)

# %% [markdown]
# ## With the command
#
#     sslzoo fit --config simclr/folder_small_v2_10ep --data.root FOLDER
#     sslzoo fit --config simclr/folder_small_v2_fine_tune_1pct_60ep --data.root FOLDER \
#         --model.weights PRETRAINED/checkpoints/last.ckpt
#     sslzoo fit --config simclr/folder_small_v2_distill_10ep --data.root FOLDER \
#         --model.teacher_weights TUNED/checkpoints/last.ckpt
#     sslzoo eval RUN --suite.train_fraction 0.01 --seeds [0,1,2]
#
# One subset of 40 labels is a small sample: name the seeds, or give mean and standard deviation of
# several. The results of longer runs: [few labels](../../benchmarks/README.md#few-labels).
