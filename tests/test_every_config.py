"""Every shipped config parses, instantiates, states its claims, and takes a step.

The step is one on the meta device (no numbers are computed), so networks, views and memories
have the recipe's own sizes; only the batch is small.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sslzoo.batch import Batch, Padded, Tokens, UnitSequence, ViewSpec
from sslzoo.callbacks import CompareWithStart, FreezeUntil, OnlinePrototypes, OnlineSpectrum
from sslzoo.commands.configs import config_folders, find_config, known_configs
from sslzoo.data import AudioDataModule, MultiViewFolder, TextDataModule
from sslzoo.data.image.image_text import ImageTextDataModule
from sslzoo.layers import GlobalBatchNorm
from sslzoo.optim import RunLength
from sslzoo.random import sample_keys
from sslzoo.runs.encoders import build_data
from sslzoo.trainable import Trainable
from sslzoo.transforms.text.special import Special, with_special
from sslzoo.trust import build, undrawn
from tests.toys import KINDS

# LightningCLI calls what jsonargparse deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

NAMES = known_configs()


@functools.cache
def content(name: str) -> dict[str, Any]:
    return yaml.load(Path(find_config(name)).read_text(), yaml.CSafeLoader)


NOT_OF_IMAGES = ("AudioFolder", "LibriSpeech", "SequenceArrays", "SpeechCommands")
SEQUENCES = [name for name in NAMES if content(name)["data"]["class_path"].endswith(NOT_OF_IMAGES)]
BATCH = 8


def is_first(name: str) -> bool:
    """Whether a recipe is the one of its method that CI steps; the others run before a release.

    Small nets: all recipes are built, and heads are held to their backbones when they are.
    """
    folder, _, recipe = name.partition("/")
    alike = [other for other in NAMES if other.partition("/")[0] == folder]
    first = min(alike, key=lambda other: ("imagenet" in other, "/folder_small" not in other))
    return name == first or (recipe.startswith("continue") and folder == "dino")


def is_parsed(name: str) -> bool:
    """Whether the command's parser builds the recipe here: one of each kind, and a hub's."""
    kind = content(name)["model"]["class_path"].rpartition(".")[2] in KINDS
    return (kind and is_first(name)) or "hf_encoder" in Path(find_config(name)).read_text()


def every_config(chosen: Callable[[str], bool] = lambda name: True) -> pytest.MarkDecorator:
    """One config after the other, so that all tests of it share one model.

    Args:
        chosen: by name; the others are slow.
    """
    names = [pytest.param(n, marks=() if chosen(n) else pytest.mark.slow) for n in NAMES]
    return pytest.mark.parametrize("name", names, scope="module")


@functools.cache
def command() -> LightningCLI:
    """The command's parser of model, data module and trainer; making it takes 0.1 s."""
    return LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        run=False,
        args=[f"--config={find_config('quickstart')}", "--trainer.logger=false"],
    )


def load(name: str, *overrides: str) -> Namespace:
    """Model, data module and trainer of a config; a path that the user gives is made up."""
    given, cli = content(name), copy.copy(command())
    args = [f"--config={find_config(name)}", "--trainer.logger=false"]
    if given["data"]["init_args"].get("root", "set") is None:
        args.append("--data.init_args.root=somewhere")
    if given["data"]["init_args"].get("file", "set") is None:
        args.append("--data.init_args.file=somewhere.csv")
    args += overrides
    cli.config_dump = {}  # the hyperparameters that a run would save
    cli.config = cli.parser.parse_args(args)
    cli.instantiate_classes()
    return Namespace(model=cli.model, datamodule=cli.datamodule, trainer=cli.trainer)


def hub_free(name: str) -> list[str]:
    """Overrides where a file is out of reach: no weights, and a small transformer for a hub's."""
    text = Path(find_config(name)).read_text()
    model = yaml.safe_load(text)["model"]["init_args"]
    if "weights" in model.get("backbone", {}).get("init_args", {}):
        arguments = {**model["backbone"]["init_args"], "weights": None}
        new = {**model["backbone"], "init_args": arguments}
        return [f"--model.init_args.backbone={json.dumps(new)}"]
    if "hf_encoder" not in text:
        return []
    head, given = model["projector"].get("init_args", {}), model["backbone"]["init_args"]
    width = head["sizes"][0] if "sizes" in head else head.get("width", 384)  # MiniLM's
    sizes = {"num_ids": given["num_ids"], "width": width, "depth": 1, "heads": 1, "hidden": 8}
    backbone = {"class_path": "sslzoo.backbones.SmallTransformer", "init_args": sizes}
    return [f"--model.init_args.backbone={json.dumps(backbone)}"]


def built(name: str) -> Namespace:
    """The same without the command's parser, which takes five times as long."""
    sections = content(name)
    wrong = sections["trainer"].keys() - inspect.signature(Trainer).parameters.keys()
    assert not wrong, f"{name}: Trainer has no {wrong}"
    callbacks = [
        build(c, Callback, name, trust=True) for c in sections["trainer"].get("callbacks", [])
    ]
    return Namespace(
        model=build(sections["model"], LightningModule, name),
        datamodule=build(given_root(sections["data"]), LightningDataModule, name),
        trainer=Namespace(callbacks=callbacks),
    )


@functools.cache
def on_meta(name: str) -> Namespace:
    """Model and data module of a config, without numbers; made once for all tests of it."""
    with undrawn(), torch.device("meta"):
        if is_parsed(name):
            return load(name, *hub_free(name))
        return built(name)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslzoo"])


# Not on ImageNet: the papers have no such recipe, or none whose numbers are known here.
NOT_IMAGENET = {"deep_infomax", "invaspread", "margin_contrastive", "supcon", "triplet", "w_mse"}
IMAGES = ("imagenet", "cifar10", "folder")
WANTED = dict.fromkeys(NOT_IMAGENET, ("cifar10", "folder"))
WANTED |= dict.fromkeys(("clear", "simcse"), ("text", "stsb"))
WANTED |= dict.fromkeys(("hubert", "wav2vec2"), ("librispeech", "speechcommands", "folder"))
WANTED["data2vec"] = ("librispeech", "speechcommands", "imagenet", "folder", "text")
WANTED["byol_a"] = ("folder", "speechcommands")
WANTED |= dict.fromkeys(("clip", "siglip"), ("table", "folder"))
WANTED["cpc"] = ("librispeech", "folder", "arrays", "text")


def test_recipes_for_every_method() -> None:
    for method in sorted({name.split("/")[0] for name in NAMES if "/" in name}):
        recipes = [name for name in NAMES if name.startswith(f"{method}/")]
        for data in WANTED.get(method, IMAGES):
            assert any(f"/{data}_" in name for name in recipes), f"{method} has no {data} recipe"


EMBEDDED = {"barlow_twins", "byol", "simsiam", "vicreg", "vicregl"}  # nothing else shows a collapse
# Their features do not show a collapse.
ASSIGNING = {"deepcluster_v2", "dino", "dinov2", "ibot", "msn", "swav"}


def pre_training_of(methods: set[str]) -> list[str]:
    """The configs of these methods that train an encoder, not a classifier on it."""
    own = [name for name in NAMES if name.split("/")[0] in methods]
    return [name for name in own if "sslzoo.methods." in Path(find_config(name)).read_text()]


CAN_COLLAPSE = pre_training_of(EMBEDDED | ASSIGNING | {"ijepa"})


def watched(name: str, callback: type[Callback]) -> Tensor:
    """What the config's callback of this class reads of 4 images."""
    method = copy.deepcopy(on_meta(name).model).eval()
    (watch,) = [c for c in on_meta(name).trainer.callbacks if isinstance(c, callback)]
    size = on_meta(name).datamodule.transform.sizes[0]
    channels = content(name)["data"]["init_args"].get("channels", 3)
    with torch.no_grad():
        return getattr(method, watch.features)(torch.rand(4, channels, size, size, device="meta"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if is_first(n) else pytest.mark.slow) for n in CAN_COLLAPSE],
)
def test_a_collapse_would_be_seen(name: str) -> None:
    callbacks = on_meta(name).trainer.callbacks
    assert any(isinstance(callback, OnlineSpectrum) for callback in callbacks)
    if name.split("/")[0] in EMBEDDED:
        assert watched(name, OnlineSpectrum).ndim == 2
    elif name.split("/")[0] in ASSIGNING:
        assert watched(name, OnlinePrototypes).shape[:1] == (4,)


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
    assert isinstance(on_meta(name).model, Trainable)


@every_config(is_parsed)
def test_is_built_as_a_run_is_loaded(name: str) -> None:
    if "hf_encoder" in Path(find_config(name)).read_text():
        return
    section = content(name)["model"]
    with undrawn(), torch.device("meta"):
        model = (on_meta(name) if is_parsed(name) else load(name, *hub_free(name))).model
        made = build(section, LightningModule, name)
    assert type(made) is type(model)
    assert repr(made) == repr(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in made.state_dict().items()} == shapes


def views_of(name: str, config: dict[str, Any], index: Tensor) -> list[Any]:
    """The config's views of 40-pixel images, of sentences of 0 to 6 words, or of sequences."""
    section, channels = config["data"], config["data"]["init_args"].get("channels", 3)
    data: Any = build_data(given_root(section))
    keys = sample_keys(0, 0, index)
    if name in SEQUENCES:
        return list(data.train_views(Batch(raw_sequences(data, config), index), 0).views)
    if isinstance(data, TextDataModule):
        words, lengths = torch.randint(6, 1000, (len(index), 14)), 2 * index
        tokens = Tokens(words, lengths)
        if data.window > 1:
            several = (-1, data.window, 14)
            tokens = Tokens(words[:, None].expand(several), lengths[:, None].expand(several[:2]))
        return list(data.transform(tokens, keys, Special()))
    aligned = isinstance(data, MultiViewFolder)
    channels = sum(data.channels) if aligned else channels
    images = torch.randint(0, 256, (1, channels, 40, 40), dtype=torch.uint8)
    views = list(data.transform(images, keys.rows(slice(1))))
    sizes, split = data.transform.sizes, data.transform.split
    given = section["init_args"].get("transform", section).get("init_args", {})
    assert [view.shape[2:] for view in views] == [(size, size) for size in sizes]
    assert given.get("size", sizes[0]) == data.transform.crops[0].size
    assert all(view.shape[1] == channels for view in views) or sum(split) == channels
    views = [view.to("meta").expand(len(index), *view.shape[1:]) for view in views]
    if isinstance(data, ImageTextDataModule):
        words, lengths = torch.randint(6, 1000, (len(index), 14)), 2 * index
        views.append(with_special(Tokens(words, lengths), Special()))
    return views


def raw_sequences(data: Any, config: dict[str, Any]) -> list[Any]:
    """Windows: sound (and what is mixed in), or frames as wide as the encoder takes."""
    if isinstance(data, AudioDataModule):
        shape = (1 + data.transform.partners, BATCH, data.window)
        waves = list(torch.randint(-9999, 9999, shape, dtype=torch.int16))
        lengths = torch.arange(BATCH) * data.window // BATCH
        if data.units:
            units = torch.randint(0, 100, (BATCH, len(data.units), data.window // 80))
            return [UnitSequence(waves[0], lengths, units)]
        return [Padded(waves[0], lengths)] if data.short == "mask" else waves
    encoder = config["model"]["init_args"]["backbone"]["init_args"]["encoder"]["init_args"]
    return [torch.randn(BATCH, data.window, encoder["in_features"])]


def given_root(section: dict[str, Any]) -> dict[str, Any]:
    """The data module's config, with a folder where it wants one from the user."""
    missing = [key for key in ("root", "file") if section["init_args"].get(key, "set") is None]
    made_up = dict.fromkeys(missing, "somewhere")
    return {**section, "init_args": {**section["init_args"], **made_up}}


CONTINUED = [name for name in NAMES if "/continue_" in name]


def test_methods_that_people_continue_have_a_recipe() -> None:
    vision = {"dino", "dinov2", "ibot", "mae", "simclr", "byol", "moco_v3", "simsiam"}
    assert {name.split("/")[0] for name in CONTINUED} == {*vision, "simcse", "clear", "cpc"}


@pytest.mark.parametrize("name", CONTINUED)
@pytest.mark.parametrize("length", [RunLength(10, 1), RunLength(20_000, 2000)], ids=str)
def test_a_recipe_that_continues_fits_data_of_any_size(name: str, length: RunLength) -> None:
    """No warm-up, freeze or teacher counts in epochs, and both best checkpoints are kept."""
    loaded = on_meta(name)
    callbacks, method = loaded.trainer.callbacks, copy.deepcopy(loaded.model)
    assert any(isinstance(callback, CompareWithStart) for callback in callbacks)
    monitors = [c.monitor for c in callbacks if isinstance(c, ModelCheckpoint)]
    assert monitors[0] == "val/effective_rank"
    assert name.startswith(("simcse/", "clear/")) or monitors[1].startswith("val/knn_top1")
    freezes = [c for c in callbacks if isinstance(c, FreezeUntil)]
    if not isinstance(getattr(method, "projector", None), torch.nn.Identity):
        assert freezes[0].module == "backbone"  # while new heads warm up
    method.run_length = length
    for freeze in [
        *freezes,
        *(c for c in method.configure_callbacks() if isinstance(c, FreezeUntil)),
    ]:
        method.step = 0
        assert freeze.is_frozen(method) == (freeze.fraction > 0)
        method.step = max(1, length.total_steps // 10)
        assert not freeze.is_frozen(method)
    factors = [
        method._schedule(step, length)
        for step in range(0, length.total_steps, length.total_steps // 10)
    ]
    assert factors[0] < 0.1
    assert max(factors) > 0.99
    if method.teacher_pairs():
        memory = 1 / (1 - method.momentum(0, length))
        assert memory <= max(1, 0.051 * length.total_steps)


@every_config(is_first)
def test_takes_a_step(name: str) -> None:
    config = content(name)
    model = config["model"]["init_args"]
    index = torch.arange(model.get("sub_batch_size", BATCH))
    uses_labels = getattr(on_meta(name).model, "uses_labels", False)
    views = views_of(name, config, index)
    takes = getattr(on_meta(name).model, "takes", ViewSpec())
    boxes = torch.zeros(BATCH, len(views), 5, dtype=torch.int64) if takes.boxes else None
    batch = Batch(views, index, index % 3 if uses_labels else None, boxes)
    method = copy.deepcopy(on_meta(name).model)
    for module in method.modules():
        if isinstance(module, GlobalBatchNorm):
            module.groups = 1  # 16 groups in 53 layers take ten seconds on the meta device
    method.run_length = RunLength(4, 2)
    optimizer = method.configure_optimizers()
    losses = method.losses(tree_map_only(Tensor, lambda x: x.to("meta"), batch))
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    assert method.step == 1
    rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    assert model["optimizer"]["init_args"]["lr"] in rates


# Recipes that evaluate at another size than they train at, and why.
OTHER_SIZE = {
    "deepcluster_v2/imagenet_resnet50_400ep": "global crops of 160 px; the authors evaluate at 224"
}
OF_TEXT = ("text_", "stsb", "_neighbors_")
OF_IMAGES = [name for name in NAMES if not any(part in name for part in OF_TEXT)]
OF_IMAGES = [name for name in OF_IMAGES if name not in SEQUENCES]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_evaluation_follows_training(name: str) -> None:
    section = given_root(content(name)["data"])
    data: Any = build_data(section)
    view, training = data.eval_view, data.transform
    looks = training.eval_view(training.trained_size)
    wanted = [None if x is None else list(x) for x in (looks.mean, looks.std)]
    assert [None if x is None else list(x) for x in (view.mean, view.std)] == wanted
    assert view.space == looks.space
    assert (view.size == training.trained_size) == (name not in OTHER_SIZE)
    if "eval_view" not in section["init_args"] and not isinstance(data, MultiViewFolder):
        whole = getattr(training, "whole", False)  # CLIP's
        resized = view.size if whole else round(view.size * 8 / 7)
        square = data.known_side == view.size or view.squash  # SigLIP's
        assert view.resize == (None if square else resized)
        assert view.squash == name.startswith("siglip/")


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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_official_config_runs_two_steps_at_224_pixels(
    name: str, photographs: Path, tmp_path: Path
) -> None:
    """On 16 images, 4 a batch, with the recipe's own network, heads and views."""
    model = content(name)["model"]["init_args"]
    overrides = [
        "--trainer.max_steps=2",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.callbacks=null",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_model_summary=false",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        f"--data.init_args.root={photographs}",
        "--data.init_args.batch_size=4",
        "--data.init_args.num_workers=2",
    ]
    if "model" in model:  # of labels: from no checkpoint
        starts = ["weights", *(["teacher_weights"] if "teacher" in model else [])]
        overrides += [f"--model.init_args.{start}=random" for start in starts]
        overrides.append("--data.init_args.train_fraction=1.0")
    # As many rows and clusters as there are images.
    if "bank_size" in model:
        overrides.append("--model.init_args.bank_size=16")
    if "num_negatives" in model:
        overrides.append("--model.init_args.num_negatives=64")
    if "k_means_iterations" in model:
        overrides.append("--model.init_args.num_prototypes=[4,3]")
    if model.get("backbone", {}).get("init_args", {}).get("bn_groups", 1) > 4:
        overrides.append("--model.init_args.backbone.init_args.bn_groups=4")
    cli = load(name, *overrides)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert cli.model.step == 2
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
