"""Step profile: where a training step's time goes on a CPU, beside the bound of its arithmetic.

    python -m benchmarks.step_profile [--threads 2]

A step of SimCLR in float32 is run and profiled: views, forward with the loss, backward and AdamW's
step of the small net (configs/simclr/folder_small_10ep, batch 256), and forward to SGD's step of
ResNet-18 at 32 pixels on given views (batch 32). Beside it stand the arithmetic operations of its
convolutions and products, what the processor reaches in a large matrix product, and the time of the
convolutions alone: each layer's forward and backward in a loop of its own, on warm caches. First of
all, steps are timed as glibc has it, returning freed memory to the system, and their page faults
counted; everything else is with `keep_freed_memory`, as in `sslzoo fit`.

The shares go to benchmarks/results/step_profile.json, and the stacks of operations with their own
microseconds per step to benchmarks/results/step_profile_<net>.folded, which flamegraph.pl and
speedscope draw.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.driver import ROOT
from benchmarks.sides.same import images, step_views
from benchmarks.speed import provenance
from benchmarks.worker import versions
from sslzoo.backbones import SmallResNet, cifar_resnet
from sslzoo.batch import Batch
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.random import sample_keys
from sslzoo.runs.allocation import keep_freed_memory
from sslzoo.transforms import simclr_views

RESULTS = ROOT / "benchmarks" / "results"
STEPS = 5
KINDS = {  # the first that a stack has
    "views": ("views",),
    "optimizer": ("optimizer",),
    "convolutions": ("convolution", "mkldnn"),
    "batch norm": ("batch_norm", "BatchNorm"),
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "pointwise": ("relu", "threshold", "Relu", "aten::add", "AddBackward"),
}


def small_net() -> Callable[[int], None]:
    """A step of the small recipe, from images as bytes."""
    method = SimCLR(
        SmallResNet(),
        simclr_projector(256, out_dim=128),
        temperature=0.2,
        optimizer=partial(torch.optim.AdamW, lr=0.003, weight_decay=0.01),
    )
    optimizer, views = method.configure_optimizers(), simclr_views(32, 0.5, blur=False)
    pixels, index = images(256, 32), torch.arange(256)

    def step(number: int) -> None:
        with record_function("views"):
            made = views(pixels, sample_keys(0, number, index))
        train(method, optimizer, Batch(made, index))

    return step


def resnet18() -> Callable[[int], None]:
    """A step of ResNet-18 with CIFAR's stem, on given views."""
    method = SimCLR(
        cifar_resnet("resnet18"),
        simclr_projector(512),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4),
    )
    optimizer = method.configure_optimizers()
    batch = Batch(step_views(32, 32, "cpu"), torch.arange(32))
    return lambda number: train(method, optimizer, batch)


NETS = {"small_net": small_net, "resnet18": resnet18}
BATCH = {"small_net": 256, "resnet18": 32}


def train(method: SimCLR, optimizer: Any, batch: Batch) -> None:
    with record_function("forward"):
        loss = method.losses(batch)["nt_xent"]
    with record_function("backward"):
        loss.backward()
    with record_function("optimizer"):
        optimizer.step()
        optimizer.zero_grad()


def seconds(work: Callable[[], Any], times: int = STEPS) -> float:
    """The median of some runs, after one."""
    work()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return median(found)


def product_gflops() -> float:
    """What a product of two square float32 matrices of 2,048 rows reaches."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: a @ a) / 1e9


def convolutions_alone(step: Callable[[int], None]) -> float:
    """Seconds of each convolution of a step, forward and backward, in a loop of its own."""
    seen: list[tuple[nn.Conv2d, Tensor]] = []

    def see(module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            seen.append((module, given[0].detach().clone(memory_format=torch.preserve_format)))

    hook = nn.modules.module.register_module_forward_hook(see)
    step(0)
    hook.remove()
    total = 0.0
    for number, (conv, x) in enumerate(seen):
        x.requires_grad_(number > 0)  # the images have no gradient
        gradient = torch.ones_like(conv(x))
        total += seconds(partial(_both, conv, x, gradient), 3)
    return total


def _both(conv: nn.Conv2d, x: Tensor, gradient: Tensor) -> None:
    conv(x).backward(gradient)


def steady(step: Callable[[int], None]) -> dict[str, float]:
    """Seconds and page faults of a step, and the process's largest size so far."""
    step(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    time_of_a_step = seconds(partial(step, 1))
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step_seconds": time_of_a_step,
        "page_faults": (after.ru_minflt - before) / (STEPS + 1),
        "peak_mib": after.ru_maxrss / 1024,
    }


def stacks(step: Callable[[int], None]) -> Counter[str]:
    """Own microseconds of each stack of operations, per step."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for number in range(STEPS):
            step(number)
    own: Counter[str] = Counter()
    for event in found.events() or []:
        names, parent = [event.name], event.cpu_parent
        while parent is not None:
            names.append(parent.name)
            parent = parent.cpu_parent
        own[";".join(reversed(names))] += event.self_cpu_time_total / STEPS
    return own


def kind_of(stack: str) -> str:
    return next((k for k, parts in KINDS.items() if any(p in stack for p in parts)), "other")


def measure(net: str, folder: Path) -> dict[str, Any]:
    """Shares of one net's step, and its bounds."""
    torch.manual_seed(0)
    step = NETS[net]()
    with FlopCounterMode(display=False) as counter:
        step(0)
    gflop = counter.get_total_flops() / 1e9
    kept, alone = steady(step), convolutions_alone(step)
    whole = kept["step_seconds"]
    own = stacks(step)
    lines = [f"{stack} {round(us)}" for stack, us in sorted(own.items()) if us >= 1]
    (folder / f"step_profile_{net}.folded").write_text("\n".join(lines) + "\n")
    kinds: Counter[str] = Counter()
    for stack, us in own.items():
        kinds[kind_of(stack)] += us
    total = sum(kinds.values())
    gflops = product_gflops()
    return {
        **kept,
        "samples_per_second": BATCH[net] / whole,
        "gflop": gflop,
        "product_gflops": gflops,
        "product_bound_seconds": gflop / gflops,
        "convolutions_alone_seconds": alone,
        "shares": {kind: us / total for kind, us in kinds.most_common()},
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--folder", type=Path, default=RESULTS)
    given = parser.parse_args(args)
    torch.set_num_threads(given.threads)
    returned = {net: steady(NETS[net]()) for net in given.nets}
    keep_freed_memory()
    file = given.folder / "step_profile.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    for net in given.nets:
        about = {"threads": given.threads, **provenance("cpu")}
        kept[net] = {**measure(net, given.folder), "memory_returned": returned[net], **about}
        print(net, json.dumps(kept[net], indent=1), flush=True)
    kept["versions"] = versions()
    file.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
