"""`sslzoo eval` on sound, text, arrays, several modalities, and data modules of a user's own.

Encoders have random weights, or those of one epoch: what is held is which features are measured,
and how, not how good they are.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning import Fabric, LightningDataModule

from sslzoo.backbones import SequenceEncoder, SmallResNet, WaveEncoder
from sslzoo.commands import evaluate, fit
from sslzoo.commands.configs import find_config
from sslzoo.data import AudioFolder, FrameInput, LibriSpeech, SequenceArrays
from sslzoo.data.alignment import view_alignment
from sslzoo.eval.features import extract
from sslzoo.eval.knn import knn_top1
from sslzoo.eval.loaders import EvalLoaders
from sslzoo.eval.similarity import pair_spearman, scored_spearman
from sslzoo.eval.spectrum import feature_std
from sslzoo.eval.suite import Suite
from sslzoo.heads import Recurrent
from sslzoo.runs import evaluation
from sslzoo.runs.encoders import build_data, read_model
from sslzoo.runs.evaluation import as_known_to, find
from sslzoo.transforms import LogMel, LogMelViews, Waveform, WordDeletion, clear_views
from sslzoo.zoo.card import card_of
from sslzoo.zoo.save import add_run, save_with_card
from tests.data.image.test_multi_view import write_tree
from tests.data.text.test_datamodule import sentences
from tests.ranks import Ranks
from tests.zoo.test_modalities import before

pytestmark = [
    # LightningCLI calls what jsonargparse deprecates.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]

QUIET = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
SUITE = ["--suite.k=[3]", "--suite.l2=[0.01]"]


def trained(config: str, root: Path, out: Path, *changes: str) -> Path:
    """The folder of a run of one epoch."""
    where = [
        f"--data.root={root}",
        f"--trainer.default_root_dir={out}",
        "--trainer.accelerator=cpu",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.run(["fit", "--config", config, *where, *QUIET, *changes])
    return out / "version_0"


def evaluated(*args: Any, output: Path, cache: Path | str = "none") -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = [str(arg) for arg in args]
        evaluate.main([*given, "--accelerator=cpu", f"--cache={cache}", f"--output={output}"])
    return json.loads(output.read_text())


def metrics(*args: Any, output: Path, cache: Path | str = "none") -> dict[str, float]:
    (row,) = evaluated(*args, output=output, cache=cache)["models"]
    return row["metrics"]


def refused(*args: Any, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses."""
    with pytest.raises(SystemExit):
        evaluated(*args, output=output)
    assert not output.exists()
    return capsys.readouterr().err


def data_of(run_folder: Path) -> Any:
    """The run's data module, set up."""
    data: Any = build_data(yaml.safe_load((run_folder / "config.yaml").read_text())["data"])
    data.setup("validate")
    return data


def on_rank(rank: int, run_folder: str, changes: dict[str, Any]) -> dict[str, float]:
    """What the command measures of a run, on a rank of a pool."""
    warnings.simplefilter("ignore")
    model = read_model(run_folder)
    section = yaml.safe_load((Path(run_folder) / "config.yaml").read_text())["data"]
    section["init_args"] |= changes
    data = build_data(section)
    data.setup("validate")
    known, suite = as_known_to(model, data, True), Suite(k=(3,), l2=(0.01,))
    found = find(model.encoder, known, suite, Fabric(accelerator="cpu"))
    return suite(found.bank, found.query, found.num_classes, pairs=found.pairs)


# -- sound


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 files of 10 lengths, two of which are of each digit's query set."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    root, draw = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    for i in range(10):
        wave = (3000 * draw.standard_normal(3000 + 431 * i)).clip(-32768, 32767).astype(np.int16)
        for digit in range(2):
            soundfile.write(root / f"{digit}_ann_{i}.wav", wave >> 2 * digit, 8000)
    return root


@pytest.fixture(scope="module")
def of_sound(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = ["--data.batch_size=4", "--data.window=1600", "--model.num_negatives=4"]
    small += ["--data.eval_batch_size=3", "--data.query={n: [0, 4, 9]}"]
    small.append("--trainer.callbacks=sslzoo.callbacks.OnlineSpectrum")
    out = tmp_path_factory.mktemp("run")
    return trained("cpc/folder_small_fsdd_100ep", sound, out, *small)


def test_sound_is_measured_as_whole_files(of_sound: Path, tmp_path: Path) -> None:
    got = metrics(of_sound, *SUITE, output=tmp_path / "r.json")
    data, encoder = data_of(of_sound), read_model(str(of_sound)).encoder
    loaders = data.eval_dataloaders()
    assert not loaders.ordered
    bank, query = (extract(encoder, part, loaders) for part in (loaders.bank, loaders.query))
    both = query.features, query.label, bank.features, bank.label
    assert got["knn_top1_k3_t0.07"] == knn_top1(*both, 2, [(3, 0.07)])[0]
    assert {"linear_top1", "retrieval_map", "effective_rank"} <= got.keys()
    assert "alignment" not in got
    other = metrics(of_sound, *SUITE, "--data.eval_batch_size=7", output=tmp_path / "o.json")
    assert other == pytest.approx(got, rel=1e-4)


def test_two_ranks_of_sound_give_the_numbers_of_one(
    of_sound: Path, ranks: Ranks, tmp_path: Path
) -> None:
    one = metrics(of_sound, *SUITE, output=tmp_path / "r.json")
    for got in ranks(2, on_rank, str(of_sound), {}):
        assert got == pytest.approx(one, rel=1e-4)


def test_sound_is_extracted_once(
    of_sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    one = metrics(of_sound, *SUITE, output=tmp_path / "r.json", cache=cache)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(evaluation, "extract", None)
    assert metrics(of_sound, *SUITE, output=tmp_path / "o.json", cache=cache) == one


def test_an_encoder_hears_as_it_was_trained(of_sound: Path) -> None:
    data = data_of(of_sound)
    own = data.with_input(data.encoder_input())
    assert own.fingerprint() == data.fingerprint()
    given = type(data.encoder_input())(Waveform(0.1, 2.0), 8000, window=400)
    known = data.with_input(given)
    assert (known.transform.mean, known.eval_window) == (0.1, 400)
    assert (data.transform.mean, data.eval_window) == (0.0, None)
    assert known.fingerprint() != data.fingerprint()
    (view,) = known.eval_views(next(iter(known.eval_dataloaders().bank))).views
    assert view.shape[1] == 400
    data.eval_window = 800  # an encoder that takes any length has no say in it
    assert data.with_input(type(given)(Waveform(), 8000)).eval_window == 800
    with pytest.raises(ValueError, match="rate must be the encoder's 16000 Hz, got 8000 Hz"):
        data.with_input(type(given)(Waveform(), 16000))


def test_the_layers_of_a_speech_encoder_are_weighed(sound: Path, tmp_path: Path) -> None:
    """Digits by clips, and phones by frames, of which a table tells the times."""
    small = ["--data.batch_size=4", "--data.window=1600", "--data.query={n: [0, 4, 9]}"]
    net = "--model.backbone"
    small += [f"{net}.frames.widths=[8,8,8,8,8,8]", f"{net}.transformer.width=16"]
    small += [f"{net}.transformer.depth=2", "--model.quantizer.in_features=8"]
    small.append("--trainer.callbacks=[]")
    run = trained("wav2vec2/folder_small_fsdd_40ep", sound, tmp_path / "run", *small)
    training = ["--superb_clips.training.epochs=2", "--superb_frames.training.epochs=2"]
    got = metrics(run, "--protocol=superb_clips", training[0], output=tmp_path / "clips.json")
    weights = [got[f"superb_clips/layer{i}_weight"] for i in range(3)]
    assert sum(weights) == pytest.approx(1)
    assert 0 <= got["superb_clips/top1"] <= 1
    rows = [f"{path.stem},0,0.1,{'ab'[i % 2]}" for i, path in enumerate(sorted(sound.iterdir()))]
    table = tmp_path / "phones.csv"
    table.write_text("\n".join(["clip,start,end,phone", *rows]))
    given = ["--protocol=superb_frames", training[1], f"--data.alignments={table}"]
    got = metrics(run, *given, output=tmp_path / "frames.json")
    assert got["superb_frames/phone_error_rate"] >= 0
    assert "superb_frames/layer2_weight" in got


def test_simclr_on_spectrograms_is_measured(sound: Path, tmp_path: Path) -> None:
    """An entry of the zoo: the evaluation takes its transform and its window."""
    mel = {"class_path": "sslzoo.transforms.LogMel", "init_args": {"rate": 8000}}
    views = {"class_path": "sslzoo.transforms.LogMelViews", "init_args": {"mel": mel}}
    net = SmallResNet((8, 16), in_chans=1)
    raw = {
        "name": "mine",
        "file": "mine.safetensors",
        "method": "none",
        "backbone": {
            "class_path": "sslzoo.backbones.SmallResNet",
            "init_args": {"widths": [8, 16], "in_chans": 1},
        },
        "num_features": net.num_features,
        "data": "nothing",
        "preprocessing": {"kind": "waveform", "rate": 8000, "window": 2400, "transform": views},
        "license": {"code": "MIT", "weights": "MIT"},
    }
    save_with_card(net.eval(), card_of(raw, "here"), tmp_path)
    on = ["--on", "cpc/folder_small_fsdd_100ep", f"--data.root={sound}", "--data.query={n: [0, 4]}"]
    got = metrics(tmp_path / "mine.safetensors", *on, *SUITE, output=tmp_path / "r.json")
    data = AudioFolder(
        *(str(sound), LogMelViews(LogMel(8000)), 2400),
        rate=8000,
        pattern="{digit}_{speaker}_{n}.wav",
        label="digit",
        query={"n": [0, 4]},
        eval_window=2400,
    )
    data.setup("validate")
    loaders = data.eval_dataloaders()
    bank, query = (extract(net, part, loaders) for part in (loaders.bank, loaders.query))
    both = query.features, query.label, bank.features, bank.label
    assert got["knn_top1_k3_t0.07"] == knn_top1(*both, 2, [(3, 0.07)])[0]
    assert got["alignment"] > 0  # of windows as long as the config's
    assert view_alignment(net, data, "cpu") == pytest.approx(_alignment(net, data), rel=1e-4)


def _alignment(net: Any, data: Any) -> float:
    """Of all training samples, by hand."""
    with torch.no_grad():
        x, y = (F.normalize(net(v)) for v in data.preview(list(range(data.num_samples))).views[:2])
    return (x - y).square().sum(1).mean().item()


def test_a_label_a_frame_is_no_class(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    folder = tmp_path / "clean" / "1" / "2"
    folder.mkdir(parents=True)
    lines = []
    for i in range(6):
        frames = 10 + 3 * i
        wave = (3000 * np.random.default_rng(i).standard_normal(160 * frames)).astype(np.int16)
        soundfile.write(folder / f"1-2-{i}.flac", wave, 16000)
        lines.append(f"1-2-{i} {' '.join(str(n % 3) for n in range(frames))}")
    phones = tmp_path / "phones.txt"
    phones.write_text("\n".join(lines))
    data = LibriSpeech(
        *(str(tmp_path), Waveform(), "clean"),
        phones=str(phones),
        val_fraction=0.5,
        short="pad",
        eval_batch_size=1,
    )
    data.setup("validate")
    assert data.num_classes == 3
    encoder = WaveEncoder(4, (10, 8), (5, 4), (3, 2), norm="channel")
    net = SequenceEncoder(encoder, Recurrent(4, 6))
    found = find(net, data, Suite(), Fabric(accelerator="cpu"))
    assert found.query is not None
    assert Suite().fitting(*found[:3]).protocols == ["label_free"]


# -- text


def write_pairs(root: Path, some: list[str]) -> Path:
    lines = [f"{a},{some[i - 1]},{i % 6}" for i, a in enumerate(some)]
    root.mkdir(exist_ok=True)
    for part in ("train", "dev", "test"):
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def of_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    root = write_pairs(tmp_path_factory.mktemp("text"), sentences())
    out = tmp_path_factory.mktemp("run")
    small = ["--data.batch_size=4", "--trainer.callbacks=sslzoo.callbacks.OnlineSpectrum"]
    return trained("simcse/stsb_small_40ep", root, out, *small)


def test_text_has_what_needs_no_labels(
    of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluated(of_text, *SUITE, output=tmp_path / "r.json")
    assert "skipped knn, linear, retrieval: the data has no query set" in capsys.readouterr().err
    assert result["suite"]["protocols"] == ["label_free", "similarity"]
    got = result["models"][0]["metrics"]
    loaders = data_of(of_text).similarity_dataloaders()["dev"]
    wanted = extract(read_model(str(of_text)).encoder, loaders.bank, loaders)
    assert got["spearman_dev"] == pytest.approx(scored_spearman(wanted), abs=1e-6)
    names = {"effective_rank", "feature_std", "uniformity", "spearman_dev", "spearman_test"}
    assert set(got) == names
    other = metrics(of_text, "--data.eval_batch_size=5", output=tmp_path / "o.json")
    assert other == pytest.approx(got, rel=1e-4)
    assert capsys.readouterr().err.count("skipped knn") == 1


def test_a_protocol_that_was_asked_for_is_not_left_out(
    of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(of_text, "--suite.protocols=[knn]", output=tmp_path / "r.json", capsys=capsys)
    assert "for kNN, linear probe and retrieval (the query set), got None" in said
    few = "--suite.train_fraction=0.1"
    said = refused(of_text, few, output=tmp_path / "r.json", capsys=capsys)
    assert "train_fraction below 1 (0.1), got ['label_free', 'similarity']" in said
    only = metrics(of_text, "--suite.protocols=[similarity]", output=tmp_path / "r.json")
    assert set(only) == {"spearman_dev", "spearman_test"}


def test_two_ranks_of_text_give_the_numbers_of_one(
    of_text: Path, ranks: Ranks, tmp_path: Path
) -> None:
    """Also where all pairs are one batch, so that a rank has none."""
    one = metrics(of_text, output=tmp_path / "r.json")
    for size in (256, 4):
        for got in ranks(2, on_rank, str(of_text), {"eval_batch_size": size}):
            assert got == pytest.approx(one, rel=1e-4)


def test_an_encoder_reads_with_its_own_tokenizer(
    of_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(of_text, "mine", "a test", "CC0-1.0", tmp_path)
    path = tmp_path / "mine.safetensors"
    some = [f"{a} quietly" for a in reversed(sentences())]
    on = ["--on", of_text / "config.yaml", f"--data.root={write_pairs(tmp_path / 'other', some)}"]
    only = "--suite.protocols=[similarity]"
    got = metrics(path, *on, only, output=tmp_path / "r.json")
    encoder: Any = read_model(str(path)).encoder
    asked = [text for i, a in enumerate(some) for text in (a, some[i - 1])]
    with torch.no_grad():
        features = encoder(encoder.preprocess(asked))
    scores = torch.tensor([float(i % 6) for i in range(len(some)) for _ in range(2)])
    assert got["spearman_dev"] == pytest.approx(pair_spearman(features, scores), abs=1e-3)
    assert metrics(of_text, *on, only, output=tmp_path / "o.json") == pytest.approx(got, abs=1e-3)
    checkpoint = of_text / "checkpoints" / "last.ckpt"  # has its vocabulary too
    of_file = metrics(checkpoint, *on, only, output=tmp_path / "x.json")
    assert of_file == pytest.approx(got, abs=1e-3)


def test_text_that_has_changed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of_text: Path
) -> None:
    moved = tmp_path / "run"
    (moved / "checkpoints").mkdir(parents=True)
    last = moved / "checkpoints" / "last.ckpt"
    shutil.move(before(of_text), last)  # knows its vocabulary's digest alone
    config = yaml.safe_load((of_text / "config.yaml").read_text())
    root = Path(config["data"]["init_args"]["root"])
    here = write_pairs(tmp_path / "text", sentences())
    config["data"]["init_args"]["root"] = str(tmp_path / "gone")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    got = metrics(moved, f"--data.root={here}", output=tmp_path / "r.json")  # it has moved
    assert "using the preprocessing of STSB instead" in capsys.readouterr().err
    assert got == metrics(of_text, output=tmp_path / "o.json")
    on = ["--on", moved / "config.yaml", f"--data.root={root}"]
    said = refused(moved, *on, output=tmp_path / "x.json", capsys=capsys)
    assert re.search(r"the training data of '.*run' is needed: .*gone", said)
    write_pairs(here, [*sentences(), "a zebra"])
    said = refused(moved, f"--data.root={here}", output=tmp_path / "x.json", capsys=capsys)
    assert "the tokenizer's digest must be that of" in said


def test_changed_sentences_have_an_alignment(of_text: Path) -> None:
    net, data = read_model(str(of_text)).encoder, data_of(of_text)
    assert view_alignment(net, data, "cpu") is None  # SimCSE's views are the same sentence
    data.transform = clear_views([WordDeletion(0.5)])
    data.transform.prepare(data.tokenizer)
    got = view_alignment(net, data, "cpu")
    assert got is not None
    assert got > 0
    assert got == pytest.approx(_alignment(net.eval(), data), rel=1e-4)


# -- arrays


def write_arrays(root: Path, shift: float = 0.0, width: int = 3, whole: bool = True) -> Path:
    draw = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for name in ("train", "val"):
        values = (shift + 5 + 3 * draw.standard_normal((12, 80, width))).astype(np.float32)
        label = np.arange(12) % 2 if whole else np.arange(12) / 4
        lengths = 64 + np.arange(12)
        values[np.arange(80) >= lengths[:, None]] = 0
        np.savez(root / f"{name}.npz", values=values, label=label, lengths=lengths)
    return root


@pytest.fixture(scope="module")
def of_arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_arrays(tmp_path_factory.mktemp("arrays"))
    out = tmp_path_factory.mktemp("run")
    small = ["--data.batch_size=4", "--model.num_negatives=4"]
    return trained("cpc/arrays_small_30ep", root, out, *small)


def test_arrays_are_measured(of_arrays: Path, ranks: Ranks, tmp_path: Path) -> None:
    got = metrics(of_arrays, *SUITE, output=tmp_path / "r.json")
    data, encoder = data_of(of_arrays), read_model(str(of_arrays)).encoder
    loaders = data.eval_dataloaders()
    bank, query = (extract(encoder, part, loaders) for part in (loaders.bank, loaders.query))
    both = query.features, query.label, bank.features, bank.label
    assert got["knn_top1_k3_t0.07"] == knn_top1(*both, 2, [(3, 0.07)])[0]
    other = metrics(of_arrays, *SUITE, "--data.eval_batch_size=5", output=tmp_path / "o.json")
    assert other == pytest.approx(got, rel=1e-4)
    for two in ranks(2, on_rank, str(of_arrays), {}):
        assert two == pytest.approx(got, rel=1e-4)


def test_an_encoder_has_its_own_mean_and_deviation(
    of_arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_arrays(tmp_path / "other", shift=7.0)
    on = ["--on", of_arrays / "config.yaml", f"--data.root={other}"]
    got = metrics(of_arrays, *on, "--suite.protocols=[label_free]", output=tmp_path / "r.json")
    values, encoder = SequenceArrays(str(other), 64), read_model(str(of_arrays)).encoder
    values.setup("validate")
    for mine, same in ((data_of(of_arrays).input, True), (values.input, False)):
        values.input = mine
        loaders = values.eval_dataloaders()
        wanted = feature_std(extract(encoder, loaders.bank, loaders).features).mean().item()
        assert (got["feature_std"] == pytest.approx(wanted, rel=1e-4)) == same
    with pytest.raises(ValueError, match="frames must have 2 features for this encoder"):
        values.with_input(FrameInput([0.0] * 2, [1.0] * 2))
    name = "byol-small_resnet-cifar10jpeg"
    said = refused(name, *on, output=tmp_path / "x.json", capsys=capsys)
    assert "preprocess must be FrameInput for the sequences of SequenceArrays, got EvalView" in said


def test_targets_that_are_no_classes(
    of_arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_arrays(tmp_path / "targets", whole=False)
    data = SequenceArrays(str(root), 64, val_fraction=0.25, train_fraction=0.5)
    data.setup("validate")
    assert data.num_classes is None
    assert len(data.sets.query) == 3
    assert data.sets.train.labels.dtype == torch.float32
    on = ["--on", of_arrays / "config.yaml", f"--data.root={root}"]
    got = metrics(of_arrays, *on, output=tmp_path / "r.json")
    assert set(got) == {"effective_rank", "feature_std", "uniformity"}
    assert "no query set with one class per sample" in capsys.readouterr().err


# -- several modalities


def test_several_modalities_are_measured(tmp_path: Path, ranks: Ranks) -> None:
    root = write_tree(tmp_path / "scenes")
    config = yaml.safe_load(Path(find_config("cmc/folder_small_10ep")).read_text())
    config["trainer"] |= {"precision": "32-true", "callbacks": []}
    net = config["model"]["init_args"]["backbone"]["init_args"]
    tower = {"class_path": "sslzoo.backbones.SmallResNet"}
    net["channels"] = [1, 2, 1]
    net["towers"] = [{**tower, "init_args": {"in_chans": c, "widths": [16, 32]}} for c in (1, 2, 1)]
    head = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 32, "out_features": 4}}
    config["model"]["init_args"]["projector"]["init_args"]["heads"] = [head] * 3
    config["model"]["init_args"]["bank_size"] = 6
    modalities = [{"folder": name, "kind": name} for name in ("image", "depth")]
    config["data"] = {
        "class_path": "sslzoo.data.MultiViewFolder",
        "init_args": {
            "root": str(root),
            "modalities": modalities,
            "size": 16,
            "labels": True,
            "batch_size": 3,
            "num_workers": 0,
        },
    }
    path = tmp_path / "towers.yaml"
    path.write_text(yaml.safe_dump(config))
    run_folder = trained(str(path), root, tmp_path / "run")
    got = metrics(run_folder, *SUITE, output=tmp_path / "r.json", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    data, encoder = data_of(run_folder), read_model(str(run_folder)).encoder
    loaders = data.eval_dataloaders()
    bank, query = (extract(encoder, part, loaders) for part in (loaders.bank, loaders.query))
    assert bank.features.shape == (6, 96)
    both = query.features, query.label, bank.features, bank.label
    assert got["knn_top1_k3_t0.07"] == knn_top1(*both, 2, [(3, 0.07)])[0]
    for two in ranks(2, on_rank, str(run_folder), {"eval_batch_size": 2}):
        assert two == pytest.approx(got, rel=1e-4)


# -- data modules of a user's own


class TheirImages(LightningDataModule):
    """Follows the contract of evaluation and no more."""

    def eval_dataloaders(self) -> EvalLoaders:
        images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        label = torch.arange(12) % 2
        batches = [(images[i : i + 4], label[i : i + 4]) for i in (0, 4, 8)]
        return EvalLoaders(batches, batches[:1], lambda batch: batch, 2, sharded=False)


class TheirTraining(LightningDataModule):
    """Has nothing to evaluate on."""


class TheirMistake(LightningDataModule):
    """Has the method and not what it returns."""

    def eval_dataloaders(self) -> list[int]:
        return []


def named(cls: type, folder: Path) -> list[Any]:
    path = folder / f"{cls.__name__}.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": f"{__name__}.{cls.__name__}"}}))
    return ["--on", path]


def test_a_module_of_the_contract_is_measured_without_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, name = tmp_path / "cache", "simclr-small_resnet-cifar10jpeg"
    args = [name, name, *named(TheirImages, tmp_path), *SUITE]
    rows = evaluated(*args, output=tmp_path / "r.json", cache=cache)["models"]
    said = capsys.readouterr().err
    assert said.count("features are not cached, since TheirImages has no fingerprint()") == 1
    assert "using the preprocessing of TheirImages" in said
    assert not cache.exists()
    loaders = TheirImages().eval_dataloaders()
    encoder = read_model(name).encoder
    bank, query = (extract(encoder, part, loaders) for part in (loaders.bank, loaders.query))
    both = query.features, query.label, bank.features, bank.label
    wanted = knn_top1(*both, 2, [(3, 0.07)], bank.index)[0]
    assert rows[0]["metrics"]["knn_top1_k3_t0.07"] == wanted


@pytest.mark.parametrize(
    ("cls", "got"),
    [(TheirTraining, "got no such method"), (TheirMistake, "got one that returns list")],
)
def test_a_module_without_the_contract_is_refused(
    cls: type, got: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["simclr-small_resnet-cifar10jpeg", *named(cls, tmp_path)]
    said = refused(*args, output=tmp_path / "r.json", capsys=capsys)
    returns = "eval_dataloaders() that returns sslzoo.eval.loaders.EvalLoaders"
    assert f"{cls.__name__} must have {returns}, {got}" in said
