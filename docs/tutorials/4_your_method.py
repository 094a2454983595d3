"""Your own method in your own package.

From a paper to a method that trains from a YAML file, in a package outside this repository: the
loss, a parity test with the paper's code, a test on two processes, the method, the recipe. The
paper is Wang and Isola, ICML 2020 ([arXiv 2005.10242](https://arxiv.org/abs/2005.10242)): bring
positives together (alignment) and spread all features over the sphere (uniformity). Each cell
writes a file of the package `aligned`; copy them to begin one of yours. It needs
`pip install 'sslzoo[demo]' pytest` and takes less than a minute on two CPU cores.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=2)
args = parser.parse_args()


def sh(command):
    """Run a command of the shell; `python` is the one that runs this script."""
    words = shlex.split(command)
    subprocess.run([sys.executable if words[0] == "python" else words[0], *words[1:]], check=True)


def write(path, text):
    """Write a file of the package."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.lstrip("\n"))


# %% [markdown]
# ## The loss
#
# A loss is a pure function of tensors. The paper's pseudo-code has two: the mean squared distance
# of positives, and the logarithm of the mean Gaussian potential of all pairs in the batch.
#
# The one question that the paper does not ask is what "the batch" is on several GPUs. Here it is
# always the global batch. `gather` returns the rows of all ranks, and its backward sums over them,
# so that a loss computed on every rank from all rows has, after DDP's mean, the gradient of one
# process. On one process `gather` changes nothing.

# %%
write("aligned/__init__.py", '"""Alignment and uniformity."""\n')
write(
    "aligned/loss.py",
    '''
"""Alignment and uniformity on the hypersphere.

Wang and Isola, ICML 2020, https://arxiv.org/abs/2005.10242, section 4.
"""

import torch
from torch import Tensor

from sslzoo.distributed import gather


def alignment(z1: Tensor, z2: Tensor, alpha: float = 2.0) -> Tensor:
    """Mean distance of positives to the power alpha, over the global batch.

    Args:
        z1: (B, D) rows of length one.
        z2: (B, D); row i is the positive of row i of z1.
        alpha: 2 in the paper.
    """
    return (gather(z1) - gather(z2)).norm(dim=1).pow(alpha).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """Logarithm of the mean of exp(-t d^2) over all pairs of the global batch.

    Args:
        z: (B, D) rows of length one.
        t: 2 in the paper.
    """
    z = gather(z)
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    squared = (z[i] - z[j]).square().sum(1)
    return (-t * squared).logsumexp(0) - torch.log(torch.tensor(float(len(i))))
''',
)

# %% [markdown]
# ## Parity with the paper's code
#
# The reference is a second implementation that shares nothing with ours: the paper's PyTorch code,
# which computes all distances with `torch.pdist`. The forward value and the gradient are compared
# in float64; a value by hand says that both are right: two opposite points have squared distance 4,
# so the uniformity is -2 * 4.

# %%
write(
    "tests/test_loss.py",
    """
import torch
from torch.nn.functional import normalize

from aligned.loss import alignment, uniformity


def lalign(x, y, alpha=2):
    return (x - y).norm(dim=1).pow(alpha).mean()


def lunif(x, t=2):
    sq_pdist = torch.pdist(x, p=2).pow(2)
    return sq_pdist.mul(-t).exp().mean().log()


def value_and_gradient(function, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = function(*inputs)
    return [value, *torch.autograd.grad(value, inputs)]


def rows():
    return normalize(torch.randn(16, 8, dtype=torch.float64), dim=1)


def test_alignment_equals_the_papers_code():
    x, y = rows(), rows()
    torch.testing.assert_close(
        value_and_gradient(alignment, x, y), value_and_gradient(lalign, x, y)
    )


def test_uniformity_equals_the_papers_code():
    x = rows()
    torch.testing.assert_close(value_and_gradient(uniformity, x), value_and_gradient(lunif, x))


def test_uniformity_of_opposite_points():
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).item() == -8
""",
)
sh("python -m pytest -q -p no:cacheprovider tests/test_loss.py")

# %% [markdown]
# ## The method
#
# A method holds `backbone` and implements `losses(batch)`, which returns the terms by name. Each
# term is logged, their sum is minimized. `takes` says which views it needs: two, of equal size. The
# base class checks them before the first step, brings the optimizer, the schedule, and
# checkpoints that load by the class alone.

# %%
write(
    "aligned/method.py",
    '''
"""AlignUniform: representation learning through alignment and uniformity.

Wang and Isola, ICML 2020, https://arxiv.org/abs/2005.10242.

Deviations: uniformity is over the global batch, with one process or many.
"""

from torch import Tensor, nn
from torch.nn.functional import normalize

from aligned.loss import alignment, uniformity
from sslzoo.batch import Batch, ViewSpec
from sslzoo.methods import SSLMethod
from sslzoo.methods.base import GroupsFactory, OptimizerFactory, output_dim
from sslzoo.optim import Schedule, exempt_bias_and_norm


class AlignUniform(SSLMethod):
    """Bring positives together and spread all projections over the sphere.

    Args:
        backbone: (B, C, H, W) -> (B, num_features).
        projector: num_features -> D.
        uniformity_weight: weight of uniformity beside alignment.
        optimizer: see `SSLMethod`.
        schedule: see `SSLMethod`.
        parameter_groups: see `SSLMethod`.
    """

    takes = ViewSpec(2, 2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        uniformity_weight: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        parameter_groups: GroupsFactory = exempt_bias_and_norm,
    ):
        super().__init__(backbone, optimizer, schedule, parameter_groups)
        output_dim(backbone, projector)  # their widths must fit
        self.projector = projector
        self.uniformity_weight = uniformity_weight

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        z1, z2 = (normalize(self.projector(self.backbone(view)), dim=1) for view in batch.views)
        spread = (uniformity(z1) + uniformity(z2)) / 2
        return {"alignment": alignment(z1, z2), "uniformity": self.uniformity_weight * spread}
''',
)

# %% [markdown]
# ## Two processes equal one
#
# This is the test that libraries lack most often. Each of two processes has different rows; the
# mean of their gradients, which is what DDP computes, must be the gradient of one process on all
# rows. `torchrun` starts them here on the CPU, with gloo.

# %%
write(
    "aligned/two_ranks.py",
    """
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from aligned.loss import alignment, uniformity


def gradient(x, y, weight):
    weight = weight.clone().requires_grad_()
    z1, z2 = (normalize(rows @ weight, dim=1) for rows in (x, y))
    loss = alignment(z1, z2) + uniformity(z1)
    loss.backward()
    return loss.detach(), weight.grad


torch.manual_seed(0)
x, y, weight = (torch.randn(n, 6, dtype=torch.float64) for n in (8, 8, 6))
one = gradient(x, y, weight)  # before the group exists: one process with all rows

dist.init_process_group("gloo")
own = slice(0, 5) if dist.get_rank() == 0 else slice(5, 8)  # uneven, too
two = gradient(x[own], y[own], weight)
for value in two:
    dist.all_reduce(value)
    value /= 2
torch.testing.assert_close(two, one)
if dist.get_rank() == 0:
    print("two processes equal one: loss", round(two[0].item(), 6))
dist.destroy_process_group()
""",
)
sh("python -m torch.distributed.run --standalone --nproc-per-node 2 -m aligned.two_ranks")

# %% [markdown]
# ## The recipe
#
# A YAML file names the classes; yours by its own path, since the current directory is importable
# (or the package is installed). The file is checked against the signatures before anything runs: a
# misspelled argument is an error. Here it trains on a part of the digits of the quickstart.

# %%
write(
    "configs/align_uniform.yaml",
    """
seed_everything: 0
trainer:
  max_epochs: 20
  accelerator: cpu
  log_every_n_steps: 5
  callbacks:
  - class_path: sslzoo.callbacks.OnlineKNN
    init_args: {k: 20, temperature: 0.07}
model:
  class_path: aligned.method.AlignUniform
  init_args:
    backbone:
      class_path: sslzoo.backbones.SmallResNet
      init_args: {in_chans: 1, widths: [16, 32, 64]}
    projector:
      class_path: sslzoo.heads.simclr_projector
      init_args: {in_dim: 64, out_dim: 64}
    optimizer:
      class_path: torch.optim.AdamW
      init_args: {lr: 0.003, weight_decay: 0.01}
    schedule:
      class_path: sslzoo.optim.WarmupCosine
      init_args: {warmup_epochs: 1}
data:
  class_path: sslzoo.data.MNIST5k
  init_args:
    batch_size: 128
    channels: 1
    transform:
      class_path: sslzoo.transforms.digit_views
""",
)
sh(f"""
    sslzoo fit --config configs/align_uniform.yaml --trainer.max_epochs {args.epochs}
    --data.train_fraction 0.5 --trainer.enable_progress_bar false
""")
run = max(Path("runs").rglob("version_*"))
print((run / "metrics.csv").read_text())

# %% [markdown]
# ## Load it
#
# The run loads by the class that its checkpoint names, if your program has imported that class: a
# file never chooses code that you have not ([security](../security.md)).

# %%
import torch

sys.path.insert(0, ".")
import aligned.method  # noqa: F401

import sslzoo

encoder = sslzoo.load(run / "checkpoints/last.ckpt")
digits = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
print(tuple(encoder(encoder.preprocess(digits)).shape))

# %% [markdown]
# ## Next
#
# - Teachers, memories, schedules and keyed random numbers: what the base class expects is in
#   [adding a method](../adding_a_method.md), which is also the way into this repository.
# - The result of a run beside others: `sslzoo eval RUN RUN`, `sslzoo report RUN RUN`.
