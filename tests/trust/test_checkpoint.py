"""A checkpoint gives weights and plain values; the user names what it does not."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import sslzoo
from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.commands import fit
from sslzoo.data import ImageFolder
from sslzoo.eval import Classifier, load_weights
from sslzoo.heads import DINOHead, MAEDecoder
from sslzoo.masks import BlockMasks
from sslzoo.methods import BYOL, DINO, MAE, SimCLR
from sslzoo.optim import LinearSchedule, Schedule, WarmupCosine
from sslzoo.transforms import Views, digit_views
from sslzoo.trust import UntrustedError, build, module_of
from tests.zoo.test_broken_files import DEEP_KEY, zip_of

HYPER: dict[str, Any] = {
    "_class_path": "sslzoo.methods.SimCLR",
    "_instantiator": "lightning.pytorch.fit.instantiate_module",
    "backbone": {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}},
    "projector": {
        "class_path": "sslzoo.heads.simclr_projector",
        "init_args": {"in_dim": 16, "out_dim": 4},
    },
    "temperature": 0.3,
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
    "schedule": {"class_path": "sslzoo.optim.WarmupCosine", "init_args": {"warmup_epochs": 2}},
    "parameter_groups": "sslzoo.optim.exempt_bias_and_norm",
}


class OwnNet(nn.Module):
    """A backbone of the user's own, which this program has imported."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.num_features = width
        self.linear = nn.Linear(3, width)


class OwnSGD(torch.optim.SGD):
    """An optimizer of the user's own."""


def saved(**changes: Any) -> dict[str, Any]:
    hyper = {**copy.deepcopy(HYPER), **changes}
    net = SimCLR(SmallResNet((8, 16)), sslzoo.heads.simclr_projector(16, out_dim=4))
    return {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": net.state_dict(),
        "hyper_parameters": hyper,
        "sslzoo": {"step": 3, "horizon": [6, 3], "rng": [{"cpu": torch.get_rng_state()}]},
    }


def write(where: Path, content: Any) -> str:
    torch.save(content, where / "last.ckpt")
    return str(where / "last.ckpt")


def test_the_encoder_is_built_without_what_only_training_needs(tmp_path: Path) -> None:
    evil = {"class_path": "os.system", "init_args": {"command": "false"}}
    for name in ("optimizer", "schedule", "parameter_groups"):
        path = write(tmp_path, saved(**{name: evil}))
        assert sslzoo.load(path).num_features == 16, "what is not built is not judged"
        with pytest.raises(UntrustedError, match=r"last\.ckpt must name only .* got 'os\.system'"):
            sslzoo.load(path, whole=True)


def test_a_whole_method_can_train_on(tmp_path: Path) -> None:
    content = saved()
    method: Any = sslzoo.load(write(tmp_path, content), whole=True)
    assert (type(method), method.temperature, method.step) == (SimCLR, 0.3, 3)
    assert method._optimizer.func is torch.optim.SGD
    assert method._optimizer.keywords == {"lr": 0.1, "momentum": 0.9}
    assert isinstance(method._schedule, WarmupCosine)
    assert method._parameter_groups is sslzoo.optim.exempt_bias_and_norm
    for name, value in method.state_dict().items():
        assert torch.equal(value, content["state_dict"][name])


def test_an_optimizer_of_the_user_s_own_is_one(tmp_path: Path) -> None:
    own = {"class_path": f"{__name__}.OwnSGD", "init_args": {"lr": 0.1}}
    path = write(tmp_path, saved(optimizer=own))
    for method in (sslzoo.load(path, whole=True), SimCLR.load_from_checkpoint(path)):
        assert method._optimizer.func is OwnSGD
    net = {"class_path": f"{__name__}.OwnNet"}
    with pytest.raises(UntrustedError, match="is not the Optimizer that is required there"):
        sslzoo.load(write(tmp_path, saved(optimizer=net)), whole=True)


def test_a_class_loads_its_own_checkpoints_by_the_same_rule(tmp_path: Path) -> None:
    path = write(tmp_path, saved())
    assert SimCLR.load_from_checkpoint(path).temperature == 0.3
    assert SimCLR.load_from_checkpoint(path, temperature=0.7).temperature == 0.7
    with pytest.raises(ValueError, match=r"must be a BYOL, got 'sslzoo.methods.SimCLR'"):
        BYOL.load_from_checkpoint(path)
    evil = {"class_path": "os.system", "init_args": {"command": "false"}}
    with pytest.raises(UntrustedError, match=r"os\.system"):
        SimCLR.load_from_checkpoint(write(tmp_path, saved(optimizer=evil)))


@pytest.mark.parametrize(
    ("given", "removed"),
    [
        ({"strict": False}, ()),
        ({"map_location": "cpu"}, ()),
        ({}, ("_class_path",)),
        ({"strict": False}, ("_class_path",)),
        ({"hparams_file": "hparams.yaml"}, ()),
    ],
)
def test_lightning_s_instantiator_builds_nothing_of_a_file(
    given: dict[str, Any], removed: tuple[str, ...], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    evil = {"class_path": "os.system", "init_args": {"command": f"touch {canary}"}}
    content = saved(optimizer=evil)
    for name in removed:
        del content["hyper_parameters"][name]
    if "hparams_file" in given:
        given = {"hparams_file": str(tmp_path / "hparams.yaml")}
        Path(given["hparams_file"]).write_text(yaml.safe_dump(content["hyper_parameters"]))
    path = write(tmp_path, content)
    with pytest.raises((ValueError, TypeError)):
        SimCLR.load_from_checkpoint(path, **given)
    content["hparams"] = content.pop("hyper_parameters")  # of Lightning 0.6
    with pytest.raises((ValueError, TypeError)):
        SimCLR.load_from_checkpoint(write(tmp_path, content), **given)
    assert not canary.exists()


@pytest.mark.parametrize("tag", ["name:os.system", "module:os", "object:os.stat_result"])
def test_hyper_parameters_in_yaml_name_no_objects(tmp_path: Path, tag: str) -> None:
    path, named = write(tmp_path, saved()), tmp_path / "hparams.yaml"
    named.write_text(f"optimizer: !!python/{tag} ''\n")
    with pytest.raises(
        ValueError, match=r"hparams\.yaml must be plain values, got '(name|module|object):"
    ):
        SimCLR.load_from_checkpoint(path, hparams_file=named)
    with pytest.raises(
        ValueError, match=r"hparams\.yaml must be plain values, got '(name|module|object):"
    ):
        ImageFolder.load_from_checkpoint(path, hparams_file=named)


def test_hyper_parameters_in_yaml_may_have_tuples(tmp_path: Path) -> None:
    content, named = saved(), tmp_path / "hparams.yaml"
    del content["hyper_parameters"]
    named.write_text(yaml.dump({"temperature": 0.7, "other": (1, 2)}))
    net = SmallResNet((8, 16))
    projector = sslzoo.heads.simclr_projector(16, out_dim=4)
    path = write(tmp_path, content)
    made = SimCLR.load_from_checkpoint(path, hparams_file=named, backbone=net, projector=projector)
    assert made.temperature == 0.7


def test_names_that_differ_may_be_let_pass(tmp_path: Path) -> None:
    content = saved()
    del content["state_dict"]["backbone.stem.weight"]
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match="does not fit SimCLR"):
        SimCLR.load_from_checkpoint(path)
    assert SimCLR.load_from_checkpoint(path, strict=False).temperature == 0.3


def test_a_data_module_of_a_checkpoint_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "gadget_of_data.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()")
    hyper = {
        "_instantiator": "lightning.pytorch.fit.instantiate_module",
        "root": str(tmp_path),
        "transform": {"class_path": "gadget_of_data.Views"},
    }
    path = write(tmp_path, {**saved(), "datamodule_hyper_parameters": hyper})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        made = ImageFolder.load_from_checkpoint(path, transform=digit_views(8))
        assert isinstance(made.transform, Views)
        with contextlib.suppress(Exception):
            ImageFolder.load_from_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_fine_tuning_takes_a_checkpoint_by_the_same_rule(tmp_path: Path) -> None:
    content = saved(optimizer={"class_path": "os.system"})
    model = Classifier(SmallResNet((8, 16)), 2)
    load_weights(model, write(tmp_path, content))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"backbone.{name}"])
    with pytest.raises(UntrustedError, match=r"os\.system"):
        load_weights(model, write(tmp_path, saved(backbone={"class_path": "os.system"})))


def test_the_user_s_own_class_loads_by_import_or_by_a_trusting_word(tmp_path: Path) -> None:
    own = {"class_path": f"{__name__}.OwnNet", "init_args": {"width": 5}}
    head = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 5, "out_features": 2}}
    content = saved(backbone=own, projector=head)
    content["state_dict"] = SimCLR(OwnNet(), nn.Linear(5, 2)).state_dict()
    path = write(tmp_path, content)
    assert type(sslzoo.load(path)) is OwnNet
    assert type(sslzoo.load(path, trust=True)) is OwnNet
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(3, 5)\n"
        "        self.num_features = 5\n"
    )
    content["hyper_parameters"]["backbone"] = {"class_path": "own_net.Net"}
    content["state_dict"] = {
        name.replace("backbone.linear.", "backbone."): value
        for name, value in content["state_dict"].items()
    }
    path = write(tmp_path, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(UntrustedError, match=r"got 'own_net\.Net'.*trust=True \(--trust"):
            sslzoo.load(path)
        assert type(sslzoo.load(path, trust=True)).__module__ == "own_net"
        assert type(sslzoo.load(path)).__module__ == "own_net", "it is imported now"


OWN_METHODS = """
from torch import nn
from sslzoo.methods import SimCLR
class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 5)
        self.num_features = 5
class Holder:
    class Inner(SimCLR):
        pass
"""


def test_a_class_within_a_class_loads_where_its_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "own_methods.py").write_text(OWN_METHODS)
    name = "own_methods.Holder.Inner"
    path = write(tmp_path, saved(_class_path=name))
    said = "own_methods cannot be imported; put its folder on PYTHONPATH"
    with pytest.raises(ValueError, match=said):
        sslzoo.load(path, trust=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with pytest.raises(UntrustedError, match="trust=True"):
            SimCLR.load_from_checkpoint(path)
        assert SimCLR.load_from_checkpoint(path, trust=True).temperature == 0.3
        made = SimCLR.load_from_checkpoint(path, trust=True, temperature=0.7)
        assert (type(made).__qualname__, made.temperature, made.step) == ("Holder.Inner", 0.7, 3)
        assert type(sslzoo.load(path, trust=True)) is SmallResNet
        assert type(sslzoo.load(path, whole=True)) is type(made), "it is imported now"
        with pytest.raises(ValueError, match="BYOL"):
            BYOL.load_from_checkpoint(path, trust=True)


def in_python(method: Any) -> dict[str, Any]:
    """The checkpoint of a module that was built in Python."""
    return {**saved(), "state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}


def test_a_module_built_in_python_gives_its_backbone_to_another(tmp_path: Path) -> None:
    method = SimCLR(SmallResNet((8, 16)), nn.Linear(16, 4))
    path = write(tmp_path, in_python(method))
    with pytest.raises(ValueError, match=r"or sslzoo\.load\(PATH, backbone=NET\)"):
        sslzoo.load(path)
    net = SmallResNet((8, 16))
    assert sslzoo.load(path, backbone=net) is net
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(net.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"does not fit SmallResNet"):
        sslzoo.load(path, backbone=SmallResNet((8, 24)))
    with pytest.raises(
        ValueError, match=r"SimCLR.load_from_checkpoint must be given backbone=..., proj"
    ):
        SimCLR.load_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"must be given projector=\.\.\., since"):
        SimCLR.load_from_checkpoint(path, backbone=net)
    SimCLR.load_from_checkpoint(path, backbone=net, projector=nn.Linear(16, 4))


def test_a_given_backbone_takes_the_encoder_of_a_run(tmp_path: Path) -> None:
    content = saved()
    path, net = write(tmp_path, content), SmallResNet((8, 16))
    assert sslzoo.load(path, backbone=net) is net
    for name, value in net.state_dict().items():
        assert torch.equal(value, content["state_dict"][f"backbone.{name}"])
    with pytest.raises(ValueError, match=r"does not fit SimCLR.*backbone"):
        sslzoo.load(path, backbone=SmallResNet((4, 16)))
    for other in (SmallResNet, "resnet18"):
        with pytest.raises(ValueError, match="backbone must be a module that the weights fill"):
            sslzoo.load(path, backbone=other)  # type: ignore[arg-type]


def test_a_given_backbone_takes_the_teacher_that_is_the_encoder(tmp_path: Path) -> None:
    head = {"class_path": "sslzoo.heads.DINOHead", "init_args": {"in_dim": 16, "out_dim": 6}}
    hyper = {"_class_path": "sslzoo.methods.DINO", "backbone": HYPER["backbone"], "projector": head}
    method = DINO(SmallResNet((8, 16)), DINOHead(16, 6))
    with torch.no_grad():
        for weight in method.teacher_backbone.parameters():
            weight.add_(1.0)
    content = {**saved(), "hyper_parameters": hyper, "state_dict": method.state_dict()}
    net = SmallResNet((8, 16))
    assert sslzoo.load(write(tmp_path, content), backbone=net) is net
    assert torch.equal(net.stem.weight, method.teacher_backbone.stem.weight)
    assert net.stem.weight.requires_grad


def test_the_module_s_objects_may_be_given(tmp_path: Path) -> None:
    content = saved(backbone={"class_path": "os.system"})
    made = module_of(content, "x.ckpt", backbone=SmallResNet((8, 16)))
    assert isinstance(made, SimCLR)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hyper_parameters": 3}, "hyper_parameters must be a dictionary"),
        ({"hyper_parameters": {3: 4}}, "hyper_parameters must be a dictionary"),
        ({"hyper_parameters": {}}, "must name its class"),
        ({"hyper_parameters": {"_class_path": 3}}, "must be class_path and init_args"),
        ({"state_dict": None}, "state_dict must be a dictionary of tensors"),
        ({"state_dict": {"a": 1}}, "state_dict must be a dictionary of tensors"),
        ({"state_dict": {}}, "does not fit SimCLR"),
        ({"sslzoo": {"step": 3}}, "must hold the state of"),
        ({"sslzoo": 3}, "must hold the state of"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_one_sentence(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, {**saved(), **changes})
    with pytest.raises(ValueError, match=said):
        sslzoo.load(path, whole=True)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    content = saved()
    name = next(name for name in content["state_dict"] if name.startswith("backbone."))
    content["state_dict"][name][0] = float("nan")
    with pytest.raises(ValueError, match=r"last\.ckpt must be finite, got NaN or infinity in"):
        sslzoo.load(write(tmp_path, content))


def test_a_network_larger_than_its_weights_is_never_allocated(tmp_path: Path) -> None:
    widths = {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 1 << 22]}}
    with pytest.raises(ValueError, match=r"must have in_features"):
        sslzoo.load(write(tmp_path, saved(backbone=widths)))
    head = {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": 16, "out_features": 1 << 40},
    }
    with pytest.raises(ValueError, match="does not fit SimCLR"):
        sslzoo.load(write(tmp_path, saved(projector=head)))


@pytest.mark.filterwarnings("ignore")  # of Lightning's command
@pytest.mark.parametrize("held", [DEEP_KEY, b"\x80\x02" + b"]" * 1001 + b"a" * 1000 + b"."])
def test_what_is_too_deep_to_be_hashed_or_shown_is_one_sentence(
    tmp_path: Path, held: bytes
) -> None:
    path = tmp_path / "deep.ckpt"
    path.write_bytes(zip_of(held))
    for read in (
        sslzoo.load,
        SimCLR.load_from_checkpoint,
        partial(load_weights, Classifier(SmallResNet((8, 16)), 2)),
    ):
        with pytest.raises(ValueError, match=r"nested at most 100 levels deep, got [12]00\d+"):
            read(str(path))
    config = ["--config", "simclr/folder_small_10ep", f"--data.root={tmp_path}"]
    with pytest.raises(ValueError, match=r"nested at most 100 levels deep, got [12]00\d+"):
        fit.run(["fit", *config, f"--ckpt_path={path}"])


def test_names_of_version_0_1_stand_for_the_current_ones() -> None:
    mask = {"class_path": "sslzoo.transforms.BlockMasks", "init_args": {}}
    assert isinstance(build(mask, BlockMasks, "x"), BlockMasks)
    line = {"class_path": "sslzoo.optim.Linear", "init_args": {"start": 0.0, "end": 1.0}}
    assert isinstance(build(line, Schedule, "x"), LinearSchedule)
    cosine = {"class_path": "sslzoo.optim.WarmupCosine", "init_args": {"horizon_on_resume": "new"}}
    assert build(cosine, Schedule, "x").run_length_on_resume == "new"


def test_arguments_of_version_0_1_are_kept_by_a_module_built_in_python(tmp_path: Path) -> None:
    vit = small_vit(8, 2, width=16, depth=1, num_heads=2, positions="mae", init="mae")
    decoder = MAEDecoder(16, grid=4, patch_size=2, width=8, depth=1, num_heads=2)
    method = MAE(vit, decoder, normalize_pixels=False)
    saved = {"state_dict": method.state_dict(), "pytorch-lightning_version": "2.6.6"}
    torch.save({**saved, "hyper_parameters": {"normalise_pixels": False}}, tmp_path / "old.ckpt")
    path = str(tmp_path / "old.ckpt")
    again = MAE.load_from_checkpoint(path, backbone=vit, decoder=decoder)
    assert again.normalize_pixels is False


def test_a_truncated_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = Path(write(tmp_path, saved()))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="must hold only tensors and plain values") as raised:
        SimCLR.load_from_checkpoint(path)
    assert "\n" not in str(raised.value)
