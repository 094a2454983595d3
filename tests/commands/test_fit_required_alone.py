"""Every method from its required arguments alone: fit, load, enter the zoo.

A method's config is the smallest shipped one that names it, less every argument of the model that
has a default, but for the optimizer, without which nothing is fitted.
"""

from __future__ import annotations

import copy
import functools
import inspect
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import yaml
from PIL import Image

import sslzoo.methods
from sslzoo.commands import units
from sslzoo.commands.configs import find_config, known_configs
from sslzoo.commands.fit import run
from sslzoo.methods import WMSE, ImageCPC, SSLMethod
from sslzoo.zoo.save import add_run
from tests.data.audio.test_datamodule import digits
from tests.data.text.test_datamodule import sentences
from tests.toys import every_method

SMALL = ("folder_small", "arrays_small", "stsb_small")
# What must fit 60 images, 12 a batch.
SIZES = {"bank_size": 60, "num_prototypes": [4, 3, 2], "sub_batch_size": 12}
SIZES["unit_rate"] = 100.0  # of MFCC
OWN = {"DeepClusterV2": ("num_prototypes",)}  # 3000 clusters want as many samples
OWN["CMC"] = ("bank_size",)  # its default memory has a row per image
OWN |= {"WMSE": ("sub_batch_size",), "BYOLA": ("shape",), "HuBERT": ("unit_rate",)}
OWN |= {"Data2Vec": ("top_layers",), "SimMIM": ("mask_unit",), "VICRegL": ("num_matches",)}


@functools.cache
def small_configs() -> dict[str, dict[str, Any]]:
    """The first small shipped config of each method."""
    found: dict[str, dict[str, Any]] = {}
    for name in known_configs():
        if name.partition("/")[2].startswith(SMALL):
            config = yaml.safe_load(Path(find_config(name)).read_text())
            found.setdefault(config["model"]["class_path"].rpartition(".")[2], config)
    return found


def required(cls: type[SSLMethod]) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]


def minimal(cls: type[SSLMethod], root: Path) -> dict[str, Any]:
    """The config of a run of two steps on data of its kind under `root`."""
    config = copy.deepcopy(small_configs()[cls.__name__])
    given, own = config["model"]["init_args"], OWN.get(cls.__name__, ())
    kept = {name: SIZES.get(name, given[name]) for name in (*required(cls), *own)}
    if cls is ImageCPC:  # one direction and five steps need one context and seven rows of patches
        kept["contexts"] = kept["contexts"][:1]
        kept["backbone"]["init_args"]["stride"] = 4
    if cls is WMSE:  # a sub-batch must be larger than the embeddings are wide
        kept["projector"]["init_args"]["sizes"] = [256, 16, 4]
    config["model"]["init_args"] = {**kept, "optimizer": given["optimizer"]}
    kind = config["data"]["class_path"].rpartition(".")[2]
    data = {"root": str(root / kind), "batch_size": 12 if kind == "ImageFolder" else 4}
    config["data"]["init_args"] |= data
    return config | {
        "trainer": {
            "max_epochs": 1,
            "limit_train_batches": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"save_last": True, "every_n_train_steps": 1},
                }
            ],
        }
    }


@pytest.fixture(scope="module")
def root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data for each data module of the small configs."""
    root = tmp_path_factory.mktemp("data")
    for path in folder.rglob("*.png"):
        large = root / "ImageFolder" / path.relative_to(folder)
        large.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((32, 32)).save(large)  # the size that the configs train at
    for path in (root / "ImageFolder").rglob("*.png"):
        pair = root / "ImageTextFolder" / path.relative_to(root / "ImageFolder")
        pair.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, pair)
        pair.with_suffix(".txt").write_text(f"a {path.parent.name} image of number {path.stem}\n")
    speech, shortest = root / "AudioFolder", 5200
    digits(speech, tuple(range(shortest, shortest + 800, 100)))
    target = str(speech / "layer3.units.npz")  # the name in HuBERT's first recipe
    units.main([str(speech), "--to", target, "--rate=8000", "--num_units=100", "--fraction=1"])
    arrays, text = root / "SequenceArrays", root / "STSB"
    arrays.mkdir()
    text.mkdir()
    values = np.random.default_rng(0).standard_normal((12, 80, 3)).astype(np.float32)
    for part in ("train", "val"):
        np.savez(arrays / f"{part}.npz", values=values, label=np.arange(12) % 2)
    some = sentences()
    lines = [f"{a},{some[i - 1]},{i % 6}" for i, a in enumerate(some)]
    for part in ("train", "dev", "test"):
        (text / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each method leaves its run and its entry, for a process of their own."""
    return tmp_path_factory.mktemp("made")


def command(*args: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a run tells a user; a refusal is an error
        run([str(arg) for arg in args])


# One of each kind of data, network, memory and teacher; the others before a release.
CHOSEN = ("CLEAR", "CPC", "InstDisc", "SimCLR")


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, marks=() if cls.__name__ in CHOSEN else pytest.mark.slow)
        for cls in every_method()
    ],
    ids=lambda cls: cls.__name__,
)
def test_fits_and_enters_the_zoo(cls: type[SSLMethod], root: Path, made: Path) -> None:
    name = cls.__name__
    folder = made / name
    folder.mkdir()
    (folder / "given.yaml").write_text(yaml.safe_dump(minimal(cls, root)))
    out = f"--trainer.default_root_dir={folder}"
    command("fit", "--config", folder / "given.yaml", out)
    first = folder / "version_0"
    saved, last = first / "config.yaml", first / "checkpoints" / "last.ckpt"
    if name in ("SimCLR", "CPC", "CLEAR"):  # one for each kind of data
        command("fit", "--config", saved, f"--ckpt_path={last}", "--trainer.max_epochs=2", out)
        assert not (folder / "version_1").exists(), "a resumed run goes on in its directory"
        command("validate", "--config", saved, f"--ckpt_path={last}", out)
    card = add_run(first, name, "a test", "CC0-1.0", made)
    assert len(card.features) == 4


def loaded(made: Path) -> list[str]:
    """The names of the methods whose checkpoints load as they were saved."""
    folders = sorted(path for path in made.iterdir() if path.is_dir())
    for folder in folders:
        checkpoint = max(folder.glob("version_*/checkpoints/last.ckpt"))
        cls = getattr(sslzoo.methods, folder.name)
        method = cls.load_from_checkpoint(checkpoint, weights_only=True)
        saved = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert all(torch.equal(value, saved[name]) for name, value in method.state_dict().items())
        assert method.step in (2, 4), method.step
    return [folder.name for folder in folders]


def test_loads_in_a_fresh_process(made: Path) -> None:
    names = sorted(path.name for path in made.iterdir() if path.is_dir())
    if not names:
        pytest.skip("runs behind the test above")
    with torch.multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(loaded, (made,)) == names
