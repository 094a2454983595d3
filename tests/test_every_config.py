"""Every shipped config parses, instantiates, states its claims, and takes a step.

The step's reduced size: 8 images of 40 pixels, views at the config's own size, the backbone
replaced by `tests.toys.Pooled` of the same width (AMDIM's and CPC's narrowed, Deep InfoMax's
kept), a bank of 64 rows; of sound and other sequences 4 windows of the config's own length, the
network as it is.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from torch import Tensor

from sslzoo.batch import Batch, Tokens
from sslzoo.callbacks import OnlinePrototypes, OnlineSpectrum
from sslzoo.commands.configs import config_folders, find_config, known_configs
from sslzoo.data import AudioDataModule
from sslzoo.random import sample_keys
from sslzoo.runs.encoders import build_data
from sslzoo.trainable import Trainable
from sslzoo.transforms.text.special import Special
from sslzoo.trust import build

# LightningCLI calls what jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

NAMES = known_configs()
NOT_OF_IMAGES = ("AudioFolder", "LibriSpeech", "SequenceArrays", "SpeechCommands")
SEQUENCES = [
    name
    for name in NAMES
    if yaml.safe_load(Path(find_config(name)).read_text())["data"]["class_path"].endswith(
        NOT_OF_IMAGES
    )
]
MANY = 30_000_000


def every_config() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", NAMES)


def load(name: str, *overrides: str) -> LightningCLI:
    """Model and data module of a config; a path that it wants from the user is made up."""
    content = yaml.safe_load(Path(find_config(name)).read_text())
    args = [f"--config={find_config(name)}", "--trainer.logger=false", *overrides]
    if content["data"]["init_args"].get("root", "set") is None:
        args.append("--data.init_args.root=somewhere")
    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        run=False,
        args=args,
    )


@functools.cache
def on_meta(name: str) -> LightningCLI:
    """Model and data module of a config, without numbers; made once for all tests of it."""
    small = small_text_backbone(name) if "hf_encoder" in Path(find_config(name)).read_text() else []
    with torch.device("meta"):
        return load(name, *small)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslzoo"])


# Not on ImageNet: the papers have no such recipe, or none whose numbers are known here.
NOT_IMAGENET = {"deep_infomax", "invaspread", "margin_contrastive", "supcon", "triplet"}
IMAGES = ("imagenet", "cifar10", "folder")
WANTED = dict.fromkeys(NOT_IMAGENET, ("cifar10", "folder"))
WANTED |= dict.fromkeys(("clear", "simcse"), ("text", "stsb"))
WANTED["cpc"] = ("librispeech", "folder", "arrays")


def test_recipes_for_every_method() -> None:
    for method in sorted({name.split("/")[0] for name in NAMES if "/" in name}):
        recipes = [name for name in NAMES if name.startswith(f"{method}/")]
        for data in WANTED.get(method, IMAGES):
            assert any(f"/{data}_" in name for name in recipes), f"{method} has no {data} recipe"


EMBEDDED = {"barlow_twins", "byol", "simsiam", "vicreg"}  # nothing else shows a collapse
WITHOUT_NEGATIVES = EMBEDDED | {"deepcluster_v2", "dino", "ibot", "ijepa", "swav"}


def pre_training_of(methods: set[str]) -> list[str]:
    """The configs of these methods that train an encoder, not a classifier on it."""
    own = [name for name in NAMES if name.split("/")[0] in methods]
    return [name for name in own if "sslzoo.methods." in Path(find_config(name)).read_text()]


@pytest.mark.parametrize("name", pre_training_of(WITHOUT_NEGATIVES))
def test_methods_without_negatives_are_watched_for_collapse(name: str) -> None:
    callbacks = yaml.safe_load(Path(find_config(name)).read_text())["trainer"]["callbacks"]
    assert any(c["class_path"] == "sslzoo.callbacks.OnlineSpectrum" for c in callbacks)


@pytest.mark.parametrize("name", pre_training_of(EMBEDDED))
def test_what_can_become_constant_is_watched(name: str) -> None:
    model = yaml.safe_load(Path(find_config(name)).read_text())["model"]
    cli = load(name, *small_backbone(name, model, 3))
    (spectrum,) = [c for c in cli.trainer.callbacks if isinstance(c, OnlineSpectrum)]
    assert getattr(cli.model, spectrum.features)(torch.rand(4, 3, 40, 40)).ndim == 2


ASSIGNING = {"deepcluster_v2", "dino", "ibot", "swav"}  # features do not show their collapse


@pytest.mark.parametrize("name", pre_training_of(ASSIGNING))
def test_assignments_to_prototypes_are_watched(name: str) -> None:
    model = yaml.safe_load(Path(find_config(name)).read_text())["model"]
    cli = load(name, *small_backbone(name, model, 3))
    (watch,) = [c for c in cli.trainer.callbacks if isinstance(c, OnlinePrototypes)]
    with torch.no_grad():
        p = getattr(cli.model.eval(), watch.features)(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(p.sum(dim=1), torch.ones(4))


@every_config()
def test_header_states_its_claims(name: str) -> None:
    text = Path(find_config(name)).read_text()
    header = re.match(r"(#.*\n)+", text)
    assert header, "a config begins with a comment"
    for claim in ("Paper:", "Command:", "Hardware:", "Score:"):
        assert claim in header[0], f"{name} does not state {claim}"
    wanted = f"--config configs/{name}.yaml" if "/" not in name else f"--config {name}"
    assert wanted in header[0], "the command names this very config"


@every_config()
def test_instantiates(name: str) -> None:
    model = on_meta(name).model
    assert isinstance(model, Trainable)
    if "hf_encoder" in Path(find_config(name)).read_text():
        return
    section = yaml.safe_load(Path(find_config(name)).read_text())["model"]
    with torch.device("meta"):
        made = build(section, LightningModule, name)  # as `sslzoo.load` builds it
    assert type(made) is type(model)
    assert repr(made) == repr(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in made.state_dict().items()} == shapes
    if sum(p.numel() for p in model.parameters()) <= MANY and "imagenet" not in name:
        assert not any(p.is_meta for p in build(section, LightningModule, name).parameters())


NARROW_AMDIM = [
    f"--model.init_args.backbone.init_args.{size}"
    for size in ("width=2", "num_features=16", "depth=1")
]


def narrow_cpc(model: dict[str, Any]) -> list[str]:
    """Overrides: 8 features, context networks of that width."""
    depth = len(model["backbone"]["init_args"]["encoder"]["init_args"]["widths"])
    small = {"class_path": "sslzoo.heads.PixelContext", "init_args": {"width": 8, "layers": 1}}
    encoder = "--model.init_args.backbone.init_args.encoder.init_args"
    return [
        f"{encoder}.widths={[2] * depth}",
        f"{encoder}.blocks={[1] * depth}",
        f"--model.init_args.contexts={json.dumps([small] * len(model['contexts']))}",
    ]


def small_classifiers(model: dict[str, Any]) -> list[str]:
    """Overrides: backbones of student and teacher as wide as the head above them, or narrow."""
    overrides = []
    for part in ("model", "teacher"):
        if part not in model:
            continue
        backbone = model[part]["init_args"]["backbone"]
        place = f"--model.init_args.{part}.init_args.backbone.init_args"
        kind, given = backbone["class_path"].rpartition(".")[2], backbone.get("init_args", {})
        if kind == "LastBlocks":
            place, kind = f"{place}.backbone.init_args", "timm_vit"
        if "projector" in given:
            width = given["projector"]["init_args"]["in_dim"]
            pooled = f"{place}.backbone"
            overrides += [f"{pooled}=tests.toys.Pooled", f"{pooled}.init_args.num_features={width}"]
        elif kind == "timm_backbone":
            overrides.append(f"{place}.name=resnet10t")
        elif kind == "timm_vit":
            overrides.append(f"{place}.name=vit_tiny_patch16_224")
        elif kind == "small_vit":
            overrides.append(f"{place}.depth=1")
    return overrides


def narrow_vit(model: dict[str, Any]) -> list[str]:
    """Overrides: a ViT-Ti with the patches of the recipe, one block in the head."""
    part = "decoder" if "decoder" in model else "predictor"
    backbone, head = model["backbone"]["init_args"], f"--model.init_args.{part}.init_args"
    ours = "--model.init_args.backbone.init_args"
    if "name" not in backbone:
        return [f"{ours}.depth=1", f"{head}.depth=1"]
    patch = backbone.get("patch_size") or int(backbone["name"].split("patch")[1].split("_")[0])
    return [
        f"{ours}.name=vit_tiny_patch16_224",
        f"{ours}.patch_size={patch}",
        f"{head}.token_dim=192",
        f"{head}.depth=1",
    ]


def shallow_vit(backbone: dict[str, Any]) -> list[str]:
    """Overrides: a single block, of the heads' width; a timm ViT has 12 of them."""
    ours = "--model.init_args.backbone"
    if "name" not in backbone:
        return [f"{ours}.init_args.depth=1"]
    init = {"img_size": 224, "patch_size": 16, "width": 384, "depth": 1, "mask_token": True}
    given = {"class_path": "sslzoo.backbones.small_vit", "init_args": init}
    return [f"{ours}={json.dumps(given)}"]


def is_text(data: Any) -> bool:
    """Whether a data module, or its configuration, is of sentences."""
    transform = data["init_args"].get("transform", {}).get("class_path", "")
    return transform in ("sslzoo.transforms.clear_views", "sslzoo.transforms.plain_text")


def small_text_backbone(name: str) -> list[str]:
    """Overrides: one block without Hugging Face's weights, as wide as the head above it."""
    model = yaml.safe_load(Path(find_config(name)).read_text())["model"]["init_args"]
    head, given = model["projector"]["init_args"], model["backbone"]["init_args"]
    sizes = {
        "num_ids": given["num_ids"],
        "width": head["sizes"][0] if "sizes" in head else head["width"],
        "depth": 1,
        "heads": 1,
        "hidden": 8,
    }
    place = "--model.init_args.backbone"
    options = [f"{place}.init_args.{key}={value}" for key, value in sizes.items()]
    return [f"{place}=sslzoo.backbones.SmallTransformer", *options]


def text_views(cli: LightningCLI, index: torch.Tensor) -> list[Any]:
    """The config's views of sentences of 0 to 14 words."""
    words = torch.randint(6, 1000, (len(index), 14))
    tokens = Tokens(words, 2 * torch.arange(len(index)))
    return cli.datamodule.transform(tokens, sample_keys(0, 0, index), Special())


def image_views(cli: LightningCLI, index: torch.Tensor, data: dict[str, Any]) -> list[Any]:
    """The config's views of images of 40 pixels, at its own sizes."""
    channels = data.get("channels", 3)
    images = torch.randint(0, 256, (len(index), channels, 40, 40), dtype=torch.uint8)
    views = cli.datamodule.transform(images, sample_keys(0, 0, index))
    sizes, split = cli.datamodule.transform.sizes, cli.datamodule.transform.split
    given = data["transform"].get("init_args", {})
    assert [view.shape[2:] for view in views] == [(size, size) for size in sizes]
    assert given.get("size", sizes[0]) == cli.datamodule.transform.crops[0].size
    assert all(view.shape[:2] == (8, channels) for view in views) or sum(split) == channels
    return views


def small_backbone(name: str, model: dict[str, Any], channels: int) -> list[str]:
    """Overrides; a method that looks at places keeps its kind of backbone."""
    kind = model["class_path"].rsplit(".", 1)[1]
    if kind == "DeepInfoMax":
        return []
    if kind == "AMDIM":
        return NARROW_AMDIM
    if "token_dim" in str(model):
        return narrow_vit(model["init_args"])
    if kind == "ImageCPC":
        return narrow_cpc(model["init_args"])
    if kind in ("FineTune", "Distill"):
        return small_classifiers(model["init_args"])
    if kind == "IBOT":
        return shallow_vit(model["init_args"]["backbone"]["init_args"])
    width = on_meta(name).model.projector.in_features
    given = [
        "--model.init_args.backbone=tests.toys.Pooled",
        f"--model.init_args.backbone.init_args.num_features={width}",
        f"--model.init_args.backbone.init_args.in_chans={channels}",
    ]
    sizes = model["init_args"]["projector"]["init_args"].get("sizes", [])
    if max(sizes, default=0) > 4096:  # 134 million numbers in the heads of VICReg and Barlow Twins
        narrow = [min(size, 2048) for size in sizes]
        given.append(f"--model.init_args.projector.init_args.sizes={narrow}")
    return given


def raw_sequences(data: Any, model: Any) -> list[Tensor]:
    """4 windows: sound (and what is mixed in), or frames as wide as the encoder takes."""
    if isinstance(data, AudioDataModule):
        shape = (1 + data.transform.partners, 4, data.window)
        return list(torch.randint(-9999, 9999, shape, dtype=torch.int16))
    return [torch.randn(4, data.window, model.backbone.encoder.layers[0].in_features)]


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_take_a_step(name: str) -> None:
    cli = load(name)
    method, index = cli.model, torch.arange(4)
    raw = Batch(raw_sequences(cli.datamodule, method), index)
    optimizer = method.configure_optimizers()
    loss = torch.stack(list(method.losses(cli.datamodule.train_views(raw, 0)).values())).sum()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert method.step == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SEQUENCES])
def test_takes_a_step(name: str) -> None:
    config = yaml.safe_load(Path(find_config(name)).read_text())
    model = config["model"]["init_args"]
    data, text = config["data"]["init_args"], is_text(config["data"])
    if text:
        overrides = small_text_backbone(name)
    else:
        overrides = small_backbone(name, config["model"], data.get("channels", 3))
    if "bank_size" in model:
        overrides.append("--model.init_args.bank_size=64")
    cli = load(name, *overrides)
    index = torch.arange(8)
    views = text_views(cli, index) if text else image_views(cli, index, data)
    method = cli.model
    optimizer = method.configure_optimizers()
    labels = index % 3 if getattr(method, "uses_labels", False) else None
    batch = Batch(views, index, labels)
    loss = torch.stack(list(method.losses(batch).values())).sum()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert method.step == 1
    rates = [group["lr"] for group in optimizer.param_groups]
    assert model["optimizer"]["init_args"]["lr"] in rates


# Recipes that evaluate at another size than they train at, and why.
OTHER_SIZE = {
    "deepcluster_v2/imagenet_resnet50_400ep": "global crops of 160 px; the authors evaluate at 224"
}
OF_IMAGES = [name for name in NAMES if "text_" not in name and "stsb" not in name]
OF_IMAGES = [name for name in OF_IMAGES if name not in SEQUENCES]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_evaluation_follows_training(name: str) -> None:
    section = yaml.safe_load(Path(find_config(name)).read_text())["data"]
    if section["init_args"].get("root", "set") is None:
        section["init_args"]["root"] = "somewhere"
    data: Any = build_data(section)
    view, training = data.eval_view, data.transform
    looks = training.eval_view(training.trained_size)
    wanted = [None if x is None else list(x) for x in (looks.mean, looks.std)]
    assert [None if x is None else list(x) for x in (view.mean, view.std)] == wanted
    assert view.space == looks.space
    assert (view.size == training.trained_size) == (name not in OTHER_SIZE)
    if "eval_view" not in section["init_args"]:
        whole = data.known_side == view.size
        assert view.resize == (None if whole else round(view.size * 8 / 7))


def test_named_and_by_path_are_the_same_file() -> None:
    folder = config_folders()[0]
    by_path = str(folder / "byol" / "cifar10_resnet18_200ep.yaml")
    assert Path(find_config("byol/cifar10_resnet18_200ep")) == Path(by_path)
    assert find_config(by_path) == by_path


OFFICIAL = [name for name in NAMES if "imagenet" in name]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout: two classes of eight 500x375 JPEGs, four of them for validation."""
    root = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for label in ("n01440764", "n01443537"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
                image.save(root / part / label / f"{label}_{i}.JPEG")
    return root


def reduced(model: dict[str, Any]) -> list[str]:
    """Overrides that make every backbone a resnet10t, or a small one of its own kind."""
    if "model" in model:
        starts = ["weights", *(["teacher_weights"] if "teacher" in model else [])]
        random = [f"--model.init_args.{name}=random" for name in starts]
        return [*small_classifiers(model), *random, "--data.init_args.train_fraction=1.0"]
    if "contexts" in model:
        return narrow_cpc(model)
    if "token_dim" in str(model):
        return narrow_vit(model)
    if "projector" not in model:
        return NARROW_AMDIM
    backbone, head = (model[part]["init_args"] for part in ("backbone", "projector"))
    if "masks" in model:
        return shallow_vit(backbone)
    if "depth" in backbone:
        return ["--model.init_args.backbone.init_args.depth=14"]  # as wide as 50 to 152
    if "towers" in backbone:
        for tower, its_head in zip(backbone["towers"], head["heads"], strict=True):
            tower["init_args"]["name"] = "resnet10t"
            its_head["init_args"]["in_features"] = 512
        return [
            f"--model.init_args.backbone.init_args.towers={json.dumps(backbone['towers'])}",
            f"--model.init_args.projector.init_args.heads={json.dumps(head['heads'])}",
        ]
    small, width = "resnet10t", 512
    if "vit" in model["backbone"]["class_path"]:
        small, width = "vit_tiny_patch16_224", 192
    elif backbone.get("norm") == "group":
        small = "resnet18"  # a stem of 24 channels does not divide into the groups
    if "sizes" in head:
        override = f"sizes={[width, *head['sizes'][1:]]}"
    else:
        override = f"in_dim={width}" if "in_dim" in head else f"in_features={width}"
    return [
        f"--model.init_args.backbone.init_args.name={small}",
        f"--model.init_args.projector.init_args.{override}",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_official_config_runs_two_steps_at_224_pixels(
    name: str, photographs: Path, tmp_path: Path
) -> None:
    """Reduced: a small backbone, 8 images a batch, narrow heads; views and losses as they are."""
    model = yaml.safe_load(Path(find_config(name)).read_text())["model"]["init_args"]
    overrides = [
        *reduced(model),
        "--trainer.max_steps=2",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.callbacks=null",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_model_summary=false",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        f"--data.init_args.root={photographs}",
        "--data.init_args.batch_size=8",
        "--data.init_args.num_workers=2",
    ]
    if "bank_size" in model:
        overrides.append("--model.init_args.bank_size=16")
    if "num_negatives" in model:
        overrides.append("--model.init_args.num_negatives=64")
    if "k_means_iterations" in model:
        overrides.append("--model.init_args.num_prototypes=[4,3]")
    cli = load(name, *overrides)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.model.step == 2
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
