"""transformers' encoders by name: found, loaded from safetensors alone, and trimmed."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

_UNUSED = ("mask_token", "masked_spec_embed")  # parameters without gradient
_PART = "pooler", "mask_token", "masked_spec_embed"  # may be missing in a file of weights


def load_hf(name: str, pretrained: bool, revision: str = "main") -> Any:
    """A model of transformers in float32 and in training mode, without what is not used.

    Args:
        name: of the Hub, or a folder.
        pretrained: whether to load its weights.
        revision: branch, tag or commit.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ValueError(
            "an encoder of Hugging Face needs the package transformers, which is not installed; "
            "run: pip install 'sslzoo[hf]'"
        ) from error
    safe: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(name, **safe)
        for key in ("layerdrop", "encoder_layerdrop"):
            if hasattr(config, key):
                setattr(config, key, 0.0)  # it would leave parameters without gradient
        for key in ("apply_spec_augment", "vision_use_head"):
            if hasattr(config, key):
                setattr(config, key, False)  # methods mask and pool by themselves
        if pretrained:
            model, found = AutoModel.from_pretrained(
                name,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **safe,
            )
        else:
            model, found = AutoModel.from_config(config, trust_remote_code=False), {}
    except ValueError as error:
        raise _refused(name, error) from None
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the weights of {name} must be whole, with the shapes of its config.json, got "
            f"{str(error).splitlines()[0]}"
        ) from None
    except OSError as error:
        if "Repo id must be" in str(error):
            raise OSError(
                f"name must be of the Hub (OWNER/REPOSITORY), or an existing folder, got {name!r}"
            ) from None
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{name} must have its weights in safetensors, which run no code, got none; convert "
            "them with transformers' save_pretrained"
        ) from None
    if hasattr(model, "vision_model") and hasattr(model, "text_model"):
        raise ValueError(
            f"name must be of one encoder, got {name!r} with towers for images and text; "
            "sslzoo.zoo.load_image_text loads both"
        )
    has_decoder = hasattr(model, "encoder") and hasattr(model, "decoder")
    if has_decoder:
        kind = model.main_input_name
        model = model.get_encoder()
        model.main_input_name = kind
    missing = [
        key
        for key in found.get("missing_keys", ())
        if not any(part in key for part in _PART)
        if not (has_decoder and key.startswith("decoder."))
    ]
    if missing:
        raise ValueError(
            f"the weights of {name} must have every tensor of {type(model).__name__}, got none for "
            f"{len(missing)}, such as {sorted(missing)[0]}"
        )
    if any(True for _ in _parameters_of(getattr(model, "pooler", None))):
        model.pooler = None  # it would have no gradient
    for key, parameter in model.named_parameters():
        if key.rpartition(".")[2] in _UNUSED:
            parameter.requires_grad_(False)
    return model.train()  # from_pretrained turns dropout off


def _parameters_of(module: nn.Module | None) -> Any:
    return () if module is None else module.parameters()


def _refused(name: str, error: ValueError) -> ValueError:
    if "trust_remote_code" in str(error):
        return ValueError(
            f"name must be of an encoder that transformers has, got {name!r}, whose repository "
            "brings code of its own, which is never run"
        )
    return error


def preprocessing_of(name: str, revision: str) -> dict[str, Any]:
    """What the repository says of its inputs; empty if it says nothing."""
    from transformers.utils import cached_file

    path = cached_file(
        name,
        "preprocessor_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        revision=revision,
    )
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        try:
            return dict(json.load(file))
        except ValueError as error:
            raise ValueError(f"{path} must be JSON, got {error}") from None
