"""AudioList: labels, splits and speakers of a table, with units and alignments beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sslzoo.data import AudioList
from sslzoo.data.audio.units import write_units
from sslzoo.transforms import Waveform
from tests.data.audio.test_datamodule import ramp, write

pytest.importorskip("soundfile")
RATE = 8000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight clips of two languages and two speakers, of which two are for validation."""
    rows = ["path,label,split,speaker"]
    for i in range(8):
        write(tmp_path / "ü clips" / f"{i}.wav", ramp(800 + 80 * i), RATE)
        split = "val" if i in (3, 4) else "train"
        rows.append(f"ü clips/{i}.wav,{'de' if i < 4 else 'fr'},{split},s{i % 2}")
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    return tmp_path


def listed(folder: Path, name: str = "clips.csv", **changes: Any) -> AudioList:
    given: dict[str, Any] = {"window": 400, "batch_size": 2, "rate": RATE, "seed": 0}
    data = AudioList(str(folder / name), Waveform(), **{**given, **changes})
    data.setup("fit")
    return data


def test_a_table_has_classes_splits_and_speakers(root: Path) -> None:
    data = listed(root, group_column="speaker", batches="same_group", batch_size=3)
    assert data.classes == ["de", "fr"]
    assert data.sets.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.sets.query.labels.tolist() == [0, 1]
    assert data.sets.train.groups.tolist() == [0, 1, 0, 1, 0, 1]
    for batch in data.train_dataloader():
        assert len(data.sets.train.groups[batch.index].unique()) == 1
    assert len(listed(root, val_fraction=1 / 3).sets.query) == 2
    assert listed(root, split_column=None).num_samples == 8
    by_speaker = listed(root, label_column="speaker")
    assert by_speaker.classes == ["s0", "s1"]


def test_a_text_file_has_no_labels(root: Path) -> None:
    (root / "paths.txt").write_text("ü clips/0.wav\n" + str(root / "ü clips" / "1.wav"))
    data = listed(root, "paths.txt")
    assert (data.num_samples, data.num_classes) == (2, None)


def test_units_and_alignments_lie_beside_the_list(root: Path) -> None:
    paths = [str(root / "ü clips" / f"{i}.wav") for i in range(8)]
    write_units(root / "x.units.npz", paths, [torch.arange(10 + i) % 3 for i in range(8)], 100, 3)
    units = next(iter(listed(root, units=["x.units.npz"]).train_dataloader())).views[0].units
    assert units.shape == (2, 1, 5)
    rows = [f"{i},0,{(800 + 80 * i) / RATE},{'ab'[i % 2]}" for i in range(8)]
    (root / "phones.csv").write_text("\n".join(["clip,start,end,phone", *rows]))
    data = listed(root, alignments="phones.csv")
    assert data.classes == ["a", "b"]
    assert data.sets.query.listing.frame_labels[0].tolist() == [[0, 1040, 1]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"path_column": "wav"}, "path_column must be one of the columns"),
        ({"group_column": "who"}, "group_column must be one of the columns .*, got 'who'"),
        ({"val_split": "dev"}, r"val_split must be one of the splits \['train', 'val'\]"),
        ({"root": "/nowhere"}, "must be of existing files, got 'ü clips/0.wav'"),
        ({"val_fraction": 2}, r"val_fraction must be in \(0, 1\), got 2"),
        ({"batches": "same_group"}, 'batches must be "uniform" for files without groups'),
    ],
)
def test_what_a_list_lacks_is_named(root: Path, changes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        listed(root, **changes).train_dataloader()
