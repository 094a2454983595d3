"""Export: write an encoder for programs without this library, verified against torch.

Each format is written to a temporary file, read back, run on a different batch than it was traced
with, compared, and only then renamed to the target.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
import torchvision
from torch import Tensor, nn

from sslzoo.atomic_write import atomic_write, check_target, replacing
from sslzoo.backbones import ViT
from sslzoo.zoo.save import save

Format = Literal[
    "safetensors", "timm", "torchvision", "torch.export", "onnx", "detectron2", "mmdetection"
]
FORMATS: tuple[str, ...] = get_args(Format)
_TOLERANCE = 1e-3  # tolerance relative to the largest feature


def export(
    encoder: nn.Module,
    path: Path,
    to: Format,
    size: int,
    model: str | None = None,
    channels: int = 3,
) -> Path:
    """Export an encoder to a file in another format.

    Args:
        encoder: (B, channels, size, size) -> (B, num_features); it is put into eval mode.
        path: the file to write.
        to: "safetensors": its own names; "timm" and "torchvision": those of the model named
            `model`, as safetensors; "torch.export": a .pt2 program; "onnx": needs the `export`
            extra. These two take any batch size. "detectron2": a .pkl with the names of its
            ResNet or ViT, as facebookresearch/moco's convert-pretrain-to-detectron2.py at 78b69ca
            writes; "mmdetection": a .pth whose `state_dict` has the names of its ResNet, for
            `init_cfg=dict(type="Pretrained", checkpoint=...)`.
        size: side in pixels of the images for the check.
        model: model name in timm or torchvision, such as "resnet50".
        channels: channels of the images.

    Raises:
        ValueError: the format or model does not exist, its names differ, or its features
            differ; nothing is written.
        OSError: the file cannot be written, or the path is a folder, a device or a pipe.
        ImportError: the extra is not installed.
    """
    check_target(path)
    writers: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
        "safetensors": _own_names,
        "timm": _timm_names,
        "torchvision": _torchvision_names,
        "torch.export": _program,
        "onnx": _onnx,
        "detectron2": _detectron2,
        "mmdetection": _mmdetection,
    }
    if to not in writers:
        raise ValueError(f"the format must be one of {list(FORMATS)}, got {to!r}")
    encoder.eval()
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(3, channels, size, size, generator=draw)
    with replacing(path) as part, torch.no_grad():
        exported = writers[to](encoder, part, x[:2], model)
        wanted, got = encoder(x), exported(x)
        error = (got - wanted).abs().max() / wanted.abs().max()
        if got.shape != wanted.shape or not error <= _TOLERANCE:
            raise ValueError(
                f"the features of {to} must be torch's up to {_TOLERANCE:g} of the largest, got an "
                f"error of {error:.2g}"
            )
    return path


def _own_names(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    save(encoder, part)
    return encoder


def _named_like(encoder: nn.Module, reference: Any, part: Path, whose: str) -> Any:
    """Write the state under the reference's names after checking fit and equal features."""
    own, state = reference.state_dict(), encoder.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    if wrong:
        raise ValueError(f"{whose} must have the encoder's tensors, got others such as {wrong[:3]}")
    reference.load_state_dict(state)
    save(reference, part)
    return reference.eval()


def _timm_names(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    if model is None or not timm.is_model(model):
        raise ValueError(f"model (--model) must be one of timm's, such as resnet50, got {model!r}")
    reference = timm.create_model(model, num_classes=0, in_chans=x.shape[1])
    return _named_like(encoder, reference, part, f"timm's {model}")


def _torchvision_names(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    if model not in torchvision.models.list_models():
        raise ValueError(
            f"model (--model) must be one of torchvision's, such as resnet50, got {model!r}"
        )
    reference: Any = torchvision.models.get_model(model)
    if not isinstance(reference, torchvision.models.ResNet):
        raise ValueError(f"model (--model) must be a ResNet for torchvision, got {model!r}")
    reference.fc = nn.Identity()
    return _named_like(encoder, reference, part, f"torchvision's {model}")


def _to_program(encoder: nn.Module, x: Tensor) -> Any:
    plain = copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)
    return torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _program(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    program = io.BytesIO()
    torch.export.save(_to_program(encoder, x), program)  # to a file, torch aborts on a full disk
    atomic_write(part, program.getvalue())
    return torch.export.load(part).module()


def _onnx(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter writes with it
    except ImportError as error:
        raise ImportError(
            f"the format onnx needs packages that are not installed ({error}); run: "
            "pip install 'sslzoo[export]'"
        ) from None
    torch.onnx.export(
        _to_program(encoder, x),
        f=str(part),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: "batch"},),
    )
    session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.tensor(session.run(None, {"images": images.numpy()})[0])

    return run


_RESNET = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\."
    r"(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def _check_resnet(encoder: nn.Module, whose: str) -> dict[str, Tensor]:
    """The state of a ResNet with torchvision's names, which are also timm's and mmdetection's."""
    state = encoder.state_dict()
    odd = [name for name in state if not _RESNET.fullmatch(name)]
    if odd or "conv1.weight" not in state:
        raise ValueError(
            f"the encoder must be a ResNet with torchvision's names for {whose}, got tensors such "
            f"as {(odd or sorted(state))[:3]}"
        )
    return state


def detectron2_name(name: str) -> str:
    """The name of a ResNet's tensor in detectron2: layer1.0.bn1.weight -> res2.0.conv1.norm.weight.

    Args:
        name: torchvision's name.
    """
    if not name.startswith("layer"):
        name = f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _detectron2(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    """A pickle of numpy arrays, as detectron2's checkpointer reads it."""
    named: dict[str, str] = {}
    if isinstance(encoder, ViT):  # its names are already detectron2's
        named = {name: name for name in encoder.state_dict()}
    else:
        state = _check_resnet(encoder, "detectron2")
        named = {name: detectron2_name(name) for name in state if "num_batches" not in name}
    arrays = {new: encoder.state_dict()[name].cpu().numpy() for name, new in named.items()}
    content = {"model": arrays, "__author__": "sslzoo", "matching_heuristics": True}
    atomic_write(part, pickle.dumps(content))
    written = pickle.loads(part.read_bytes())["model"]  # our own file, from the line above
    back = {name: torch.from_numpy(written[new].copy()) for name, new in named.items()}
    return _refilled(encoder, back)


def _mmdetection(encoder: nn.Module, part: Path, x: Tensor, model: str | None) -> Any:
    """A torch file whose `state_dict` mmengine's checkpoint loader reads."""
    state = _check_resnet(encoder, "mmdetection")
    content = io.BytesIO()
    torch.save({"meta": {}, "state_dict": {k: v.cpu() for k, v in state.items()}}, content)
    atomic_write(part, content.getvalue())
    return _refilled(encoder, torch.load(part, weights_only=True)["state_dict"])


def _refilled(encoder: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A copy of the encoder whose tensors are only those of the file."""
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    wrong = other.load_state_dict(state, strict=False)
    lost = [name for name in wrong.missing_keys if "num_batches" not in name]
    if lost or wrong.unexpected_keys:
        raise ValueError(f"the file must hold every tensor of the encoder, got none of {lost[:3]}")
    return other.eval()
