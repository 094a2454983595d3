"""Speech: CPC, wav2vec 2.0, HuBERT, data2vec and BYOL-A on spoken digits, for equal time.

    python -m benchmarks.speech --data FOLDER --methods cpc --seeds 0 --minutes 4
    python -m benchmarks.speech --data FOLDER --methods log_mel
    python -m benchmarks.speech --data FOLDER --seeds 0 --minutes 15 --weights zoo_weights

FOLDER has the recordings of the Free Spoken Digit Dataset, DIGIT_SPEAKER_INDEX.wav. Each method is
trained by its small recipe on recordings 5 to 49 of all speakers for the same CPU time: the time of
a step is measured first, and the length of the run, which its schedules follow, is what fits.
HuBERT predicts clusters of MFCC (iteration 1), whose clustering is not counted.

Probes see frozen features. Digits are told for speakers whose labels the probe has not seen: each
speaker in turn is left out of its training, and the accuracy is the mean over all of them, on
recordings 0 to 4, which pre-training has not seen. Speakers are told by recording: probes are
trained on recordings 5 to 49 and scored on 0 to 4. The features are what the encoder's `forward`
gives (the mean over time of the last layer; of BYOL-A the sum of mean and maximum), and all layers
by `superb_clips`, where there are several. Floors are the same net untrained, and log-mel spectra
(mean over time, and with the deviation). Each run is added to benchmarks/results/speech.json, and
with --weights its encoder is kept, with a card.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from torch import Tensor

from benchmarks.audio import statistics
from benchmarks.card import keep
from benchmarks.driver import ROOT
from benchmarks.quality import TEMPERATURE, K, build, score
from benchmarks.speed import provenance
from benchmarks.worker import versions
from sslzoo.atomic_write import atomic_write
from sslzoo.backbones import SpeechEncoder
from sslzoo.data.audio.fields import field_labels, parse_fields
from sslzoo.eval.features import Features, extract, gather_features
from sslzoo.eval.linear import linear_probe, standardize
from sslzoo.eval.protocols.layer_sum import (
    LayerSumTraining,
    fit_layer_sum,
    mean_of_frames,
    stacked_layers,
)
from sslzoo.runs.units import cluster_units
from sslzoo.transforms import LogMel
from sslzoo.trust import read_config
from sslzoo.zoo.preprocess import describe

RESULT = ROOT / "benchmarks" / "results" / "speech.json"
CONFIGS = {
    "cpc": "cpc/folder_small_fsdd_100ep",
    "wav2vec2": "wav2vec2/folder_small_fsdd_40ep",
    "hubert": "hubert/folder_small_fsdd_mfcc_30ep",
    "data2vec": "data2vec/folder_small_fsdd_40ep",
    "byol_a": "byol_a/folder_small_fsdd_10ep",
}
FLOOR = "log_mel"
TIMED = 20  # steps whose CPU time gives the length of a run


def configured(method: str, data: Path, seed: int, units: Path) -> dict[str, Any]:
    """The small recipe on the recordings; every draw follows the seed."""
    config = read_config(ROOT / "configs" / f"{CONFIGS[method]}.yaml")
    options = config["data"]["init_args"]
    options |= {"root": str(data), "num_workers": 0, "seed": seed}
    if method == "hubert":
        options["units"] = [str(units)]
        if not units.exists():
            units.parent.mkdir(parents=True, exist_ok=True)
            print(cluster_units(str(data), str(units), num_units=50, rate=options["rate"]))
    return config


class Course(Callback):
    """The loss of every step, and the CPU seconds since the first one ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.started, self.seconds = 0.0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.losses:
            self.started = time.process_time()
        self.losses.append(outputs["loss"].item())
        self.seconds = time.process_time() - self.started


def fit(config: dict[str, Any], steps: int, seed: int) -> tuple[Any, Course]:
    """Train a fresh model for some steps; the model, and the course of its loss."""
    seed_everything(seed, verbose=False)
    model, data, course = build(config, "model"), build(config, "data"), Course()
    Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[course],
    ).fit(model, datamodule=data)
    return model, course


class Recordings:
    """Both sets with their digits and speakers.

    Args:
        config: the recipe, whose evaluation view counts.
        log_mel: whether the view is a log-mel spectrogram instead.
    """

    def __init__(self, config: dict[str, Any], log_mel: bool = False) -> None:
        self.data = build(config, "data")
        if log_mel:
            rate = self.data.rate
            self.data.transform = LogMel(rate, bands=40, window=rate // 40, hop=rate // 100)
        self.data.setup("fit")
        loaders = self.data.eval_dataloaders()
        self.loaders, self.sets = loaders, (loaders.bank, loaders.query)
        self.fields: list[dict[str, Tensor]] = []
        for own in (self.data.sets.train, self.data.sets.query):
            names = [Path(path).name for path in own.paths()]
            fields = parse_fields(names, "{digit}_{speaker}_{n}.wav")
            found = {name: field_labels(fields, name)[0] for name in ("digit", "speaker")}
            self.fields.append({k: v for k, v in found.items() if v is not None})

    def features(self, module: Any, function: Any) -> tuple[Tensor, Tensor]:
        """Features of both sets, in the order of the recordings."""
        found: list[Features] = []
        for loader in self.sets:
            found.append(gather_features(extract(module, loader, self.loaders, function, "cpu")))
        return found[0].features, found[1].features


def by_linear(x: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """Accuracy of the linear probe."""
    return linear_probe(x, labels, asked, truth, int(labels.max()) + 1)


def by_layers(x: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """Accuracy of the weighted layer sum; features (n, L, D)."""
    x, asked = standardize(x, asked)
    probe = fit_layer_sum(x, labels, int(labels.max()) + 1, LayerSumTraining())
    with torch.no_grad():
        return (probe(asked).argmax(1) == truth).double().mean().item()


def scores(recordings: Recordings, both: tuple[Tensor, Tensor], probe: Any) -> dict[str, float]:
    """Accuracies: `digit` of unseen speakers, `speaker` by recording."""
    (x, asked), (known, truth) = both, recordings.fields
    folds = []
    for speaker in known["speaker"].unique():
        kept, held = known["speaker"] != speaker, truth["speaker"] == speaker
        folds.append(probe(x[kept], known["digit"][kept], asked[held], truth["digit"][held]))
    speakers = probe(x, known["speaker"], asked, truth["speaker"])
    return {"digit": sum(folds) / len(folds), "speaker": speakers}


def evaluate(recordings: Recordings, model: Any) -> dict[str, Any]:
    """Scores of the last layer and of all layers, and the weights of the latter for digits."""
    encoder = model.encoder().eval()
    if not isinstance(encoder, SpeechEncoder):
        return {"last": scores(recordings, recordings.features(encoder, "forward"), by_linear)}
    stack, depth = stacked_layers(encoder), len(encoder.transformer.layers) + 1

    def layers(view: Any) -> Tensor:
        made = stack(view)
        return mean_of_frames(made._replace(values=made.values.flatten(2)))

    x, asked = (x.unflatten(1, (depth, -1)) for x in recordings.features(encoder, layers))
    # The mean of the last layer is what `forward` gives.
    found: dict[str, Any] = {"last": scores(recordings, (x[:, -1], asked[:, -1]), by_linear)}
    found["layers"] = scores(recordings, (x, asked), by_layers)
    for task in ("digit", "speaker"):
        labels = recordings.fields[0][task]
        probe = fit_layer_sum(standardize(x, asked)[0], labels, int(labels.max()) + 1)
        found[f"{task}_weights"] = probe.layer_weights.tolist()
    return found


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def label(method: str, minutes: float) -> str:
    """How the names of the runs of a method begin that have one time."""
    return f"{method} {minutes:g} minutes "


def run(method: str, data: Path, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train one method from one seed, and score it and its initial net.

    Steps are as many as the time gives, or as another seed's run of that time had.
    """
    config = configured(method, data, seed, given.units.resolve())
    done = read(given.output).get("rows", {}).items()
    like = [row["steps"] for name, row in done if name.startswith(label(method, given.minutes))]
    if like:
        steps = like[0]
    else:
        first = fit(config, TIMED + 1, seed)[1]
        steps = max(TIMED, round(60 * given.minutes * TIMED / first.seconds))
    seed_everything(seed, verbose=False)
    untrained = build(config, "model")
    recordings = Recordings(config)
    found = {"untrained": evaluate(recordings, untrained)}
    model, course = fit(config, steps, seed)
    found["trained"] = evaluate(recordings, model)
    every = max(1, steps // 20)
    course_of_loss = [
        sum(course.losses[i : i + every]) / len(course.losses[i : i + every])
        for i in range(0, steps, every)
    ]
    batches = recordings.data.num_samples // config["data"]["init_args"]["batch_size"]
    about = {
        "config": f"configs/{CONFIGS[method]}.yaml",
        "steps": steps,
        "epochs": round(steps / batches),
        "loss": course_of_loss,
        "cpu_minutes": course.seconds / 60,
        "minutes": given.minutes,
        **provenance("cpu"),
    }
    if given.weights is not None:
        about["knn_of_file"] = kept(method, config, model, seed, about, given.weights)
    return {**found, **about}


def kept(
    method: str,
    config: dict[str, Any],
    model: Any,
    seed: int,
    about: dict[str, Any],
    folder: Path,
) -> dict[str, float]:
    """Write the encoder and its card; its score."""
    digits = Recordings(config).loaders
    preprocessing, metadata = describe(config["data"])
    assert preprocessing is not None
    metric = f"val/knn_top1_k{K}_t{TEMPERATURE}"
    protocol = f"weighted kNN of digits, k {K}, T {TEMPERATURE}, whole recordings"
    folder.mkdir(parents=True, exist_ok=True)
    return keep(
        folder / f"{method}-{'small_ntt' if method == 'byol_a' else 'small_speech'}-fsdd",
        model.encoder(),
        config["model"]["init_args"]["backbone"],
        {
            **{name: about[name] for name in ("config", "epochs", "commit")},
            "method": config["model"]["class_path"],
            "data": "FSDD",
            "seeds": [seed],
            "extra": ["--trainer.max_epochs=-1", f"--trainer.max_steps={about['steps']}"],
            "protocol": protocol,
        },
        (preprocessing, metadata),
        lambda net: {metric: score(net, digits)},
    )


def floor(data: Path) -> dict[str, Any]:
    """Scores of log-mel spectra."""
    recordings = Recordings(configured("cpc", data, 0, Path()), log_mel=True)
    encoder = torch.nn.Identity()
    both = recordings.features(encoder, statistics)
    mean = both[0].chunk(2, dim=1)[0], both[1].chunk(2, dim=1)[0]
    rows = {"mean": mean, "mean_and_deviation": both}
    return {name: scores(recordings, own, by_linear) for name, own in rows.items()}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speech", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the recordings")
    names = (*CONFIGS, FLOOR)
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of training a run")
    parser.add_argument("--units", type=Path, default=ROOT / "runs" / "speech" / "mfcc.units.npz")
    parser.add_argument("--weights", type=Path, help="folder for the encoders; None: not kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    data = given.data.resolve()
    for seed in given.seeds:
        for method in given.methods:
            if method == FLOOR:
                name, found = FLOOR, {**floor(data), **provenance("cpu")}
            else:
                name = f"{label(method, given.minutes)}seed {seed}"
                found = run(method, data, seed, given)
            print(name, json.dumps(found), flush=True)
            # Read anew, since runs may be made side by side.
            result = read(given.output)
            rows = {**result.get("rows", {}), name: found}
            result = {"data": "FSDD", "rows": dict(sorted(rows.items())), "versions": versions()}
            given.output.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(given.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
