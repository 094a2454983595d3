"""FineTune, Distill and what they start from; the battery holds them to ranks and resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAveragePrecision,
    MulticlassConfusionMatrix,
)

from sslzoo.backbones import SmallResNet, small_vit, timm_vit
from sslzoo.batch import Batch
from sslzoo.callbacks import OnlineAccuracy
from sslzoo.distributed import sum_over_ranks
from sslzoo.eval import Classifier, Distill, FineTune, Headed, LastBlocks, load_weights
from sslzoo.heads import simclr_v2_projector
from sslzoo.methods import SimCLR
from sslzoo.optim import exempt_bias_norm_and_classifier
from tests.callbacks.toy import FILTERS, NUM_CLASSES, FitOnly, ToyData, data, quiet, trainer
from tests.ranks import Ranks

pytestmark = FILTERS


class OneView(FitOnly):
    """The toy data with the first view alone."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch._replace(views=batch.views[:1])


def small() -> SmallResNet:
    return SmallResNet((4, 8))


def headed() -> Classifier:
    return Classifier(Headed(small(), simclr_v2_projector(8, 3, 4), 1), NUM_CLASSES)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[SimCLR, str]:
    """A SimCLR v2 run that trained for an epoch, and its checkpoint, built in Python."""
    torch.manual_seed(5)
    method = SimCLR(small(), simclr_v2_projector(8, 3, 4), optimizer=sgd)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(method, datamodule=FitOnly())
    path = str(tmp_path / "pretrained.ckpt")
    run.save_checkpoint(path)
    return method, path


def encoder_file(method: SimCLR, folder: Path) -> str:
    path = str(folder / "encoder.safetensors")
    save_file({k: v.contiguous() for k, v in method.encoder().state_dict().items()}, path)
    return path


def fit(module: Any, folder: Path, *callbacks: Any, epochs: int = 1, **options: Any) -> Trainer:
    run = trainer(folder, *callbacks, max_epochs=epochs)
    run.fit(module, datamodule=OneView(), **options)
    return run


def images() -> Tensor:
    return data(6, 3)[0]


def test_headed_is_the_backbone_and_the_first_layers_of_the_head() -> None:
    backbone, projector = small().eval(), simclr_v2_projector(8, 3, 4).eval()
    module = Headed(backbone, projector, 2).eval()
    x = images()
    torch.testing.assert_close(module(x), projector.layers[:6](backbone(x)), rtol=0, atol=0)
    assert module.num_features == 8
    assert Headed(small(), simclr_v2_projector(8, 3, 4), 3).num_features == 4
    assert Headed(small(), simclr_v2_projector(8, 3, 4), 0).num_features == 8


def test_a_safetensors_fills_the_backbone(pretrained: Any, tmp_path: Path) -> None:
    method, _ = pretrained
    model = Classifier(small(), NUM_CLASSES)
    start = model.classifier.weight.clone()
    load_weights(model, encoder_file(method, tmp_path))
    wanted = method.encoder().state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in model.backbone.state_dict().items())
    assert torch.equal(model.classifier.weight, start)


def test_what_does_not_fit_is_named(pretrained: Any, tmp_path: Path) -> None:
    method, _ = pretrained
    path = encoder_file(method, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"existing file, got 'nowhere\.ckpt'"):
        load_weights(headed(), "nowhere.ckpt")
    with pytest.raises(ValueError, match=r"must hold 1 layers .* got an encoder"):
        load_weights(headed(), path)
    wide = Classifier(SmallResNet((4, 16)), NUM_CLASSES)
    with pytest.raises(ValueError, match=r"tensors differ in name or shape, such as \['blocks"):
        load_weights(wide, path)
    before = [value.clone() for value in wide.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, wide.state_dict().values(), strict=True))


def test_fit_wants_to_be_told_where_to_start(tmp_path: Path) -> None:
    module = FineTune(headed(), optimizer=sgd)
    with pytest.raises(ValueError, match="weights must be the checkpoint"):
        fit(module, tmp_path)
    student = Distill(headed(), headed(), optimizer=sgd)
    with pytest.raises(ValueError, match="teacher_weights must be the checkpoint"):
        fit(student, tmp_path)


def test_a_resumed_run_does_not_need_what_it_started_from(pretrained: Any, tmp_path: Path) -> None:
    path = Path(encoder_file(pretrained[0], tmp_path))
    started = FineTune(Classifier(small(), NUM_CLASSES), str(path), optimizer=sgd)
    run = fit(started, tmp_path)
    saved = str(tmp_path / "tuned.ckpt")
    run.save_checkpoint(saved)
    path.unlink()
    resumed = FineTune(Classifier(small(), NUM_CLASSES), str(path), optimizer=sgd)
    fit(resumed, tmp_path, epochs=2, ckpt_path=saved)
    assert resumed.step == 2 * started.step
    with pytest.raises(FileNotFoundError):
        fit(FineTune(Classifier(small(), NUM_CLASSES), str(path), optimizer=sgd), tmp_path)


def test_a_frozen_backbone_keeps_its_bits(tmp_path: Path) -> None:
    module = FineTune(headed(), "random", train_backbone=False, optimizer=sgd)
    backbone = {k: v.clone() for k, v in module.model.backbone.state_dict().items()}
    linear = module.model.classifier.weight.clone()
    fit(module, tmp_path)
    assert all(torch.equal(v, backbone[k]) for k, v in module.model.backbone.state_dict().items())
    assert not torch.equal(module.model.classifier.weight, linear)


def vit(**options: Any) -> Any:
    torch.manual_seed(2)
    return small_vit(img_size=8, patch_size=4, width=8, depth=3, num_heads=2, **options).eval()


def test_last_blocks_are_the_class_tokens_side_by_side() -> None:
    backbone = vit()
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens, behind = torch.cat([backbone.cls_token.expand(5, -1, -1)], 1), []
    places = backbone.pos_embed
    patches = backbone.patch_embed(x).flatten(1, 2) + places[:, 1:]
    tokens = torch.cat([tokens + places[:, :1], patches], dim=1)
    for block in backbone.blocks:
        tokens = block(tokens)
        behind.append(backbone.norm(tokens))
    got = LastBlocks(backbone, 2)
    assert got.num_features == 16
    wanted = torch.cat([behind[1][:, 0], behind[2][:, 0]], dim=1)
    torch.testing.assert_close(got(x), wanted, rtol=0, atol=0)
    one = LastBlocks(backbone, 1, mean_patches=True)
    assert one.num_features == 16
    wanted = torch.cat([backbone(x), behind[2][:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(one(x), wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"count must be in \[1, 3\], got 4"):
        LastBlocks(backbone, 4)(x)
    for other in (small(), vit(class_token=False, pool="mean")):
        with pytest.raises(ValueError, match="must be a ViT with a class token, got"):
            LastBlocks(other)


def test_registers_are_no_patches() -> None:
    net: dict[str, Any] = {"img_size": 32, "options": {"depth": 1, "embed_dim": 16, "num_heads": 2}}
    backbone = timm_vit("vit_small_patch14_reg4_dinov2", patch_size=8, **net)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    (tokens,) = backbone.forward_blocks(x, 1)
    assert tokens.shape == (2, 1 + 4 + 16, 16)
    got = LastBlocks(backbone, 1, mean_patches=True)(x)
    assert torch.equal(got[:, 16:], tokens[:, 5:].mean(1))


def test_last_blocks_start_from_the_vit_that_was_pre_trained(tmp_path: Path) -> None:
    trained = vit()
    torch.nn.init.normal_(trained.cls_token)
    path = str(tmp_path / "vit.safetensors")
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, path)
    model = Classifier(LastBlocks(vit(), 2), NUM_CLASSES)
    load_weights(model, path)
    got = model.backbone.backbone.state_dict()
    assert all(torch.equal(v, got[k]) for k, v in trained.state_dict().items())


def test_maes_head_starts_from_all_but_the_norm_of_pre_training(tmp_path: Path) -> None:
    """main_finetune.py's missing keys: head and fc_norm; its positions are trained from there."""
    trained = vit(positions="mae")
    torch.nn.init.normal_(trained.norm.weight)
    path = str(tmp_path / "vit.safetensors")
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, path)
    model = Classifier(vit(pool="mean_before_norm"), NUM_CLASSES, init_std=2e-5)
    linear = model.classifier.weight.clone()
    load_weights(model, path)
    got, saved = model.backbone.state_dict(), trained.state_dict()
    assert got.keys() - saved.keys() == {"fc_norm.weight", "fc_norm.bias"}
    assert saved.keys() - got.keys() == {"norm.weight", "norm.bias"}
    assert all(torch.equal(got[name], saved[name]) for name in got.keys() & saved.keys())
    assert torch.equal(got["fc_norm.weight"], torch.ones(8))
    assert torch.equal(model.classifier.weight, linear)
    assert linear.abs().max() < 1e-4, "the authors' bounds of +-2 cut nothing off at 2e-5"
    assert model.backbone.pos_embed.requires_grad


def test_the_norm_before_the_linear_is_batch_norm_without_scale_and_shift() -> None:
    model = Classifier(small(), NUM_CLASSES, norm=True)
    assert {name for name, _ in model.named_parameters() if "norm" in name} == set()
    reference = nn.BatchNorm1d(8, affine=False, eps=1e-6)
    module = FineTune(model, "random", train_backbone=False).train()
    features = model.backbone(images())
    for _ in range(2):
        wanted = model.classifier(reference(features))
        torch.testing.assert_close(module(images()), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var, reference.running_var)
    wanted = model.classifier(reference.eval()(features))
    torch.testing.assert_close(module.eval()(images()), wanted, rtol=1e-5, atol=1e-6)


def normed(world: int, rank: int) -> list[Tensor]:
    """Loss, gradients and running statistics of this rank's rows, means over ranks."""
    torch.manual_seed(4)
    model = Classifier(small(), NUM_CLASSES, norm=True).double()
    module = FineTune(model, "random", train_backbone=False).train()
    x, label = data(8, 5)
    own = slice(0, 3) if (world, rank) == (2, 0) else slice(3, 8) if world == 2 else slice(None)
    batch = Batch([x[own].double()], torch.arange(8)[own], label[own])
    loss = module.losses(batch)["cross_entropy"]
    loss.backward()
    values = [loss.detach(), *(p.grad for p in model.classifier.parameters())]
    means = [sum_over_ranks(value) / world for value in values]
    return [*means, model.norm.running_mean, model.norm.running_var]


def normed_on_rank(rank: int) -> list[Tensor]:
    return normed(2, rank)


def test_the_norm_is_over_the_global_batch(ranks: Ranks) -> None:
    one = normed(1, 0)
    for got in ranks(2, normed_on_rank):
        torch.testing.assert_close(got, one, rtol=1e-7, atol=1e-12)


def test_the_teacher_keeps_its_bits_and_teaches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tuned = FineTune(headed(), "random", optimizer=sgd)
    run = fit(tuned, tmp_path, epochs=3)
    # A checkpoint of a module built in Python names no class: its parts are given again.
    path = str(tmp_path / "tuned.ckpt")
    run.save_checkpoint(path)
    teacher = headed()
    saved = FineTune.load_from_checkpoint(path, model=teacher, weights_only=True)
    module = Distill(headed(), saved.model, "random", optimizer=sgd)
    wanted = {k: v.clone() for k, v in tuned.model.state_dict().items()}
    first = fit(copy.deepcopy(module), tmp_path).callback_metrics["train/loss"]
    last = fit(module, tmp_path, epochs=20).callback_metrics["train/loss"]
    assert all(torch.equal(v, wanted[k]) for k, v in module.teacher.state_dict().items())
    assert last < first


def test_a_teacher_has_a_trained_classifier(pretrained: Any, tmp_path: Path) -> None:
    path = encoder_file(pretrained[0], tmp_path)
    student, teacher = (Classifier(small(), NUM_CLASSES) for _ in range(2))
    with pytest.raises(ValueError, match="must be a checkpoint of a classifier, got an encoder"):
        fit(Distill(student, teacher, path, optimizer=sgd), tmp_path)


def test_views_and_labels_are_checked() -> None:
    module = FineTune(headed(), "random")
    x, label = data(6, 3)
    with pytest.raises(ValueError, match=r"one view per sample, as from .*crop_view, got 2"):
        module.losses(Batch([x, x], torch.arange(6), label))
    with pytest.raises(ValueError, match="one class per sample, for FineTune"):
        module.losses(Batch([x], torch.arange(6)))
    with pytest.raises(ValueError, match="equally many classes, got 4 and 5"):
        Distill(headed(), Classifier(small(), 5))
    with pytest.raises(ValueError, match="num_features of the backbone must be an int"):
        Classifier(nn.Flatten(), 3)


def accuracy(rank: int, folder: str, world: int) -> float:
    quiet()
    torch.manual_seed(1)
    module = FineTune(headed(), "random", optimizer=sgd)
    run = trainer(folder, OnlineAccuracy(), max_epochs=1, world_size=world)
    run.validate(module, datamodule=ToyData(), verbose=False)
    return run.callback_metrics["val/top1"].item()


def test_accuracy_is_the_share_that_is_right_on_any_number_of_ranks(
    tmp_path: Path, ranks: Ranks
) -> None:
    one = accuracy(0, str(tmp_path), 1)
    torch.manual_seed(1)
    model = FineTune(headed(), "random").eval()
    query, truth = data(31, 1)
    wanted = (model(query).argmax(1) == truth).double().mean().item()
    assert one == pytest.approx(wanted)
    assert ranks(2, accuracy, str(tmp_path), 2) == [one, one]


def other_metrics(rank: int, folder: str, world: int) -> dict[str, float]:
    quiet()
    torch.manual_seed(1)
    module = FineTune(headed(), "random", optimizer=sgd)
    metrics = {
        "top2": MulticlassAccuracy(4, top_k=2, average="micro"),
        "recall": MulticlassAccuracy(4, average="none"),
        "confusion": MulticlassConfusionMatrix(4),
        "precision": MulticlassAveragePrecision(4),
    }
    run = trainer(folder, OnlineAccuracy(metrics=metrics), max_epochs=1, world_size=world)
    run.validate(module, datamodule=ToyData(), verbose=False)
    return {name: value.item() for name, value in run.callback_metrics.items()}


def test_any_metric_of_logits_is_the_same_on_any_number_of_ranks(
    tmp_path: Path, ranks: Ranks
) -> None:
    one = other_metrics(0, str(tmp_path), 1)
    torch.manual_seed(1)
    model = FineTune(headed(), "random").eval()
    query, truth = data(31, 1)
    logits = model(query)
    top2 = (logits.topk(2).indices == truth[:, None]).any(1).double().mean().item()
    assert one["val/top2"] == pytest.approx(top2)
    for true in range(4):
        rows = logits[truth == true].argmax(1)
        assert one[f"val/recall_{true}"] == pytest.approx((rows == true).double().mean().item())
        for guess in range(4):
            assert one[f"val/confusion_{true}_{guess}"] == (rows == guess).sum().item()
    found = average_precision_score(
        F.one_hot(truth, 4), logits.softmax(1).detach(), average="macro"
    )
    assert one["val/precision"] == pytest.approx(found, abs=1e-6)
    assert ranks(2, other_metrics, str(tmp_path), 2) == [one, one]


def test_accuracy_wants_as_many_logits_as_classes(tmp_path: Path) -> None:
    module = FineTune(Classifier(small(), 3), "random", optimizer=sgd)
    run = trainer(tmp_path, OnlineAccuracy())
    with pytest.raises(ValueError, match=r"must give 4 logits, .* got 3"):
        run.validate(module, datamodule=ToyData(), verbose=False)


def test_the_classifier_is_exempt_as_biases_and_norms_are() -> None:
    module = FineTune(headed(), "random")
    decayed, exempt = exempt_bias_norm_and_classifier(module)
    assert exempt["weight_decay"] == 0.0
    assert exempt["adapt"] is False
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert not any("classifier" in names[id(p)] for p in decayed["params"])
    inside = [names[id(p)] for p in exempt["params"]]
    assert "model.classifier.weight" in inside
    assert len(inside) + len(decayed["params"]) == len(names)
    with pytest.raises(ValueError, match="layer named classifier"):
        exempt_bias_norm_and_classifier(small())
