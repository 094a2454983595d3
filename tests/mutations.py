"""Deliberate slips, each of which some test must catch: `python -m tests.mutations [NAME...]`.

Run before a release, and before tests are removed. Each slip is made in a copy of the package,
and the tests named beside it run there; a slip that they pass is printed as NOT CAUGHT and makes
the exit code 1. `--tests FOLDER` takes the tests of another checkout, to compare two suites.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Slip(NamedTuple):
    """One change of the code.

    Args:
        name: what is wrong with it.
        file: path in the repository.
        old: text that occurs once in the file.
        new: what stands there instead.
        tests: files or folders below tests/, of which one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


EVERY, CONFIG, RESUME = "test_every_method.py", "test_every_config.py", "test_every_resume.py"
SLIPS = [
    # -- losses
    Slip(
        "NT-Xent: the positive's sign",
        "sslzoo/losses/nt_xent.py",
        "positive = (pairs[:, 0] * pairs[:, 1]).sum() * (2 / temperature)",
        "positive = -(pairs[:, 0] * pairs[:, 1]).sum() * (2 / temperature)",
        ("losses/test_nt_xent.py",),
    ),
    Slip(
        "InfoNCE: the positive's gradient is q (p), not q (p - 1)",
        "sslzoo/losses/info_nce.py",
        "attach_gradient(loss, positive, (p - 1) * q",
        "attach_gradient(loss, positive, p * q",
        ("losses/test_info_nce.py",),
    ),
    Slip(
        "Barlow Twins: redundancy divided by N, not N^2",
        "sslzoo/losses/barlow_twins.py",
        "rows) / rows.total**2",
        "rows) / rows.total",
        ("losses/test_barlow_twins.py",),
    ),
    Slip(
        "VICReg: variance divided by N, not N - 1",
        "sslzoo/losses/vicreg.py",
        "global_sum(z.square().sum(dim=0)) / (rows.total - 1)",
        "global_sum(z.square().sum(dim=0)) / rows.total",
        ("losses/test_vicreg.py",),
    ),
    Slip(
        "DINO: equal views are not left out",
        "sslzoo/losses/dino.py",
        "pairs = z.new_ones(*views, dtype=dtype).fill_diagonal_(0.0)",
        "pairs = z.new_ones(*views, dtype=dtype)",
        ("losses/test_dino.py",),
    ),
    Slip(
        "DINO: the center is added",
        "sslzoo/losses/dino.py",
        "at_least_float32(logits) - center",
        "at_least_float32(logits) + center",
        ("losses/test_dino.py", "methods/test_dino.py"),
    ),
    Slip(
        "NCE: the constant lacks the factor M",
        "sslzoo/losses/nce.py",
        "return total / count * (len(bank) if num_data is None else num_data)",
        "return total / count",
        ("losses/test_nce.py",),
    ),
    Slip(
        "SIGReg: the gradient is 1 / W of it on W ranks",
        "sslzoo/losses/sigreg.py",
        "grad *= scale * world_size()",
        "grad *= scale",
        ("losses/test_sigreg.py",),
    ),
    Slip(
        "SIGReg: the last knot has the weight of the others",
        "sslzoo/losses/sigreg.py",
        "weights[-1] /= 2",
        "weights[-1] /= 1",
        ("losses/test_sigreg.py",),
    ),
    Slip(
        "LeJEPA: the center is a constant",
        "sslzoo/losses/sigreg.py",
        "z[:, :num_global].mean(dim=1, keepdim=True)",
        "z[:, :num_global].mean(dim=1, keepdim=True).detach()",
        ("losses/test_sigreg.py",),
    ),
    Slip(
        "W-MSE: covariance divided by w, not w - 1",
        "sslzoo/losses/w_mse.py",
        "x.mT @ x / (x.shape[-2] - 1)",
        "x.mT @ x / x.shape[-2]",
        ("losses/test_w_mse.py",),
    ),
    # -- clock
    Slip(
        "the step is counted twice",
        "sslzoo/optim/clock.py",
        "self.step += self.follows(optimizer)",
        "self.step += 2 * self.follows(optimizer)",
        ("methods/test_base.py", EVERY),
    ),
    Slip(
        "warm-up is one step late",
        "sslzoo/optim/schedule.py",
        "(1 - self.start_factor) * step / rises",
        "(1 - self.start_factor) * max(0, step - 1) / rises",
        ("optim/test_schedule.py",),
    ),
    Slip(
        "the cosine ends a step early",
        "sslzoo/optim/schedule.py",
        "max(1, run_length.total_steps - before))\n        return self.end_factor",
        "max(1, run_length.total_steps - before - 1))\n        return self.end_factor",
        ("optim/test_schedule.py",),
    ),
    Slip(
        "the teacher moves by the momentum, not by its complement",
        "sslzoo/callbacks/ema.py",
        "weight = 1.0 - self._momentum(method, step)",
        "weight = self._momentum(method, step)",
        ("methods/test_byol.py", "methods/test_moco.py", "methods/test_dino.py"),
    ),
    Slip(
        "the teacher uses the next step's momentum",
        "sslzoo/callbacks/ema.py",
        "self._done = method.step - 1\n            self.update(method, self._done)",
        "self._done = method.step - 1\n            self.update(method, method.step)",
        ("callbacks/test_ema.py",),
    ),
    Slip(
        "the step is not restored from a checkpoint",
        "sslzoo/optim/clock.py",
        'self.run_length = state["step"]',
        'self.run_length = 0 * state["step"]',
        (RESUME,),
    ),
    Slip(
        "generators are not restored on a resume",
        "sslzoo/trainable.py",
        'torch.set_rng_state(self._rng_to_restore["cpu"].cpu())',
        "pass",
        (RESUME,),
    ),
    # -- ranks
    Slip(
        "a gather's backward keeps the own rows without the sum over ranks",
        "sslzoo/distributed.py",
        "return _sum(grads[0])[ctx.own], None",
        "return grads[0][ctx.own], None",
        ("test_distributed.py", "losses/test_nt_xent.py"),
    ),
    Slip(
        "a rank's rows start after its own",
        "sslzoo/distributed.py",
        "return Rows(counts, sum(counts[: rank()]), sum(counts))",
        "return Rows(counts, sum(counts[: rank() + 1]), sum(counts))",
        ("test_distributed.py",),
    ),
    Slip(
        "batch norm's backward is of this rank alone",
        "sslzoo/layers/batch_norm.py",
        "total = sum_over_ranks(sums)",
        "total = sums",
        ("layers/test_batch_norm.py",),
    ),
    Slip(
        "a queue keeps the oldest rows of a large step",
        "sslzoo/memory/queue.py",
        "kept = values[-size:]",
        "kept = values[:size]",
        ("memory/test_queue.py",),
    ),
    Slip(
        "the center weights ranks equally",
        "sslzoo/memory/center.py",
        "(means * (counts / total.clamp(min=1))).sum(dim=0)",
        "means.mean(dim=0)",
        ("memory/test_center.py",),
    ),
    # -- data
    Slip(
        "every epoch has the same order",
        "sslzoo/data/sampler.py",
        'run_keys(self.seed, "sampler", self.epoch)',
        'run_keys(self.seed, "sampler", 0)',
        ("data/test_sampler.py",),
    ),
    Slip(
        "a resumed epoch begins a batch late",
        "sslzoo/data/sampler.py",
        "blocks[self.first_batch :, self.rank]",
        "blocks[self.first_batch + 1 :, self.rank]",
        ("data/test_sampler.py", "data/test_resume.py"),
    ),
    Slip(
        "the last batch gives every rank the first rows",
        "sslzoo/data/sampler.py",
        "return self.rank * each + min(self.rank, more), each",
        "return 0, each",
        ("data/test_sampler.py",),
    ),
    Slip(
        "draws for two purposes are the same",
        "sslzoo/random/keys.py",
        "return mix(self.fold(purpose).key[:, None] + steps).reshape(-1, *shape)",
        "return mix(self.key[:, None] + steps).reshape(-1, *shape)",
        ("random/test_keys.py",),
    ),
    # -- loading
    Slip(
        "a file may name what a package only imports",
        "sslzoo/trust/admit.py",
        "if not _within(module, PACKAGES):",
        "if False:",
        ("trust/test_admit.py",),
    ),
    Slip(
        "any function may be named",
        "sslzoo/trust/admit.py",
        "fine = isinstance(found, FunctionType) and _is_public(found)",
        "fine = True",
        ("trust/test_admit.py",),
    ),
    Slip(
        "features of an entry are not compared",
        "sslzoo/zoo/verifying.py",
        "_TOLERANCE = 1e-3",
        "_TOLERANCE = 1e3",
        ("zoo/test_load.py", "commands/test_zoo.py", "zoo/test_every_entry.py"),
    ),
    # -- evaluation
    Slip(
        "kNN weighs all neighbors alike",
        "sslzoo/eval/knn/classify.py",
        "weight = (similarity_of(found.key[:, :k]).double() / temperature).exp()",
        "weight = (similarity_of(found.key[:, :k]).double() * 0).exp()",
        ("eval/test_knn.py",),
    ),
    Slip(
        "equal similarities are ordered by the larger index",
        "sslzoo/eval/knn/search.py",
        "return (ordered << INDEX_BITS) | ((1 << INDEX_BITS) - 1 - index)",
        "return (ordered << INDEX_BITS) | index",
        ("eval/test_knn.py",),
    ),
    Slip(
        "features are not normalized before the search",
        "sslzoo/eval/knn/search.py",
        "rows = rows * (GRID / norm)",
        "rows = rows * (GRID / norm.mean())",
        ("eval/test_knn.py",),
    ),
    # -- recipes
    Slip(
        "a head is narrower than its backbone",
        "configs/moco/imagenet_resnet50_v2_200ep.yaml",
        "sizes: [2048, 2048, 128]",
        "sizes: [512, 2048, 128]",
        (CONFIG,),
    ),
    # -- number ranges and files
    Slip(
        "images of 12 bits pass as black",
        "sslzoo/value_range.py",
        "if 0 < most <= _TWELVE_BITS:",
        "if 0 < most <= 0:",
        ("test_value_range.py",),
    ),
    Slip(
        "the range of floats is not checked",
        "sslzoo/value_range.py",
        "if check and not _inside(numbers, limits):",
        "if False and not _inside(numbers, limits):",
        ("test_value_range.py",),
    ),
    Slip(
        "a value that is no pixel is skipped as a broken file",
        "sslzoo/data/image/image_set.py",
        "        except ValueRangeError as error:\n            raise",
        "        except ZeroDivisionError as error:\n            raise",
        ("data/image/test_files.py",),
    ),
    Slip(
        "a loop of links is followed",
        "sslzoo/data/listing.py",
        "visited.add((status.st_dev, status.st_ino))",
        "visited.add(folder)",
        ("data/image/test_files.py",),
    ),
    Slip(
        "a truncated WAV is whole",
        "sslzoo/data/audio/sound_files.py",
        "if held < said < most and said - held > said // 100:",
        "if said < held < most:",
        ("data/audio/test_files.py",),
    ),
    Slip(
        "a line's number is that among the lines with text",
        "sslzoo/data/text/lines.py",
        "line {file.number(row)} is ",
        "line {row + 1} is ",
        ("data/text/test_files.py",),
    ),
    Slip(
        "a sampler is replaced without a word",
        "sslzoo/data/with_views.py",
        "    _check_order(loader, name)\n",
        "",
        ("data/test_with_views.py",),
    ),
]


def occurrences(slip: Slip) -> int:
    return (ROOT / slip.file).read_text().count(slip.old)


def caught(slip: Slip, tests: Path) -> str:
    """The first test that fails on the slip; "" if none does."""
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made)
        for name in ("sslzoo", "configs"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copytree(tests, copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        for name in (
            "zoo_weights",
            "benchmarks",
            "docs",
            "examples",
            "pyproject.toml",
            "README.md",
        ):
            (copy / name).symlink_to(ROOT / name)
        file = copy / slip.file
        file.write_text(file.read_text().replace(slip.old, slip.new))
        found = [str(Path("tests") / name) for name in slip.tests]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *found]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return lines[0].split()[1] if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the slips' names; default: all")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests")
    asked = parser.parse_args()
    missed = 0
    for slip in SLIPS:
        if asked.names and not any(name in slip.name for name in asked.names):
            continue
        start = time.monotonic()
        test = caught(slip, asked.tests)
        missed += not test
        seconds = time.monotonic() - start
        print(f"| {slip.name} | {test or 'NOT CAUGHT'} | {seconds:.0f} s |", flush=True)
    raise SystemExit(missed > 0)


if __name__ == "__main__":
    main()
