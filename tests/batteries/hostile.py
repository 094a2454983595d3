"""Hostile files: every gadget at every place of a card, a checkpoint or a run, read in every way.

    python -m tests.batteries.hostile 1 8     counts what ran, by way of reading (half an hour)

An attempt has failed its attacker if afterwards the canary file is not there and Python's audit
events tell of no shell, process, browser or connection. Each gadget, if it is called, writes the
canary or raises such an event.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

Spec = dict[str, Any]
CANARY = Path(tempfile.gettempdir()) / f"sslzoo-canary-{os.getpid()}"
_LOCAL = ("127.0.0.1", "localhost", "::1")


# -- what must never happen

_events: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _events is None:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "webbrowser.open", "pty.spawn"):
        _events.append(f"{event}{args}")
    if event == "subprocess.Popen" and "git" not in str(args[1]):  # the commit of a result
        _events.append(f"{event}{args[:2]}")
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in _LOCAL:
        _events.append(f"{event}{args[1]}")
    if event == "socket.getaddrinfo" and args[0] not in _LOCAL:
        _events.append(f"{event}{args[:2]}")


sys.addaudithook(_audit)  # it cannot be taken away again: it does nothing until it is armed


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What ran meanwhile: audit events, and "canary" where the canary file was written."""
    global _events
    CANARY.unlink(missing_ok=True)
    happened: list[str] = []
    _events = happened
    try:
        yield happened
    finally:
        _events = None
        if CANARY.exists():
            happened.append("canary")
            CANARY.unlink()


# -- gadgets: what a file would have called, by class path and arguments

_PYTHON = f"open({str(CANARY)!r}, 'w').close()"
_SHELL = f"touch {CANARY}"


def gadgets() -> dict[str, Spec]:
    """Gadgets by name. What is called later gets its arguments from whoever calls it."""

    def of(path: str, /, **args: Any) -> Spec:
        return {"class_path": path, "init_args": args}

    call = of("os.system", command=_SHELL)
    touch = ["touch", str(CANARY)]
    found = [
        call,
        of("posix.system", command=_SHELL),
        of("os.popen", cmd=_SHELL),
        of("subprocess.Popen", args=touch),
        of("subprocess.getoutput", cmd=_SHELL),
        of("subprocess.getstatusoutput", cmd=_SHELL),
        of("subprocess.check_output", popenargs=[touch]),
        of("pty.spawn", argv=touch),
        of("builtins.exec", source=_PYTHON),
        of("builtins.eval", source=_PYTHON),
        of("builtins.open", file=str(CANARY), mode="w"),
        of("io.open", file=str(CANARY), mode="w"),
        of("builtins.__import__", name="antigravity"),
        of("importlib.import_module", name="antigravity"),
        of("runpy.run_path", path_name=str(_script())),
        of("runpy.run_module", mod_name="antigravity"),
        of("timeit.timeit", stmt=_PYTHON, number=1),
        of("cProfile.run", statement=_PYTHON),
        of("code.InteractiveConsole.runcode", code=_PYTHON),
        of("webbrowser.open", url="http://198.51.100.1/"),
        of("functools.partial", func="os.system", command=_SHELL),
        of("functools.partial", func=call),
        of("ctypes.CDLL", name=str(CANARY)),
        of("logging.FileHandler", filename=str(CANARY)),
        of("shutil.copyfile", src=__file__, dst=str(CANARY)),
        of("zipfile.ZipFile", file=str(CANARY), mode="w"),
        of("sqlite3.connect", database=str(CANARY)),
        of("tarfile.open", name=str(CANARY), mode="w"),
        of("pathlib.Path.touch", self=str(CANARY)),
        of("pathlib.Path.write_text", self=str(CANARY), data="x"),
        of("socket.create_connection", address=["198.51.100.1", 80]),
        of("urllib.request.urlopen", url="http://198.51.100.1/"),
        of("torch.save", obj=1, f=str(CANARY)),
        of("torch.load", f=str(_pickle()), weights_only=False),
        of("torch.hub.load", repo_or_dir=str(_hub()), model="entry", source="local"),
        of("torch.hub.load_state_dict_from_url", url="http://198.51.100.1/x.pth"),
        of("torch.hub.download_url_to_file", url="http://198.51.100.1/", dst=str(CANARY)),
        of("torch.utils.cpp_extension.load_inline", name="x", cpp_sources="int f() {return 0;}"),
        of("torch.nn.modules.module.torch.save", obj=1, f=str(CANARY)),
        of("torch.nn.init.torch.save", obj=1, f=str(CANARY)),
        of("numpy.save", file=str(CANARY), arr=[1]),
        of("numpy.ndarray.tofile", fid=str(CANARY)),
        of("timm.create_model", model_name="resnet18", pretrained=True),
        of("torchvision.models.resnet18", weights="DEFAULT"),
        of("sslzoo.data.image.decode.os.system", command=_SHELL),
        of("sslzoo.data.listing.os.system", command=_SHELL),
        of("sslzoo.data.image.cifar.pickle.loads", data=_PYTHON),
        of("sslzoo.backbones.image.timm.create_model", model_name="resnet18", pretrained=True),
        of("sslzoo.backbones.image.torch.save", obj=1, f=str(CANARY)),
        of("sslzoo.backbones.timm_backbone", name="resnet18", pretrained=True),
        of(
            "sslzoo.backbones.timm_backbone",
            name="resnet18",
            options={"checkpoint_path": str(_pickle())},
        ),
        of("sslzoo.backbones.hf_encoder", name="somebody/something"),
        of("sslzoo.backbones.hf", name="somebody/something", revision="main"),
        of("sslzoo.atomic_write.atomic_write", path=str(CANARY), content="x"),
        of("sslzoo.zoo.save.atomic_write", path=str(CANARY), content="x"),
        of("sslzoo.zoo.safe_read.subprocess.Popen", args=touch),
        of("sslzoo.commands.fit.run", args=["fit", "--config", "quickstart"]),
        of("sslzoo.load", name="http://198.51.100.1/x.ckpt"),
        of("sslzoo.methods.SimCLR.load_from_checkpoint", checkpoint_path=str(_pickle())),
        of("lightning.pytorch.cli.instantiate_module", module_class="os.system", config={}),
        of("lightning.pytorch.loggers.CSVLogger", save_dir=str(CANARY)),
        of("jsonargparse.util.import_object", name="antigravity"),
        of("not_imported_yet.Gadget"),
        of("antigravity.fly"),
        of("__main__.os.system", command=_SHELL),
    ]
    return {f"{spec['class_path']} {i}": spec for i, spec in enumerate(found)}


def _in_temporary(name: str, content: str | bytes) -> Path:
    path = Path(tempfile.gettempdir()) / f"sslzoo-hostile-{os.getpid()}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _script() -> Path:
    return _in_temporary("script.py", _PYTHON)


def _hub() -> Path:
    return _in_temporary("hub/hubconf.py", f"def entry():\n    {_PYTHON}\n").parent


def importable() -> Path:
    """A folder with a module that writes the canary when it is imported."""
    return _in_temporary("path/not_imported_yet.py", f"{_PYTHON}\nclass Gadget: pass\n").parent


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def pickled() -> dict[str, Reduced]:
    """Gadgets of pickles."""
    import importlib
    import runpy
    import subprocess
    import webbrowser

    return {
        "os.system": Reduced(os.system, _SHELL),
        "subprocess.Popen": Reduced(subprocess.Popen, ["touch", str(CANARY)]),
        "builtins.exec": Reduced(exec, _PYTHON),
        "builtins.eval": Reduced(eval, _PYTHON),
        "importlib.import_module": Reduced(importlib.import_module, "antigravity"),
        "runpy.run_path": Reduced(runpy.run_path, str(_script())),
        "webbrowser.open": Reduced(webbrowser.open, "http://198.51.100.1/"),
        "torch.save": Reduced(torch.save, 1, str(CANARY)),
        "torch.hub.load": Reduced(partial(torch.hub.load, source="local"), str(_hub()), "entry"),
        "functools.partial": Reduced(partial(os.system, _SHELL)),
        "Path.touch": Reduced(Path.touch, CANARY),
    }


def _pickle() -> Path:
    return _in_temporary("pickle.pth", pickle.dumps(Reduced(os.system, _SHELL)))


# -- honest files, which the places below spoil

NET: Spec = {"class_path": "sslzoo.backbones.SmallResNet", "init_args": {"widths": [8, 16]}}


class Honest(NamedTuple):
    """Honest files.

    Args:
        folder: of all of them.
        images: of a folder of images, as `--data.root` takes it.
        run: a run of the command, `version_0`.
        card: of `weights`.
        weights: of an encoder.
    """

    folder: Path
    images: Path
    run: Path
    card: Spec
    weights: Path


def honest(folder: Path) -> Honest:
    """A run of two steps, and an encoder with its card."""
    from sslzoo.backbones import SmallResNet
    from sslzoo.commands import fit

    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("val", 3)):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / "images" / split / name / f"{i}.png")
    net = SmallResNet((8, 16)).eval()
    weights = folder / "tiny.safetensors"
    save_file({name: v.contiguous() for name, v in net.state_dict().items()}, weights)
    card = {
        "name": "tiny",
        "file": "tiny.safetensors",
        "method": "sslzoo.methods.SimCLR",
        "backbone": NET,
        "num_features": 16,
        "data": "none",
        "preprocessing": {"range": [0.0, 1.0], "size": 32},
        "license": {"code": "MIT", "weights": "MIT"},
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    quietly(partial(fit.run, _fit(folder / "images", folder / "runs")))
    return Honest(folder, folder / "images", folder / "runs" / "version_0", card, weights)


def _fit(images: Path, out: Path) -> list[str]:
    return [
        *["fit", "--config", "simclr/folder_small_10ep", f"--data.root={images}"],
        *["--data.batch_size=12", "--data.num_workers=0", "--trainer.max_epochs=1"],
        *[
            "--model.init_args.backbone.init_args.widths=[8,16]",
            "--model.init_args.projector.init_args.in_dim=16",
            "--trainer.precision=32-true",
        ],
        *[f"--trainer.default_root_dir={out}", "--trainer.enable_progress_bar=false"],
        "--trainer.accelerator=cpu",
    ]


def quietly(act: Callable[[], Any]) -> None:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        act()


# -- places: (honest card, checkpoint or config, gadget) -> the hostile one

Spoil = Callable[[Any, Any], Any]  # changes what it is given, or gives another


def _named(spec: Spec) -> str:
    return spec["class_path"]


def card_places() -> dict[str, Spoil]:
    """Places in a card."""

    def towers(card: Spec, bad: Spec) -> None:
        card["backbone"] = {
            "class_path": "sslzoo.backbones.Towers",
            "init_args": {"towers": [bad, copy.deepcopy(NET)], "channels": [1, 2]},
        }

    def sound(card: Spec, bad: Spec) -> None:
        card["preprocessing"] = {"kind": "waveform", "rate": 16000, "transform": bad}

    def text(card: Spec, bad: Spec) -> None:
        card["preprocessing"] = {"kind": "text", "max_length": 8, "tokenizer": bad}

    def timm(card: Spec, bad: Spec) -> None:
        args = {"name": "resnet18", "options": {"norm_layer": bad, "act_layer": _named(bad)}}
        card["backbone"] = {"class_path": "sslzoo.backbones.timm_backbone", "init_args": args}

    return {
        "card: backbone": lambda card, bad: card.update(backbone=bad),
        "card: backbone by name": lambda card, bad: card.update(
            backbone={"class_path": _named(bad)}
        ),
        "card: argument": lambda card, bad: card["backbone"]["init_args"].update(widths=bad),
        "card: argument by name": lambda card, bad: card["backbone"]["init_args"].update(
            widths=_named(bad)
        ),
        "card: argument as JSON": lambda card, bad: card["backbone"]["init_args"].update(
            widths=json.dumps(bad)
        ),
        "card: unknown argument": lambda card, bad: card["backbone"]["init_args"].update(norm=bad),
        "card: dict_kwargs": lambda card, bad: card["backbone"].update(dict_kwargs={"norm": bad}),
        "card: tower": towers,
        "card: torchvision": lambda card, bad: card.update(
            backbone={
                "class_path": "torchvision.models.resnet18",
                "init_args": {"norm_layer": bad},
            }
        ),
        "card: sequential": lambda card, bad: card.update(
            backbone={"class_path": "torch.nn.Sequential", "init_args": {"args": [bad]}}
        ),
        "card: timm's options": timm,
        "card: method": lambda card, bad: card.update(method=bad),
        "card: data": lambda card, bad: card.update(data=bad),
        "card: preprocessing": lambda card, bad: card.update(preprocessing=bad),
        "card: sound's transform": sound,
        "card: text's tokenizer": text,
        "card: layout": lambda card, bad: card.update(layout=_named(bad)),
        "card: recipe": lambda card, bad: card.update(recipe=_named(bad)),
    }


def checkpoint_places() -> dict[str, Spoil]:
    """Places in a Lightning checkpoint."""

    def hyper(key: str, value: Callable[[Spec], Any] = lambda bad: bad) -> Spoil:
        return lambda saved, bad: saved["hyper_parameters"].update({key: value(bad)})

    def whole(saved: Spec, bad: Spec) -> None:
        kept = saved["hyper_parameters"]
        saved["hyper_parameters"] = {
            "_instantiator": kept["_instantiator"],
            "_class_path": _named(bad),
            **bad["init_args"],
        }

    def nested(saved: Spec, bad: Spec) -> None:
        saved["hyper_parameters"]["backbone"]["init_args"]["norm"] = bad

    def by_json(saved: Spec, bad: Spec) -> None:
        saved["hyper_parameters"]["backbone"] = json.dumps(bad)

    def by_file(saved: Spec, bad: Spec) -> None:
        path = _in_temporary("config.yaml", yaml.safe_dump(bad))
        saved["hyper_parameters"]["backbone"] = str(path)

    return {
        "checkpoint: class": whole,
        "checkpoint: instantiator": hyper("_instantiator", _named),
        "checkpoint: optimizer": hyper("optimizer"),
        "checkpoint: optimizer by name": hyper("optimizer", _named),
        "checkpoint: optimizer's argument": hyper(
            "optimizer", lambda bad: {"class_path": "torch.optim.SGD", "init_args": {"lr": bad}}
        ),
        "checkpoint: schedule": hyper("schedule"),
        "checkpoint: parameter_groups": hyper("parameter_groups"),
        "checkpoint: parameter_groups by name": hyper("parameter_groups", _named),
        "checkpoint: backbone": hyper("backbone"),
        "checkpoint: backbone by name": hyper("backbone", _named),
        "checkpoint: backbone as JSON": by_json,
        "checkpoint: backbone as a config": by_file,
        "checkpoint: backbone's argument": nested,
        "checkpoint: projector": hyper("projector"),
        "checkpoint: temperature": hyper("temperature"),
        "checkpoint: unknown argument": hyper("anything"),
        "checkpoint: data's hyper-parameters": lambda saved, bad: saved.update(
            datamodule_hyper_parameters={"_class_path": _named(bad), **bad["init_args"]}
        ),
        "checkpoint: preprocessing": lambda saved, bad: saved.setdefault("sslzoo", {}).update(
            preprocessing={"kind": "waveform", "rate": 16000, "transform": bad}
        ),
        "checkpoint: callbacks": lambda saved, bad: saved.setdefault("callbacks", {}).update(
            {f"{_named(bad)}{{}}": bad}
        ),
    }


def run_places() -> dict[str, Spoil]:
    """Places in the config.yaml of a run's folder."""

    def data(key: str, value: Callable[[Spec], Any] = lambda bad: bad) -> Spoil:
        return lambda config, bad: config["data"]["init_args"].update({key: value(bad)})

    return {
        "run: data": lambda config, bad: config.update(data=bad),
        "run: transform": data("transform"),
        "run: transform by name": data("transform", _named),
        "run: eval_view": data("eval_view"),
        "run: root": data("root"),
        "run: unknown argument": data("anything"),
        "run: backbone": lambda config, bad: config["model"]["init_args"].update(backbone=bad),
        "run: model": lambda config, bad: config.update(model=bad),
        "run: optimizer": lambda config, bad: config["model"]["init_args"].update(optimizer=bad),
        "run: trainer": lambda config, bad: config["trainer"].update(callbacks=[bad], logger=bad),
    }


# -- the wire


class Server:
    """Serves a folder on 127.0.0.1, also as a Hugging Face Hub would."""

    def __init__(self, folder: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def _answer(self, body: bool) -> None:
                path = folder / self.path.rpartition("/")[2]
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


# -- entry points


class Attempt(NamedTuple):
    """One hostile file, read in one way."""

    entry: str
    place: str
    gadget: str
    act: Callable[[], Any]


# Ways that take a second, for they train or draw; all others take a tenth of it or less.
_SLOW = ("fit", "validate", "test", "predict", "report", "eval")


def attempts(
    files: Honest, where: Path, server: Server, every: int = 1, every_slow: int = 1
) -> Iterator[Attempt]:
    """Gadgets at every place, in every way that reads such a file.

    Args:
        files: honest ones.
        where: an empty folder, written anew for each attempt.
        server: of that folder.
        every: each place takes every n-th gadget, other ones in each place; 1: all.
        every_slow: likewise in the ways that take a second.
    """
    saved = torch.load(files.run / "checkpoints" / "last.ckpt", weights_only=True)
    config = yaml.safe_load((files.run / "config.yaml").read_text())
    products = [
        (gadgets(), card_places(), _on_cards(files, where, server), files.card),
        (gadgets(), checkpoint_places(), _on_checkpoints(files, where, server), saved),
        (gadgets(), run_places(), _on_runs(files, where), config),
        (pickled(), _pickle_places(), _on_checkpoints(files, where, server), saved),
        (pickled(), _layout_places(), _on_layouts(where), None),
    ]
    for bad_ones, places, ways, whole in products:
        for way, (entry, act) in enumerate(ways.items()):
            step = every_slow if entry.startswith(_SLOW) else every
            for place, (at, spoil) in enumerate(places.items()):
                for number, (gadget, bad) in enumerate(bad_ones.items()):
                    if (number + 5 * place + 3 * way) % step == 0:
                        yield Attempt(entry, at, gadget, partial(_spoiled, act, spoil, whole, bad))


def honest_attempts(files: Honest, where: Path, server: Server) -> Iterator[Attempt]:
    """Every way of reading, with a file that nothing is wrong with: each must succeed."""
    saved = torch.load(files.run / "checkpoints" / "last.ckpt", weights_only=True)
    config = yaml.safe_load((files.run / "config.yaml").read_text())
    for ways, whole in (
        (_on_cards(files, where, server), files.card),
        (_on_checkpoints(files, where, server), saved),
        (_on_runs(files, where), config),
    ):
        for entry, act in ways.items():
            if entry != "zoo verify" or whole is not saved:  # it has no card to be held to
                yield Attempt(entry, "-", "none", partial(act, copy.deepcopy(whole)))


def _spoiled(act: Callable[[Any], Any], spoil: Any, whole: Any, bad: Any) -> None:
    hostile = copy.deepcopy(whole)
    other = spoil(hostile, bad if isinstance(bad, Reduced) else copy.deepcopy(bad))
    act(hostile if other is None else other)


def _pickle_places() -> dict[str, Spoil]:
    return {
        "pickle: the whole": lambda saved, bad: bad,
        "pickle: a key": lambda saved, bad: {**saved, "extra": bad},
        "pickle: the state": lambda saved, bad: {**saved, "state_dict": bad},
        "pickle: hyper_parameters": lambda saved, bad: {**saved, "hyper_parameters": {"a": bad}},
        "pickle: callbacks": lambda saved, bad: {**saved, "callbacks": {"a": bad}},
    }


def _layout_places() -> dict[str, Spoil]:
    suffixes = (".pkl", ".pth", ".ckpt", ".pth.tar", ".t7")
    return {f"pickle: {suffix}": lambda _, bad, s=suffix: (s, bad) for suffix in suffixes}


def _write_card(where: Path, files: Honest, card: Spec) -> Path:
    shutil.copy(files.weights, where / "tiny.safetensors")
    (where / "tiny.json").write_text(json.dumps(card))
    return where / "tiny.safetensors"


def _on_cards(files: Honest, where: Path, server: Server) -> dict[str, Callable[[Spec], Any]]:
    import sslzoo
    from sslzoo.commands import evaluate as evaluate_command
    from sslzoo.commands import zoo as zoo_command
    from sslzoo.zoo import verify

    def by_name(card: Spec, act: Callable[[str], Any]) -> None:
        entries = Path(os.environ["SSLZOO_HOME"]) / "entries"
        entries.mkdir(parents=True)
        _write_card(entries, files, card)
        act("tiny")

    def path(act: Callable[[str], Any]) -> Callable[[Spec], Any]:
        return lambda card: act(str(_write_card(where, files, card)))

    def url(scheme: str) -> Callable[[Spec], Any]:
        def act(card: Spec) -> None:
            _write_card(where, files, card)
            sslzoo.load(f"{scheme}/tiny.safetensors")

        return act

    def evaluate(name: str) -> None:
        config = ["--on", "simclr/folder_small_10ep", f"--data.root={files.images}"]
        evaluate_command.main([name, *config, "--cache=none", "--accelerator=cpu"])

    return {
        "load PATH": path(sslzoo.load),
        "load file://": url(f"file://{where}"),
        "load http(s)://": url(server.address),
        "load hf://": url("hf://somebody/something"),
        "load NAME": lambda card: by_name(card, sslzoo.load),
        "eval NAME": path(evaluate),
        "zoo verify": path(verify),
        "zoo info": lambda card: by_name(
            card, lambda name: zoo_command.main(["zoo", "info", name])
        ),
        "zoo fetch": path(lambda name: zoo_command.main(["zoo", "fetch", name])),
        "export": path(
            lambda name: zoo_command.main(
                ["export", name, "--format=safetensors", f"--to={where}/out.safetensors"]
            )
        ),
    }


def _write_checkpoint(where: Path, saved: Any) -> Path:
    torch.save(saved, where / "last.ckpt")
    return where / "last.ckpt"


def _on_layouts(where: Path) -> dict[str, Callable[[Any], Any]]:
    import sslzoo
    from sslzoo.backbones import SmallResNet

    def load(given: tuple[str, Any], layout: str) -> None:
        suffix, held = given
        path = where / f"weights{suffix}"
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps({"experiment_state": held}))
        else:
            torch.save({"state_dict": held}, path)
        sslzoo.load(str(path), layout=layout, backbone=SmallResNet((8, 16)))

    layouts = ("byol", "moco", "instdisc")
    return {f"load, layout {layout}": partial(load, layout=layout) for layout in layouts}


def _copy_run(where: Path, files: Honest) -> Path:
    run = where / "run" / "version_0"
    shutil.copytree(files.run, run)
    return run


def _on_checkpoints(files: Honest, where: Path, server: Server) -> dict[str, Callable[[Any], Any]]:
    import sslzoo
    from sslzoo import methods
    from sslzoo.backbones import SmallResNet
    from sslzoo.commands import evaluate, fit
    from sslzoo.commands import zoo as zoo_command
    from sslzoo.eval import Classifier, load_weights

    def path(act: Callable[[str], Any]) -> Callable[[Any], Any]:
        return lambda saved: act(str(_write_checkpoint(where, saved)))

    def url(scheme: str) -> Callable[[Any], Any]:
        def act(saved: Any) -> None:
            _write_checkpoint(where, saved)
            sslzoo.load(f"{scheme}/last.ckpt", sha256="any")

        return act

    def run(act: Callable[[str], Any]) -> Callable[[Any], Any]:
        def with_checkpoint(saved: Any) -> None:
            folder = _copy_run(where, files)
            _write_checkpoint(folder / "checkpoints", saved)
            act(str(folder))

        return with_checkpoint

    def verb(name: str) -> Callable[[Any], Any]:
        def act(saved: Any) -> None:
            given = [name, *_fit(files.images, where / "out")[1:]]
            if name == "fit":
                given.append("--trainer.max_epochs=2")
            fit.run([*given, f"--ckpt_path={_write_checkpoint(where, saved)}"])

        return act

    on = ["--on", "simclr/folder_small_10ep", f"--data.root={files.images}"]
    flags = ["--cache=none", "--accelerator=cpu"]
    about = ["--name=tiny", "--data=none", "--license=MIT"]
    backbone = f"--backbone={json.dumps(NET)}"
    return {
        "load FILE": path(sslzoo.load),
        "load FILE whole": path(lambda name: sslzoo.load(name, whole=True)),
        "load file://": url(f"file://{where}"),
        "load http(s)://": url(server.address),
        "load hf://": url("hf://somebody/something"),
        "load_from_checkpoint": path(methods.SimCLR.load_from_checkpoint),
        "FineTune weights": path(
            lambda name: load_weights(Classifier(SmallResNet((8, 16)), 2), name)
        ),
        "eval FILE": path(lambda name: evaluate.main([name, *on, *flags])),
        "eval RUN": run(lambda name: evaluate.main([name, *flags])),
        "report RUN": run(_report),
        "zoo add RUN": run(lambda name: zoo_command.main(["zoo", "add", name, *about])),
        "zoo add FILE": path(lambda name: zoo_command.main(["zoo", "add", name, *about, backbone])),
        "zoo verify": path(lambda name: zoo_command.main(["zoo", "verify", name])),
        "zoo fetch": path(lambda name: zoo_command.main(["zoo", "fetch", name])),
        "export": path(
            lambda name: zoo_command.main(
                ["export", name, "--size=32", "--format=safetensors", f"--to={where}/out"]
            )
        ),
        **{f"{name} --ckpt_path": verb(name) for name in ("fit", "validate", "test", "predict")},
    }


def _report(folder: str) -> None:
    from sslzoo.commands import report

    report.main([folder, "--samples=4", "--images=1"])


def _on_runs(files: Honest, where: Path) -> dict[str, Callable[[Spec], Any]]:
    from sslzoo.commands import evaluate
    from sslzoo.commands import zoo as zoo_command

    def run(act: Callable[[str], Any]) -> Callable[[Spec], Any]:
        def with_config(config: Spec) -> None:
            folder = _copy_run(where, files)
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            act(str(folder))

        return with_config

    flags = ["--cache=none", "--accelerator=cpu"]
    about = ["--name=tiny", "--data=none", "--license=MIT"]
    on = ["--on", "simclr/folder_small_10ep", f"--data.root={files.images}"]
    return {
        "eval RUN": run(lambda name: evaluate.main([name, *flags])),
        "eval RUN --untrained": run(
            lambda name: evaluate.main([name, *on, "--untrained=true", *flags])
        ),
        "eval --table": run(lambda name: evaluate.main(["--table", name])),
        "report RUN": run(_report),
        "zoo add RUN": run(lambda name: zoo_command.main(["zoo", "add", name, *about])),
    }


def fresh(where: Path) -> None:
    """An empty folder, and an empty cache."""
    for folder in (where, Path(os.environ["SSLZOO_HOME"])):
        shutil.rmtree(folder, ignore_errors=True)
    where.mkdir(parents=True)


def happened(attempt: Attempt, where: Path) -> list[str]:
    """What an attempt made run; whether the file was refused or loaded does not matter."""
    fresh(where)
    before = os.getcwd()
    os.chdir(where)
    try:
        with watched() as events, contextlib.suppress(Exception, SystemExit):
            quietly(attempt.act)
    finally:
        os.chdir(before)
        sys.modules.pop("not_imported_yet", None)
        sys.modules.pop("antigravity", None)
    return events


@contextlib.contextmanager
def prepared() -> Iterator[tuple[Honest, Path, Server]]:
    """Honest files, a folder for the hostile ones and its server; the environment is put back."""
    kept = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder, "hostile")
        where.mkdir()
        server = Server(where)
        os.environ |= {
            "SSLZOO_HOME": str(Path(folder, "home")),
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(Path(folder, "hf")),
            "BROWSER": f"touch {CANARY} #%s",
        }
        sys.path.insert(0, str(importable()))
        try:
            yield honest(Path(folder)), where, server
        finally:
            sys.path.remove(str(importable()))
            server.close()
            os.environ.clear()
            os.environ |= kept


def main() -> None:
    """Count what ran: arguments `every` and `every_slow` of `attempts`."""
    tried, ran = Counter[str](), Counter[str]()
    kinds: list[str] = []
    every, every_slow = (int(arg) for arg in (*sys.argv[1:], "1", "1")[:2])
    with prepared() as (files, where, server):
        for attempt in attempts(files, where, server, every, every_slow):
            tried[attempt.entry] += 1
            if events := happened(attempt, where):
                ran[attempt.entry] += 1
                kinds.append(f"{attempt.entry} | {attempt.place} | {attempt.gadget} | {events[0]}")
    for entry, count in tried.items():
        print(f"{entry:<24} {count:>6} tried {ran[entry]:>6} ran")
    print(f"{'all':<24} {tried.total():>6} tried {ran.total():>6} ran")
    print(*kinds[:40], sep="\n")


if __name__ == "__main__":
    main()
