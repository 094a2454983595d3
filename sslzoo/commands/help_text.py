"""What `sslzoo fit | validate | test | predict --help` say first."""

from __future__ import annotations

import argparse

import jsonargparse

FIT = """Train a method as a config says.

    sslzoo fit --config simclr/folder_small_10ep --data.root FOLDER
    sslzoo fit --config NAME --config mine.yaml --trainer.max_epochs 20   the last one wins
    sslzoo fit --config NAME --start_from NAME|FILE|ADDRESS|RUN           begin with these weights
    sslzoo fit --ckpt_path RUN/checkpoints/last.ckpt                      resume a run
    sslzoo fit --config NAME --print_config                               show all settings
    sslzoo fit --model.help sslzoo.methods.SimCLR                         the arguments of a class

NAME is one of `sslzoo configs`, or a YAML file. Every setting of a config is a flag, such as
--data.batch_size 64 or --model.temperature 0.1. The run directory is runs/NAME/version_N."""
EVALUATE = """{what}.

    sslzoo {verb} --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt

The results are written to RUN/{verb}."""
DESCRIPTIONS = {
    "fit": FIT,
    "validate": EVALUATE.format(verb="validate", what="Evaluate a run by its config's callbacks"),
    "test": EVALUATE.format(verb="test", what="Evaluate a run as validate does"),
    "predict": EVALUATE.format(verb="predict", what="Write the features of a run's encoder"),
}
CKPT_PATH = (
    "checkpoint that is resumed or evaluated: a file, a folder of shards, an address, or last: "
    "that of the newest run of this config"
)
WEIGHTS_ONLY = (
    "false: read a checkpoint with more than tensors and plain values; its code then runs"
)


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of a parser's description."""
