"""timm's registry: which names work as `timm_vit`, which as `timm_backbone`, and why others do not.

    python -m benchmarks.timm_registry            # all names, on the meta device; about 10 minutes
    python -m benchmarks.timm_registry --only 'vit_*_dinov3*'    # prints; writes nothing

Each name is built with random weights on the meta device (shapes without memory), with `timm_vit`
if it can be, and with `timm_backbone`; then images of its size go through `forward`, and through
`forward_tokens` with a mask and with kept patches and `forward_map` where there are any. A name
whose code needs numbers is built on the CPU. Of names that differ in size alone one is run, and
the others have it in `as`. The result is benchmarks/results/timm_registry.json.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import logging
import re
import warnings
from typing import Any

import timm
import torch

from benchmarks.driver import ROOT
from sslzoo.atomic_write import atomic_write
from sslzoo.backbones import timm_backbone, timm_vit
from sslzoo.checks import check_sides

RESULT = ROOT / "benchmarks" / "results" / "timm_registry.json"


# Words of a name that say its size alone: sizes, depths, patches, windows and images.
SIZE = re.compile(
    r"atto|femto|pico|nano|micro|mini|x*tiny|x*small|base|medium|mediumd|x*large|huge|giant|gigantic"
    r"|d?little|betwixt|d?p?wee|so\d+m2?|x+s|x*l|sm|lg|[smxthgb]"
    r"|(patch|window|split)?\d+(to\d+)?|[a-z]\d+|\d+[a-z]+"
)


def architecture(name: str) -> str:
    """A name without the words and numbers of size, with the timm module that defines it."""
    words = (re.sub(r"\d\d+[a-z]*$", "", word) for word in name.split("_"))
    kept = [word for word in words if word and not SIZE.fullmatch(word)]
    return f"{timm.models.model_entrypoint(name).__module__} {' '.join(kept)}"


def size_of(name: str) -> tuple[int, int, int]:
    """Channels, height and width of the images that a name was made for."""
    config = timm.models.get_pretrained_cfg(name)
    return config.input_size if config is not None else (3, 224, 224)


def used(net: Any, size: tuple[int, int, int], device: str) -> dict[str, Any]:
    """Run a backbone, and describe what it gives.

    Raises:
        ValueError: the features do not have `num_features`, or a map not `map_features`.
    """
    net.eval()
    x = torch.zeros(2, *size, device=device)
    features = net(x)
    if features.shape != (2, net.num_features):
        raise ValueError(f"features must be (2, {net.num_features}), got {tuple(features.shape)}")
    gives: dict[str, Any] = {"features": net.num_features}
    if callable(getattr(net, "forward_map", None)):
        found = net.forward_map(x)
        if found.dim() != 4 or found.shape[1] != net.map_features:
            raise ValueError(f"a map must have {net.map_features}, got {tuple(found.shape)}")
        gives["map"] = list(found.shape[1:])
    if callable(getattr(net, "forward_tokens", None)):
        tokens = net.forward_tokens(x)
        rows, columns = check_sides("grid", net.grid)
        if tokens.shape[1] != net.num_prefix + rows * columns:
            raise ValueError(f"tokens must be {net.num_prefix} + {net.grid}, got {tokens.shape}")
        gives["tokens"] = list(tokens.shape[1:])
    return gives


def masked(vit: Any, size: tuple[int, int, int], device: str) -> dict[str, Any]:
    """Whether a ViT takes masks, kept patches, and images of another size."""
    x = torch.zeros(2, *size, device=device)
    rows, columns = check_sides("grid", vit.grid)
    mask = torch.zeros(2, rows * columns, dtype=torch.bool, device=device)
    keep = torch.zeros(2, 1, dtype=torch.int64, device=device)
    larger = (size[0], size[1] + vit.patch_size, size[2])
    tries = {
        "mask": lambda: vit.forward_tokens(x, mask=mask),
        "keep": lambda: vit.forward_tokens(x, keep=keep),
        "any size": lambda: vit(torch.zeros(2, *larger, device=device)),
    }
    able = {}
    for name, run in tries.items():
        try:
            run()
            able[name] = True
        except ValueError:
            able[name] = False
    return able


def tried(name: str, kind: str) -> dict[str, Any]:
    """What one name gives as `timm_vit` or `timm_backbone`, or why it does not."""
    size = size_of(name)
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.no_grad():
                if kind == "vit":
                    net: Any = timm_vit(name, in_chans=size[0], mask_token=True)
                    size = (size[0], *(n * net.patch_size for n in check_sides("grid", net.grid)))
                    return {"works": used(net, size, device) | masked(net, size, device)}
                return {"works": used(timm_backbone(name, in_chans=size[0]), size, device)}
        except Exception as error:  # the sweep is to end whatever a model raises
            reason = " ".join(str(error).split()).replace(name, "NAME")
            failed = f"{type(error).__name__}: {reason:.160}"
            if isinstance(error, ValueError) or "billion" in name:
                break
    return {"fails": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="glob of the names")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = fnmatch.filter(timm.list_models(), chosen.only or "*")
    names.sort(key=lambda name: ("tiny" not in name and "small" not in name, name))  # fast first
    rows: dict[str, dict[str, Any]] = {}
    seen: dict[str, str] = {}
    for name in names:
        kind = architecture(name)
        if kind in seen:
            rows[name] = {"as": seen[kind]}
            continue
        seen[kind] = name
        rows[name] = {"vit": tried(name, "vit"), "backbone": tried(name, "backbone")}
        print(name, json.dumps(rows[name]), flush=True)
    counts = {
        f"{kind} {outcome}": sum(
            outcome in rows[row.get("as", name)][kind] for name, row in rows.items()
        )
        for kind in ("vit", "backbone")
        for outcome in ("works", "fails")
    }
    reasons = {
        kind: collections.Counter(
            rows[row.get("as", name)][kind]["fails"].partition(", got")[0]
            for name, row in rows.items()
            if "fails" in rows[row.get("as", name)][kind]
        ).most_common()
        for kind in ("vit", "backbone")
    }
    summary = {"timm": timm.__version__, "names": len(names), "architectures": len(seen), **counts}
    print(json.dumps(summary | {"reasons": reasons}, indent=1))
    if chosen.only is None:
        result = {**summary, "reasons": reasons, "rows": dict(sorted(rows.items()))}
        atomic_write(
            RESULT, (json.dumps(result, indent=None) + "\n").replace("}, ", "},\n").encode()
        )


if __name__ == "__main__":
    main()
