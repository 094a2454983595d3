"""Protocols on a data module: their figures are the functions', on any number of ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.models.vision_transformer import VisionTransformer

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.data import ImageFolder
from sslzoo.eval.features import extract, gather_features
from sslzoo.eval.knn import knn_accuracies
from sslzoo.eval.protocols.probe import Training
from sslzoo.runs.protocols import PROTOCOLS, Protocol, Subject, figures
from sslzoo.runs.protocols.features import FewLabels, Knn, LowShot, Transfer
from sslzoo.runs.protocols.probes import (
    Attentive,
    LayerProbes,
    LinearProbe,
    class_tokens,
    shuffled_pass,
)
from sslzoo.transforms import crop_view
from tests.ranks import Ranks

FAST = Training("sgd", 0.1, epochs=1, batch_size=24, milestones=(1,))


def subject(folder: Path, vit: bool = True) -> Subject:
    torch.manual_seed(0)
    encoder: Any = small_vit(16, 4, 16, 3, 2) if vit else SmallResNet((4, 8))
    data = ImageFolder(
        str(folder),
        transform=crop_view(16, mean=[0.5] * 3, std=[0.25] * 3),
        batch_size=12,
        eval_batch_size=20,
        num_workers=0,
    )
    data.setup("validate")
    return Subject(encoder.eval(), torch.device("cpu"), data)


def on_rank(rank: int, folder: Path) -> dict[str, float]:
    settings: dict[str, Protocol] = {
        "knn": Knn((5, 10)),
        "low_shot": LowShot((1, 5), draws=2),
        "transfer": Transfer(l2=(1e-3, 1e-1)),
        "clustering": PROTOCOLS["clustering"].protocol,
        "linear": LinearProbe(FAST, num_blocks=2, mean_patches=True),
        "mae": LinearProbe(dataclasses.replace(FAST, optimizer="lars"), norm=True),
        "attentive": Attentive(dataclasses.replace(FAST, optimizer="adamw", base_lr=0.01)),
        "layers": LayerProbes(FAST),
    }
    return figures(settings, subject(folder), [0])[0]


def test_every_figure_is_the_same_on_one_two_and_three_ranks(folder: Path, ranks: Ranks) -> None:
    one = on_rank(0, folder)
    assert len({name.partition("/")[0] for name in one}) == 8
    assert one["low_shot/shots1_top1_std"] >= 0
    assert {"layers/blocks.0_top1", "layers/blocks.2_top1"} <= one.keys()
    for world in (2, 3):
        for got in ranks(world, on_rank, folder):
            assert got == one


def test_knn_is_the_function_with_the_papers_settings(folder: Path) -> None:
    given = subject(folder)
    loaders = given.loaders()
    bank, query = (
        gather_features(extract(given.encoder, loader, loaders))
        for loader in (loaders.bank, loaders.query)
    )
    assert bank.label is not None
    assert query.label is not None
    both = query.features, query.label, bank.features, bank.label
    wanted = knn_accuracies(*both, 2, [(10, 0.07), (20, 0.07)], (1,))
    got = Knn((10, 20))(given)
    assert got == {f"top1_k{k}_t0.07": row[0] for k, row in zip((10, 20), wanted, strict=True)}
    paper: Any = PROTOCOLS["dino_knn"].protocol
    assert (paper.k, paper.temperature) == ((10, 20, 100, 200), 0.07)


def test_seeds_decide_the_draws_alone(folder: Path) -> None:
    given = subject(folder)
    few = FewLabels(0.1, (3,))(given)
    assert few.keys() == {"knn_top1_k3_t0.07_10pct", "linear_top1_10pct"}
    first, second = figures({"low_shot": LowShot((1,)), "knn": Knn((5,))}, given, [0, 1])
    assert first["knn/top1_k5_t0.07"] == second["knn/top1_k5_t0.07"]
    assert first != second


CONFIGS = {
    "dino_linear": "dino/imagenet_vit_small_linear_100ep",
    "mae_linear": "mae/imagenet_vit_base_linear_90ep",
    "moco_linear": "moco/imagenet_resnet50_linear_100ep",
    "moco_v3_linear": "moco_v3/imagenet_vit_small_linear_90ep",
    "simclr_linear": "simclr/imagenet_resnet50_linear_90ep",
    "byol_linear": "byol/imagenet_resnet50_linear_80ep",
    "simsiam_linear": "simsiam/imagenet_resnet50_linear_90ep",
    "swav_linear": "swav/imagenet_resnet50_linear_100ep",
    "barlow_twins_linear": "barlow_twins/imagenet_resnet50_linear_100ep",
    "vicreg_linear": "vicreg/imagenet_resnet50_linear_100ep",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_linear_protocol_has_the_numbers_of_its_recipe(name: str) -> None:
    recipe = yaml.safe_load(Path(f"configs/{CONFIGS[name]}.yaml").read_text())
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    protocol = PROTOCOLS[name].protocol
    assert isinstance(protocol, LinearProbe)
    own = protocol.training
    optimizer = model["optimizer"]
    given = optimizer["init_args"]
    kind = optimizer["class_path"].rpartition(".")[2].lower()
    assert own.optimizer == ("nesterov" if given.get("nesterov") else kind)
    assert own.lr == pytest.approx(given["lr"])
    assert own.weight_decay == given["weight_decay"]
    assert (own.epochs, own.batch_size) == (recipe["trainer"]["max_epochs"], data["batch_size"])
    schedule = model["schedule"].get("init_args", {})
    assert list(own.milestones) == schedule.get("milestones", [])
    assert own.warmup_epochs == schedule.get("warmup_epochs", 0)
    if not own.milestones:
        assert own.every == schedule.get("every", "step")
    classifier = model["model"]["init_args"]
    assert protocol.init_std == classifier["init_std"]
    assert protocol.norm == classifier.get("norm", False)
    crop = data.get("transform", {}).get("init_args", {})
    assert protocol.interpolation == crop.get("interpolation", "bilinear")
    last = classifier["backbone"].get("init_args", {}).get("num_blocks", 0)
    assert protocol.num_blocks == last


def test_crops_and_order_are_new_in_each_epoch(folder: Path) -> None:
    data: Any = subject(folder).data
    passes = []
    for epoch in (0, 0, 1):
        source = shuffled_pass(data, epoch, 3, "bilinear", True)
        batches = [source.transform(batch) for batch in source.loader]
        order = torch.cat([batch.index for batch in batches])
        views = torch.cat([batch.views[0] for batch in batches])
        passes.append((order, views[order.argsort()]))
    assert torch.equal(passes[0][0], passes[1][0])
    assert torch.equal(passes[0][1], passes[1][1])
    assert not torch.equal(passes[0][0], passes[2][0])
    assert not torch.equal(passes[0][1], passes[2][1])
    assert passes[2][0].sort().values.tolist() == list(range(60))


def test_blocks_of_timms_vit_are_ours() -> None:
    ours = small_vit(16, 4, 16, 3, 2).eval()
    theirs = VisionTransformer(
        img_size=16, patch_size=4, num_classes=0, embed_dim=16, depth=3, num_heads=2
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 16, 16)
    for mean_patches in (False, True):
        wanted = class_tokens(ours, 2, mean_patches, x)
        torch.testing.assert_close(class_tokens(theirs, 2, mean_patches, x), wanted)
    assert wanted.shape == (2, 48)
    with pytest.raises(ValueError, match=r"get_intermediate_layers.*got Linear; use num_blocks 0"):
        class_tokens(torch.nn.Linear(2, 2), 1, False, x)


def test_a_probe_leaves_the_encoder_unchanged(folder: Path) -> None:
    given = subject(folder, vit=False)
    before = {name: x.clone() for name, x in given.encoder.state_dict().items()}
    found = LinearProbe(FAST)(given)
    assert found["top1"] > 0.4
    assert all(torch.equal(x, before[name]) for name, x in given.encoder.state_dict().items())
    assert all(p.grad is None for p in given.encoder.parameters())


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (LinearProbe(), "batch_size must be at most 60 .*got 256; the learning rate follows it"),
        (LinearProbe(dataclasses.replace(FAST, base_lr=float("inf"))), "lower base_lr than inf"),
        (LayerProbes(FAST, layers=["layer9"]), "layers must be names of .*got \\['layer9'\\]"),
        (LowShot((31,)), "at least 31 training samples for 31 shots, got 30"),
        (Attentive(FAST, num_heads=3), "num_heads must be a divisor of the width 8, got 3"),
        (Knn((61,)), "k must be at most 60"),
    ],
)
def test_what_cannot_be_evaluated_is_named(folder: Path, protocol: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol(subject(folder, vit=False))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="optimizer must be"):
        Training("sdg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        Training(epochs=0)
    with pytest.raises(ValueError, match="the number of shots must be at least 1, got 0"):
        LowShot(())
    assert all(entry.source for entry in PROTOCOLS.values())
