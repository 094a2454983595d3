"""LinearHead, its loss, inference and scores: DINOv2's and mmsegmentation's arrays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from sslzoo.eval.dense import (
    LinearHead,
    center_pad,
    confusion,
    scores_of,
    segmentation_loss,
    slide_logits,
    whole_logits,
)
from sslzoo.eval.dense.linear import standardized, step_gradient
from tests.golden import assert_close_to_golden, load
from tests.ranks import Ranks


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return load("segmentation/linear_head.npz")


def group(golden: dict[str, Any], name: str) -> dict[str, Tensor]:
    found = {key: torch.as_tensor(golden[key]) for key in golden if key.startswith(f"{name}:")}
    return {key.removeprefix(f"{name}:"): value for key, value in found.items()}


def head(golden: dict[str, Any]) -> LinearHead:
    made = LinearHead(6, 5)
    made.load_state_dict(group(golden, "init"))
    return made


def test_training_equals_the_authors(golden):
    net, tokens = head(golden), torch.as_tensor(golden["tokens"]).requires_grad_()
    labels = torch.as_tensor(golden["labels"])
    logits = net(tokens)
    loss = segmentation_loss(logits, labels)
    loss.backward()
    assert_close_to_golden(logits, golden["logits_train"])
    assert_close_to_golden(loss, golden["loss"])
    assert_close_to_golden(tokens.grad, golden["grad_tokens"])
    for name, wanted in group(golden, "grad").items():
        assert_close_to_golden(net.get_parameter(name).grad, wanted)
    for name, wanted in group(golden, "bn_after").items():
        assert_close_to_golden(net.bn.state_dict()[name], wanted)
    valid = F.cross_entropy(
        F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=255
    )
    assert_close_to_golden(valid, golden["loss_valid_mean"])


def test_a_step_on_stored_maps_has_the_same_gradients(golden):
    check_step(0, 1)


def check_step(rank: int, world: int) -> None:
    """The step of the probe, whose batch may lie on several ranks or on one of them."""
    golden = load("segmentation/linear_head.npz")
    net, own = head(golden), slice(rank, None, world) if world < 3 else slice(2 * rank, 2)
    x = torch.as_tensor(golden["tokens"]).flatten(2).mT[own]
    labels = torch.as_tensor(golden["labels"])[own]
    loss = step_gradient(net, standardized(net, x), labels, (4, 5), 255)
    assert_close_to_golden(loss, golden["loss"])
    for name, wanted in group(golden, "grad").items():
        assert_close_to_golden(net.get_parameter(name).grad, wanted)
    for name, wanted in group(golden, "bn_after").items():
        assert_close_to_golden(net.bn.state_dict()[name], wanted)


@pytest.mark.parametrize("world", [2, 3])
def test_a_step_on_ranks_equals_one(world: int, ranks: Ranks) -> None:
    ranks(world, check_step, world)


def test_inference_and_scores_equal_the_authors(golden):
    net = head(golden)
    net.load_state_dict({f"bn.{k}": v for k, v in group(golden, "bn_after").items()}, strict=False)
    with torch.no_grad():
        logits = net.eval()(torch.as_tensor(golden["tokens"]))
    assert_close_to_golden(logits, golden["logits_eval"])
    assert_close_to_golden(whole_logits(logits, (16, 20), (4, 4)), golden["logits_up"])
    original = whole_logits(logits, (16, 20), (4, 4), (19, 18))
    assert_close_to_golden(original, golden["logits_ori"])
    predicted, truth = original.argmax(1), torch.as_tensor(golden["gt"])
    assert torch.equal(predicted, torch.as_tensor(golden["pred"]))
    counts = confusion(predicted, truth, 5, 255)
    assert torch.equal(counts, torch.as_tensor(golden["confusion"]))
    scores = scores_of(counts)
    assert_close_to_golden(scores.iou, golden["IoU"], 1e-6)
    assert_close_to_golden(scores.accuracy, golden["Acc"], 1e-6)
    assert_close_to_golden(scores.miou, golden["mIoU"], 1e-6)
    assert_close_to_golden(scores.pixel_accuracy, golden["aAcc"], 1e-6)
    index = MulticlassJaccardIndex(5, ignore_index=255)(predicted, truth)
    assert scores.miou == pytest.approx(index.item(), abs=1e-6)


def test_absent_classes_are_left_out_of_the_mean(golden):
    predicted, truth = (torch.as_tensor(golden[name]) for name in ("pred", "gt"))
    scores = scores_of(confusion(predicted, truth, 7, 255))
    assert_close_to_golden(scores.miou, golden["mIoU_absent"], 1e-6)
    assert scores.iou.isnan().tolist() == [False] * 5 + [True] * 2


def test_scores_by_hand():
    truth = torch.tensor([[[0, 0, 1, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 0]]])
    scores = scores_of(confusion(predicted, truth, 3, 255))
    assert scores.iou[:2].tolist() == [0.5, 0.5]
    assert (scores.miou, scores.class_accuracy) == (0.5, 0.75)
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="masks must have pixels with a class"):
        scores_of(torch.zeros(3, 3, dtype=torch.int64))


def test_sliding_crops_and_padding_equal_the_authors(golden):
    images = torch.as_tensor(golden["slide_in"])
    found = slide_logits(lambda x: x + x.mean((2, 3), keepdim=True), images, 12, 8)
    assert_close_to_golden(found, golden["slide_out"])
    with pytest.raises(ValueError, match="stride must be at most 12"):
        slide_logits(lambda x: x, images, 12, 13)
    padded = center_pad(torch.as_tensor(golden["center_pad_in"]), (4, 4))
    assert torch.equal(padded, torch.as_tensor(golden["center_pad_out"]))


def test_the_loss_by_hand():
    logits = torch.zeros(1, 2, 1, 1)
    assert segmentation_loss(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(math.log(2))
    half = segmentation_loss(logits, torch.tensor([[[0, 255]]]))
    assert half.item() == pytest.approx(math.log(2) / 2)
    extreme = segmentation_loss(torch.tensor([[[[1e4]], [[-1e4]]]]), torch.tensor([[[1]]]))
    assert extreme.item() == pytest.approx(2e4)
