"""Sentences: train SimCSE and CLEAR on lines of text.

This tutorial trains two sentence encoders without labels on paragraphs of Python's own manual,
which every Python brings along, and asks whether paragraphs of one chapter become neighbors. It
needs the extra `text` (`pip install 'sslzoo[text]'`) and no network.
"""

# %% [markdown]
# ## The text
#
# `TextLines` reads a file with one sentence per line. Here a line is a paragraph of one of six
# chapters. For the evaluation, every fifth line has a label, its chapter: `label<TAB>sentence`.

# %%
import logging
import re
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from sslzoo.backbones import SmallTransformer
from sslzoo.callbacks import OnlineKNN
from sslzoo.data import TextLines, WordPiece
from sslzoo.heads import MLP, MLMHead, TanhHead
from sslzoo.methods import CLEAR, SimCSE
from sslzoo.optim import WarmupLinear
from sslzoo.transforms import Reordering, WordDeletion, clear_views, plain_text

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
CHAPTERS = (
    "specialnames",
    "compound",
    "formatstrings",
    "debugger",
    "string-methods",
    "typesmapping",
)

folder = Path(tempfile.mkdtemp())
lines = []
for chapter in CHAPTERS:
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", topics[chapter]))
    lines += [(chapter, text) for text in paragraphs if len(text.split()) > 5]
labeled = [f"{chapter}\t{text}" for chapter, text in lines]
(folder / "lines.txt").write_text("\n".join(text for _, text in lines))
(folder / "test.tsv").write_text("\n".join(labeled[::5]))
(folder / "train.tsv").write_text("\n".join(line for i, line in enumerate(labeled) if i % 5))
print(len(lines), "paragraphs, for example:", lines[0][1][:70])

# %% [markdown]
# ## Two methods
#
# SimCSE encodes the same tokens twice; dropout makes the difference. CLEAR encodes two changed
# copies, and also predicts masked words. The tokenizer, a `WordPiece`, is trained on the same
# lines. The networks start from random weights, whereas SimCSE's paper starts from BERT.

# %%
IDS, WIDTH, LENGTH, BATCH, EPOCHS = 1500, 64, 32, 64, 10


def backbone() -> SmallTransformer:
    return SmallTransformer(IDS, width=WIDTH, depth=1, heads=4, max_length=LENGTH, pooling="mean")


def adamw(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-3)


def simcse() -> SimCSE:
    schedule = WarmupLinear(warmup_fraction=0.05)
    return SimCSE(backbone(), TanhHead(WIDTH), optimizer=adamw, schedule=schedule)


def clear() -> CLEAR:
    head, mlm = MLP([WIDTH, WIDTH, WIDTH], norm=False), MLMHead(WIDTH, IDS)
    schedule = WarmupLinear(warmup_fraction=0.05)
    return CLEAR(backbone(), head, mlm, optimizer=adamw, schedule=schedule)


def run(method: LightningModule, transform: object) -> tuple[float, float]:
    """KNN accuracy of the chapters before and after training."""
    data = TextLines(
        str(folder / "lines.txt"),
        transform,
        WordPiece(num_ids=IDS),
        batch_size=BATCH,
        max_length=LENGTH,
        labeled_train=str(folder / "train.tsv"),
        labeled_test=str(folder / "test.tsv"),
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    knn = OnlineKNN(k=10, every_n_epochs=EPOCHS)
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[knn], **quiet)
    trainer.validate(method, datamodule=data, verbose=False)
    before = float(trainer.callback_metrics["val/knn_top1_k10_t0.07"])
    trainer.fit(method, datamodule=data)
    return before, float(trainer.callback_metrics["val/knn_top1_k10_t0.07"])


views = {"SimCSE": plain_text(), "CLEAR": clear_views([WordDeletion(0.3)], [Reordering()])}
for name, make in {"SimCSE": simcse, "CLEAR": clear}.items():
    seed_everything(0, verbose=False)
    before, after = run(make(), views[name])
    print(f"{name}: kNN of the chapters {before:.3f} untrained, {after:.3f} after {EPOCHS} epochs")

# %% [markdown]
# ## What to make of it
#
# An untrained encoder that averages its tokens is a bag of random word vectors, which is a strong
# baseline for topics: always look at it. The same text with more epochs, a longer run on your own
# lines, and scored pairs instead of chapters are two commands away:
#
#     sslzoo fit --config simcse/stsb_small_40ep --data sslzoo.data.TextLines --data.root FILE \
#         --trainer.callbacks sslzoo.callbacks.OnlineSpectrum
#     sslzoo fit --config clear/stsb_small_40ep --data.root FOLDER
#
# Settings and results of the two methods: [SimCSE](../methods/simcse.md),
# [CLEAR](../methods/clear.md).
