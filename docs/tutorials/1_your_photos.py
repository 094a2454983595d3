"""Your photos as a searchable collection.

This tutorial trains an encoder on a folder of images without labels, embeds the folder, searches it
by similarity, and writes a report. Everything but the first cell works the same on your folder. It
needs `pip install 'sslzoo[report]' scikit-image` and takes a minute on two CPU cores; on your own
photos, train longer (`--epochs`).
"""

import argparse
import shlex
import subprocess
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()


def sh(command):
    """Run a command of the shell."""
    subprocess.run(shlex.split(command), check=True)


# %% [markdown]
# ## A folder of images
#
# Here the folder has squares of 64 pixels from twelve photographs that come with scikit-image and
# scikit-learn, 40 from each. Their names are only used at the end, to count right answers. With
# your own photos, skip this cell: any folder of images will do, with folders inside it or not.

# %%
import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

PHOTOS = {
    "astronaut": data.astronaut(),
    "brick": data.brick(),
    "cat": data.chelsea(),
    "coffee": data.coffee(),
    "coins": data.coins(),
    "flower": load_sample_image("flower.jpg"),
    "galaxies": data.hubble_deep_field(),
    "grass": data.grass(),
    "gravel": data.gravel(),
    "retina": data.retina(),
    "rocket": data.rocket(),
    "temple": load_sample_image("china.jpg"),
}
rng = np.random.default_rng(0)
folder = Path("photos")
folder.mkdir(exist_ok=True)
for name, photo in PHOTOS.items():
    image = Image.fromarray(photo).convert("RGB")
    image.thumbnail((320, 320))
    for i in range(40):
        x, y = rng.integers(0, image.width - 64), rng.integers(0, image.height - 64)
        image.crop((x, y, x + 64, y + 64)).save(folder / f"{name}_{i:02}.png")
print(len(list(folder.iterdir())), "images")

# %% [markdown]
# ## Train
#
# With few images it pays to go on from a trained encoder: `--model.backbone sslzoo.load` takes one
# of the zoo as the backbone of the recipe `simclr/folder_small_10ep` (without the three lines of
# `--model`, the network starts from random weights and needs many more images and epochs). The
# learning rate is low, so that the new data does not overwrite what the encoder knows. A folder
# without labels has no validation set; instead of kNN accuracy, the rank and the spread of the
# features are logged, which show a collapse.

# %%
START = "simclr-small_resnet-cifar10jpeg"
sh(f"""
    sslzoo fit --config simclr/folder_small_10ep --data.root photos --data.batch_size 60
    --data.labels false --data.val_dir null --trainer.callbacks sslzoo.callbacks.OnlineSpectrum
    --model.backbone sslzoo.load --model.backbone.name {START} --model.backbone.train true
    --model.optimizer.lr 0.0003 --trainer.max_epochs {args.epochs} --trainer.precision 32-true
    --trainer.accelerator cpu --trainer.enable_progress_bar false --trainer.log_every_n_steps 2
""")
run = sorted(Path("runs/simclr/folder_small_10ep").iterdir())[-1]
print(run)
print((run / "metrics.csv").read_text())

# %% [markdown]
# ## Embed the folder
#
# `encoder.preprocess` takes images of any size as files hold them. One row of features per image,
# scaled to length one, is the whole index: similarity is a product.

# %%
import torch

import sslzoo

files = sorted(folder.iterdir())
images = [Image.open(file) for file in files]


def embed(encoder, images):
    """Features of length one, (N, D)."""
    with torch.no_grad():
        parts = [
            encoder(encoder.preprocess(images[i : i + 100])) for i in range(0, len(images), 100)
        ]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


pixels = torch.stack([torch.tensor(np.asarray(image)).flatten() / 255 for image in images])
adapted = sslzoo.load(run / "checkpoints/last.ckpt")
index = {
    "before training": embed(sslzoo.load(START), images),
    "after training": embed(adapted, images),
    "pixels": torch.nn.functional.normalize(pixels - pixels.mean(0), dim=1),
}

# %% [markdown]
# ## Which index is best?
#
# Going on from released weights can also make an encoder worse, above all in a run as short as this
# one, so measure before you keep it. Here the names of the files say which photograph a square is
# from: a neighbor is right if it is from the same one. With your own photos, look at the neighbors
# of a dozen images instead.

# %%
names = [file.stem.split("_")[0] for file in files]
same = torch.tensor([[a == b for b in names] for a in names])


def neighbors(features, count=5):
    """The most similar other images of each image, (N, count)."""
    similarity = features @ features.T
    return similarity.fill_diagonal_(-1).topk(count).indices


right = {name: same.gather(1, neighbors(rows)).float().mean() for name, rows in index.items()}
for name, share in right.items():
    print(f"{name:16} {share:.3f} of the five nearest are from the same photograph")

# %% [markdown]
# ## Search
#
# A query is any image: it is embedded in the same way and compared with the index.

# %%
import matplotlib.pyplot as plt

best = max(("before training", "after training"), key=lambda name: right[name])
queries = [names.index(name) + 7 for name in ("cat", "coffee", "gravel", "retina", "temple")]
found = neighbors(index[best], 8)
figure, axes = plt.subplots(len(queries), 9, figsize=(8, 4.6), layout="constrained")
for row, query in zip(axes, queries, strict=True):
    for axis, number in zip(row, [query, *found[query].tolist()], strict=True):
        axis.imshow(images[number])
        axis.axis("off")
axes[0, 0].set_title("query", fontsize=9)
axes[0, 1].set_title("most similar", fontsize=9, loc="left")
figure.savefig("neighbors.png", dpi=90)

# %% [markdown]
# To keep the index, save the features with the names of the files; a query later needs the same
# encoder.

# %%
np.savez("index.npz", features=index[best].numpy(), files=[file.name for file in files])
print(np.load("index.npz")["features"].shape)

# %% [markdown]
# ## Report
#
# One HTML file with the curves, a map of the features, the views as the method saw them, and the
# exact command and config ([the report](../report.md)).

# %%
sh(f"sslzoo report {run} --output report.html --samples 200 --images 4 --layout.maps [pca]")

# %% [markdown]
# ## Next
#
# - Labels, if you have some: folders of classes, `OnlineKNN`, and `sslzoo eval`
#   ([evaluation](../evaluation.md)).
# - Photographs of 224 pixels need a larger network and a GPU; the recipes of ImageNet take
#   `--data sslzoo.data.ImageFolder --data.root FOLDER`.
# - To share the encoder: `sslzoo zoo add RUN` ([the zoo](../zoo.md)).
