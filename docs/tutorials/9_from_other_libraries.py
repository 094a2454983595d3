"""From lightly or solo-learn: their names and ours, and their checkpoints.

You know lightly or solo-learn, and have code or checkpoints of them. The tables say where their
parts are here, and the code loads a checkpoint of each layout. Neither library is needed, nor is a
network.

Views are made per batch, on its device; a memory belongs to the method, not to the loss.
"""

# %% [markdown]
# ## lightly
#
# | lightly | sslzoo |
# |---|---|
# | `NTXentLoss(temperature)` | `sslzoo.losses.nt_xent`, always over the global batch |
# | `NTXentLoss(memory_bank_size=(K, D))` | `sslzoo.methods.MoCo(queue_size=K)` |
# | `NegativeCosineSimilarity` | `sslzoo.losses.negative_cosine` |
# | `BarlowTwinsLoss`, `VICRegLoss`, `TiCoLoss` | `barlow_twins`, `vicreg`, `tico` of the same |
# | `DINOLoss`, `SwaVLoss` | `dino`, `swapped_prediction` with `sinkhorn` |
# | `SimCLRProjectionHead`, `BYOLProjectionHead` | `sslzoo.heads`: `simclr_projector`, `byol_mlp` |
# | `update_momentum(model, teacher, m)` | `sslzoo.callbacks.EMA`, once per optimizer step |
# | `SimCLRTransform`, `DINOTransform` | `sslzoo.transforms`: `simclr_views`, `multi_crop_views` |
# | `LightlyDataset` | `sslzoo.data`: `ImageFolder`, or `with_views` |
# | `BenchmarkModule`'s kNN | `sslzoo.callbacks.OnlineKNN` |
# | a training loop of your own | [a plain loop](../plain_loop.md) |
#
# ## solo-learn
#
# | solo-learn | sslzoo |
# |---|---|
# | `main_pretrain.py --config-name simclr` | `sslzoo fit --config simclr/cifar10_resnet18_200ep` |
# | `main_linear.py`, `main_knn.py` | `sslzoo eval RUN`, or `sslzoo fit` with a `linear` recipe |
# | `optimizer.batch_size` per GPU | `--data.batch_size`, of the global batch |
# | `momentum.base_tau`, `final_tau` | `momentum: CosineSchedule(start, end)` of the method |
# | the online classifier in each method | `OnlineProbe`, apart from the encoder's gradients |
# | `knn_eval.enabled` (training-mode features) | `OnlineKNN`, in eval mode, on whole sets |
# | DALI | views in batches on the GPU |
# | `auto_resumer` | `sslzoo fit --ckpt_path RUN/checkpoints/last.ckpt` |
#
# **Numbers do not carry over by name.** The temperature, the momentum and the weight decay mean the
# same. The learning rate does not where the batch is per GPU there, or where a loss is a sum of two
# directions on one side and a mean on the other: each method's page lists this under Deviations.

# %% [markdown]
# ## Their checkpoints
#
# Both libraries save a Lightning checkpoint whose `state_dict` has the network under a prefix.
# `layout` names the library, `backbone` the module that the weights fill. To have files to
# load, the next cell saves a ResNet-18 under the names of each.

# %%
import tempfile
from pathlib import Path

import torch
from torchvision.models import resnet18

import sslzoo
from sslzoo.backbones import timm_backbone

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
network = resnet18().eval()
body = torch.nn.Sequential(*list(network.children())[:-1])  # as lightly's examples build it
lightly = {f"backbone.{name}": value for name, value in body.state_dict().items()}
lightly["projection_head.layers.0.weight"] = torch.zeros(512, 512)
solo = {f"backbone.{name}": value for name, value in network.state_dict().items()}
solo = {name: value for name, value in solo.items() if ".fc." not in name}
solo["projector.0.weight"] = torch.zeros(2048, 512)
torch.save({"state_dict": lightly}, folder / "lightly.ckpt")
torch.save({"state_dict": solo}, folder / "solo_learn.ckpt")

# %%
images = torch.rand(2, 3, 64, 64)
with torch.no_grad():
    expected = body(images).flatten(1)
    for layout in ("lightly", "solo_learn"):
        path = folder / f"{layout}.ckpt"
        encoder = sslzoo.load(path, backbone=timm_backbone("resnet18"), layout=layout)
        features = encoder(images)  # (B, 512)
        print(layout, tuple(features.shape), float((features - expected).abs().max()))
        assert torch.allclose(features, expected, atol=1e-5)

# %% [markdown]
# The heads are left out, and a tensor that is missing or has another shape is an error that names
# it. The same file as an entry of your zoo, with a card, and then by its name:
#
#     sslzoo zoo add lightly.ckpt --name theirs-resnet18 --data 'our photos' --license CC0-1.0 \
#         --backbone '{"class_path": "sslzoo.backbones.timm_backbone",
#                      "init_args": {"name": "resnet18"}}' \
#         --layout lightly --size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
#     sslzoo eval theirs-resnet18 --on simclr/imagenet_resnet50_100ep --data.root FOLDER
#
# `layout` also takes `torchvision`, `stable_pretraining` and the layouts of the methods' authors.
# The converters are tested on files with these layouts; no released file of the two libraries has
# been downloaded here. To go the other way, `sslzoo export` writes timm's or torchvision's names:
# [the zoo](../zoo.md).
