"""Several GPUs and several machines: torchrun, SLURM, and a run that proves the numbers.

`--data.batch_size` is the global batch, and the loss, the gradients, the memories and the kNN
accuracy of W processes are those of one process with the same global batch. This tutorial shows it
with two processes on a CPU (gloo), which is what the tests do for every method. Several GPUs (NCCL)
and several machines have not been run by the authors of this library: the commands below are
Lightning's and torch's own, and the equality on two CPU processes is what supports them.
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
#     #SBATCH --signal=SIGTERM@120
#     srun sslzoo fit --config ... --trainer.devices 8 --trainer.num_nodes 2
#
# At SIGTERM a run saves `checkpoints/last.ckpt`; `sslzoo fit --ckpt_path RUN/checkpoints/last.ckpt`
# goes on in the middle of the epoch.

# %% [markdown]
# ## A proof on two processes
#
# The script below trains SimCLR for six steps, with a global batch of 64, and writes the loss of
# each step. It runs once as one process and once as two, which have 32 different images each.

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
devices, path = int(sys.argv[1]), sys.argv[2]
seed_everything(0, verbose=False)


class Losses(Callback):
    values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        mean = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
        self.values.append(float(mean))


data = MNIST5k(digit_views(14), batch_size=64, channels=1, train_fraction=0.1)
method = SimCLR(SmallResNet((8, 16), in_chans=1), simclr_projector(16), 0.2,
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
losses, knn = Losses(), OnlineKNN(k=20)
trainer = Trainer(max_epochs=1, accelerator="cpu", devices=devices,
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
for devices, launcher in ((1, [sys.executable]), (2, torchrun)):
    path = folder / f"{devices}.json"
    command = [*launcher, str(folder / "train.py"), str(devices), str(path)]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    results[devices] = json.loads(path.read_text())
    print(devices, "process(es):", results[devices])

for one, two in zip(results[1]["losses"], results[2]["losses"], strict=True):
    assert abs(one - two) < 1e-4, (one, two)
assert abs(results[1]["knn"] - results[2]["knn"]) < 0.005

# %% [markdown]
# The losses agree to float32 rounding. In float64 the tests ask for 1e-7 of loss, gradients,
# memories and teachers, for every method.
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
