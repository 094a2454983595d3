"""Sharding: two ranks with half of the parameters each equal one process, for every method.

Toys in float64 through a real Trainer; two ranks are real gloo ranks with different data. Where a
method's toy has a ResNet of images, it gets a ViT.
"""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from sslzoo.backbones import SmallResNet, SmallTransformer, SpeechTransformer, small_vit
from sslzoo.callbacks import (
    L2SP,
    ClipPerModule,
    ClipPerParameter,
    ClipTogether,
    LoRA,
    OnlineKNN,
    PerBlock,
)
from sslzoo.commands.checkpoints import CheckpointFiles
from sslzoo.commands.consolidate import consolidate
from sslzoo.commands.summary import _commands
from sslzoo.methods import DINO, MAE, MoCo, SimCLR
from sslzoo.optim import LARC, LARS, LayerDecay, exempt_bias_and_norm
from sslzoo.run_folder import RunFolder
from sslzoo.runs.encoders import read_model
from sslzoo.runs.start import start_from
from sslzoo.sharding import FullyShard, blocks_of, full
from sslzoo.trainable import Trainable
from sslzoo.trust import assemble, outline, shards
from sslzoo.zoo.save import add_run
from sslzoo.zoo.start_weights import load_start_weights
from tests import test_every_resume as resume
from tests.callbacks.toy import quiet
from tests.ranks import Ranks
from tests.test_every_method import BATCH, SAMPLES, Gradients, assert_same, batches, fit, trainer
from tests.toys import build, data_like, every_trainable

DEFAULT = ("DINOv2", "SwAV")  # the others are slow
CONVNETS = ("DeepInfoMax", "DenseCL", "VICRegL")  # take no ViT


def method_with_vit(cls: type[Trainable], **changes: Any) -> tuple[Any, Any]:
    method, batch = build(cls, **changes)
    if cls.__name__ in CONVNETS or not isinstance(getattr(method, "backbone", None), SmallResNet):
        return method, batch
    images = [view for view in batch.views if isinstance(view, Tensor)]
    patch = 2 if any(x.shape[-1] % 4 for x in images) else 4
    vit = small_vit(8, patch, method.backbone.num_features, 2, 2)
    return build(cls, backbone=vit, **changes)


def make(cls: type[Trainable], **changes: Any) -> tuple[Any, Any]:
    """Double-precision toy with an optimizer, and its training set."""
    torch.manual_seed(0)
    method, batch = method_with_vit(cls)
    method._optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    for name, value in changes.items():
        setattr(method, name, value)
    return method.double(), data_like(batch, SAMPLES)


def whole(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: full(value.detach()).clone() for name, value in named.items()}


class WholeGradients(Gradients):
    def on_before_optimizer_step(self, *args: Any) -> None:
        super().on_before_optimizer_step(*args)
        self.first = whole(self.first)


def options_of(world: int, strategy: Any = None) -> dict[str, Any]:
    if world == 1:
        return {"devices": 1}
    environment = [TorchElasticEnvironment()]
    return {"devices": world, "strategy": strategy or FullyShard(), "plugins": environment}


def train(
    rank: int, cls: type[Trainable], world: int, accumulate: int, changes: Any, options: Any
) -> dict[str, Any]:
    """Two epochs on this rank's share: loss, first gradients, final state and parameter sizes."""
    method, data = make(cls, **changes)
    gradients = WholeGradients()
    callbacks = [*options.get("callbacks", []), gradients]
    run = trainer(
        **{**options_of(world), **options, "callbacks": callbacks},
        accumulate_grad_batches=accumulate,
    )
    fit(run, method, batches(data, BATCH // accumulate, rank, world))
    here = [getattr(p, "_local_tensor", p).numel() for p in method.parameters()]
    return {
        "loss": run.callback_metrics["train/loss"],
        "gradients": gradients.first,
        "state": whole(method.state_dict()),
        "step": method.step,
        "name": type(method).__name__,
        "here": sum(here),
    }


def assert_equal(
    ranks: Ranks, cls: type[Trainable], accumulate: int = 2, changes: Any = None, **options: Any
) -> list[dict[str, Any]]:
    one = train(0, cls, 1, accumulate, changes or {}, options)
    two = ranks(2, train, cls, 2, accumulate, changes or {}, options)
    for result in two:
        assert result["step"] == one["step"]
        assert_same(result["gradients"], one["gradients"])
        assert_same(result["state"], one["state"])
        torch.testing.assert_close(result["loss"], one["loss"], rtol=1e-6, atol=0)  # float32 log
    assert sum(result["here"] for result in two) == one["here"]
    assert {result["name"] for result in two} == {cls.__name__}
    return two


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(
            cls, id=cls.__name__, marks=() if cls.__name__ in DEFAULT else pytest.mark.slow
        )
        for cls in every_trainable()
    ],
)
def test_two_shards_equal_one_process(cls: type[Trainable], ranks: Ranks) -> None:
    """With two batches a step, whose sizes do not divide by the ranks' parameters."""
    two = assert_equal(ranks, cls)
    if blocks_of(method_with_vit(cls)[0]):
        assert max(r["here"] for r in two) < 0.6 * sum(r["here"] for r in two)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1, eps=1e-3)


STEPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "AdamW, layer decay, clipped by the global norm": (
        {"_optimizer": adamw, "_parameter_groups": LayerDecay(0.5)},
        {"gradient_clip_val": 0.05},
    ),
    "LARS, clipped per parameter": (
        {
            "_optimizer": partial(LARS, lr=1.0, weight_decay=0.1),
            "_parameter_groups": exempt_bias_and_norm,
        },
        {"callbacks": [ClipPerParameter(0.01)]},
    ),
    "LARC, clipped per module": (
        {"_optimizer": partial(LARC, lr=1.0, weight_decay=0.1)},
        {"callbacks": [ClipPerModule(0.05)]},
    ),
    "SGD, clipped together, recomputed": (
        {},
        {"callbacks": [PerBlock(), ClipTogether(0.05, besides=[])]},
    ),
}


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if name.startswith("LAR") else ())
        for name, case in STEPS.items()
    ],
)
def test_optimizers_groups_and_clipping(changes: Any, options: Any, ranks: Ranks) -> None:
    assert_equal(ranks, MAE, 1, changes, **options)


class SaveAt(Checkpoint):
    """Saves a checkpoint after a step, in the middle of an epoch; behind all other callbacks."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def run(
    method: Any, data: Any, world: int, resume: Path | None, save: SaveAt, folder: bool = False
) -> dict[str, Any]:
    """Two epochs of three steps; the whole state behind them, and the kNN accuracies."""
    knn = OnlineKNN(k=3)  # of three batches: ranks embed different numbers of them
    own = Trainer(
        **options_of(world, FullyShard(save_distributed_checkpoint=folder)),
        accelerator="cpu",
        max_epochs=2,
        callbacks=[knn, save],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    own.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
    optimizer = own.optimizers[0]
    moments = [
        {name: full(value) if isinstance(value, Tensor) else value for name, value in each.items()}
        for group in optimizer.param_groups
        for each in [optimizer.state.get(p, {}) for p in group["params"]]
    ]
    return {
        "state": whole(method.state_dict()),
        "moments": moments,
        "rates": [group["lr"] for group in optimizer.param_groups],
        "clock": method.clock.state_dict(),
        "knn": own.callback_metrics[knn.metric_names()[0]],
    }


def resumed(cls: type[Trainable], world: int, path: Path, folder: bool = False) -> dict[str, Any]:
    """A run that goes on from a checkpoint of its second step, or saves it."""
    torch.manual_seed(0)
    method, data = resume.toy(cls)
    going_on = path if path.exists() else None
    save = SaveAt(path, -1 if going_on else 2)
    return run(method.double(), data, world, going_on, save, folder)


def on_ranks(rank: int, cls: type[Trainable], path: Path, folder: bool) -> dict[str, Any]:
    quiet()
    return resumed(cls, 2, path, folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", [DINO, MoCo], ids=lambda cls: cls.__name__)  # MoCo has a queue
def test_resumed_shards_equal_the_unbroken_run(
    cls: type[Trainable], tmp_path: Path, ranks: Ranks
) -> None:
    """From a file, from a folder, and from either in one process."""
    file, folder, one = tmp_path / "file.ckpt", tmp_path / "folder.ckpt", tmp_path / "one.ckpt"
    unbroken = ranks(2, on_ranks, cls, file, False)[0]
    assert unbroken["clock"] == {"step": 6, "horizon": [6, 3]}
    ranks(2, on_ranks, cls, folder, True)
    for path, is_folder in ((file, False), (folder, True)):
        for result in ranks(2, on_ranks, cls, path, is_folder):
            torch.testing.assert_close(result, unbroken, rtol=0, atol=0)
    assert folder.is_dir()
    consolidate(str(folder), str(one))
    saved, wanted = (torch.load(path, weights_only=True) for path in (one, file))
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "sslzoo"):
        torch.testing.assert_close(saved[name], wanted[name], rtol=0, atol=0)
    alone = resumed(cls, 1, one)
    torch.testing.assert_close(alone, unbroken, rtol=1e-7, atol=1e-10)


class OneRank(FullyShard):
    """Saves a folder without a Trainer and without processes."""

    is_global_zero = True

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def barrier(self, name: str | None = None) -> None:
        pass


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_full_disk_leaves_the_checkpoint_before_the_folder_whole(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved = {"state_dict": {"w": torch.ones(9999)}, "optimizer_states": [], "global_step": 1}
    if kind == "folder":
        OneRank(True).save_checkpoint(saved, path)
    else:
        torch.save(saved, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9999, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match=r"last.ckpt could not be written: .*File too large"):
            OneRank(True).save_checkpoint({**saved, "global_step": 2}, path)
        with pytest.raises(OSError, match=r"File too large: '.*last.ckpt'"):  # in meta.pt
            OneRank(True).save_checkpoint({**saved, "callbacks": torch.ones(9999)}, path)
    finally:
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
    assert (assemble(path) if kind == "folder" else torch.load(path))["global_step"] == 1
    assert list(tmp_path.iterdir()) == [path], "no part is left"
    OneRank(True).save_checkpoint({**saved, "global_step": 3}, path)
    assert assemble(path)["global_step"] == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_file_replaces_a_folder_of_shards_and_no_other_folder(tmp_path: Path) -> None:
    path, other = tmp_path / "last.ckpt", tmp_path / "own"
    saved = {"state_dict": {"w": torch.ones(9)}, "optimizer_states": [], "global_step": 1}
    OneRank(True).save_checkpoint(saved, path)
    CheckpointFiles().save_checkpoint({**saved, "global_step": 2}, path)
    assert torch.load(path)["global_step"] == 2
    other.mkdir()
    (other / "letter.txt").touch()
    for save in (OneRank(True).save_checkpoint, CheckpointFiles().save_checkpoint):
        with pytest.raises(FileExistsError, match="must not be a folder"):
            save(saved, other)
    assert sorted(tmp_path.rglob("*")) == sorted([path, other, other / "letter.txt"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_readers_of_weights_name_the_way_to_a_file(tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    path = RunFolder(run).checkpoint
    OneRank(True).save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    (run / "config.yaml").write_text("model: {}\n")
    wanted = rf"must be a file, got .* run `sslzoo consolidate {run} --to FILE.ckpt`"
    method, text = build(MAE)[0], str(run)
    readers = (
        lambda: read_model(text),
        lambda: start_from(method, text),
        lambda: load_start_weights(method.backbone, text),
        lambda: add_run(run, "own", "images", "MIT"),
    )
    for read in readers:
        with pytest.raises(ValueError, match=wanted):
            read()
    first, second = _commands(run, str(path), method, 1)
    assert first == f"sslzoo consolidate {run} --to {run}/whole.ckpt"
    assert second == f"sslzoo eval {run}/whole.ckpt --on {run}/config.yaml"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_optimizer_without_tensors_is_part_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    plain = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    moments = {"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    saved = {"state_dict": {"w": torch.ones(2)}, "optimizer_states": [plain, moments]}
    OneRank(True).save_checkpoint(saved, path)
    for read in (assemble(path), outline(path)):
        assert read["optimizer_states"][0] == plain
        assert read["optimizer_states"][1]["state"][0]["m"].shape == (2,)
        assert set(read) == {"state_dict", "optimizer_states"}
    OneRank(True).save_checkpoint({**saved, "optimizer_states": [plain]}, path)
    (path / "meta.pt").unlink()
    with pytest.raises(ValueError, match=r"must be a whole distributed .* without meta.pt"):
        assemble(path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("times", [1, 9])
def test_a_folder_that_a_run_replaces_is_never_read_in_parts(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left, read = tmp_path / "last.ckpt", list(range(1, times + 1)), shards._read_tensor

    def save(value: int) -> None:
        weights = {name: torch.full((3,), float(value)) for name in "abc"}
        saved = {"state_dict": weights, "optimizer_states": [], "global_step": value}
        OneRank(True).save_checkpoint(saved, path)

    def slow(folder: Path, name: str, stored: Any) -> Tensor:
        if name.endswith("b") and left:
            save(left.pop(0))
        return read(folder, name, stored)

    save(0)
    monkeypatch.setattr(shards, "_read_tensor", slow)
    if times == 1:
        found = assemble(path)
        assert [x.tolist() for x in found["state_dict"].values()] == [[1.0] * 3] * 3
        assert found["global_step"] == 1
    else:
        with pytest.raises(ValueError, match=r"must stay as it is .* replaced it 3 times"):
            assemble(path)


def of_a_replaced_folder(rank: int, path: Path) -> str:
    quiet()
    method, data = make(MAE)
    run = trainer(1, **options_of(2, FullyShard(True)))
    fit(run, method, batches(data, BATCH, rank, 2))
    run.save_checkpoint(path)

    class Replaced(FullyShard):
        def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
            super().load_model_state_dict(checkpoint, strict)
            run.save_checkpoint(path)

    method, data = make(MAE)
    later = trainer(2, **options_of(2, Replaced(True)))
    with pytest.raises(ValueError, match="must stay as it is") as caught:
        fit(later, method, batches(data, BATCH, rank, 2), ckpt_path=path)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_weights_and_optimizer_are_of_one_version_of_a_folder(tmp_path: Path, ranks: Ranks) -> None:
    for said in ranks(2, of_a_replaced_folder, tmp_path / "last.ckpt"):
        assert "another run replaced it" in said


def refusal(rank: int, strategy: Any, callbacks: Any, optimizer: Any = torch.optim.SGD) -> str:
    quiet()
    method, data = make(MAE, _optimizer=partial(optimizer, lr=0.01))
    own = trainer(1, **options_of(2, strategy), callbacks=callbacks)
    with pytest.raises(ValueError, match="must") as caught:
        fit(own, method, batches(data, BATCH, rank, 2))
    return str(caught.value)


REFUSED = {
    "any parallelism": (
        ModelParallelStrategy(2, 1),
        [],
        "FullyShard (FSDP2), the only ones that sslzoo supports",
    ),
    "L2SP": (None, [L2SP(0.1)], "L2SP must be omitted with FullyShard, which shards parameters"),
    "LoRA": (None, [LoRA()], "LoRA must be omitted with FullyShard"),
    "averages": (None, [StochasticWeightAveraging(1e-2)], "StochasticWeightAveraging must be"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("strategy", "callbacks", "wanted"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_proven_is_refused(
    strategy: Any, callbacks: Any, wanted: str, ranks: Ranks
) -> None:
    for said in ranks(2, refusal, strategy, callbacks):
        assert wanted in said
        assert "\n" not in said


def test_an_optimizer_of_whole_tensors_is_refused(ranks: Ranks) -> None:
    for said in ranks(2, refusal, None, [], torch.optim.Adafactor):
        assert said.endswith("got Adafactor, which needs whole ones")


def used_again(rank: int) -> str:
    quiet()
    method, data = make(MAE)
    fit(trainer(1, **options_of(2)), method, batches(data, BATCH, rank, 2))
    again = trainer(1, devices=2, strategy="ddp", plugins=[TorchElasticEnvironment()])
    with pytest.raises(ValueError, match="must be loaded from a checkpoint") as caught:
        fit(again, method, batches(data, BATCH, rank, 2))
    return str(caught.value)


def test_a_sharded_module_is_not_trained_by_another_strategy(ranks: Ranks) -> None:
    assert all(said.startswith("MAE must be loaded") for said in ranks(2, used_again))


class Follows(nn.Module):
    """A network with a buffer that follows the samples of its own rank."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.num_features = net, net.num_features
        self.register_buffer("mean", torch.zeros(self.num_features))

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x)
        if self.training:
            self.mean.lerp_(features.detach().mean(0), 0.1)
        return features - self.mean


def followed(rank: int, strategy: Any) -> Tensor:
    quiet()
    method, data = make(SimCLR)
    method.backbone = Follows(method.backbone).double()
    run = trainer(1, **options_of(2, strategy))
    fit(run, method, batches(data, BATCH, rank, 2))
    return whole(method.state_dict())["backbone.mean"]


def test_buffers_of_other_networks_are_those_of_rank_0_as_under_ddp(ranks: Ranks) -> None:
    wanted, found = (ranks(2, followed, strategy) for strategy in ("ddp", None))
    torch.testing.assert_close(found, wanted)
    assert torch.equal(*found)


def tied(rank: int) -> str:
    quiet()
    method, data = make(MAE)
    first, second = blocks_of(method)[:2]
    second.mlp.fc1.weight = first.mlp.fc1.weight
    with pytest.raises(ValueError, match="must") as caught:
        fit(trainer(1, **options_of(2)), method, batches(data, BATCH, rank, 2))
    return str(caught.value)


def test_a_parameter_of_two_blocks_is_refused(ranks: Ranks) -> None:
    for said in ranks(2, tied):
        assert "must have parameters of their own for FullyShard, got decoder" in said
        assert "\n" not in said


def test_blocks_of_networks() -> None:
    with torch.device("meta"):
        nets = {
            "timm's ViT": (timm.create_model("vit_tiny_patch16_224"), 12),
            "timm's Swin": (timm.create_model("swin_tiny_patch4_window7_224"), 12),
            "timm's EVA": (timm.create_model("vit_small_patch16_dinov3"), 12),
            "torch's": (
                nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 3),
                3,
            ),
            "ours of text": (SmallTransformer(100, 8, 2, 2), 2),
            "ours of speech": (SpeechTransformer(16, 3, 2), 3),
            "none": (timm.create_model("resnet18"), 0),
        }
    for name, (net, count) in nets.items():
        assert len(blocks_of(net)) == count, name
    student = small_vit(8, 4, 16, 2, 2)
    assert len(blocks_of(nn.ModuleDict({"student": student, "teacher": small_vit()}))) == 2 + 6
