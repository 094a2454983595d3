"""Start a method from given weights: its student and teacher alike, its heads new or given.

    start_from(method, "dino-vits16-imagenet")
    start_from(method, "runs/dino/continue_vit_small_10ep/version_0", heads="given")

The command does the same with `sslzoo fit --start_from`. Optimizer and clock begin anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning import LightningModule
from torch import nn

from sslzoo.checks import check_choice
from sslzoo.memory import Center, memories
from sslzoo.methods import SSLMethod
from sslzoo.run_folder import RunFolder
from sslzoo.trust import check_fit, hyper_parameters
from sslzoo.trust.renamed import renamed_class
from sslzoo.zoo.cache import check, is_url
from sslzoo.zoo.safe_read import check_finite, read
from sslzoo.zoo.start_weights import load_start_weights
from sslzoo.zoo.weights_file import locate

Heads = Literal["new", "given"]


def start_from(
    method: LightningModule, source: str | os.PathLike[str], heads: Heads = "new"
) -> dict[str, Any]:
    """Fill the encoder of a method, and its heads if asked, with weights that exist.

    The student gets the weights of the encoder that the source gives (a teacher in DINO, iBOT and
    I-JEPA), and every teacher is made equal to its student. With `heads="given"`, which is for runs
    of the same method, student, teacher, heads and the center of DINO get their own weights, while
    queues, banks and clusters, whose rows are samples, begin anew.

    Args:
        method: a method, or a module with `encoder()` or `backbone`.
        source: a run directory, a name in the zoo, a file or an address; see `load_start_weights`.
        heads: "new": heads keep their initial weights; "given": see above.

    Returns:
        What was loaded, in plain values: source, sha256 of the file (None if there is no one file),
        heads and, as a sentence, what was adapted or left out.

    Raises:
        ValueError: the weights do not fit by name, shape or class; the method is unchanged.
        OSError: they cannot be found or fetched.
    """
    check_choice("heads", heads, get_args(Heads))
    path = _file(source)
    if heads == "given":
        loaded = _whole(method, path, str(source))
    else:
        loaded = str(load_start_weights(_student(method), source))
        _equal_teachers(method)
    digest = check(path, None) if path is not None and path.is_file() else None
    return {"source": str(source), "sha256": digest, "heads": heads, "loaded": loaded}


def _student(method: LightningModule) -> nn.Module:
    """The module to fill: the encoder, or the student that the encoder is a teacher of."""
    give: Any = getattr(method, "encoder", None)
    encoder = give() if callable(give) else getattr(method, "backbone", None)
    if not isinstance(encoder, nn.Module):
        raise ValueError(
            "the model must have encoder() or backbone to start from weights, got "
            f"{type(method).__name__} without them"
        )
    pairs = method.teacher_pairs() if isinstance(method, SSLMethod) else []
    return next((student for student, teacher in pairs if teacher is encoder), encoder)


def _equal_teachers(method: LightningModule) -> None:
    for student, teacher in method.teacher_pairs() if isinstance(method, SSLMethod) else []:
        teacher.load_state_dict(student.state_dict())


def _whole(method: LightningModule, path: Path | None, source: str) -> str:
    """Load the state of a run of the same method, without memories of samples."""
    saved = {} if path is None or path.suffix == ".safetensors" else read(path)
    state = saved.get("state_dict") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or "pytorch-lightning_version" not in saved:
        raise ValueError(
            "heads must be 'new' unless the source is a run or checkpoint of the same method, got "
            f"'given' with {source!r}"
        )
    named = renamed_class(hyper_parameters(saved, source).get("_class_path"))
    own = f"{type(method).__module__}.{type(method).__qualname__}"
    if isinstance(named, str) and named.rpartition(".")[2] != type(method).__qualname__:
        raise ValueError(
            f"heads must be 'new' with a run of another method, got 'given' with {source!r}, a run "
            f"of {named}, for {own}"
        )
    kept = {id(memory) for memory in memories(method) if not isinstance(memory, Center)}
    fresh = method.state_dict()
    rows = tuple(f"{prefix}." for prefix, part in method.named_modules() if id(part) in kept)
    wanted = {n: fresh[n] if n in fresh and n.startswith(rows) else x for n, x in state.items()}
    wanted |= {n: x for n, x in fresh.items() if n.startswith(rows)}
    try:
        check_fit(method, wanted, source)
    except ValueError as error:
        raise ValueError(f"{error}; pass heads='new' to take the encoder alone") from None
    check_finite(wanted, source)
    with torch.no_grad():
        for name, tensor in fresh.items():
            tensor.copy_(wanted[name])
    return f"{len(fresh)} tensors from {source}"


def _file(source: str | os.PathLike[str]) -> Path | None:
    """The one local file of a source; None for a loader of timm's or the Hub's."""
    text = os.fspath(source)
    if text.startswith(("timm:", "hf-hub:")):
        return None
    if not is_url(text) and Path(text).is_dir():
        checkpoint = RunFolder(Path(text)).checkpoint_file
        if not checkpoint.is_file():
            raise ValueError(
                f"a run directory must have checkpoints/last.ckpt to start from it, got {text!r}"
            )
        return checkpoint
    return locate(text).path
