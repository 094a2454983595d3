"""Converters, on checkpoints made from the layouts of the official classes.

Every name of a manifest is mapped or left out by name and none is missing; and the encoder's
features are those of a torchvision or timm model that holds the same numbers, or, for TensorFlow
and Haiku, of a plain rendering of their graph.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import sslzoo
from sslzoo.backbones import SmallResNet, cifar_resnet, timm_backbone, timm_swin, timm_vit
from sslzoo.trust import undrawn
from sslzoo.zoo import LAYOUTS, convert, entries
from sslzoo.zoo.build import build_backbone, complete
from sslzoo.zoo.safe_read import ByolState, read
from tests.golden import assert_close_to_golden, load
from tests.methods.test_msn import authors
from tests.zoo.official_files import MANIFESTS, Content, manifest, number, tensorflow_checkpoint


class Case(NamedTuple):
    """A manifest, the part of it that holds the encoder, its key in the file, and the entry."""

    manifest: str
    part: str
    key: str  # "": the file is the part itself
    entry: str
    prefix: str = ""  # of the encoder's names, written down here from the manifest's notes


TABLE = """
moco_v1_resnet50,state_dict,state_dict,moco_v1-resnet50-imagenet-200ep,module.encoder_q.
moco_v2_resnet50,state_dict,state_dict,moco_v2-resnet50-imagenet-800ep,module.encoder_q.
mocov3_resnet50,state_dict,state_dict,moco_v3-resnet50-imagenet-300ep,module.base_encoder.
mocov3_vit_small,state_dict,state_dict,moco_v3-vit_small-imagenet-300ep,module.base_encoder.
mocov3_vit_base,state_dict,state_dict,moco_v3-vit_base-imagenet-300ep,module.base_encoder.
simsiam_resnet50,state_dict,state_dict,simsiam-resnet50-imagenet-100ep,module.encoder.
swav_resnet50,state_dict,,swav-resnet50-imagenet-800ep,module.
swav_resnet50w2_backbone,state_dict,,swav-resnet50w2-imagenet-400ep,module.
deepclusterv2_resnet50,state_dict,,deepcluster_v2-resnet50-imagenet-800ep,module.
barlowtwins_resnet50,model,model,barlow-resnet50-imagenet-1000ep-full,module.backbone.
barlowtwins_resnet50,resnet50_pth,,barlow-resnet50-imagenet-1000ep
barlowtwins_resnet50,resnet50_pth,,barlow-resnet50-imagenet-1000ep-bs2048
vicreg_resnet50,model,model,vicreg-resnet50-imagenet-1000ep-full,module.backbone.
vicreg_resnet50,resnet50_pth,,vicreg-resnet50-imagenet-1000ep
dino_resnet50_backbone,state_dict,,dino-resnet50-imagenet
dino_resnet50_full,teacher,teacher,dino-resnet50-imagenet-teacher,module.backbone.
dino_vits16_backbone,state_dict,,dino-vits16-imagenet
dino_vits16_full,teacher,teacher,dino-vits16-imagenet-teacher,backbone.
dino_vitb16_full,teacher,teacher,dino-vitb16-imagenet-teacher,backbone.
dino_vits8_backbone,state_dict,,dino-vits8-imagenet
dino_vitb16_backbone,state_dict,,dino-vitb16-imagenet
dino_vitb8_backbone,state_dict,,dino-vitb8-imagenet
dino_vits16_backbone,state_dict,state_dict,ibot-vit_small-imagenet
mae_vit_base,model,model,mae-vit_base-imagenet
mae_vit_base,released_encoder_only,model,mae-vit_base-imagenet
mae_vit_large,model,model,mae-vit_large-imagenet
dinov2_vits14,state_dict,,dinov2-vits14-lvd142m
dinov2_vits14_reg,state_dict,,dinov2-vits14_reg4-lvd142m
dinov2_vitb14,state_dict,,dinov2-vitb14-lvd142m
dinov2_vitb14_reg,state_dict,,dinov2-vitb14_reg4-lvd142m
dinov2_vitl14,state_dict,,dinov2-vitl14-lvd142m
dinov2_vitl14_reg,state_dict,,dinov2-vitl14_reg4-lvd142m
ijepa_vith14,encoder,target_encoder,ijepa-vit_huge14-imagenet,module.
instdisc_resnet18,state_dict,state_dict,instdisc-resnet18-imagenet,module.
instdisc_resnet50,state_dict,state_dict,instdisc-resnet50-imagenet,module.
instdisc_resnet50,state_dict,state_dict,instdisc-resnet50-imagenet-update,module.
invaspread_resnet18,state_dict,net,invaspread-resnet18-cifar10
cmc_resnet50v1,model,model,cmc-resnet50v1-imagenet
cmc_resnet50v2,model,model,cmc-resnet50v2-imagenet
cmc_resnet50v3,model,model,cmc-resnet50v3-imagenet
cmc_alexnet,model,model,cmc-alexnet-imagenet
cpc_audio,weights,weights,cpc-lstm-librilight60k
cpc_audio,weights,gEncoder,cpc-lstm-librilight60k
simclr_v1_resnet50_1x_tf1,variables,,simclr_v1-resnet50-imagenet
simclr_v1_resnet50_1x_tf2,variables,,simclr_v1-resnet50-imagenet
simclr_v2_resnet50_1x_tf2,variables,,simclr_v2-resnet50-imagenet
simclr_v2_resnet50_1x_sk_tf1,variables,,simclr_v2-resnet50_sk-imagenet
simclr_v2_resnet50_1x_sk_tf2,variables,,simclr_v2-resnet50_sk-imagenet
"""
CASES = [Case(*line.split(",")) for line in TABLE.split()]


# Manifests of which no encoder is made, and released files that are no entry, with the reason.
_THIRD = "written by a third party's converter from the TensorFlow file, which is an entry"
_ZIP = "an archive of SimCLR v1's, whose files no manifest lists"
NO_CASE = {
    "byol_resnet50_1x": "Haiku's: test_byol_equals_haikus_graph_and_not_torchvisions",
    "simclr_v2_r50_1x_sk0_unofficial_torch": _THIRD,
    "simclr_v2_r50_1x_sk1_unofficial_torch": _THIRD,
}
NO_ENTRY = {
    "https://storage.googleapis.com/deepmind-byol/checkpoints/pretrain_res200x2.pkl": (
        "no manifest lists its names"
    ),
    **{
        f"https://storage.cloud.google.com/simclr-gcs/checkpoints/ResNet50_{n}x.zip": _ZIP
        for n in (1, 2, 4)
    },
}


def test_every_manifest_is_a_case_and_every_released_file_an_entry() -> None:
    paths = sorted(MANIFESTS.glob("*.json"))
    cases = {case.manifest for case in CASES}
    assert not cases & NO_CASE.keys()
    assert {path.stem for path in paths} == cases | NO_CASE.keys()
    named = [file for path in paths for file in json.loads(path.read_text())["official_files"]]
    released = {file.split()[0] for file in named if file.startswith("https://")}
    addresses = {url for card in entries().values() for url in card.urls}
    assert not addresses & NO_ENTRY.keys()
    assert released - addresses == NO_ENTRY.keys()


def case_id(case: Case) -> str:
    return f"{case.manifest}-{case.part}-{case.key}-{case.entry}"


def shapes_of(case: Case) -> dict[str, list[int]]:
    part = manifest(case.manifest)[case.part]
    return dict(part["keys"] if "keys" in part else part["list"])


def wrapped(case: Case, state: Any) -> Any:
    return {case.key: state, "epoch": 3, "optimizer": {}} if case.key else state


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_name_is_mapped_or_left_out_and_none_is_missing(case: Case) -> None:
    card = entries()[case.entry]
    shapes = shapes_of(case)
    state: dict[str, Any] = Content(case.manifest, others=True, encoder="shapes").state(case.part)
    if case.part == "variables":
        state = {name: value.numpy() for name, value in state.items()}
    kept, dropped = convert(wrapped(case, state), str(card.layout))
    assert len(kept) + len(dropped) == len(shapes)
    assert set(dropped) < set(shapes)
    assert len(set(dropped)) == len(dropped)
    with undrawn(), torch.device("meta"):
        encoder = build_backbone(card.backbone)
    wanted = {name: value.shape for name, value in encoder.state_dict().items()}
    counts = {name for name in wanted if name.endswith("num_batches_tracked")}  # made where missing
    got = {name: value.shape for name, value in kept.items()}
    assert got.items() <= wanted.items() <= {**got, **dict.fromkeys(counts, ())}.items()
    heads = ("fc", "head", "predictor", "queue", "_k.", "momentum", "projector", "prototypes")
    heads += ("projection", "decoder", "mask_token", "linear", "module.bn.")
    assert all(any(part in name for part in heads) for name in dropped)


def test_a_name_that_is_neither_is_an_error() -> None:
    state = {"module.encoder_q.conv1.weight": torch.zeros(1), "module.extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"such as \['module.extra.weight'\]"):
        convert({"state_dict": state}, "moco")
    with pytest.raises(ValueError, match=r"'moco' checkpoint must have 'state_dict', got"):
        convert({"model": state}, "moco")
    with pytest.raises(ValueError, match="must have an encoder in the layout 'moco'"):
        convert({"state_dict": {"module.queue": torch.zeros(1)}}, "moco")
    with pytest.raises(ValueError, match="tensors by name"):
        convert({"state_dict": {"a": 1}}, "moco")


def test_numbers_of_another_kind_and_counts_that_lack_are_errors() -> None:
    net = SmallResNet((8, 16))
    state = net.state_dict()
    whole = state | {"stem.weight": state["stem.weight"].long()}
    counts = [name for name in state if name.endswith("num_batches_tracked")]
    for wrong, said in (
        (
            whole,
            "file does not fit.*stem.weight: torch.int64 for torch.float32",
        ),
        (state | {"stem.weight": state["stem.weight"] * 1j}, "complex64 for torch.float32"),
        (state | {counts[0]: torch.tensor(1.5)}, "float32 for torch.int64"),
    ):
        with pytest.raises(ValueError, match=said):
            complete(wrong, net, "file")
    none = {name: value for name, value in state.items() if name not in counts}
    assert complete(none, net, "file").keys() == state.keys()  # old files have none of them
    some = {name: value for name, value in state.items() if name != counts[0]}
    assert counts[0] not in complete(some, net, "file")


NO_STATES: dict[str, Any] = {
    "tensor": torch.ones(3),
    "list": [1, 2],
    "none": None,
    "text": "x",
    "array": np.ones(3),
    "numbers": {"a": 1},
    "numbered": {1: torch.ones(2)},
    "deeper": {"backbone": {"conv1.weight": torch.ones(2)}},
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("kind", NO_STATES)
def test_what_is_no_state_is_an_error(kind: str, layout: str) -> None:
    held = NO_STATES[kind]
    for key in reversed(LAYOUTS[layout].part):
        held = {key.partition("|")[0]: held}
    for saved in (held, NO_STATES[kind]):
        with pytest.raises(ValueError, match=r"must "):
            convert(saved, layout)


def test_what_is_no_state_is_an_error_without_a_layout_too(tmp_path: Path) -> None:
    for held in (torch.ones(3), [torch.ones(3)], {"model": {"a": torch.ones(3)}}):
        torch.save(held, tmp_path / "net.pt")
        with pytest.raises(ValueError, match=r"must have tensors by name|does not fit"):
            sslzoo.load(str(tmp_path / "net.pt"), SmallResNet((8, 16)))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (None, "arrays by module and name"),
        ({"res_net50/~/initial_conv": np.ones(3)}, "arrays by module and name"),
        ({"res_net50/~/initial_conv": {"v": np.ones(3)}}, "got 'v'"),
        ({"res_net50/~/initial_conv": {"w": np.ones(3)}}, r"must be \(H, W, in, out\), got \(3,\)"),
        ({"res_net50/~/initial_batchnorm": {"scale": {}}}, "got a dict"),
        ({"res_net50/~/block_group_0/~/block_0/~/conv": {}}, "got 'res_net50/~/block"),
    ],
)
def test_what_is_no_state_of_byols_is_an_error(params: Any, said: str) -> None:
    state = ByolState(params, {}, {}, {}, None)
    with pytest.raises(ValueError, match=said):
        convert({"experiment_state": state}, "byol")


def test_variables_of_other_ranks_are_no_simclr() -> None:
    for value in (np.ones(3), "text"):
        with pytest.raises(ValueError, match=r"must be .*, got"):
            convert({"base_model/conv2d/kernel": value}, "simclr")


# -- features, with distinct random numbers for every name


def random_state(shapes: dict[str, list[int]], keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Numbers for the names that are kept; the others' take no memory."""
    return {
        name: number(name, shape) if keep(name) else torch.zeros(shape)
        for name, shape in shapes.items()
    }


def empty(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The network, without draws: a state follows that fills it."""
    with undrawn():
        return make(*args, **options)


def features(net: nn.Module, channels: int = 3, size: int = 64) -> Tensor:
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net.eval()(x)


def assert_same(actual: Tensor, wanted: Tensor) -> None:
    assert wanted.isfinite().all()
    assert wanted.std(0).max() > 1e-4, "the features depend on the picture"
    error = (actual - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4, error


RESNETS = [c for c in CASES if c.part != "variables" and "resnet50" in c.entry and c.prefix]
RESNETS = [c for c in RESNETS if "w2" not in c.manifest]
RESNETS += [c for c in CASES if c.manifest in ("dino_resnet50_backbone", "instdisc_resnet18")]


def one_per(cases: list[Case], key: Callable[[Case], Any]) -> list[Any]:
    """The cases as parameters; all but the first of each key run before a release."""
    seen: set[Any] = set()
    parameters = []
    for case in cases:
        marks = pytest.mark.slow if key(case) in seen else ()
        seen.add(key(case))
        parameters.append(pytest.param(case, marks=marks, id=case_id(case)))
    return parameters


@pytest.mark.parametrize("case", one_per(RESNETS, lambda c: entries()[c.entry].layout))
def test_resnets_equal_torchvisions(case: Case, tmp_path: Path) -> None:
    shapes = shapes_of(case)
    # Large heads and memories are left out by a name that the layout knows: two of each suffice.
    shapes = {n: s for n, s in shapes.items() if np.prod(s) < 5e6}
    state = random_state(shapes, lambda name: name.startswith(case.prefix))
    torch.save(wrapped(case, state), tmp_path / "file.pth")
    card = entries()[case.entry]
    kept, _ = convert(read(tmp_path / "file.pth"), str(card.layout))
    encoder = empty(build_backbone, card.backbone)
    encoder.load_state_dict(complete(kept, encoder, "file"))
    depth = "18" if "18" in case.manifest else "50"
    reference = empty(getattr(torchvision.models, f"resnet{depth}"))
    reference.fc = nn.Identity()
    own = reference.state_dict()
    reference.load_state_dict({name: state[f"{case.prefix}{name}"] for name in own})
    assert_same(features(encoder), features(reference))


VITS: dict[Case, dict[str, int]] = {
    case: dict(zip(("embed_dim", "num_heads", "patch_size"), sizes, strict=True))
    for case in CASES
    for manifest_name, sizes in {
        "mocov3_vit_small": (384, 12, 16),
        "mocov3_vit_base": (768, 12, 16),
        "dino_vits16_full": (384, 6, 16),
        "dino_vitb16_full": (768, 12, 16),
        "dino_vits8_backbone": (384, 6, 8),
        "dino_vitb16_backbone": (768, 12, 16),
        "mae_vit_base": (768, 12, 16),
        "ijepa_vith14": (1280, 16, 14),
    }.items()
    if case.manifest == manifest_name and case.part != "released_encoder_only"
}


@pytest.mark.parametrize("case", one_per(list(VITS), lambda c: entries()[c.entry].layout))
def test_vits_equal_timms(case: Case, tmp_path: Path) -> None:
    """The first two blocks: the others' names are held by the test above."""
    shapes = {
        name: shape
        for name, shape in shapes_of(case).items()
        if not any(f"blocks.{i}." in name for i in range(2, 40)) and np.prod(shape) < 2e7
    }
    state = random_state(shapes, lambda name: name.startswith(case.prefix))
    torch.save(wrapped(case, state), tmp_path / "file.pth")
    card = entries()[case.entry]
    kept, _ = convert(read(tmp_path / "file.pth"), str(card.layout))
    encoder = empty(timm_vit, **card.backbone["init_args"], options={"depth": 2})
    encoder.load_state_dict(kept)
    ijepa = case.manifest.startswith("ijepa")
    pool: Any = {"class_token": False, "global_pool": ""} if ijepa else {}
    reference = VisionTransformer(depth=2, num_classes=0, **pool, **VITS[case])
    own = reference.state_dict()
    reference.load_state_dict({n: state[f"{case.prefix}{n}"] for n in own})
    wanted = features(reference, size=224)
    if ijepa:
        wanted = wanted.mean(1)  # of the patches after the last norm
    assert_same(features(encoder, size=224), wanted)


def test_cmcs_towers_see_their_own_channels() -> None:
    (case,) = (c for c in CASES if c.manifest == "cmc_resnet50v2")
    state = random_state(shapes_of(case), lambda name: True)
    card = entries()[case.entry]
    kept, _ = convert({"model": state}, str(card.layout))
    encoder = empty(build_backbone, card.backbone)
    encoder.load_state_dict(kept)
    towers = []
    for view, channels in (("l_to_ab", 1), ("ab_to_l", 2)):
        net = empty(torchvision.models.resnet50)
        net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        net.fc = nn.Identity()
        net.load_state_dict({n: state[f"encoder.module.{view}.{n}"] for n in net.state_dict()})
        towers.append(net.eval())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = torch.cat([towers[0](x[:, :1]), towers[1](x[:, 1:])], dim=1)
    assert_same(features(encoder), wanted)


def plain_half_alexnet(a: dict[str, Tensor], view: str, x: Tensor) -> Tensor:
    def normed(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            a[f"{view}.{name}.1.{of}"].reshape(-1, *[1] * (x.dim() - 2))
            for of in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()

    for block, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)], 1):
        name = f"conv_block_{block}"
        x = normed(F.conv2d(x, a[f"{view}.{name}.0.weight"], None, stride, padding), name)
        if block in (1, 2, 5):
            x = F.max_pool2d(x, 3, 2)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = normed(F.linear(x, a[f"{view}.{name}.0.weight"], a[f"{view}.{name}.0.bias"]), name)
    return x


def test_cmcs_alexnet_equals_a_plain_one() -> None:
    (case,) = (c for c in CASES if c.manifest == "cmc_alexnet")
    state = random_state(shapes_of(case), lambda name: True)
    card = entries()[case.entry]
    kept, dropped = convert(wrapped(case, state), str(card.layout))
    assert {name.split(".")[3] for name in dropped} == {"fc8"}
    encoder = empty(build_backbone, card.backbone)
    encoder.load_state_dict(kept)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    views = {"encoder.module.l_to_ab": x[:, :1], "encoder.module.ab_to_l": x[:, 1:]}
    wanted = torch.cat([plain_half_alexnet(state, v, part) for v, part in views.items()], 1)
    assert_same(features(encoder, size=224), wanted)


# -- sound


def plain_cpc_audio(a: dict[str, Tensor], x: Tensor) -> Tensor:
    """Contexts (B, T, 256) of waveforms (B, L)."""
    x = x[:, None]
    for i, (stride, padding) in enumerate([(5, 3), (4, 2), (2, 1), (2, 1), (2, 1)]):
        x = F.conv1d(x, a[f"gEncoder.conv{i}.weight"], a[f"gEncoder.conv{i}.bias"], stride, padding)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        x = (x * a[f"gEncoder.batchNorm{i}.weight"] + a[f"gEncoder.batchNorm{i}.bias"]).relu()
    lstm = nn.LSTM(256, 256, batch_first=True)
    lstm.load_state_dict({n: a[f"gAR.baseNet.{n}"] for n in lstm.state_dict()})
    with torch.no_grad():
        return lstm(x.transpose(1, 2))[0]


@pytest.mark.parametrize("case", [c for c in CASES if c.manifest == "cpc_audio"], ids=case_id)
def test_cpc_audio_equals_a_plain_one(case: Case, tmp_path: Path) -> None:
    state = random_state(shapes_of(case), lambda name: True)
    config = {"hiddenGar": 256, "arMode": "LSTM", "load": None, "samplingType": "samespeaker"}
    criterion = {"wPrediction.predictors.0.weight": torch.zeros(256, 256)}
    more = {"config": config} if case.key == "weights" else {"cpcCriterion": criterion}
    torch.save({**wrapped(case, state), **more}, tmp_path / "file.pt")
    encoder: Any = sslzoo.load(case.entry, file=str(tmp_path / "file.pt"))
    x = torch.rand(2, 3200, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert encoder.preprocess.rate == 16000
    assert torch.equal(encoder.preprocess(x), x)
    wanted = plain_cpc_audio(state, x)
    with torch.no_grad():
        assert_same(encoder.forward_frames(x).values, wanted)
        assert_same(encoder(x), wanted[:, -1])


def test_invaspreads_resnet_equals_timms_with_a_small_stem() -> None:
    (case,) = (c for c in CASES if c.manifest == "invaspread_resnet18")
    state = random_state(shapes_of(case), lambda name: True)
    kept, _ = convert({"net": {f"module.{n}": v for n, v in state.items()}}, "invaspread")
    encoder = empty(build_backbone, entries()[case.entry].backbone)
    encoder.load_state_dict(kept)
    net = empty(torchvision.models.resnet18)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    net.fc = nn.Identity()
    their = {n: n.replace("downsample", "shortcut") for n in net.state_dict()}
    names = their if any("shortcut" in n for n in state) else {n: n for n in their}
    net.load_state_dict({n: state[names[n]] for n in net.state_dict()})
    assert_same(features(encoder, size=32), features(net, size=32))


# -- TensorFlow: the graph by the order of its variables


def tf_arrays(case: Case) -> dict[str, np.ndarray]:
    """Kernels are (H, W, in, out)."""
    return {
        name: number(name, shape, int(np.prod(shape[:-1]))).numpy()
        for name, shape in shapes_of(case).items()
    }


class TFGraph:
    """SimCLR's ResNet-50 in eval mode, taking each kind of variable in the order of creation."""

    def __init__(self, arrays: dict[str, np.ndarray], sk: bool):
        base = {n: v for n, v in arrays.items() if n.startswith(("base_model/", "resnet/"))}
        kinds = ("kernel", "gamma", "beta", "moving_mean", "moving_variance")
        self.queues = {k: iter([v for n, v in base.items() if n.endswith(f"/{k}")]) for k in kinds}
        self.sk = sk

    def conv(self, x: Tensor, stride: int = 1) -> Tensor:
        kernel = torch.tensor(next(self.queues["kernel"])).permute(3, 2, 0, 1)
        edge = (kernel.shape[-1] - 1) // 2
        return F.conv2d(F.pad(x, [edge] * 4), kernel, stride=stride)

    def norm(self, x: Tensor) -> Tensor:
        gamma, beta, mean, var = (
            torch.tensor(next(self.queues[k]))[:, None, None]
            for k in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) * (var + 1e-5).rsqrt() * gamma + beta

    def shortcut(self, x: Tensor, stride: int) -> Tensor:
        if self.sk:
            x = F.pad(x, (0, 1, 0, 1))
            ones = F.avg_pool2d(F.pad(torch.ones_like(x[:, :, :-1, :-1]), (0, 1, 0, 1)), 2, stride)
            pooled = F.avg_pool2d(x, 2, stride)
            x, stride = pooled / ones if stride == 1 else pooled, 1
        return self.norm(self.conv(x, stride))

    def middle(self, x: Tensor, stride: int) -> Tensor:
        x = self.norm(self.conv(x, stride)).relu()
        if not self.sk:
            return x
        a, b = x.chunk(2, 1)
        mix = self.norm(self.conv((a + b).mean((2, 3), keepdim=True))).relu()
        first, second = self.conv(mix).chunk(2, 1)
        share = torch.stack([first, second]).softmax(0)
        return a * share[0] + b * share[1]

    def __call__(self, x: Tensor) -> Tensor:
        for stride in (2, 1, 1) if self.sk else (2,):
            x = self.norm(self.conv(x, stride)).relu()
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                side = self.shortcut(x, stride) if i == 0 else x
                y = self.middle(self.norm(self.conv(x)).relu(), stride)
                x = (self.norm(self.conv(y)) + side).relu()
        assert all(next(queue, None) is None for queue in self.queues.values())
        return x.mean((2, 3))


SIMCLRS = [c for c in CASES if c.part == "variables"]


@pytest.mark.parametrize("case", one_per(SIMCLRS, lambda c: ("v1" in c.entry, "_sk" in c.entry)))
def test_simclr_equals_tensorflows_graph(case: Case) -> None:
    arrays = tf_arrays(case)
    card = entries()[case.entry]
    more = {"global_step": np.int64(7), f"{next(iter(arrays))}/Momentum": np.zeros(1)}
    kept, dropped = convert({**arrays, **more}, str(card.layout))
    assert {"global_step"} < set(dropped)
    encoder = empty(build_backbone, card.backbone)
    encoder.load_state_dict(complete(kept, encoder, "file"))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert_same(features(encoder), TFGraph(arrays, "_sk_" in case.manifest)(x))


def test_a_checkpoint_that_tensorflow_wrote_loads(tmp_path: Path) -> None:
    (case,) = (c for c in CASES if c.manifest == "simclr_v1_resnet50_1x_tf1")
    arrays = {**tf_arrays(case), "global_step": np.int64(7)}
    prefix = tensorflow_checkpoint(arrays, tmp_path)
    saved = read(prefix)
    assert saved.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(saved[name], value)
    encoder = sslzoo.load(case.entry, file=str(prefix))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert_same(features(encoder), TFGraph(tf_arrays(case), sk=False)(x))


def test_a_damaged_tensorflow_checkpoint_is_refused(tmp_path: Path) -> None:
    prefix = tensorflow_checkpoint({"base_model/conv2d/kernel": np.ones((3, 3, 2, 4))}, tmp_path)
    (data,) = tmp_path.glob("model.ckpt-3.data-*")
    data.write_bytes(data.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"not a valid TensorFlow checkpoint: .*Error"):
        read(prefix)


def test_without_tensorflow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / "model.ckpt-3.index").write_bytes(b"")
    with pytest.raises(ImportError, match=r"sslzoo\[convert\]"):
        read(tmp_path / "model.ckpt-3")


# -- Haiku


def haiku_arrays() -> tuple[dict[str, Tensor], Any]:
    parts = manifest("byol_resnet50_1x")
    flat, nested = {}, []
    for part in ("online_params", "online_state"):
        modules: dict[str, dict[str, np.ndarray]] = {}
        for name, shape in parts[part]["keys"].items():
            fan_in = int(np.prod(shape[:-1])) if name.endswith("||w") else None
            flat[name] = number(name, shape, fan_in)
            module, _, array = name.partition("||")
            modules.setdefault(module, {})[array] = flat[name].numpy()
        nested.append(modules)
    return flat, ByolState(nested[0], {}, nested[1], {}, None)


def same_padding(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME: the right and the bottom get the larger half."""
    size = x.shape[-1]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return F.pad(x, [total // 2, total - total // 2] * 2, value=value)


def haiku_resnet50(a: dict[str, Tensor], x: Tensor) -> Tensor:
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = a[f"{name}||w"].permute(3, 2, 0, 1)
        return F.conv2d(same_padding(x, kernel.shape[-1], stride), kernel, stride=stride)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, offset = (
            a[f"{name}{end}"].reshape(-1, 1, 1)
            for end in ("/~/mean_ema||average", "/~/var_ema||average", "||scale", "||offset")
        )
        return (x - mean) * (var + 1e-5).rsqrt() * scale + offset

    root = "res_net50/~/"
    x = norm(conv(x, f"{root}initial_conv", 2), f"{root}initial_batchnorm").relu()
    x = F.max_pool2d(same_padding(x, 3, 2, -torch.inf), 3, 2)
    for group, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            at, stride = f"{root}block_group_{group}/~/block_{block}/~/", 2 if group else 1
            stride, side = (stride, x) if block == 0 else (1, x)
            if block == 0:
                side = norm(conv(x, f"{at}shortcut_conv", stride), f"{at}shortcut_batchnorm")
            y = norm(conv(x, f"{at}conv_0"), f"{at}batchnorm_0").relu()
            y = norm(conv(y, f"{at}conv_1", stride), f"{at}batchnorm_1").relu()
            x = (norm(conv(y, f"{at}conv_2"), f"{at}batchnorm_2") + side).relu()
    return x.mean((2, 3))


def test_byol_equals_haikus_graph_and_not_torchvisions() -> None:
    flat, state = haiku_arrays()
    kept, dropped = convert({"experiment_state": state, "step": 7}, "byol")
    assert len(kept) + len(dropped) == len(flat)
    assert set(dropped) < set(flat)
    unknown = {n for n in dropped if n.startswith("res_net") and "||average" in n}
    assert not unknown
    encoder = empty(build_backbone, entries()["byol-resnet50-imagenet-1000ep"].backbone)
    encoder.load_state_dict(complete(kept, encoder, "file"))
    for size in (64, 65):
        x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        assert_same(features(encoder, size=size), haiku_resnet50(flat, x))
    plain = empty(torchvision.models.resnet50)
    plain.fc = nn.Identity()
    plain.load_state_dict(complete(kept, plain, "file"))
    assert (features(plain) - features(encoder)).abs().max() > 1e-3


# Pickled under the names of DeepMind's code, which is not here.
PICKLED_BYOL = """
import pickle, sys, types, numpy as np
from collections import namedtuple

def module(name):
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name]

for part in ("byol", "byol.utils", "haiku", "haiku._src"):
    module(part)
State = namedtuple(
    "_ByolExperimentState",
    "online_params target_params online_state target_state opt_state",
    module="byol.byol_experiment",
)
module("byol.byol_experiment")._ByolExperimentState = State
Lars = namedtuple("LarsState", "count momentum", module="byol.utils.optimizers")
module("byol.utils.optimizers").LarsState = Lars

class Frozen(dict):
    def __init__(self, content=()):
        self._storage = dict(content)
    def __reduce__(self):
        return (Frozen, (self._storage,))
Frozen.__module__, Frozen.__qualname__ = "haiku._src.data_structures", "FlatMapping"
module("haiku._src.data_structures").FlatMapping = Frozen

params = Frozen({"res_net50/~/initial_conv": Frozen({"w": np.arange(6.0).reshape(1, 1, 2, 3)}),
                 "classifier": Frozen({"b": np.zeros(2)})})
ema = Frozen({"average": np.ones((1, 1, 1, 3)), "counter": np.int32(4), "hidden": np.ones(3)})
state = Frozen({"res_net50/~/initial_batchnorm/~/mean_ema": ema})
saved = State(params, params, state, state, Lars(np.int32(1), params))
with open(sys.argv[1], "wb") as file:
    pickle.dump({"experiment_state": saved, "step": 3, "rng": np.zeros(2)}, file, protocol=2)
"""


def test_byols_pickle_is_read_without_its_code(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", PICKLED_BYOL, str(tmp_path / "byol.pkl")], check=True, timeout=120
    )
    kept, dropped = convert(read(tmp_path / "byol.pkl"), "byol")
    assert kept["conv1.weight"].flatten().tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    assert kept["bn1.running_mean"].tolist() == [1.0, 1.0, 1.0]
    assert sorted(name.partition("||")[2] for name in dropped) == ["b", "counter", "hidden"]
    assert "haiku" not in sys.modules


# -- InstDisc: a module object in the file

PICKLED_INSTDISC = """
import sys, types, torch
from torch import nn
for name in ("lib", "lib.NCEAverage", "lib.alias_multinomial"):
    sys.modules[name] = types.ModuleType(name)

class AliasMethod:
    def __init__(self):
        self.prob = torch.ones(3)
AliasMethod.__module__ = "lib.alias_multinomial"
sys.modules["lib.alias_multinomial"].AliasMethod = AliasMethod

class NCEAverage(nn.Module):
    def __init__(self):
        super().__init__()
        self.multinomial = AliasMethod()
        self.register_buffer("params", torch.ones(4))
        self.register_buffer("memory", torch.ones(5, 128))
NCEAverage.__module__ = "lib.NCEAverage"
sys.modules["lib.NCEAverage"].NCEAverage = NCEAverage

state = {"module.conv1.weight": torch.ones(2, 2), "module.fc.bias": torch.ones(3)}
saved = {"epoch": 1, "arch": "resnet18", "state_dict": state, "lemniscate": NCEAverage()}
saved.update(best_prec1=torch.tensor(41.0), optimizer={})
torch.save(saved, sys.argv[1], _use_new_zipfile_serialization=sys.argv[2] == "zip")
"""


@pytest.mark.parametrize("form", ["zip", "old"])
def test_instdiscs_pickled_module_is_left_out_and_not_run(tmp_path: Path, form: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PICKLED_INSTDISC]
    subprocess.run([*command, str(tmp_path / "file.pth"), form], check=True, timeout=120)
    saved = read(tmp_path / "file.pth")
    assert type(saved["lemniscate"]).__name__ == "_PickledModule"
    assert "lib" not in sys.modules
    kept, dropped = convert(saved, "instdisc")
    assert list(kept) == ["conv1.weight"]
    assert dropped == ["module.fc.bias"]


# -- other libraries' runs


def test_runs_of_other_libraries_load(tmp_path: Path) -> None:
    net = torchvision.models.resnet18().eval()
    children = nn.Sequential(*list(net.children())[:-1])
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = children(x).flatten(1)
    own = net.state_dict()
    bare = {n: v for n, v in own.items() if not n.startswith("fc.")}
    head = {"projection_head.layers.0.weight": torch.ones(2), "criterion.queue": torch.ones(3)}

    def under(prefix: str, state: Any) -> dict[str, Tensor]:
        return {**{f"{prefix}{n}": v for n, v in state.items()}, **head}

    momentum = {f"momentum_backbone.{n}": v + 1 for n, v in bare.items()}
    files: dict[str, list[Any]] = {
        "lightly": [
            {"state_dict": {**under("backbone.", children.state_dict()), **momentum}},
            {"state_dict": under("backbone.", own)},
        ],
        "solo_learn": [
            {"state_dict": {**under("backbone.", bare), **momentum, "classifier.bias": x}},
            {"state_dict": under("encoder.", bare)},
        ],
        "stable_pretraining": [
            {"state_dict": under("backbone.", bare)},
            {"state_dict": under("model.backbone.", bare)},
        ],
        "torchvision": [own, OrderedDict(bare), {f"module.{n}": v for n, v in own.items()}],
    }
    for layout, contents in files.items():
        for content in contents:
            saved = {**content, "pytorch-lightning_version": "2"} if "state_dict" in content else {}
            torch.save(saved or content, tmp_path / "run.ckpt")
            path = str(tmp_path / "run.ckpt")
            loaded = sslzoo.load(path, timm_backbone("resnet18"), layout)
            with torch.no_grad():
                torch.testing.assert_close(loaded(x), wanted)


class AuthorsConvNeXt(nn.Module):
    """VICRegL's: no layer scale, and every location is normalized before the mean."""

    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__()
        stem = nn.ModuleList([nn.Conv2d(3, dims[0], 4, 4), nn.LayerNorm(dims[0], 1e-6)])
        self.downsample_layers = nn.ModuleList([stem])
        for wide, narrow in itertools.pairwise(dims):
            down = nn.ModuleList([nn.LayerNorm(wide, 1e-6), nn.Conv2d(wide, narrow, 2, 2)])
            self.downsample_layers.append(down)
        self.stages = nn.ModuleList(
            nn.ModuleList(self.block(dim) for _ in range(depth))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], 1e-6)

    @staticmethod
    def block(dim: int) -> nn.ModuleDict:
        parts = {"dwconv": nn.Conv2d(dim, dim, 7, padding=3, groups=dim)}
        parts |= {"norm": nn.LayerNorm(dim, 1e-6), "pwconv1": nn.Linear(dim, 4 * dim)}
        return nn.ModuleDict(parts | {"pwconv2": nn.Linear(4 * dim, dim)})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            for part in down:
                is_norm = isinstance(part, nn.LayerNorm)
                x = part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if is_norm else part(x)
            for block in stage:
                y = block["norm"](block["dwconv"](x).permute(0, 2, 3, 1))
                y = block["pwconv2"](nn.functional.gelu(block["pwconv1"](y)))
                x = x + y.permute(0, 3, 1, 2)
        x = self.norm(x.permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2), x.mean((1, 2))


def test_vicregls_backbones_and_whole_checkpoints_load(tmp_path: Path) -> None:
    """Random weights under the names of the code; whole checkpoints are DDP's."""
    x = torch.randn(2, 3, 64, 64)
    resnet = timm.create_model("resnet18", num_classes=0).eval()
    convnext = AuthorsConvNeXt((1, 1, 2, 1), (8, 8, 16, 24))
    for weight in convnext.parameters():
        nn.init.normal_(weight, std=0.2)
    entry = entries()["vicregl-convnext_small-imagenet-alpha0.9"]
    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 24)}
    authors = {**entry.backbone["init_args"]["options"], **sizes}
    for net, backbone, layout in (
        (resnet, timm_backbone("resnet18"), "bare"),
        (convnext, timm_backbone("convnext_small", options=authors), entry.layout),
    ):
        own = net.state_dict()
        heads = ("projector.0.weight", "maps_projector.6.weight", "classifier.bias")
        whole = {f"module.backbone.{n}": v for n, v in own.items()}
        whole |= {f"module.{n}": torch.zeros(2) for n in heads}
        for how, content in (
            (layout, own),
            ("vicregl", {"epoch": 300, "model": whole, "optimizer": {}}),
        ):
            torch.save(content, tmp_path / "file.pth")
            loaded: Any = sslzoo.load(str(tmp_path / "file.pth"), backbone, how)
            with torch.no_grad():
                if net is resnet:
                    torch.testing.assert_close(loaded(x), net(x))
                else:
                    maps, pooled = net(x)
                    torch.testing.assert_close(loaded.forward_map(x), maps, atol=1e-3, rtol=1e-3)
                    torch.testing.assert_close(loaded(x), pooled, atol=1e-3, rtol=1e-3)
        _, dropped = convert({"model": whole}, "vicregl")
        assert sorted(dropped) == sorted(f"module.{n}" for n in heads)
        with pytest.raises(ValueError, match=r"such as \['module.extra'\]"):
            convert({"model": {**whole, "module.extra": x}}, "vicregl")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_msns_target_encoder_loads(prefix: str, tmp_path: Path) -> None:
    method, z = authors()
    for parameter in method.teacher_backbone.parameters():
        parameter.mul_(-0.5)
    vit: Any = method.teacher_backbone
    head = {key.removeprefix("param:") for key in z if key.startswith("param:fc.")}
    encoder = {f"{prefix}{n}": v for n, v in method.backbone.state_dict().items()}
    target = {f"{prefix}{n}": v for n, v in vit.state_dict().items()}
    target |= {f"{prefix}{n}": torch.zeros(2) for n in head}
    file = {"encoder": encoder, "target_encoder": target, "prototypes": torch.zeros(8, 6)}
    file |= {"opt": {}, "epoch": 800, "loss": 0.1, "lr": 1e-6, "temperature": 0.25}
    torch.save(file, tmp_path / "file.pth.tar")
    kept, dropped = convert(read(tmp_path / "file.pth.tar"), "msn")
    assert set(dropped) == {f"{prefix}{n}" for n in head}
    assert kept.keys() == vit.state_dict().keys()
    assert all(torch.equal(kept[n], v) for n, v in vit.state_dict().items())


def test_a_cifar_run_of_solo_learn_loads(tmp_path: Path) -> None:
    net = timm.create_model("resnet18", num_classes=0)
    net.conv1 = nn.Conv2d(3, 64, 3, 1, 2, bias=False)
    state = {f"backbone.{n}": v for n, v in net.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "run.ckpt")
    loaded: Any = sslzoo.load(str(tmp_path / "run.ckpt"), cifar_resnet(), "solo_learn")
    assert torch.equal(loaded.conv1.weight, net.conv1.weight)
    with pytest.raises(ValueError, match="does not fit SmallResNet"):
        sslzoo.load(str(tmp_path / "run.ckpt"), SmallResNet((8, 16)), "solo_learn")


def test_every_layout_is_tested() -> None:
    tested = {entries()[case.entry].layout for case in CASES}
    tested |= {"byol", "lightly", "solo_learn", "stable_pretraining", "torchvision"}
    # In test_start_weights.py, and in tests of their own here.
    tested |= {"fairseq_speech", "transformers_speech"}  # in tests/backbones/test_speech.py
    tested |= {"dinov3", "convnext", "clip", "transformers", "efficientnet", "dinov2_teacher"}
    tested |= {"msn", "vicregl", "densecl", "densecl_full", "ressl", "simmim"}
    assert tested == set(LAYOUTS)


@pytest.mark.network
@pytest.mark.parametrize("name", [n for n, c in entries().items() if c.layout and c.urls])
def test_the_released_file_loads(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path))
    encoder: Any = sslzoo.load(name, sha256="any")
    if encoder.card.kind == "waveform":
        out = encoder(torch.rand(2, 20480) * 2 - 1).detach()
    else:
        out = features(encoder, size=encoder.preprocess.size)
    assert out.shape == (2, encoder.num_features)
    assert out.isfinite().all()


# -- DenseCL, ReSSL and SimMIM, of which no manifest lists the names: those of the authors' classes


def shapes_of_net(net: nn.Module) -> dict[str, Tensor]:
    """A net's names and shapes, with zeros."""
    kept = {name: x for name, x in net.state_dict().items() if not name.startswith("fc.")}
    return {name: torch.zeros(x.shape, dtype=x.dtype) for name, x in kept.items()}


def assert_fills(kept: dict[str, Tensor], card_name: str) -> None:
    """Names and shapes of an entry's encoder, none missing."""
    with torch.device("meta"):
        encoder = empty(build_backbone, entries()[card_name].backbone)
    wanted = {name: value.shape for name, value in encoder.state_dict().items()}
    assert {name: value.shape for name, value in kept.items()} == wanted


@pytest.mark.parametrize("depth", [50, 101])
def test_densecls_and_ressls_resnets_have_torchvisions_names(depth: int) -> None:
    """mmcv's ResNet and ReSSL's have them too."""
    with torch.device("meta"):
        net = getattr(torchvision.models, f"resnet{depth}")()
    state, head = shapes_of_net(net), torch.zeros(2)
    entry = f"densecl-resnet{depth}-imagenet-200ep"
    kept, dropped = convert({"state_dict": state, "author": "x"}, "densecl")
    assert_fills(kept, entry)
    assert dropped == []
    of_query = {f"encoder_q.0.{name}": x for name, x in state.items()}
    others = {"queue": head, "queue_ptr": head, "queue2": head, "queue2_ptr": head}
    others |= {"encoder_q.1.mlp.0.weight": head, "encoder_q.1.mlp2.0.weight": head}
    others |= {
        f"{part}.{name}": x for part in ("encoder_k.0", "backbone") for name, x in state.items()
    }
    saved = {"meta": {}, "state_dict": {**of_query, **others}}
    kept, dropped = convert(saved, "densecl_full")
    assert_fills(kept, entry)
    assert set(dropped) == set(others)
    of_query = {f"module.encoder_q.net.{name}": x for name, x in state.items()}
    others = {"module.queue": head, "module.queue_ptr": head, "module.encoder_q.head.x": head}
    others |= {f"module.encoder_k.net.{name}": x for name, x in state.items()}
    kept, dropped = convert({"model": {**of_query, **others}, "epoch": 200}, "ressl")
    assert_fills(kept, entry)
    assert set(dropped) == set(others)
    with pytest.raises(ValueError, match="1 others, such as"):
        convert({"model": {**of_query, "module.extra": head}}, "ressl")


@pytest.mark.parametrize("name", ["swin_base", "vit_base"])
def test_simmims_names_are_mapped_or_left_out(name: str) -> None:
    """The authors' classes, whose names the golden arrays list, merge patches at a stage's end."""
    entry = f"simmim-{name}-imagenet-800ep"
    with torch.device("meta"):
        encoder = empty(build_backbone, entries()[entry].backbone)
    theirs, other = {}, torch.zeros(2)
    for own, value in shapes_of_net(encoder).items():
        match = re.fullmatch(r"layers\.(\d)\.downsample\.(.*)", own)
        full = f"layers.{int(match[1]) - 1}.downsample.{match[2]}" if match else own
        theirs[f"encoder.{full}"] = value
    buffers = ["layers.0.blocks.1.attn_mask", "layers.0.blocks.0.attn.relative_position_index"]
    buffers += ["rel_pos_bias.relative_position_index", "mask_token"]
    left = {f"encoder.{buffer}": other for buffer in buffers} | {"decoder.0.weight": other}
    kept, dropped = convert({"model": {**theirs, **left}, "epoch": 799, "config": None}, "simmim")
    assert_fills(kept, entry)
    assert set(dropped) == set(left)


def test_a_simmim_file_gives_the_authors_features(tmp_path: Path) -> None:
    z = load("simmim/swin.npz")
    hyper = z["meta"]["hyper"]
    params = {k.removeprefix("param:"): v for k, v in z.items() if k.startswith("param:")}
    state = {name: torch.tensor(value).float() for name, value in params.items()}
    torch.save({"model": state, "epoch": 1}, tmp_path / "simmim.pth")
    sizes = {
        "embed_dim": hyper["embed_dim"],
        "depths": hyper["depths"],
        "num_heads": hyper["num_heads"],
    }
    swin: Any = timm_swin(img_size=hyper["img"], window_size=hyper["window"], options=sizes)
    kept, dropped = convert(read(tmp_path / "simmim.pth"), "simmim")
    token = state["encoder.mask_token"]
    assert sorted(dropped) == ["decoder.0.bias", "decoder.0.weight", "encoder.mask_token"]
    swin.load_state_dict({**kept, "mask_token": token})
    mask = torch.tensor(z["mask"]).bool().flatten(1)
    with torch.no_grad():
        found = swin.forward_map(torch.tensor(z["img"]).float(), mask)
    assert_close_to_golden(found, z["z"], 1e-5)
