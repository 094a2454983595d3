"""`sslzoo eval`: its numbers are those of the run and of the functions, on one rank and on two."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sslzoo.commands import evaluate
from sslzoo.data.alignment import view_alignment
from sslzoo.eval.features import extract
from sslzoo.eval.knn import knn_top1
from sslzoo.eval.spectrum import feature_std
from sslzoo.runs import evaluation
from sslzoo.runs.encoders import build_data, read_model
from sslzoo.runs.provenance import commit
from sslzoo.transforms import crop_view
from tests.commands.command import ENVIRONMENT, arguments, run, run_process

pytestmark = [
    # LightningCLI calls what jsonargparse deprecates.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished SimCLR run."""
    out = tmp_path_factory.mktemp("run")
    run([*arguments(folder, out, "simclr"), "--trainer.max_epochs=1"], out)
    return out / "version_0"


def evaluated(*args: str, cache: Path | str = "none", output: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate.main([*args, "--accelerator=cpu", f"--cache={cache}", f"--output={output}"])
    return json.loads(output.read_text())


def data_of(run_folder: Path) -> Any:
    """The run's data module, set up."""
    section = yaml.safe_load((run_folder / "config.yaml").read_text())["data"]
    data: Any = build_data(section)
    data.setup("validate")
    return data


SUITE = ["--suite.k=[5]", "--suite.l2=[0.01]"]


def test_numbers_are_the_functions(finished: Path, tmp_path: Path) -> None:
    result = evaluated(str(finished), *SUITE, output=tmp_path / "r.json")
    (row,) = result["models"]
    model = read_model(str(finished))
    data: Any = build_data(yaml.safe_load((finished / "config.yaml").read_text())["data"])
    data.setup("validate")
    loaders = data.eval_dataloaders()
    bank = extract(model.encoder, loaders.bank, loaders)
    query = extract(model.encoder, loaders.query, loaders)
    both = query.features, query.label, bank.features, bank.label
    assert row["metrics"]["knn_top1_k5_t0.07"] == knn_top1(*both, 2, [(5, 0.07)])[0]
    assert {"linear_top1", "retrieval_map", "effective_rank"} <= row["metrics"].keys()
    assert result["suite"]["k"] == [5]
    assert row["config"]["model"]["class_path"] == "sslzoo.methods.SimCLR"
    assert result["sslzoo"]
    assert result["versions"]["torch"]


def test_the_cache_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = evaluated(str(finished), *SUITE, cache=cache, output=tmp_path / "a.json")
    assert len(list(cache.iterdir())) == 2
    second = evaluated(str(finished), *SUITE, cache=cache, output=tmp_path / "b.json")
    assert first["models"] == second["models"]


FULL = """
import resource, signal, sys
from sslzoo.commands import evaluate
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
evaluate.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_full_disk_costs_no_numbers(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    output.write_text("an older result")
    args = [str(finished), *SUITE, "--accelerator=cpu", f"--cache={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL, *args, f"--output={output}"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"| {finished} |" in done.stdout
    lines = [line for line in done.stderr.splitlines() if "File too large" in line]
    assert ["not cached" in line for line in lines] == [True, True, False], done.stderr
    assert lines[2].startswith("sslzoo eval: ")
    assert "r.json" in lines[2]
    assert "Traceback" not in done.stderr
    assert output.read_text() == "an older result"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cache", "r.json"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"models": 3}', '{"models": [{"model": "a"}]}', '{"models": [', "null"]
)
def test_a_table_is_of_results_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        evaluate.main(["--table", str(path)])
    said = capsys.readouterr().err
    assert f"'{path}' must be a result file of `sslzoo eval --output`, got" in said


def test_results_do_not_replace_what_is_no_file(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main([str(finished), f"--output={tmp_path}"])
    assert "must not be a folder or a device" in capsys.readouterr().err


def test_the_batch_size_changes_nothing(finished: Path, tmp_path: Path) -> None:
    one = evaluated(str(finished), *SUITE, output=tmp_path / "one.json")
    args = [*SUITE, "--data.eval_batch_size=7"]
    other = evaluated(str(finished), *args, output=tmp_path / "other.json")
    assert other["models"][0]["metrics"] == pytest.approx(one["models"][0]["metrics"], rel=1e-5)


def test_alignment_is_that_of_the_training_views(finished: Path, tmp_path: Path) -> None:
    only = "--suite.protocols=[label_free]"
    result = evaluated(str(finished), only, output=tmp_path / "r.json")
    model, data = read_model(str(finished)), data_of(finished)
    first, second = data.preview(list(range(data.num_samples))).views
    with torch.no_grad():
        pair = [torch.nn.functional.normalize(model.encoder(view)) for view in (first, second)]
    want = (pair[0] - pair[1]).square().sum(1).mean().item()
    assert want > 0
    assert result["models"][0]["metrics"]["alignment"] == pytest.approx(want, rel=1e-5)


def test_alignment_wants_no_training_batch(finished: Path, tmp_path: Path) -> None:
    """Evaluation on a set smaller than the training batch, or on any number of ranks."""
    only = ["--suite.protocols=[label_free]"]
    result = evaluated(str(finished), *only, output=tmp_path / "r.json")
    args = [*only, "--data.batch_size=1000"]
    other = evaluated(str(finished), *args, output=tmp_path / "o.json")
    got, want = (r["models"][0]["metrics"]["alignment"] for r in (other, result))
    assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_the_commit_is_that_of_the_clone_alone(tmp_path: Path, monkeypatch: Any) -> None:
    clone, inner = tmp_path / "clone", tmp_path / "clone" / "venv"
    inner.mkdir(parents=True)
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit(clone) == head.stdout.strip()
    assert commit(inner) is None  # an environment in somebody's repository
    assert commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert commit(clone) is None  # a machine without git: fit records None


def test_alignment_wants_two_views_that_the_encoder_knows(finished: Path, tmp_path: Path) -> None:
    model, data = read_model(str(finished)), data_of(finished)
    assert view_alignment(model.encoder, data, "cpu") is not None
    assert view_alignment(model.encoder, data, "cpu", 5) is not None
    data.eval_view = type(data.eval_view)(32, None, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert view_alignment(model.encoder, data, "cpu") is None
    data = data_of(finished)
    data.transform = crop_view(32)
    assert view_alignment(model.encoder, data, "cpu") is None


def test_a_zoo_encoder_beside_a_run_and_untrained(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, output = "byol-small_resnet-cifar10jpeg", tmp_path / "r.json"
    on = ["--on", str(finished / "config.yaml"), "--untrained=true", *SUITE]
    result = evaluated(name, str(finished), *on, output=output)
    titles = [row["model"] for row in result["models"]]
    assert titles == [name, f"{name}, untrained", str(finished), f"{finished}, untrained"]
    values = [row["metrics"]["feature_std"] for row in result["models"]]
    assert "statistics" not in result, "they are different encoders"
    assert len(set(values)) == 4
    capsys.readouterr()
    evaluate.main(["--table", str(output)])
    printed = capsys.readouterr().out
    assert f"| {name}, untrained |" in printed
    assert f"| {values[0]:.4f} |" in printed
    assert "mean ± std" not in printed


def test_runs_that_differ_in_their_seed_alone_have_mean_and_deviation(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "version_1"
    shutil.copytree(finished, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"seed_everything": 1}))
    checkpoint = torch.load(other / "checkpoints/last.ckpt", weights_only=True)
    checkpoint["state_dict"]["backbone.stem.weight"].mul_(torch.linspace(0, 2, 3)[:, None, None])
    torch.save(checkpoint, other / "checkpoints/last.ckpt")
    only = "--suite.protocols=[label_free]"
    result = evaluated(str(finished), str(other), only, output=tmp_path / "r.json")
    one, two = (row["metrics"]["feature_std"] for row in result["models"])
    both = result["statistics"]["feature_std"]
    assert both["mean"] == pytest.approx((one + two) / 2)
    assert both["std"] == pytest.approx(abs(one - two) / 2**0.5) != 0
    assert "| mean ± std |" in capsys.readouterr().out


def test_an_encoder_sees_images_normalized_as_it_was_trained(
    finished: Path, tmp_path: Path
) -> None:
    name = "byol-small_resnet-cifar10jpeg"  # ImageNet's mean and deviation; the run has none
    model = read_model(name)
    view: Any = model.preprocess()
    assert view.mean is not None
    on = ["--on", str(finished / "config.yaml"), "--suite.protocols=[label_free]"]
    result = evaluated(name, *on, output=tmp_path / "r.json")
    data = data_of(finished)
    own = data.eval_view
    loaders = data.eval_dataloaders()
    wrong = extract(model.encoder, loaders.bank, loaders)
    data.eval_view = type(own)(own.size, own.resize, view.mean, view.std)
    loaders = data.eval_dataloaders()
    right = extract(model.encoder, loaders.bank, loaders)
    got = result["models"][0]["metrics"]["feature_std"]
    assert got == pytest.approx(feature_std(right.features).mean().item(), rel=1e-6)
    assert got != pytest.approx(feature_std(wrong.features).mean().item(), rel=1e-3)


FEW = ["--suite.k=[2]", "--suite.l2=[0.01]", "--suite.train_fraction=0.5"]


def test_seeds_draw_the_labels_and_give_mean_and_deviation(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    extracted: list[Any] = []

    def counted(*args: Any, **options: Any) -> Any:
        extracted.append(1)
        return extract(*args, **options)

    monkeypatch.setattr(evaluation, "extract", counted)
    output = tmp_path / "r.json"
    (row,) = evaluated(str(finished), *FEW, "--seeds=[0,1,5]", output=output)["models"]
    assert len(extracted) == 2  # the bank and the query set, once for all seeds
    assert [each["seed"] for each in row["seeds"]] == [0, 1, 5]
    name = "knn_top1_k2_t0.07_50pct"
    assert set(row["std"]) == {name, "linear_top1_50pct"}
    values = [each["metrics"][name] for each in row["seeds"]]
    assert row["metrics"][name] == pytest.approx(sum(values) / 3)
    assert row["std"][name] == pytest.approx(statistics.stdev(values))
    assert "retrieval_map" in row["metrics"]
    alone = evaluated(str(finished), *FEW, "--seeds=[5]", output=tmp_path / "one.json")
    assert alone["models"][0]["metrics"][name] == values[2]
    assert alone["seeds"] == [5]
    capsys.readouterr()
    evaluate.main(["--table", str(output)])
    cell = f"| {row['metrics'][name]:.4f} ± {row['std'][name]:.4f} |"
    assert cell in capsys.readouterr().out


@pytest.mark.slow  # tests/eval has the numbers on ranks, test_fit_ranks.py the start of the second
def test_two_ranks_give_the_numbers_of_one(finished: Path, tmp_path: Path) -> None:
    args = [str(finished), *FEW, "--seeds=[0,1]"]
    one = evaluated(*args, output=tmp_path / "one.json")
    output = tmp_path / "two.json"
    ranks = ["--accelerator=cpu", "--devices=2", "--cache=none", f"--output={output}"]
    run_process(["eval", *args, *ranks], tmp_path)
    two = json.loads(output.read_text())
    for got, wanted in zip(two["models"][0]["seeds"], one["models"][0]["seeds"], strict=True):
        assert got["metrics"] == pytest.approx(wanted["metrics"], rel=1e-6)
    assert two["models"][0]["metrics"] == pytest.approx(one["models"][0]["metrics"], rel=1e-6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds=[0,1]"], "--suite.train_fraction must be below 1, .* got 1.0"),
        ([*FEW, "--seeds=[1,1]"], r"--seeds must be one or more distinct numbers, got \[1, 1\]"),
    ],
)
def test_seeds_that_draw_nothing_are_refused(
    args: list[str],
    message: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        evaluated(str(finished), *args, output=tmp_path / "r.json")
    assert re.search(message, capsys.readouterr().err)


def test_errors_say_what_was_wanted(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["byol-small_resnet-cifar10jpeg"])
    assert "--on must be a config whose data to evaluate on" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"must have config\.yaml and checkpoints/last\.ckpt"):
        read_model(str(tmp_path))
    with pytest.raises(SystemExit):
        evaluated(str(finished), "--suite.protocols=[knm]", output=tmp_path / "r.json")
    assert "got 'knm'" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
