"""BYOL equals three steps of DeepMind's own update: loss, gradient, LARS, target, state."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from sslzoo.backbones import GlobalBatchNorm, SmallResNet
from sslzoo.batch import Batch
from sslzoo.callbacks.ema import EMA
from sslzoo.commands.configs import find_config
from sslzoo.heads import byol_mlp
from sslzoo.methods import BYOL
from sslzoo.optim import LARS, CosineSchedule, RunLength, ScheduleLR, WarmupCosine
from tests.golden import assert_close_to_golden, load

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])

# golden name -> ours
LAYERS = {
    "toy|lin": "backbone.lin",
    "toy|batchnorm": "backbone.norm",
    "projector|linear": "projector.layers.0",
    "projector|batch_norm": "projector.layers.1",
    "projector|linear_1": "projector.layers.3",
    "predictor|linear": "predictor.layers.0",
    "predictor|batch_norm": "predictor.layers.1",
    "predictor|linear_1": "predictor.layers.3",
    "classifier": "classifier",
}
UNUSED = ("predictor", "classifier")  # the authors' target has them too
PARAMETERS = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}


class ToyEncoder(nn.Module):
    """The authors' test input: Linear, batch norm, ReLU on the flattened normalized image."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 9
        self.lin = nn.Linear(48, 9)
        self.norm = GlobalBatchNorm(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.lin(((x - MEAN) / STD).flatten(1))).relu()


def parameters(z: dict[str, Any], group: str) -> dict[str, Tensor]:
    """Golden parameters of one group under our names, in our layouts."""
    out = {}
    for name, ours in LAYERS.items():
        for theirs, attribute in PARAMETERS.items():
            array = z.get(f"{group}:{name}.{theirs}")
            if array is not None:
                value = torch.tensor(array)
                out[f"{ours}.{attribute}"] = value.T if theirs == "w" else value.flatten()
    return out


def views(z: dict[str, Any]) -> list[Tensor]:
    """The global batch: the devices' images one after the other, NHWC."""
    return [torch.tensor(np.concatenate(list(z[name]))) for name in ("view1", "view2")]


def teacher_name(name: str) -> str:
    return f"teacher_{name}"


@pytest.mark.parametrize("devices", [1, 2])
def test_three_updates_equal_the_authors(devices: int) -> None:
    z = load(f"byol/update_{devices}dev.npz")
    hyper = z["meta"]["hyper"]
    start, peak = hyper["first_global_step"], hyper["base_lr"] * hyper["batch_size"] / 256
    run_length = RunLength(hyper["max_steps"], 1)
    method = BYOL(
        ToyEncoder(),
        byol_mlp(9, hyper["projector_hidden"], hyper["projector_out"]),
        byol_mlp(5, hyper["predictor_hidden"], hyper["projector_out"]),
        momentum=CosineSchedule(hyper["base_target_ema"], 1.0),
        optimizer=partial(LARS, lr=peak, weight_decay=hyper["weight_decay"], eta=hyper["eta"]),
    )
    # Deviation 2: theirs trains a classifier beside, which here is this test's.
    method.classifier = nn.Linear(hyper["encoder_hidden"], hyper["num_classes"])
    labels = torch.tensor(np.concatenate(list(z["labels"])))
    features: list[Tensor] = []
    method.backbone.register_forward_hook(lambda _, args, out: features.append(out.detach()))
    method.load_state_dict(parameters(z, "online_init"), strict=False)
    target = {
        teacher_name(name): value
        for name, value in parameters(z, "target_init").items()
        if not name.startswith(UNUSED)
    }
    method.load_state_dict(target, strict=False)
    method.run_length, method.step = run_length, start
    optimizer = method.configure_optimizers()
    schedule = ScheduleLR(optimizer, WarmupCosine(warmup_epochs=hyper["warmup_steps"]), run_length)
    ema = EMA(method.momentum, "after_step")
    batch = Batch(views(z), torch.arange(6 * devices))
    schedule.load_state_dict({**schedule.state_dict(), "last_epoch": start})
    for k in range(3):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(z["log_learning_rate"][k])
        assert method.momentum(method.step, run_length) == pytest.approx(z["log_tau"][k])
        features.clear()
        loss = method.losses(batch)["regression"]
        assert_close_to_golden(loss, z["log_repr_loss"][k], 1e-5)
        logits = method.classifier(features[0])  # of view 1
        classification = F.cross_entropy(logits, labels)
        assert_close_to_golden(classification, z["log_classif_loss"][k], 1e-5)
        loss = loss + classification
        assert_close_to_golden(loss, z["log_loss"][k], 1e-5)
        for count in (1, 5):
            found = (logits.topk(count).indices == labels[:, None]).any(dim=1).float()
            assert_close_to_golden(found.mean(), z[f"log_top{count}_accuracy"][k], 1e-6)
        optimizer.zero_grad()
        loss.backward()
        if k == 0:
            for name, wanted in parameters(z, "grad_step0").items():
                if wanted.abs().max() > 1e-6:  # a bias before a batch norm has only noise
                    assert_close_to_golden(method.get_parameter(name).grad, wanted, 2e-4)
        optimizer.step()
        schedule.step()
        ema.update(method, method.step - 1)
        if k in (0, 2):
            check_state(method, z, k, updates=2 * (k + 1), rows=6 * devices)


def check_state(method: BYOL, z: dict[str, Any], k: int, updates: int, rows: int) -> None:
    for name, wanted in parameters(z, f"online_after{k}").items():
        assert_close_to_golden(method.get_parameter(name), wanted)
    for name, wanted in parameters(z, f"target_after{k}").items():
        if not name.startswith(UNUSED):
            assert_close_to_golden(method.get_parameter(teacher_name(name)), wanted)
    for name, ours in LAYERS.items():
        for network, place in (("online", ours), ("target", teacher_name(ours))):
            mean = z.get(f"{network}_state_after{k}:{name}|~|mean_ema.hidden")
            if mean is None or place.startswith("teacher_predictor"):
                continue
            norm = method.get_submodule(place)
            assert_close_to_golden(norm.running_mean, mean.flatten())
            # Deviation 3: theirs averages the biased variance from 0, torch the unbiased from 1.
            var = z[f"{network}_state_after{k}:{name}|~|var_ema.hidden"].flatten()
            wanted = 0.9**updates + var * rows / (rows - 1)
            assert_close_to_golden(norm.running_var, wanted)


def test_target_has_batch_statistics_of_its_own() -> None:
    method = BYOL(ToyEncoder(), byol_mlp(9, 8, 5), byol_mlp(5, 8, 5))
    batch = Batch([torch.rand(6, 4, 4, 3), torch.rand(6, 4, 4, 3)], torch.arange(6))
    with torch.no_grad():
        method.backbone.lin.weight.mul_(2)
    method.losses(batch)
    online, target = method.backbone.norm, method.teacher_backbone.norm
    assert int(target.num_batches_tracked) == int(online.num_batches_tracked) == 2
    assert not torch.allclose(target.running_var, online.running_var)


def test_with_group_norm_the_loss_is_the_mean_of_the_samples_own() -> None:
    torch.manual_seed(0)
    heads = byol_mlp(32, 48, 8, norm="group"), byol_mlp(8, 32, 8, norm="group")
    method = BYOL(SmallResNet((16, 32), norm="group"), *heads).double()
    v1, v2 = torch.rand(2, 5, 3, 8, 8, dtype=torch.float64)
    together = method.losses(Batch([v1, v2], torch.arange(5)))["regression"]
    each = [
        method.losses(Batch([v1[i : i + 1], v2[i : i + 1]], torch.arange(1)))["regression"]
        for i in range(5)
    ]
    torch.testing.assert_close(together, torch.stack(each).mean())


def test_the_imagenet_recipe_is_the_official_config() -> None:
    z = load("byol/official_configs.npz")
    hyper, which = z["meta"]["hyper"], list(z["epochs"]).index(1000)
    config = yaml.safe_load(Path(find_config("byol/imagenet_resnet50_1000ep")).read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    lars, network = model["optimizer"]["init_args"], hyper["network"]
    assert config["trainer"]["max_epochs"] == 1000
    assert data["batch_size"] == hyper["batch"]
    assert lars["lr"] == pytest.approx(z["base_lr"][which] * hyper["batch"] / 256)
    assert lars["weight_decay"] == z["wd"][which]
    assert (lars["eta"], lars["momentum"]) == (0.001, hyper["optimizer"]["momentum"])
    assert model["momentum"]["init_args"]["start"] == z["ema"][which]
    # Deviation 4: theirs counts the last part of an epoch, ours whole batches.
    epochs = model["schedule"]["init_args"]["warmup_epochs"]
    assert z["warmup"][which] == epochs * 1_281_167 // hyper["batch"]
    for part in ("projector", "predictor"):
        sizes = model[part]["init_args"]
        assert sizes["hidden_dim"] == network[f"{part}_hidden_size"]
        assert sizes["out_dim"] == network["projector_output_size"]
