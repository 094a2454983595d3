"""Features, patch tokens and attention of a vision transformer.

This tutorial takes a small ViT from the zoo and looks inside it: one feature vector per image, one
token per patch, a picture of the tokens' principal components, the attention of the class token,
and a segmentation head on frozen tokens. It needs a clone of the repository (the weights of the
small ViTs are not in the wheel) and `pip install scikit-image`; it takes half a minute on two CPU
cores.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import sslzoo

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--encoder", default="ibot-small_vit-cifar10jpeg", help="a ViT of the zoo")
parser.add_argument("--steps", type=int, default=150, help="training steps of the head")
args = parser.parse_args()
torch.manual_seed(0)

# %% [markdown]
# ## Load an encoder
#
# `sslzoo.load` returns an `nn.Module` in eval mode. The iBOT encoder here was trained for ten
# epochs on CIFAR-10's images of 32 pixels, with patches of 4 pixels: it is small, and what it shows
# below is what such a network has learned, not what a ViT-B of the paper would show. The same code
# runs with any ViT that `sslzoo.load` or `sslzoo.backbones.timm_vit` returns.

# %%
vit = sslzoo.load(args.encoder)
print(f"{sum(p.numel() for p in vit.parameters()):,} parameters, {vit.num_features} features")

# %% [markdown]
# ## One vector per image, one token per patch
#
# The network takes any multiple of the patch size, because its positions are resampled. Larger
# images therefore have more tokens, on a finer grid. `EvalView` resizes, crops and normalizes with
# the statistics that the card names.

# %%
from skimage import data

from sslzoo.transforms import EvalView

card = vit.card.preprocessing
view = EvalView(128, resize=128, mean=card["mean"], std=card["std"])
photos = [data.chelsea(), data.rocket(), data.coffee()]  # a cat, a rocket, a cup
images = torch.cat([view(photo) for photo in photos])

with torch.no_grad():
    features = vit(images)
    tokens = vit.forward_tokens(images)
print("images  ", tuple(images.shape))
print("features", tuple(features.shape))
print("tokens  ", tuple(tokens.shape), "the class token first, then 32 x 32 patches")

# %% [markdown]
# ## A picture of the tokens
#
# The first three principal components of all patch tokens become red, green and blue. Patches of
# the same color have similar tokens: the network groups them without having seen a label.

# %%
import matplotlib.pyplot as plt


def patch_map(vit, images):
    """Patch tokens as a feature map, (B, C, H, W) -> (B, D, h, w)."""
    with torch.no_grad():
        tokens = vit.forward_tokens(images)[:, 1:]  # without the class token
    side = int(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


maps = patch_map(vit, images)
rows = maps.permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
rows = rows - rows.mean(0)
_, _, components = torch.pca_lowrank(rows, q=3)
colors = rows @ components
low, high = colors.quantile(0.02, dim=0), colors.quantile(0.98, dim=0)
colors = ((colors - low) / (high - low)).clamp(0, 1).unflatten(0, (3, *maps.shape[2:]))

mean, std = torch.tensor(card["mean"]), torch.tensor(card["std"])
figure, axes = plt.subplots(2, 3, figsize=(7.5, 5), layout="constrained")
for i in range(3):
    axes[0, i].imshow((images[i].permute(1, 2, 0) * std + mean).clamp(0, 1))
    axes[1, i].imshow(colors[i])
for axis in axes.flat:
    axis.axis("off")
figure.savefig("tokens.png", dpi=100)

# %% [markdown]
# ## Attention
#
# `cls_attention` gives the attention of the class token to the patches in the last block, one map
# per head; [attention maps](../attention_maps.md) describes it. From left to right: the image, the
# mean of the heads, each head.

# %%
from sslzoo.eval.attention import attention_picture, cls_attention

attention = cls_attention(vit, images)
print(tuple(attention.shape), "images, heads, rows, columns")
attention_picture(images, attention).save("attention.png")

# %% [markdown]
# ## A segmentation head
#
# A head on frozen tokens needs few labels and few steps. The task is texture segmentation: mosaics
# of brick, grass and gravel, whose borders are known exactly. Training mosaics use the left half of
# each photograph and test mosaics the right half, so no pixel is in both.

# %%
import numpy as np

TEXTURES = [photo[::2, ::2] for photo in (data.brick(), data.grass(), data.gravel())]
rng = np.random.default_rng(0)


def mosaics(count, half, size=64):
    """Images (count, 3, size, size) in [0, 1] and the texture of each pixel (count, size, size)."""
    images, labels = [], []
    rows, columns = np.mgrid[:size, :size] - size / 2
    for _ in range(count):
        first, second = rng.choice(len(TEXTURES), 2, replace=False)
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-size / 6, size / 6)
        inside = np.cos(angle) * rows + np.sin(angle) * columns > offset
        crops = []
        for texture in (TEXTURES[first], TEXTURES[second]):
            middle = texture.shape[1] // 2
            texture = texture[:, :middle] if half == "left" else texture[:, middle:]
            y = rng.integers(texture.shape[0] - size)
            x = rng.integers(texture.shape[1] - size)
            crop = texture[y : y + size, x : x + size] / 255
            crops.append(0.5 + 0.2 * (crop - crop.mean()) / crop.std())  # equal brightness
        image = np.where(inside, *crops).clip(0, 1)
        images.append(np.repeat(image[None], 3, axis=0))
        labels.append(np.where(inside, first, second))
    return torch.tensor(np.stack(images)).float(), torch.tensor(np.stack(labels))


train_images, train_labels = mosaics(128, "left")
test_images, test_labels = mosaics(64, "right")
normalize = EvalView(64, mean=card["mean"], std=card["std"])

# %% [markdown]
# All tokens are computed once. The head is a linear layer per patch, a 1 x 1 convolution, whose
# output is resized to the pixels. As a comparison the same head is trained on the pixels of each
# patch, and on the tokens of the same network with random weights.

# %%
import copy


def untrained(vit):
    """The same network with new weights."""
    vit = copy.deepcopy(vit)
    for module in vit.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
            module.reset_parameters()
    return vit


def segment(features):
    """Train a linear head on the feature maps of the training images; return test logits."""
    train, test = features(normalize(train_images)), features(normalize(test_images))
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    train, test = (train - mean) / std, (test - mean) / std
    head = nn.Conv2d(train.shape[1], len(TEXTURES), kernel_size=1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.01)
    for step in range(args.steps):
        batch = torch.arange(32) + 32 * (step % 4)
        logits = F.interpolate(head(train[batch]), 64, mode="bilinear")
        loss = F.cross_entropy(logits, train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return F.interpolate(head(test), 64, mode="bilinear")


def mean_iou(predicted, labels):
    """Mean over classes of intersection over union."""
    both = torch.stack([(predicted == c) & (labels == c) for c in range(len(TEXTURES))])
    any_ = torch.stack([(predicted == c) | (labels == c) for c in range(len(TEXTURES))])
    return (both.flatten(1).sum(1) / any_.flatten(1).sum(1)).mean().item()


patch = vit.patch_embed.patch_size[0]
random_vit = untrained(vit)
found = {}
for name, features in {
    "tokens": lambda x: patch_map(vit, x),
    "tokens, untrained": lambda x: patch_map(random_vit, x),
    "pixels of the patch": lambda x: F.pixel_unshuffle(x[:, :1], patch),
}.items():
    found[name] = segment(features).argmax(1)
    accuracy, iou = (found[name] == test_labels).float().mean(), mean_iou(found[name], test_labels)
    print(f"{name:20} pixel accuracy {accuracy:.3f}, mean IoU {iou:.3f}")

# %%
figure, axes = plt.subplots(3, 6, figsize=(9, 4.6), layout="constrained")
for i in range(6):
    axes[0, i].imshow(test_images[i, 0], cmap="gray", vmin=0, vmax=1)
    axes[1, i].imshow(test_labels[i], vmin=0, vmax=len(TEXTURES) - 1)
    axes[2, i].imshow(found["tokens"][i], vmin=0, vmax=len(TEXTURES) - 1)
for axis, title in zip(axes[:, 0], ("image", "truth", "head on tokens"), strict=True):
    axis.set_title(title, loc="left", fontsize=9)
for axis in axes.flat:
    axis.axis("off")
figure.savefig("segmentation.png", dpi=100)

# %% [markdown]
# ## Next
#
# - To train such a ViT on your images: `sslzoo fit --config ibot/folder_small_vit_10ep`, or
#   `dino/folder_small_vit_10ep` ([iBOT](../methods/ibot.md), [DINO](../methods/dino.md)).
# - To write attention maps at the end of a run: [`AttentionMaps`](../attention_maps.md).
