"""Images of 13 bands and 16 bits in Zarr, from the disk to the features of a loaded run."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import LightningDataModule

import sslzoo
from sslzoo.data.check import check_data
from sslzoo.data.image.rasters import open_image
from sslzoo.trust import build
from tests.commands.command import run

BANDS, SIDE, MOST = 13, 40, 10_000


def write(root: Path) -> Path:
    """Two classes that differ in one band; values as reflectances of a satellite."""
    zarr = pytest.importorskip("zarr")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("land", "water")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                unit = rng.random((BANDS, SIDE, SIDE)) * 0.3 + 0.2
                unit[11] += 0.4 * label
                store = zarr.create_array(
                    str(root / part / name / f"{i}.zarr"),
                    shape=(BANDS, SIDE, SIDE),
                    dtype="uint16",
                    chunks=(BANDS, 16, 16),
                )
                store[:] = (unit * MOST).astype(np.uint16)
    return root


@pytest.mark.filterwarnings("ignore")
def test_channels_and_bits_are_kept_from_file_to_card(tmp_path: Path) -> None:
    root = write(tmp_path / "bands")
    file = root / "val/water/0.zarr"
    with open_image(str(file)) as image:
        raw = image.read(0, 0, SIDE, SIDE)
    assert (raw.shape, raw.dtype) == ((BANDS, SIDE, SIDE), np.uint16)
    assert len(np.unique(raw)) > 256

    report = check_data(str(root), (0, MOST))
    section = report.data
    section["init_args"] |= {"batch_size": 4, "num_workers": 0, "decode": "workers"}
    data = build(section, LightningDataModule, "the config")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch.views[0].shape, batch.views[0].dtype) == ((4, BANDS, 32, 32), torch.float32)
    assert 0 <= batch.views[0].min() < 0.5 < batch.views[0].max() <= 1
    assert data.train_views(batch, 0).views[0].shape == (4, BANDS, 32, 32)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": section}))
    done = run(
        [
            *("fit", "--config", "simclr/folder_multichannel_10ep", "--config", "data.yaml"),
            *("--trainer.max_steps=2", "--trainer.max_epochs=1", "--trainer.callbacks=null"),
            *("--trainer.precision=32-true", f"--trainer.default_root_dir={tmp_path / 'out'}"),
            *("--trainer.callbacks+=sslzoo.callbacks.OnlineKNN", "--trainer.callbacks.k=3"),
            *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"),
        ],
        tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (metrics,) = (tmp_path / "out").rglob("metrics.csv")
    with metrics.open() as table:
        names = csv.DictReader(table).fieldnames or []
    assert any("knn_top1" in name for name in names)

    encoder = sslzoo.load(str(metrics.parent / "checkpoints/last.ckpt"))
    about = encoder.preprocess
    assert (about.channels, about.value_range) == (BANDS, (0, MOST))
    assert len(about.mean) == len(about.std) == BANDS
    view = about(torch.from_numpy(raw))
    assert view.shape == (1, BANDS, 32, 32)
    with torch.inference_mode():
        features = encoder(view)
    done = run(["embed", str(metrics.parent), str(root / "val"), "--to", "x.npz"], tmp_path)
    with np.load(tmp_path / "x.npz") as written:
        row = [Path(path) for path in written["path"]].index(file)
        assert len(written["features"]) == 6
        np.testing.assert_allclose(written["features"][row], features[0], rtol=1e-4, atol=1e-5)
