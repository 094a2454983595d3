"""I-JEPA equals the authors' step: features, predictions, loss, gradients, schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslzoo.backbones import small_vit
from sslzoo.batch import Batch
from sslzoo.heads import IJEPAPredictor
from sslzoo.losses import masked_features
from sslzoo.masks import MultiBlock
from sslzoo.methods import IJEPA
from sslzoo.methods.base import step_keys
from sslzoo.optim import CosineSchedule, LinearSchedule, RunLength, ScheduleLR, WarmupCosine
from tests.golden import assert_close_to_golden, load

OPTIONS: dict[str, Any] = {
    "class_token": False,
    "pool": "mean",
    "positions": "mae",
    "init": "ijepa",
}
# golden name -> ours
PREDICTOR = {
    "mask_token": "mask_token",
    "predictor_pos_embed": "pos_embed",
    "predictor_embed": "embed",
    "predictor_blocks": "blocks",
    "predictor_norm": "norm",
    "predictor_proj": "project",
}


def ours(group: str, name: str) -> str:
    if not group.endswith("pred"):
        return f"{'teacher_' if group == 'target' else ''}backbone.{name}"
    theirs = next(key for key in PREDICTOR if name.startswith(key))
    return "predictor." + name.replace(theirs, PREDICTOR[theirs])


def arrays(z: dict[str, Any], group: str) -> dict[str, Tensor]:
    start = f"{group}:"
    return {
        ours(group, key.removeprefix(start)): torch.tensor(value).float()
        for key, value in z.items()
        if key.startswith(start)
    }


def test_features_predictions_loss_and_gradients() -> None:
    z = load("ijepa/step.npz")
    hyper = z["meta"]["hyper"]
    sizes = (hyper[name] for name in ("img", "ps", "ed", "dep", "h"))
    vit = small_vit(*sizes, **OPTIONS, mlp_ratio=hyper["enc_mlp_ratio"])
    sizes = (hyper[name] for name in ("pd", "pdep", "ph", "pred_mlp_ratio"))
    predictor = IJEPAPredictor(hyper["ed"], 4, *sizes)
    method = IJEPA(vit, predictor)
    weights = arrays(z, "enc") | arrays(z, "pred") | arrays(z, "target")
    before = method.state_dict()
    for name in weights:
        if name.endswith("pos_embed"):  # our own tables are theirs
            assert_close_to_golden(before[name], weights[name], 1e-6)
    method.load_state_dict(weights)
    view = torch.tensor(z["img"]).float()
    context = torch.tensor(z["masks_enc"])[0]
    targets = torch.tensor(z["masks_pred"]).transpose(0, 1)  # ours: image by image
    everything = method.teacher_backbone.forward_tokens(view)
    assert_close_to_golden(everything, z["h_full"], 1e-5)
    tokens = method.backbone.forward_tokens(view, keep=context)
    assert_close_to_golden(tokens, z["z_ctx"], 1e-5)
    h, prediction = method.target(view, targets), method.predict(view, context, targets)
    normalized = nn.functional.layer_norm(h, h.shape[-1:])
    assert_close_to_golden(normalized.transpose(0, 1).flatten(0, 1), z["h"], 1e-5)
    assert_close_to_golden(prediction.transpose(0, 1).flatten(0, 1), z["z"], 1e-5)
    loss = masked_features(prediction, h)
    assert_close_to_golden(loss, z["loss"], 1e-5)
    loss.backward()
    for name, wanted in (arrays_of_gradients(z)).items():
        assert_close_to_golden(method.get_parameter(name).grad, wanted, 2e-5)
    assert all(p.grad is None for p in method.teacher_backbone.parameters())


def arrays_of_gradients(z: dict[str, Any]) -> dict[str, Tensor]:
    found = {}
    for group, kind in (("grad_enc", "enc"), ("grad_pred", "pred")):
        for key, value in z.items():
            if key.startswith(f"{group}:"):
                found[ours(kind, key.removeprefix(f"{group}:"))] = torch.tensor(value)
    return found


def test_rates_and_decay() -> None:
    """Deviation 4: their step 1 is our step 1, and they have no step 0."""
    z = load("ijepa/schedules.npz")
    lr, wd = (z["meta"]["hyper"][name] for name in ("lr", "wd"))
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr["ref_lr"])
    run_length = RunLength(lr["T_max"], 1)
    schedule = ScheduleLR(
        optimizer,
        WarmupCosine(
            warmup_epochs=lr["warmup_steps"],
            start_factor=lr["start_lr"] / lr["ref_lr"],
            end_factor=lr["final_lr"] / lr["ref_lr"],
        ),
        run_length,
    )
    decay = CosineSchedule(wd["ref_wd"], wd["final_wd"])
    for i in range(lr["T_max"]):
        rate = lr["ref_lr"] * schedule.schedule(i + 1, schedule.run_length)
        assert rate == pytest.approx(z["lr"][i], rel=1e-9)
        assert decay(i + 1, run_length) == pytest.approx(z["wd"][i], rel=1e-9)


def test_momentum_is_a_line_over_the_run() -> None:
    momentum, run_length = LinearSchedule(0.996, 1.0, epochs=3), RunLength(30, 10)
    for step in (0, 7, 29):
        assert momentum(step, run_length) == pytest.approx(0.996 + step * 0.004 / 30)


def toy() -> IJEPA:
    torch.manual_seed(0)
    vit = small_vit(16, 2, 16, 1, 2, **OPTIONS)
    return IJEPA(vit, IJEPAPredictor(16, 8, 8, 1, 2), MultiBlock(num_targets=2))


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_student_sees_the_context_alone_and_the_teacher_everything() -> None:
    method, x = toy(), images()
    context = torch.tensor([[0, 9, 18]] * 4)
    targets = torch.tensor([[[27, 28], [35, 36]]] * 4)
    other = x.clone()
    other[:, :, 6:, 6:] = 0.5  # patches from row and column 3 on
    predicted = [method.predict(view, context, targets) for view in (x, other)]
    torch.testing.assert_close(*predicted)
    features = [method.target(view, targets) for view in (x, other)]
    assert not torch.allclose(*features)


def test_every_target_is_predicted_by_itself() -> None:
    method, x = toy(), images()
    context, targets = torch.tensor([[0, 9, 18]] * 4), torch.tensor([[[27, 28], [35, 36]]] * 4)
    both = method.predict(x, context, targets)
    for m in range(2):
        alone = method.predict(x, context, targets[:, m : m + 1])
        torch.testing.assert_close(alone[:, 0], both[:, m])


def test_features_are_the_teachers_mean() -> None:
    method, x = toy(), images()
    with torch.no_grad():
        method.backbone.norm.weight.mul_(2)
    wanted = method.teacher_backbone.forward_tokens(x).mean(1)
    torch.testing.assert_close(method(x), wanted)
    assert method.encoder() is method.teacher_backbone


def test_half_precision_is_close() -> None:
    method, data = toy(), Batch([images()], torch.arange(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.losses(data)["masked_features"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, method.losses(data)["masked_features"], rtol=0.02, atol=0.02)


def test_wrong_parts_are_refused() -> None:
    predictor = IJEPAPredictor(16, 8, 8, 1, 2)
    with pytest.raises(ValueError, match="without class token"):
        IJEPA(small_vit(16, 2, 16, 1, 2), predictor)
    vit = small_vit(16, 4, 16, 1, 2, class_token=False, pool="mean")
    with pytest.raises(ValueError, match=r"width and grid \(16, 4\), got \(16, 8\)"):
        IJEPA(vit, predictor)
    with pytest.raises(ValueError, match="multiple of num_heads 4, got 10"):
        IJEPAPredictor(16, 8, width=10, num_heads=4)


def several(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    vit = small_vit((8, 12), 2, 16, 1, 2, **OPTIONS)
    masks = MultiBlock(num_targets=2, min_keep=3, **options)
    method = IJEPA(vit, IJEPAPredictor(16, (4, 6), 8, 1, 2), masks)
    with torch.no_grad():
        method.backbone.norm.weight.mul_(2)  # student and teacher differ
    return method


@pytest.mark.parametrize("overlap", [False, True])
def test_several_contexts_are_the_codes_in_its_order(overlap: bool) -> None:
    """The code stacks masks first: predictions by (target, context, image), targets repeated."""
    method = several(num_contexts=3, allow_overlap=overlap)
    assert method.takes.size == (8, 12)
    view = torch.rand(4, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    batch = Batch([view], torch.arange(4))
    contexts, targets = method.masks.draw(step_keys(method, batch), (4, 6), method.seed, 0)
    assert contexts.shape[:2] == (4, 3)
    features = method.teacher_backbone.forward_tokens(view)
    features = nn.functional.layer_norm(features, (16,))
    errors = []
    for m in range(2):
        wanted = torch.stack([features[b, targets[b, m]] for b in range(4)])
        for e in range(3):
            tokens = method.backbone.forward_tokens(view, keep=contexts[:, e])
            got = method.predictor(tokens, contexts[:, e], targets[:, m : m + 1])[:, 0]
            errors.append(nn.functional.smooth_l1_loss(got, wanted))
    loss = method.losses(batch)["masked_features"]
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_a_grid_without_room_for_a_smaller_block_is_refused() -> None:
    vit = small_vit((2, 8), 2, 16, 1, 2, **OPTIONS)
    with pytest.raises(ValueError, match=r"at least 2 rows and 2 columns.*, got \(1, 4\)"):
        IJEPA(vit, IJEPAPredictor(16, (1, 4), 8, 1, 2))
