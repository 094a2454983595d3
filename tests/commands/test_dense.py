"""Dense evaluation from YAML and the command line: during training, after it, and on videos."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from sslzoo.commands import evaluate
from tests.commands.command import run
from tests.data.image.test_segmentation import write_davis, write_tree

MAE: dict[str, Any] = {
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
    "backbone": {
        "class_path": "sslzoo.backbones.small_vit",
        "init_args": {"img_size": 16, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2},
    },
    "decoder": {
        "class_path": "sslzoo.heads.MAEDecoder",
        "init_args": {
            "token_dim": 16, "grid": 4, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2,
        },
    },
}  # fmt: skip
TRANSFORM = {"class_path": "sslzoo.transforms.mae_views", "init_args": {"size": 16}}


def config(root: Path, **data: Any) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "callbacks": [
                {
                    "class_path": "sslzoo.callbacks.OnlineSegmentation",
                    "init_args": {
                        "protocols": ["knn_segmentation", "linear_segmentation"],
                        "k": 3, "memory_size": 40, "epochs": 1,
                    },
                },
                {"class_path": "sslzoo.callbacks.PCAMaps", "init_args": {"count": 2}},
            ],
        },
        "model": {"class_path": "sslzoo.methods.MAE", "init_args": MAE},
        "data": {
            "class_path": "sslzoo.data.SegmentationFolder",
            "init_args": {
                "root": str(root), "classes": ["a", "b", "c"], "transform": TRANSFORM,
                "batch_size": 2, "num_workers": 0, **data,
            },
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on images with masks."""
    folder = tmp_path_factory.mktemp("dense")
    root, path = write_tree(folder / "data"), folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(root)))
    run(["fit", "--config", str(path), f"--trainer.default_root_dir={folder / 'run'}"], folder)
    return folder / "run" / "version_0"


def evaluated(*args: str, output: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluate.main([*args, "--accelerator=cpu", "--cache=none", f"--output={output}"])
    metrics: dict[str, Any] = json.loads(output.read_text())["models"][0]["metrics"]
    return metrics


def test_a_run_logs_and_draws(finished: Path) -> None:
    header = (finished / "metrics.csv").read_text().splitlines()[0].split(",")
    names = {"val/knn_miou_k3_t0.02", "val/linear_miou", "val/linear_pixel_accuracy"}
    assert names <= set(header)
    with Image.open(finished / "pca.png") as picture:
        assert picture.size == (2 * 18, 2 * 18)


def test_a_run_is_evaluated_on_masks(finished: Path, tmp_path: Path) -> None:
    options = ["--suite.dense.knn.k=3", "--suite.dense.knn.memory_size=40"]
    options += ["--suite.dense.linear.epochs=1", "--suite.dense.per_class=true"]
    found = evaluated(str(finished), *options, output=tmp_path / "out.json")
    assert {"linear_miou", "knn_miou_k3_t0.02", "linear_iou_b", "effective_rank"} <= set(found)
    alone = ["--suite.protocols=[knn_segmentation]"]
    again = evaluated(str(finished), *options, *alone, output=tmp_path / "again.json")
    assert again == {"knn_miou_k3_t0.02": found["knn_miou_k3_t0.02"]}
    online = (finished / "metrics.csv").read_text().splitlines()
    column = online[0].split(",").index("val/knn_miou_k3_t0.02")
    logged = [float(x) for x in (row.split(",")[column] for row in online[1:]) if x]
    assert logged[-1] == pytest.approx(found["knn_miou_k3_t0.02"], abs=1e-6)


def test_a_run_follows_videos(finished: Path, tmp_path: Path) -> None:
    root, path = write_davis(tmp_path / "DAVIS"), tmp_path / "davis.yaml"
    section = {"root": str(root), "transform": TRANSFORM, "num_workers": 0}
    content = {"data": {"class_path": "sslzoo.data.Davis", "init_args": section}}
    path.write_text(yaml.safe_dump(content))
    options = ["--on", str(path), "--suite.protocols=[davis]", "--suite.davis.side=64"]
    found = evaluated(str(finished), *options, output=tmp_path / "out.json")
    assert found["davis_jf"] == pytest.approx((found["davis_j"] + found["davis_f"]) / 2)
    assert found["davis_j"] > 0.3


def test_the_papers_protocols_by_name(finished: Path, tmp_path: Path) -> None:
    root = write_davis(tmp_path / "DAVIS")
    names = ["dinov2_linear_segmentation", "hummingbird", "dino_davis"]
    found = evaluated(
        *(str(finished), "--protocol", ",".join(names)),
        *("--dinov2_linear_segmentation.training.epochs=1", "--hummingbird.memory.k=3"),
        *(f"--dino_davis.root={root}", "--dino_davis.propagation.side=64"),
        output=tmp_path / "out.json",
    )
    wanted = ("dinov2_linear_segmentation/miou", "hummingbird/miou_k3_t0.02", "dino_davis/jf")
    assert set(wanted) <= set(found)


def test_other_protocols_are_refused_on_masks(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for protocol, message in (
        ("knn", "labels must be (B,), one class per sample"),
        ("davis", "the data must be sslzoo.data.Davis for the protocol 'davis'"),
    ):
        with pytest.raises(SystemExit):
            evaluated(str(finished), f"--suite.protocols=[{protocol}]", output=tmp_path / "no.json")
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1]
