"""timm's registry: which names work as `timm_vit`, which as `timm_backbone`, and why others do not.

    python -m benchmarks.timm_registry            # names that the result lacks; about 6 minutes
    python -m benchmarks.timm_registry --again    # all names
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
from sslzoo.backbones.timm_models import TOKENS
from sslzoo.checks import check_sides

RESULT = ROOT / "benchmarks" / "results" / "timm_registry.json"


# Words of a name that say its size alone: sizes, depths, patches, windows and images.
SIZE = re.compile(
    r"atto|femto|pico|nano|micro|mini|x*tiny|x*small|base|medium|mediumd|x*large|huge|giant|gigantic"
    r"|d?little|betwixt|d?p?wee|so\d+m2?|x+s|x*l|sm|lg|[smxthgb]"
    r"|(patch|window|split)?\d+(to\d+)?|[a-z]\d+|\d+[a-z]+"
)


def architecture(name: str) -> str:
    """What names of one architecture share: timm's module, and the words that are no size.

    Of modules whose nets `timm_vit` does not take, the first of these words.
    """
    words = (re.sub(r"\d\d+[a-z]*$", "", word) for word in name.split("_"))
    kept = [word for word in words if word and not SIZE.fullmatch(word)]
    room = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    return " ".join([room, *(kept if room in TOKENS else kept[:1])])


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
    parser.add_argument("--only", help="glob of the names; nothing is written")
    parser.add_argument("--again", action="store_true", help="also run names that the file has")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    groups: dict[str, list[str]] = {}
    for name in fnmatch.filter(timm.list_models(), chosen.only or "*"):
        groups.setdefault(architecture(name), []).append(name)
    known = {} if chosen.only or chosen.again or not RESULT.is_file() else _read_rows()
    rows: dict[str, dict[str, Any]] = {}
    for number, names in enumerate(sorted(groups.values(), key=len, reverse=True)):
        first = min(names, key=lambda name: ("tiny" not in name and "small" not in name, name))
        done = next((name for name in names if "vit" in known.get(name, {})), first)
        rows[done] = known.get(done) or {k: tried(done, k) for k in ("vit", "backbone")}
        rows |= {name: {"as": done} for name in names if name != done}
        print(done, json.dumps(rows[done]), flush=True)
        if chosen.only is None and (number % 20 == 0 or number == len(groups) - 1):
            _write(rows, number + 1)


def _read_rows() -> dict[str, dict[str, Any]]:
    """The rows of an earlier run with the same timm."""
    result = json.loads(RESULT.read_text())
    return result["rows"] if result["timm"] == timm.__version__ else {}  # type: ignore[no-any-return]


def _write(rows: dict[str, dict[str, Any]], architectures: int) -> None:
    """Write the rows with their counts and reasons, one row per line."""
    result: dict[str, Any] = {
        "timm": timm.__version__,
        "names": len(timm.list_models()),
        "architectures": architectures,
    }
    for kind in ("vit", "backbone"):
        found = [rows[row.get("as", name)][kind] for name, row in rows.items()]
        result[f"{kind} works"] = sum("works" in one for one in found)
        failed = (one["fails"].partition(", got")[0] for one in found if "fails" in one)
        result[f"{kind} fails"] = dict(collections.Counter(failed).most_common())
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    head = json.dumps(result, indent=1)[:-2]
    atomic_write(RESULT, f'{head},\n "rows": {{\n{lines}\n}}\n}}\n'.encode())


if __name__ == "__main__":
    main()
