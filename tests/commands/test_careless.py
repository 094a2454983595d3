"""Careless command lines: each ends with one sentence, without a traceback or a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslzoo.commands.errors import sentence
from tests.commands.command import arguments, run

ENTRY = "simclr-small_resnet-cifar10jpeg"
# Words after `sslzoo`, and parts of the sentence. ROOT: images; EMPTY: an empty folder.
VERBS = [
    ("fitt", "the verb must be one of fit, validate"),
    ("quickstart", "got 'quickstart'; a config is trained by `sslzoo fit --config quickstart`"),
    ("quikstart", "got 'quikstart'; similar: `sslzoo fit --config quickstart`"),
    ("simclr/folder_small_10ep", "by `sslzoo fit --config simclr/folder_small_10ep`; see"),
    ("SimCLR", "a method is trained by a recipe of `sslzoo configs simclr/`"),
    ("evaluate", "got 'evaluate'; similar: `sslzoo validate`, `sslzoo eval`; see"),
    ("train", "got 'train'; similar: `sslzoo fit`"),
    ("zzz", "got 'zzz'; see sslzoo --help"),
    ("--nope", "got '--nope'"),
    ("fit", "--config must be given, such as `sslzoo fit --config quickstart`"),
    ("validate", "--config must be given"),
    ("fit --config", "--config must be a file or the name of a shipped config"),
    ("fit --config nope", "(`sslzoo configs` lists them), got 'nope'"),
    ("fit --config simcl", "simclr/cifar10_resnet18_200ep"),
    ("fit --config EMPTY", "--config must be a file"),
    ("fit --config bad.yaml", "bad.yaml is not a valid config"),
    ("fit --config list.yaml", "list.yaml must be a dictionary, got list"),
    ("fit --config simclr/folder_small_10ep --ckpt_path", "--ckpt_path"),
    ("predict --ckpt_path nowhere.ckpt", "--config or --model must be given"),
    ("eval", "the following arguments are required: models; see sslzoo eval --help"),
    ("eval nope", "--on must be a config whose data to evaluate on"),
    ("eval EMPTY", "--on must be a config"),
    (f"eval {ENTRY} --on nope", "got 'nope'"),
    ("eval --table", "--table must be given files"),
    ("eval --table nowhere", "nowhere: No such file"),
    ("report", "required: runs; see sslzoo report --help"),
    ("report nowhere", "a run directory must have config.yaml, got 'nowhere'"),
    ("report --samples x EMPTY", "samples must be an integer, got 'x'"),
    ("zoo", "required: VERB; see sslzoo zoo --help"),
    ("zoo lst", "invalid choice: 'lst'"),
    ("zoo list zzz", "the pattern must match an entry of the zoo, got 'zzz'"),
    ("zoo list --kind video", "invalid choice: 'video'"),
    ("zoo list moco* --min_score 1.5", "with these filters, got 'moco*'"),
    ("zoo info zzz", "must be an entry of the zoo or a file, got 'zzz'"),
    ("zoo fetch", "required: names"),
    (f"zoo remove {ENTRY}", "the library's own files are not removed"),
    ("zoo add EMPTY --name a --data b --license c", "a run directory must have"),
    ("export", "required: name, --format, --to"),
    (f"export {ENTRY} --format doc --to x", "invalid choice: 'doc'"),
    ("data", "required: VERB"),
    ("data check", "required: source"),
    ("data shard EMPTY", "required: --output"),
    ("data check nowhere", "must be a folder, got 'nowhere', which does not exist"),
    ("data check EMPTY", "must hold readable images, got 0 files"),
    ("data shard nowhere --output out", "must be a folder, got 'nowhere', which does not exist"),
    ("data shard EMPTY --output out", "must hold images, got none"),
    ("data index nowhere.tar --output a.json", "shards must be existing .tar or .parquet files"),
    ("data check nowhere.csv", "a list must be an existing file of .csv"),
    ("data check EMPTY --reader os.nothing", "--reader must be a function as module.name"),
    ("data check EMPTY --value_range 5 5", "value_range must be (low, high) with low < high"),
    ("embed", "required: model, sources, --to"),
    (f"embed {ENTRY} EMPTY --to x.txt", "must end in .npz or .parquet, got 'x.txt'"),
    (f"embed {ENTRY} nowhere --to x.npz", "a source must be a file or a folder, got 'nowhere'"),
    (f"embed {ENTRY} EMPTY --to x.npz", "must have files that the encoder takes"),
    (f"embed {ENTRY} EMPTY --to x.npz --batch_size 0", "batch_size must be at least 1, got 0"),
    ("embed zzz EMPTY --to x.npz", "must be an entry of the zoo or a file, got 'zzz'"),
    ("methods zzz", "the pattern must match a method, got 'zzz'"),
    ("configs zzz", "the pattern must match a config, got 'zzz'"),
    ("completion tcsh", "invalid choice: 'tcsh'"),
]
FLAGS = [
    ("--trainer.epochs=1", "unrecognized arguments: --trainer.epochs=1|--trainer.max_epochs"),
    ("--trainer.max_epochs=ten", "trainer.max_epochs must be an integer, got 'ten'"),
    ("--trainer.max_epochs", "--trainer.max_epochs: expected one argument"),
    ("--trainer.precision=bf17", "trainer.precision must be|'auto', got 'bf17'"),
    ("--trainer.callbacks=NoSuch", "trainer.callbacks must be a list or a class path"),
    ("--seed_everything=x", "seed_everything must be true or false or an integer, got 'x'"),
    ("--data.batch_size=1.5", "data.batch_size must be an integer, got '1.5'"),
    ("--data=NoSuch", "data must be a class path, got 'NoSuch'"),
    ("--model=sslzoo.methods.SimCLRR", "SimCLRR"),
    ("--model=torch.nn.Linear", "model must be a class path of a LightningModule"),
    ("--model.init_args.backbone=NoSuch", "model.backbone must be a class path, got 'NoSuch'"),
    ("--model.init_args.temperature=warm", "model.temperature must be a number, got 'warm'"),
    ("--model.init_args.temperatur=1", "temperatur"),
    ("--model.init_args.optimizer=torch.optim.Adamm", "no attribute 'Adamm'"),
    ("--model.init_args.schedule=torch.optim.lr_scheduler.StepLR", "Schedule"),
    ("--optimizer=Adam", "unrecognized arguments: --optimizer=Adam"),
]
LATER = [
    ("--data.batch_size=0", "batch_size must be at least 1, got 0"),
    ("--data.batch_size=100", "batch_size must be at most 60 (the size of the training set)"),
    ("--data.root=nowhere", "root must be a folder, got 'nowhere'"),
    ("--data.root=EMPTY", "must hold the folders ['train', 'val']"),
    ("--data.num_workers=-1", "num_workers must be at least 0, got -1"),
    ("--data.transform.init_args.size=0", "size must be at least 1, got 0"),
    ("--data.labels=false", "the data must have labels for OnlineKNN"),
    ("--model.init_args.projector.init_args.in_dim=99", "MLP must have in_features 256"),
    ("--model.init_args.temperature=-1", "temperature must be above 0, got -1.0"),
    ("--trainer.accelerator=tpux", "accelerator='tpux'"),
    ("--trainer.devices=0", "devices"),
    ("--trainer.strategy=fsdp", "fsdp"),
    ("--trainer.max_epochs=-5", "max_epochs"),
    ("--ckpt_path=nowhere.ckpt", "there is no file at 'nowhere.ckpt'"),
    ("--ckpt_path=bad.yaml", "bad.yaml is not a valid torch file"),
    ("--ckpt_path=last", "has no checkpoint, got 'last'"),
    ("--trainer.default_root_dir=/proc/nope", "/proc/nope: No such file or directory"),
]


def said(words: list[str], cwd: Path) -> str:
    """The one sentence of a command that fails, and leaves nothing behind."""
    empty = cwd / "empty"
    empty.mkdir()
    (cwd / "bad.yaml").write_text("a: [1\n")
    (cwd / "list.yaml").write_text("- 1\n")
    before = {path.name for path in cwd.iterdir()}
    done = run([word.replace("EMPTY", str(empty)) for word in words], cwd, check=False)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert "usage:" not in done.stderr
    own = [line for line in done.stderr.splitlines() if line.startswith("sslzoo")]
    assert own == done.stderr.rstrip().splitlines()[-1:], done.stderr
    assert {path.name for path in cwd.iterdir()} == before, "nothing is left"
    return own[0]


def assert_says(line: str, wanted: str) -> None:
    parts = [wanted] if wanted in line else wanted.split("|")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(("words", "wanted"), VERBS, ids=[words for words, _ in VERBS])
def test_a_careless_verb_is_told(words: str, wanted: str, tmp_path: Path) -> None:
    assert_says(said(words.split(), tmp_path), wanted)


@pytest.mark.parametrize(("flag", "wanted"), FLAGS, ids=[flag for flag, _ in FLAGS])
def test_a_careless_flag_is_told(flag: str, wanted: str, folder: Path, tmp_path: Path) -> None:
    line = said([*arguments(folder, tmp_path / "out", "simclr"), flag], tmp_path)
    assert_says(line, wanted)
    assert line.endswith("see sslzoo fit --help")


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * (i % 3 > 0)) for i, case in
     enumerate(LATER)],
)  # fmt: skip
def test_what_the_data_refuse_leaves_no_run(
    flag: str, wanted: str, folder: Path, tmp_path: Path
) -> None:
    assert_says(said([*arguments(folder, tmp_path / "out", "simclr"), flag], tmp_path), wanted)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for words in (["fit", "--config", "nope"], ["zoo", "info", "zzz"], ["eval", "nope"]):
        done = run([*words, "--debug"], tmp_path, check=False)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "ValueError" in done.stderr


def test_a_tree_of_subtypes_is_one_sentence() -> None:
    tree = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'sslzoo.methods.SimCLR':
        Parser key "temperature":
          Expected a <class 'float'>. Got value: warm
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='temperature', val='warm')"""
    assert sentence(tree) == "model.temperature must be a number, got 'warm'"
    assert sentence("plain,\n  in two lines") == "plain, in two lines"
