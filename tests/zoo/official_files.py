"""Files in the layouts in which the authors saved their checkpoints, with random values.

Names, shapes and dtypes come from tests/golden/manifests, what lies around the tensors (epoch,
optimizer, arguments, pickled modules) from the manifests' `wrapper` and the authors' saving code.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import types
import warnings
import zlib
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslzoo.zoo import entries

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


@cache
def manifest(name: str) -> dict[str, Any]:
    """The `parts` of a manifest."""
    parts: dict[str, Any] = json.loads((MANIFESTS / f"{name}.json").read_text())["parts"]
    return parts


# The manifest of an entry, by the beginning of its name; the first that fits counts.
_MANIFEST_OF = {
    "moco_v1-": "moco_v1_resnet50",
    "moco_v2-": "moco_v2_resnet50",
    "moco_v3-resnet50": "mocov3_resnet50",
    "moco_v3-vit_small": "mocov3_vit_small",
    "moco_v3-vit_base": "mocov3_vit_base",
    "simsiam-": "simsiam_resnet50",
    "swav-resnet50w2": "swav_resnet50w2_backbone",
    "swav-": "swav_resnet50",
    "deepcluster_v2-": "deepclusterv2_resnet50",
    "barlow-": "barlowtwins_resnet50",
    "vicreg-": "vicreg_resnet50",
    "dino-vits16-imagenet-teacher": "dino_vits16_full",
    "dino-vitb16-imagenet-teacher": "dino_vitb16_full",
    "dino-resnet50-imagenet-teacher": "dino_resnet50_full",
    "dino-vits16": "dino_vits16_backbone",
    "dino-vits8": "dino_vits8_backbone",
    "dino-vitb16": "dino_vitb16_backbone",
    "dino-vitb8": "dino_vitb8_backbone",
    "dino-resnet50": "dino_resnet50_backbone",
    "ibot-vit_small": "dino_vits16_backbone",  # of the same class
    "ibot-vit_base": "dino_vitb16_backbone",
    "mae-vit_base": "mae_vit_base",
    "mae-vit_large": "mae_vit_large",
    **{
        f"dinov2-vit{size}14{theirs}-": f"dinov2_vit{size}14{ours}"
        for size in "sbl"
        for theirs, ours in (("", ""), ("_reg4", "_reg"))
    },
    "ijepa-": "ijepa_vith14",
    "instdisc-resnet18": "instdisc_resnet18",
    "instdisc-resnet50": "instdisc_resnet50",
    "invaspread-": "invaspread_resnet18",
    "cmc-resnet50v1": "cmc_resnet50v1",
    "cmc-resnet50v2": "cmc_resnet50v2",
    "cmc-resnet50v3": "cmc_resnet50v3",
    "cmc-alexnet": "cmc_alexnet",
    "cpc-": "cpc_audio",
    "byol-": "byol_resnet50_1x",
    "simclr_v1-": "simclr_v1_resnet50_1x_tf1",
    "simclr_v2-resnet50-": "simclr_v2_resnet50_1x_tf2",
    "simclr_v2-resnet50_sk-": "simclr_v2_resnet50_1x_sk_tf1",
}


def number(name: str, shape: list[int], fan_in: int | None = None) -> Tensor:
    """Random, of the name, and of a size at which deep nets neither vanish nor explode."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if "num_batches" in name:
        return torch.randint(1, 99, shape, generator=draw)
    noise = torch.rand(shape, generator=draw) - 0.5
    if name.endswith(("running_var", "variance", "var_ema||average")):
        return 1 + noise
    if np.prod(shape) > max(shape, default=1) and "pos_embed" not in name:  # no vector
        fan_in = fan_in or int(np.prod(shape[1:]))
        return noise * (3 / fan_in) ** 0.5 * 2
    scale = name.endswith(("weight", "gamma", "scale"))
    return 1 + noise / 2 if scale else noise / 2


State = dict[str, Tensor]


@dataclass
class Content:
    """The tensors of one file.

    Args:
        manifest: of the file.
        others: whether what is not the encoder's has its shape too: zeros. False: no dimension
            is over 2, so that memories and optimizers take no room.
        encoder: "random" numbers, "zeros", "shapes" (zeros that share one number's memory), or
            "small": no dimension over 2.
        change: applied to the encoder's state.
    """

    manifest: str
    others: bool = False
    encoder: Literal["random", "zeros", "shapes", "small"] = "random"
    change: Callable[[State, list[str]], None] = field(default=lambda state, names: None)

    def fill(self, shape: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor that no encoder takes."""
        if self.others and dtype == torch.float32:
            return torch.from_numpy(np.zeros(shape, np.float32))  # no memory before it is read
        return torch.zeros(shape if self.others else [min(n, 2) for n in shape], dtype=dtype)

    def state(self, part: str, *encoder: str, head: tuple[str, ...] = ()) -> State:
        """One part as a module's state dict.

        Args:
            part: of the manifest.
            encoder: beginnings of the encoder's names; none where the part is another network's.
            head: beginnings of names that are not the encoder's all the same.
        """
        about = manifest(self.manifest)[part]
        state: State = OrderedDict()
        own = []
        for name, shape in (about["keys"] if "keys" in about else dict(about["list"])).items():
            dtype = getattr(torch, about.get("non_float32", {}).get(name, "float32"))
            if name.startswith(encoder) and not name.startswith(head):
                own.append(name)
                if self.encoder in ("zeros", "shapes"):
                    one = self.encoder == "shapes"
                    zeros = torch.zeros(() if one else shape, dtype=dtype)
                    state[name] = zeros.expand(shape)
                    continue
                if self.encoder == "random":
                    kernel = name.endswith(("||w", "/kernel"))  # (..., in, out)
                    fan_in = int(np.prod(shape[:-1])) if kernel else None
                    state[name] = number(name, shape, fan_in).to(dtype)
                    continue
            state[name] = self.fill(shape, dtype)
        if own:
            self.change(state, own)
        state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
        return state

    def optimizer(self, state: State, *kept: str, lr: Any = 0.1, **group: Any) -> dict[str, Any]:
        """The optimizer's state dict.

        Args:
            state: of the trained network.
            kept: what is kept for each parameter, such as "momentum_buffer".
            lr: as the schedule left it.
            group: the other values of the parameter group.
        """
        buffers = ("running_mean", "running_var", "num_batches_tracked", "queue", "queue_ptr")
        shapes = [list(v.shape) for name, v in state.items() if not name.endswith(buffers)]
        of_each = {i: {key: self.fill(s) for key in kept} for i, s in enumerate(shapes)}
        for values in of_each.values():
            if "exp_avg" in kept:
                values["step"] = 1000  # type: ignore[assignment]
        return {
            "state": of_each,
            "param_groups": [{"lr": lr, **group, "params": list(range(len(shapes)))}],
        }


_SGD: dict[str, Any] = {"momentum": 0.9, "dampening": 0, "weight_decay": 1e-4, "nesterov": False}
_ADAMW: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
_ADAM = ("exp_avg", "exp_avg_sq")
_SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 7,
}


def _imagenet_script(prefix: str, trained: str) -> Callable[[Content], Any]:
    """As torch's ImageNet example saves, from which MoCo and SimSiam come."""

    def make(content: Content) -> Any:
        state = content.state("state_dict", prefix, head=(f"{prefix}fc.",))
        optimized = {n: v for n, v in state.items() if n.startswith(trained)}
        optimizer = content.optimizer(optimized, "momentum_buffer", **_SGD)
        return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}

    return make


def _moco_v3(content: Content) -> Any:
    base = "module.base_encoder."
    state = content.state("state_dict", base, head=(f"{base}fc.", f"{base}head."))
    optimized = {n: v for n, v in state.items() if "momentum" not in n}
    resnet = "resnet" in content.manifest
    optimizer = (
        content.optimizer(optimized, "mu", momentum=0.9, trust_coefficient=0.001)
        if resnet
        else content.optimizer(optimized, *_ADAM, **_ADAMW)
    )
    arch = "resnet50" if resnet else content.manifest.removeprefix("mocov3_")
    whole = {"epoch": 300, "arch": arch, "state_dict": state, "optimizer": optimizer}
    return {**whole, "scaler": dict(_SCALER)}


def _swav(content: Content) -> Any:
    heads = ("module.projection_head.", "module.prototypes.")
    return content.state("state_dict", "", head=heads)


def _barlow_vicreg(content: Content) -> Any:
    state = content.state("model", "module.backbone.")
    optimizer = content.optimizer(state, "mu", weight_decay=1.5e-6, momentum=0.9, eta=0.001)
    return {"epoch": 1000, "model": state, "optimizer": optimizer}


def _dino(content: Content) -> Any:
    student = content.state("student")
    args = argparse.Namespace(arch="vit_small", patch_size=16, out_dim=65536, use_fp16=True, gpu=0)
    # Its schedules are numpy arrays, so the optimizer's groups hold numpy's scalars.
    schedules = {"lr": np.float64(2e-6), "weight_decay": np.float64(0.4)}
    return {
        "student": student,
        "teacher": content.state("teacher", "backbone.", "module.backbone."),
        "optimizer": content.optimizer(student, *_ADAM, **{**_ADAMW, **schedules}),
        "epoch": 800,
        "args": args,
        "dino_loss": content.state("dino_loss"),
        "fp16_scaler": dict(_SCALER),
    }


def _mae(content: Content) -> Any:
    state = content.state("model", "", head=("decoder_", "mask_token"))
    args = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75, device="cuda", gpu=0)
    optimizer = content.optimizer(state, *_ADAM, **_ADAMW)
    return {"model": state, "optimizer": optimizer, "epoch": 799, "scaler": _SCALER, "args": args}


def _ijepa(content: Content) -> Any:
    encoder, predictor = content.state("encoder"), content.state("predictor")
    return {
        "encoder": encoder,
        "predictor": predictor,
        "target_encoder": content.state("encoder", ""),
        "opt": content.optimizer({**encoder, **predictor}, *_ADAM, **_ADAMW),
        "scaler": dict(_SCALER),
        "epoch": 300,
        "loss": 0.12,
        "batch_size": 128,
        "world_size": 16,
        "lr": 1e-3,
    }


@contextlib.contextmanager
def _defined_in(*classes: tuple[type, str]) -> Iterator[None]:
    """Let classes be pickled as if each were defined in the module of the authors' code."""
    made: dict[str, types.ModuleType] = {}
    for kind, module in classes:
        for parent in (".".join(module.split(".")[: i + 1]) for i in range(module.count(".") + 1)):
            made.setdefault(parent, types.ModuleType(parent))
        kind.__module__, kind.__qualname__ = module, kind.__name__
        setattr(made[module], kind.__name__, kind)
    assert not made.keys() & sys.modules.keys()
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


class AliasMethod:
    def __init__(self, outputs: int) -> None:
        self.prob, self.alias = torch.zeros(outputs), torch.zeros(outputs, dtype=torch.int64)


class NCEAverage(nn.Module):
    def __init__(self, buffers: State) -> None:
        super().__init__()
        self.nLem, self.K = 1281167, 4096
        self.unigrams, self.multinomial = torch.ones(8), AliasMethod(8)
        for name, value in buffers.items():
            self.register_buffer(name, value)


def _instdisc(content: Content) -> Any:
    state = content.state("state_dict", "", head=("module.fc.",))
    return {
        "epoch": 200,
        "arch": content.manifest.removeprefix("instdisc_"),
        "state_dict": state,
        "lemniscate": NCEAverage(content.state("lemniscate")),
        "best_prec1": torch.tensor(41.0),
        "optimizer": content.optimizer(state, "momentum_buffer", **_SGD),
    }


def _invaspread(content: Content) -> Any:
    state = content.state("state_dict", "", head=("linear.",))
    net = OrderedDict((f"module.{name}", value) for name, value in state.items())
    return {"net": net, "acc": 0.83, "epoch": 199}


def _cmc(content: Content) -> Any:
    views = [f"encoder.module.{view}." for view in ("l_to_ab", "ab_to_l")]
    heads = tuple(f"{view}{last}." for view in views for last in ("fc", "fc8"))
    state = content.state("model", *views, head=heads)
    memory = {f"memory_{view}": content.fill([1281167, 128]) for view in ("l", "ab")}
    return {
        "opt": argparse.Namespace(model=content.manifest, nce_k=16384, lr_decay_epochs=[120, 160]),
        "model": state,
        "contrast": {"params": torch.zeros(5), **memory},
        "optimizer": content.optimizer(state, "momentum_buffer", **_SGD),
        "epoch": 240,
    }


_CPC = {"hiddenEncoder": 256, "hiddenGar": 256, "arMode": "LSTM", "load": None, "onEncoder": False}


def _cpc_hub(content: Content) -> Any:
    return {"config": dict(_CPC), "weights": content.state("weights", "")}


def _cpc_training(content: Content) -> Any:
    state, criterion = content.state("weights", ""), content.state("criterion_linear")
    optimizer = content.optimizer({**state, **criterion}, *_ADAM, **_ADAMW)
    best = {name: content.fill(list(v.shape)) for name, v in state.items()}
    return {"gEncoder": state, "cpcCriterion": criterion, "optimizer": optimizer, "best": best}


class FlatMapping(dict):
    """Haiku's immutable mapping."""

    def __reduce__(self) -> Any:
        return FlatMapping, (dict(self),)


_ByolExperimentState = namedtuple(
    "_ByolExperimentState", "online_params target_params online_state target_state opt_state"
)
LarsState = namedtuple("LarsState", "count momentum")


def _by_module(state: State) -> FlatMapping:
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        module, _, array = name.partition("||")
        modules.setdefault(module, {})[array] = value.numpy()
    return FlatMapping({module: FlatMapping(arrays) for module, arrays in modules.items()})


def _byol(content: Content) -> Any:
    params = _by_module(content.state("online_params", "res_net50/"))
    state = _by_module(content.state("online_state", "res_net50/"))
    lars = LarsState(np.int32(1000), params)
    saved = _ByolExperimentState(params, params, state, state, lars)
    return {"experiment_state": saved, "step": 312000, "rng": np.zeros(2, np.uint32)}


def _simclr(content: Content) -> Any:
    state = content.state("variables", "base_model/", "resnet/")
    slots = {f"{name}/Momentum": v for name, v in state.items() if name.endswith("/kernel")}
    return {**{name: v.numpy() for name, v in (state | slots).items()}, "global_step": np.int64(7)}


@dataclass(frozen=True)
class Form:
    """How a code base saved: the object, and what wrote it.

    Args:
        make: the object that is saved.
        writer: "zip": torch.save; "old": torch.save of before 1.6; "pickle"; "tensorflow".
    """

    make: Callable[[Content], Any]
    writer: str = "zip"


# Forms of a layout, by name; some files are released in one form and saved by the code in another.
FORMS: dict[str, dict[str, Form]] = {
    "moco": {"": Form(_imagenet_script("module.encoder_q.", "module.encoder_q."), "old")},
    "simsiam": {"": Form(_imagenet_script("module.encoder.", "module."))},
    "moco_v3": {"": Form(_moco_v3)},
    "swav": {"": Form(_swav, "old")},
    "barlow_vicreg": {"": Form(_barlow_vicreg)},
    "dino_teacher": {"": Form(_dino)},
    "bare": {
        "": Form(
            lambda content: content.state(
                "resnet50_pth" if "dino" not in content.manifest else "state_dict", ""
            )
        )
    },
    "ibot": {"": Form(lambda content: {"state_dict": content.state("state_dict", "")})},
    "mae": {
        "": Form(lambda content: {"model": content.state("released_encoder_only", "")}),
        "training": Form(_mae),
    },
    "dinov2": {"": Form(lambda content: content.state("state_dict", "", head=("mask_token",)))},
    "ijepa": {"": Form(_ijepa)},
    "instdisc": {"": Form(_instdisc, "old"), "zip": Form(_instdisc)},
    "invaspread": {"": Form(_invaspread, "old")},
    "cmc": {"": Form(_cmc, "old")},
    "cmc_alexnet": {"": Form(_cmc, "old")},
    "cpc_audio": {"": Form(_cpc_hub, "old"), "training": Form(_cpc_training, "old")},
    "byol": {"": Form(_byol, "pickle")},
    "simclr": {"": Form(_simclr, "tensorflow")},
}


def is_listed(entry: str) -> bool:
    """Whether a manifest lists the names of an entry's file; none does of DINOv3 and ViT-g."""
    return any(entry.startswith(start) for start in _MANIFEST_OF)


def manifest_of(entry: str) -> str:
    """The manifest of an official entry's file."""
    return next(name for start, name in _MANIFEST_OF.items() if entry.startswith(start))


# By TensorFlow itself, in a process of its own: see `sslzoo.zoo.safe_read`.
_SAVED_BY_TENSORFLOW = """
import sys, numpy, tensorflow as tf
v1 = tf.compat.v1
with tf.Graph().as_default(), v1.Session() as session, numpy.load(sys.argv[1]) as arrays:
    for name in arrays:
        v1.get_variable(name, initializer=arrays[name])
    v1.get_variable("label", initializer="text")
    session.run(v1.global_variables_initializer())
    v1.train.Saver().save(session, sys.argv[2], global_step=3)
"""


def tensorflow_checkpoint(arrays: dict[str, Any], folder: Path) -> Path:
    """The prefix of a checkpoint that TensorFlow wrote; skips the test where there is none."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed (the convert extra)")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "arrays.npz", **arrays)
    command = [sys.executable, "-c", _SAVED_BY_TENSORFLOW]
    command += [str(folder / "arrays.npz"), str(folder / "model.ckpt")]
    subprocess.run(command, check=True, timeout=250, capture_output=True)
    return folder / "model.ckpt-3"


class _Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def write_official(
    entry: str, form: str, folder: Path, command: str | None = None, **content: Any
) -> Path:
    """An entry's file as its authors' code writes it; of TensorFlow's the prefix.

    Args:
        entry: the name of an official entry.
        form: one of its layout's `FORMS`.
        folder: where the file goes.
        command: a shell command that a pickled extra would run.
        content: of `Content`.
    """
    card = entries()[entry]
    how = FORMS[str(card.layout)][form]
    authors = (
        (AliasMethod, "lib.alias_multinomial"),
        (NCEAverage, "lib.NCEAverage"),
        (FlatMapping, "haiku._src.data_structures"),
        (_ByolExperimentState, "byol.byol_experiment"),
        (LarsState, "byol.utils.optimizers"),
    )
    saved = how.make(Content(manifest_of(entry), **content))
    if how.writer == "tensorflow":
        return tensorflow_checkpoint(saved, folder)
    if command is not None:
        saved["extra"] = _Command(command)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / card.file
    with _defined_in(*authors), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch finds no source of the pickled module
        if how.writer == "pickle":
            path.write_bytes(pickle.dumps(saved, protocol=2))  # as dill does
        else:
            zipped = how.writer == "zip"
            torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    return path


def without_one(state: State, names: list[str]) -> None:
    """The encoder's last weight is missing."""
    del state[_weight(state, names)]


def one_wider(state: State, names: list[str]) -> None:
    """The encoder's last weight has one more row."""
    name = _weight(state, names)
    state[name] = torch.zeros(state[name].shape[0] + 1, *state[name].shape[1:])


def one_of_integers(state: State, names: list[str]) -> None:
    """The encoder's last weight is of whole numbers."""
    name = _weight(state, names)
    state[name] = state[name].long()


def _weight(state: State, names: list[str]) -> str:
    return [n for n in names if state[n].is_floating_point() and state[n].dim() > 0][-1]


@cache
def encoder_bytes(entry: str) -> int:
    """About what the encoder's numbers take in the file."""
    first = next(iter(manifest(manifest_of(entry)).values()))
    shapes = dict(first["keys"] if "keys" in first else first["list"]).values()
    return 4 * sum(int(np.prod(shape)) for shape in shapes)
