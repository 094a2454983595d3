"""The study of SimCLR's small recipe, one change at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import equal_steps, table
from sslzoo.backbones import SmallResNet
from sslzoo.batch import Batch
from sslzoo.heads import MLP
from sslzoo.methods import SimCLR


def test_unknown_changes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        equal_steps.main(["--data", "x", "--changes", "views+rate"])
    assert "--changes must be of none, views," in capsys.readouterr().err


def test_two_views_of_an_image_differ(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    samples = equal_steps.TwoViews(str(tmp_path))
    batch = samples.batch([samples[0], samples[0]])
    first, second = batch.views
    assert first.shape == second.shape == (2, 3, 32, 32)
    assert batch.index.tolist() == [0, 0]
    assert not torch.equal(first[0], second[0])


def test_separate_forwards_normalize_each_view_alone() -> None:
    method = SimCLR(SmallResNet((4, 8)), MLP([8, 4]))
    views = [torch.rand(4, 3, 8, 8), 5 * torch.rand(4, 3, 8, 8)]
    batch = Batch(views, torch.arange(4))
    together = method.losses(batch)["nt_xent"]
    equal_steps.separate_forwards(method)
    alone = method.losses(batch)["nt_xent"]
    scaled = method.losses(Batch([views[0], views[1] / 5], batch.index))["nt_xent"]
    torch.testing.assert_close(alone, scaled, rtol=1e-3, atol=1e-3)  # its scale has no effect
    assert abs(together - alone) > 1e-2


def test_the_table_has_a_row_of_each_change() -> None:
    run = {"steps": 195, "knn_top1": 0.5, "linear_top1": 0.6, "loss": 4.0}
    run |= {"cpu": "x", "cores": 2, "commit": "0" * 40}
    text = table.equal_steps_table({"none": {"0": run}, "views+head": {"0": run, "1": run}})
    assert "| views, head | 0.500 | 0.600 | 4.000 | 0, 1 |" in text
    assert table.equal_steps_table(None) == table.NOT_RUN
