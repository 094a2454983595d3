"""What holds for every file and every method: import layers, no host syncs, no graph breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from sslzoo.batch import Batch
from sslzoo.methods import SSLMethod
from tests.no_sync import DEVICE, fake, fake_tensors, syncs
from tests.toys import build, every_method, one_of_each_kind

ROOT = Path(__file__).parents[1]


def test_imports_point_downwards() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_one_file_names_torch_distributed_and_one_shards() -> None:
    naming = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "sslzoo").rglob("*.py"))
        for line in path.read_text().splitlines()
        if "import torch.distributed" in line or "from torch.distributed" in line
    ]
    assert set(naming) == {"sslzoo/distributed.py", "sslzoo/sharding.py"}


def test_importing_has_no_side_effect(tmp_path: Path) -> None:
    code = (
        "import sys, warnings, random, sslzoo\n"
        "assert 'torch' not in sys.modules and 'sslzoo.zoo' not in sys.modules\n"
        "import torch\n"
        "import lightning, timm, torchvision  # their side effects are theirs\n"
        "before = (list(warnings.filters), torch.get_rng_state().sum(), random.getstate(),\n"
        "          torch.get_num_threads(), torch.get_default_dtype())\n"
        "import sslzoo.methods, sslzoo.data, sslzoo.transforms\n"
        "assert 'sslzoo.zoo' not in sys.modules\n"
        "assert 'simclr-small_resnet-cifar10jpeg' in sslzoo.list_models('simclr*')\n"
        "after = (list(warnings.filters), torch.get_rng_state().sum(), random.getstate(),\n"
        "         torch.get_num_threads(), torch.get_default_dtype())\n"
        "assert before == after\n"
        "assert 'mlxtend' not in sys.modules and 'tensorboard' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def on_device(cls: type[SSLMethod]) -> tuple[SSLMethod, Batch]:
    """The method's example on a fake cuda device."""
    with unset_fake_temporarily(), torch.device("cpu"):
        method, batch = build(cls)

    fake_tensors(method)
    label, boxes = (None if x is None else fake(x) for x in (batch.label, batch.boxes))
    views = [
        fake(view) if isinstance(view, Tensor) else type(view)(*map(fake, view))
        for view in batch.views
    ]
    return method, Batch(views, fake(batch.index), label, boxes)


def summed(parts: tuple[SSLMethod, Batch]) -> Tensor:
    method, batch = parts
    return torch.stack(list(method.losses(batch).values())).sum()


def read_back(_: Any) -> Tensor:
    x = torch.ones(3, device=DEVICE)
    return x * x.sum().item()


def test_a_sync_would_be_seen() -> None:
    assert syncs(read_back, None)


@one_of_each_kind(every_method())
def test_no_host_sync_in_losses_and_backward(cls: type[SSLMethod]) -> None:
    assert syncs(summed, cls, make=on_device) == []


# One method of each kind of network and objective; the others' losses compile in tests/losses.
TRACED = ("CLEAR", "CMC", "CPC", "DINO", "IJEPA", "SwAV")


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(cls, marks=() if cls.__name__ in TRACED else pytest.mark.slow)
        for cls in every_method()
    ],
    ids=lambda cls: cls.__name__,
)
def test_no_graph_break_in_backbone_heads_and_losses(cls: type[SSLMethod]) -> None:
    method, batch = build(cls)
    method.losses(batch)  # what the first step alone does is outside
    torch._dynamo.reset()
    explained = torch._dynamo.explain(lambda batch: method.losses(batch))(batch)
    assert explained.graph_break_count == 0, explained.break_reasons
