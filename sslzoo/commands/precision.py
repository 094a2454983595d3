"""Precision that a machine computes well in: what `--trainer.precision=auto` means."""

from __future__ import annotations

from typing import Any

import torch

AUTO = "auto"


def has_amx() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX)."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("amx_tile") and known.get("amx_bf16"))


def best_precision(accelerator: Any) -> tuple[str, str]:
    """The precision for an accelerator of this machine, and why.

    bfloat16 is emulated on processors with AVX2 alone, and was slower than float32 with
    AVX512-BF16 but without AMX.

    Args:
        accelerator: as for Lightning's Trainer: "auto", "cpu", "cuda", "gpu", or an object.
    """
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "the GPU computes in bfloat16"
        return "32-true", "the GPU does not compute in bfloat16"
    if accelerator not in ("auto", "cpu") or torch.backends.mps.is_available():
        return "32-true", "this accelerator's bfloat16 is not known here"
    if has_amx():
        return "bf16-mixed", "the processor has AMX"
    return "32-true", "the processor has no AMX, without which bfloat16 is slower"
