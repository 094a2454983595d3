"""`sslzoo eval --protocol`: the papers' protocols by name, with settings from the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from sslzoo.commands import evaluate
from sslzoo.runs.protocols import PROTOCOLS
from tests.runs.test_protocols_on_folders import copydays

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]
MODEL = "simclr-small_resnet-cifar10jpeg"


def evaluated(*args: str, output: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate.main([MODEL, *args, "--accelerator=cpu", "--cache=none", f"--output={output}"])
    return json.loads(output.read_text())


def test_protocols_of_data_take_settings_and_seeds(folder: Path, tmp_path: Path) -> None:
    result = evaluated(
        *["--on", "simclr/folder_small_10ep", f"--data.root={folder}", "--data.num_workers=0"],
        *["--protocol", "dino_knn,low_shot,dino_linear", "--dino_knn.k=[5]", "--seeds=[0,1]"],
        *["--low_shot.shots=[2]", "--low_shot.draws=1"],
        *["--dino_linear.training.epochs=1", "--dino_linear.training.batch_size=20"],
        output=tmp_path / "r.json",
    )
    (row,) = result["models"]
    wanted = {"dino_knn/top1_k5_t0.07", "low_shot/shots2_top1", "dino_linear/top1"}
    assert wanted <= row["metrics"].keys()
    assert row["std"]["dino_knn/top1_k5_t0.07"] == 0
    settings = result["protocols"]["dino_linear"]
    assert settings["training"]["epochs"] == 1
    assert settings["training"]["base_lr"] == 0.001  # the paper's
    assert "eval_linear.py" in settings["source"]
    assert result["seeds"] == [0, 1]
    assert result["data"]["class_path"] == "sslzoo.data.ImageFolder"


def test_protocols_of_folders_need_no_config(tmp_path: Path) -> None:
    root = copydays(tmp_path / "days")
    name = "dino_copy_detection"
    result = evaluated(
        *["--protocol", name, f"--{name}.root={root}", f"--{name}.size=32"],
        output=tmp_path / "r.json",
    )
    metrics = result["models"][0]["metrics"]
    assert metrics[f"{name}/map_original"] == 1.0
    assert result["data"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--protocol", "dino_knm"], "--protocol must be one of dino_knn, instdisc_knn, "),
        (["--protocol", "sts", "--sts.root=nowhere"], "root must be a folder, got 'nowhere'"),
        (["--protocol", "dino_knn"], "--on must be a config whose data to evaluate on"),
        (["--protocol", "sts", "--sts.rot=x"], "sts.rot"),
        (
            ["--protocol", "mae_linear", "--mae_linear.training.optimizer=lasr"],
            "mae_linear.training.optimizer",
        ),
    ],
)
def test_errors_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    on = [] if message.startswith("--on") else ["--on", "simclr/folder_small_10ep"]
    with pytest.raises(SystemExit):
        evaluate.main([MODEL, *args, *on])
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_docs_name_every_protocol() -> None:
    page = Path("docs/protocols.md").read_text()
    assert [name for name in PROTOCOLS if f"`{name}`" not in page] == []
