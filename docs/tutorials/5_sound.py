"""Sound: an encoder of short recordings.

This tutorial trains SimCLR on log-mel spectrograms of a folder of sounds, evaluates it, and embeds
a waveform. It needs `pip install 'sslzoo[audio]'` and takes two minutes on two CPU cores.
"""

import argparse
import shlex
import subprocess
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
args = parser.parse_args()


def sh(command):
    """Run a command of the shell."""
    subprocess.run(shlex.split(command), check=True)


# %% [markdown]
# ## A folder of sounds
#
# The sounds here are synthesized, so that nothing has to be downloaded: notes of six instruments,
# 60 of each, of random pitch and length, with noise. Pitch is the same for all instruments; what
# tells them apart is their partials and how they decay. The distance to the microphone differs by
# up to 50 dB, as it does in a forest or a factory. With your own recordings skip this cell.

# %%
import numpy as np
import soundfile

RATE = 8000
# Partials as multiples of the pitch, their strengths, and how fast each decays per second.
INSTRUMENTS = {
    "flute": ([1, 2, 3], [1, 0.15, 0.05], [0, 0, 0]),
    "clarinet": ([1, 3, 5, 7], [1, 0.6, 0.35, 0.2], [0, 0, 0, 0]),
    "organ": ([1, 2, 4, 8], [1, 0.7, 0.6, 0.4], [0, 0, 0, 0]),
    "string": ([1, 2, 3, 4, 5, 6], [1, 0.6, 0.5, 0.4, 0.3, 0.2], [3, 4, 5, 6, 7, 8]),
    "bell": ([1, 2.76, 5.4, 8.93], [1, 0.7, 0.5, 0.3], [2, 4, 6, 9]),
    "drum": ([1, 1.59, 2.14, 2.3, 2.65], [1, 0.8, 0.7, 0.6, 0.5], [14, 18, 20, 22, 25]),
}
rng = np.random.default_rng(0)


def note(partials, strengths, decays):
    """A note of random pitch, length and loudness, in noise: float32 in [-1, 1]."""
    t = np.arange(int(RATE * rng.uniform(0.7, 0.9))) / RATE
    pitch = 160 * 2 ** rng.uniform(0, 0.5)  # half an octave
    wave = sum(
        strength * np.exp(-decay * t) * np.sin(2 * np.pi * pitch * f * t + rng.uniform(0, 6.28))
        for f, strength, decay in zip(partials, strengths, decays, strict=True)
        if pitch * f < RATE / 2
    )
    wave *= np.minimum(1, np.minimum(t, t[::-1]) / 0.02)  # fade in and out
    wave = wave / np.abs(wave).max() + rng.normal(0, rng.uniform(0.02, 0.06), len(t))
    loudness = 0.9 * 10 ** rng.uniform(-50 / 20, 0)
    return (loudness * wave).clip(-1, 1).astype("float32")


folder = Path("sounds")
folder.mkdir(exist_ok=True)
for name, recipe in INSTRUMENTS.items():
    for i in range(60):
        soundfile.write(folder / f"{name}_{i}.wav", note(*recipe), RATE)
print(len(list(folder.iterdir())), "files")

# %% [markdown]
# ## Train
#
# A recipe for the spoken digits of FSDD fits any short recordings at 8 kHz. What differs is given
# as flags: the fields of the file names, the one that is the class, and which files are for
# validation (the first 15 of each instrument). Folders of classes, or no labels at all, work as for
# images. The two views of a sound are random crops of its spectrogram in time and frequency, mixed
# with another sound, and louder or softer by up to `gain` dB. **Views say what must not matter**:
# here it is loudness, so the gain is raised to 20 dB. The spectrograms of 32 bands and 32 frames,
# and the network, are small so that this takes a minute.

# %%
validation = ",".join(map(str, range(15)))
sh(f"""
    sslzoo fit --config simclr/folder_small_fsdd_log_mel_60ep --data.root sounds
    --data.pattern '{{instrument}}_{{n}}.wav' --data.label instrument --data.group null
    --data.query '{{n: [{validation}]}}' --data.batch_size 90
    --data.transform.mel.bands 32 --data.transform.mel.hop 170
    --data.transform.size 32 --data.transform.gain 20
    --model.backbone.widths [16,32,64] --model.projector.in_dim 64
    --model.schedule.warmup_epochs 1 --trainer.max_epochs {args.epochs}
    --trainer.accelerator cpu --trainer.enable_progress_bar false --trainer.log_every_n_steps 3
    --trainer.callbacks.every_n_epochs 5
""")
run = max(Path("runs").rglob("version_*"))
print((run / "metrics.csv").read_text())

# %% [markdown]
# ## Evaluate
#
# The same network with new weights is the comparison that matters: convolutions of a spectrogram
# are good features even before training.

# %%
sh(f"sslzoo eval {run} --untrained true --suite.protocols [knn] --cache none")

# %% [markdown]
# ## Embed a sound
#
# `encoder.preprocess` takes waveforms at the encoder's rate, int16 or in [-1, 1], or a list of them
# of any length. Here a new note of each instrument finds the files that are most similar.

# %%
import torch

import sslzoo

encoder = sslzoo.load(run / "checkpoints/last.ckpt")
print(encoder.preprocess.rate, "Hz,", encoder.num_features, "features")


def embed(waves):
    """Features of length one, (N, D)."""
    with torch.no_grad():
        return torch.nn.functional.normalize(encoder(encoder.preprocess(waves)), dim=1)


files = sorted(folder.iterdir())
index = embed([soundfile.read(file, dtype="float32")[0] for file in files])
for name, recipe in INSTRUMENTS.items():
    nearest = (embed([note(*recipe)]) @ index.T)[0].topk(5).indices.tolist()
    print(f"{name:9}", " ".join(files[number].stem for number in nearest))

# %% [markdown]
# ## Next
#
# - To learn from the waveform instead of its spectrogram, CPC predicts future frames and gives
#   features per frame: `sslzoo fit --config cpc/folder_small_fsdd_100ep` takes the same flags of
#   `--data` ([CPC](../methods/cpc.md), which also describes layouts, rates and broken files).
# - Any image method trains on `LogMelViews`: take `data` from this recipe and `model` from another.
