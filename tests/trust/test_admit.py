"""Which names a file may use: the classes that are ours or torch's, and the user's own."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import nn

import sslzoo.backbones
import sslzoo.heads
import sslzoo.methods
import sslzoo.optim
from sslzoo.backbones import SmallResNet
from sslzoo.transforms.image.views import Views
from sslzoo.trust import UntrustedError, admit
from sslzoo.trust.admit import FACTORY_PACKAGES


class OwnNet(nn.Module):
    """A backbone of a user's."""


class OwnTool:
    """A class of a user's that is no module."""


def own_function() -> nn.Module:
    return OwnNet()


def test_a_class_is_admitted_by_its_public_and_by_its_own_name() -> None:
    assert admit("sslzoo.backbones.SmallResNet", nn.Module, "x.json") is SmallResNet
    assert admit("sslzoo.backbones.image.SmallResNet", nn.Module, "x.json") is SmallResNet
    assert admit("torch.nn.Linear", nn.Module, "x.json") is nn.Linear
    assert admit("torch.nn.modules.linear.Linear", nn.Module, "x.json") is nn.Linear
    assert admit("torch.optim.SGD", object, "x.json") is torch.optim.SGD
    assert admit("sslzoo.methods.SimCLR", LightningModule, "x.json") is sslzoo.methods.SimCLR


def test_a_listed_factory_is_admitted_where_what_it_returns_is_wanted() -> None:
    factory = sslzoo.backbones.timm_backbone
    assert admit("sslzoo.backbones.timm_backbone", nn.Module, "x.json") is factory
    assert admit("sslzoo.transforms.simclr_views", Views, "x.json") is not None
    assert admit("sslzoo.optim.all_alike", object, "x.json") is sslzoo.optim.all_alike
    with pytest.raises(ValueError, match=r"must be a Module, got 'sslzoo.transforms.simclr_views'"):
        admit("sslzoo.transforms.simclr_views", nn.Module, "x.json")


def test_every_public_class_and_factory_is_admitted() -> None:
    for package in FACTORY_PACKAGES:
        module = sys.modules[package]
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type | types.FunctionType):
                assert admit(f"{package}.{name}", object, "x.json") is found


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "antigravity.X",
        "sslzoo.data.image.decode.os.system",  # a module that ours imports
        "sslzoo.data.image.image_set.Image",  # PIL's module
        "sslzoo.data.image.image_set.np.save",
        "sslzoo.backbones.image.timm.create_model",
        "sslzoo.backbones.image.nn.Linear",  # admissible, but not by this way
        "sslzoo.data.listing.Path",  # classes of others that an admissible module imports
        "torch.nn.modules.module.OrderedDict",
        "sslzoo.backbones.nothing",
        "sslzoo.backbones",
        "sslzoo.atomic_write.atomic_write",
        "sslzoo.commands.fit.run",
        "sslzoo.zoo.save.save",
        "sslzoo.eval.cache.cached_features",
        "sslzoo.methods.SimCLR.load_from_checkpoint",
        "sslzoo.methods.SimCLR.to_onnx",
        "sslzoo.methods.base.frozen_copy",  # a function that no package lists
        "torch.save",
        "torch.load",
        "torch.hub.load",
        "torch.jit.ScriptModule",
        "torch.fx.GraphModule",
        "torch.nn.init.normal_",
        "torch.nn.Module.register_module",
        "torch.nn.functional.relu",
        "torch.nn.modules.module.torch.save",
        "torch.nn.Module.__init__",
        "torch.nn.Module.__class__",
        "torchvision.models.resnet18",
        "timm.create_model",
        "lightning.pytorch.loggers.CSVLogger",
        "tests.trust.test_admit.OwnTool",
        "tests.trust.test_admit.torch.save",
        "__main__.os.system",
        "SmallResNet",
        "",
        ".",
        "sslzoo..backbones.SmallResNet",
        "sslzoo.backbones.SmallResNet ",
        "sslzoo.backbones.SmallResNet\n",
        "sslzoo/backbones.SmallResNet",
        None,
        3,
        ["sslzoo.backbones.SmallResNet"],
    ],
)
@pytest.mark.parametrize("base", [object, nn.Module])
def test_any_other_name_is_refused(name: Any, base: type) -> None:
    before = set(sys.modules)
    with pytest.raises(UntrustedError, match=r"x\.json must name only") as refused:
        admit(name, base, "x.json")
    assert "trust=True" in str(refused.value), "the way out"
    assert "antigravity" not in set(sys.modules) - before


def test_a_user_s_own_class_is_admitted_once_the_program_has_imported_it(tmp_path: Path) -> None:
    name = f"{__name__}.OwnNet"
    assert admit(name, nn.Module, "x.json") is OwnNet
    with pytest.raises(UntrustedError, match="is not the LightningModule that is required there"):
        admit(name, LightningModule, "x.json")
    with pytest.raises(UntrustedError, match="without a type hint"):
        admit(name, object, "x.json")
    assert admit(name, object, "x.json", nn.Module) is OwnNet
    with pytest.raises(UntrustedError, match="is not the Optimizer that is required there"):
        admit(name, object, "x.json", torch.optim.Optimizer)
    (tmp_path / "not_imported.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UntrustedError, match="is not a class of sslzoo or torch"):
            admit("not_imported.Net", nn.Module, "x.json")
    finally:
        sys.path.remove(str(tmp_path))


def test_a_user_s_package_may_export_a_class_of_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package/net.py").write_text("import torch\nclass Net(torch.nn.Module): ...\n")
    (tmp_path / "own_package/__init__.py").write_text(
        "from collections import Counter\nfrom own_package.net import Net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("own_package")
    assert admit("own_package.Net", nn.Module, "x.json") is package.Net
    with pytest.raises(UntrustedError, match="is defined in collections"):
        admit("own_package.Counter", dict, "x.json")


def test_what_is_called_later_is_no_function_and_no_class_of_others() -> None:
    with pytest.raises(UntrustedError, match="is a function"):
        admit(f"{__name__}.own_function", object, "x.json", nn.Module)
    for name in ("collections.OrderedDict", "lightning.pytorch.Trainer", "subprocess.Popen"):
        for result in (object, dict, torch.optim.Optimizer):
            with pytest.raises(UntrustedError, match=r"is defined in|is not a class of"):
                admit(name, object, "x.json", result)


def test_a_class_that_only_says_that_it_is_ours_is_refused(monkeypatch: Any) -> None:
    class Forged(nn.Module):
        pass

    Forged.__module__, Forged.__qualname__ = "torch.nn.modules.linear", "Linear"
    monkeypatch.setattr(sslzoo.backbones, "Forged", Forged, raising=False)
    with pytest.raises(UntrustedError, match="claims to be"):
        admit("sslzoo.backbones.Forged", nn.Module, "x.json")
