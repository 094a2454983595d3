"""Several GPUs and several machines: torchrun, SLURM, and a run that proves the numbers.

`--data.batch_size` is the global batch, and the loss, the gradients, the memories and the kNN
accuracy of W processes are those of one process with the same global batch. This tutorial shows it
with two processes on a CPU (gloo), which is what the tests do for every method. Two nodes were run
as two network namespaces of one machine, with gloo; several GPUs (NCCL) and a real cluster have not
been run by the authors of this library ([clusters](../clusters.md) says what was).
"""

# %% [markdown]
# ## The commands
#
# One machine with four GPUs: Lightning starts the processes, or torchrun does.
#
#     sslzoo fit --config simclr/imagenet_resnet50_100ep --data.root FOLDER --trainer.devices 4
#     torchrun --standalone --nproc_per_node 4 -m sslzoo fit \
#         --config simclr/imagenet_resnet50_100ep --data.root FOLDER --trainer.devices 4
#
# Two machines of eight GPUs, the same line on each:
#
#     torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \
#         -m sslzoo fit --config ... --trainer.devices 8 --trainer.num_nodes 2
#
# SLURM: one task per GPU, and Lightning reads the rest from the environment.
#
#     #SBATCH --nodes=2
#     #SBATCH --ntasks-per-node=8
#     #SBATCH --gpus-per-node=8
#     #SBATCH --signal=SIGUSR1@300
#     srun sslzoo fit --config ... --trainer.devices 8 --trainer.num_nodes 2
#
# At SIGUSR1 the run saves `checkpoints/last.ckpt` and requeues the job, which goes on in the middle
# of the epoch; at SIGTERM it saves and ends, and `sslzoo fit --ckpt_path
# RUN/checkpoints/last.ckpt` goes on. Nodes that are lost, sbatch files, containers and local disks:
# [clusters](../clusters.md).

# %% [markdown]
# ## A proof on two processes
#
# The script below trains SimCLR for six steps, with a global batch of 64, and writes the loss of
# each step. It runs once as one process and once as two, which have 32 different images each; first
# in float64, where the two must agree to the last digits, then in float32.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import json, logging, sys, warnings
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from sslzoo.backbones import SmallResNet
from sslzoo.callbacks import OnlineKNN
from sslzoo.data import MNIST5k
from sslzoo.heads import simclr_projector
from sslzoo.methods import SimCLR
from sslzoo.transforms import digit_views

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
devices, precision, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
seed_everything(0, verbose=False)


class Losses(Callback):
    values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        mean = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
        self.values.append(float(mean))


data = MNIST5k(digit_views(14), batch_size=64, channels=1, train_fraction=0.1)
method = SimCLR(SmallResNet((8, 16), in_chans=1), simclr_projector(16), 0.2,
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02))
losses, knn = Losses(), OnlineKNN(k=20)
trainer = Trainer(max_epochs=1, accelerator="cpu", devices=devices, precision=precision,
                  strategy="ddp" if devices > 1 else "auto", callbacks=[losses, knn], logger=False,
                  enable_checkpointing=False, enable_progress_bar=False,
                  enable_model_summary=False)
trainer.fit(method, datamodule=data)
if trainer.is_global_zero:
    accuracy = float(trainer.callback_metrics["val/knn_top1_k20_t0.07"])
    with open(path, "w") as file:
        json.dump({"losses": losses.values, "knn": accuracy}, file)
"""

folder = Path(tempfile.mkdtemp())
(folder / "train.py").write_text(SCRIPT)
environment = {**os.environ, "OMP_NUM_THREADS": "1"}
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
results = {}
for precision in ("64-true", "32-true"):
    for devices, launcher in ((1, [sys.executable]), (2, torchrun)):
        path = folder / "result.json"
        command = [*launcher, str(folder / "train.py"), str(devices), precision, str(path)]
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        results[precision, devices] = json.loads(path.read_text())


def differences(a, b):
    """Absolute differences of the losses of two runs, step by step."""
    return [abs(x - y) for x, y in zip(results[a]["losses"], results[b]["losses"], strict=True)]


def show(title, values, form):
    print(f"{title:38}", *(format(value, form) for value in values))


one, two, one_32, two_32 = results
show("losses of one process, float64", results[one]["losses"], "8.5f")
show("two processes differ, float64, by", differences(one, two), "8.1e")
show("two processes differ, float32, by", differences(one_32, two_32), "8.1e")
show("float32 differs from float64 by", differences(one, one_32), "8.1e")
print("kNN of one and of two, float64:", results[one]["knn"], results[two]["knn"])
assert max(differences(one, two)) < 1e-10
assert results[one]["knn"] == results[two]["knn"]

# %% [markdown]
# In float64 two processes are one, to the last digits; the tests ask for this of the loss,
# gradients, memories and teachers of every method. In float32 a sum over two halves is rounded
# differently from a sum over the whole, and each step of training enlarges such a difference, with
# batch norm quickly. The last row shows how large that effect is within one process: what float32
# changes there is as large as what a second process changes.
#
# ## What to know
#
# - **The batch is global.** With eight GPUs and `batch_size: 4096`, each has 512. More GPUs make a
#   step faster and change no number; the learning rate stays.
# - **Batch norm is over the global batch**, whatever `sync_batchnorm` says. A recipe whose authors
#   had per-GPU batch norm names its `bn_groups`.
# - **The kNN accuracy has no duplicates**: no sampler pads the evaluation, and each rank embeds its
#   share.
# - **A loss that differs** from one process's is a fault: of the data (another order, or your
#   own sampler), or of this library, which wants to hear of it.
# - **DDP and a single device are supported**; other strategies are refused
#   ([the Trainer's flags](../trainer.md)).
