"""SequenceArrays: files, windows, lengths, and CPC on what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from sslzoo.backbones import FrameMLP, SequenceEncoder
from sslzoo.data import SequenceArrays
from sslzoo.data.sampler import KeyedSampler
from sslzoo.eval.features import extract
from sslzoo.heads import LinearSteps, Recurrent
from sslzoo.methods import CPC


def write(root: Path, lengths: bool = False, kind: str = "npz") -> Path:
    """12 + 6 sequences of 20 frames: (place in the sequence, number of the sequence)."""
    root.mkdir(exist_ok=True)
    for name, count in (("train", 12), ("val", 6)):
        place, number = np.meshgrid(np.arange(20.0), np.arange(count))
        values = np.stack([place, number], axis=2)
        own = np.arange(count) % 3 + 18
        if lengths:
            values[np.arange(20) >= own[:, None]] = 0
        if kind == "npy":
            np.save(root / f"{name}.npy", values)
        else:
            more = {"lengths": own} if lengths else {}
            np.savez(root / f"{name}.npz", values=values, label=np.arange(count) % 3, **more)
    return root


def arrays(root: Path, **changes: Any) -> SequenceArrays:
    given = {"window": 8, "batch_size": 4, "standardize": False, "seed": 1}
    data = SequenceArrays(str(root), **{**given, **changes})
    data.setup("fit")
    return data


@pytest.mark.parametrize("lengths", [False, True])
def test_windows_are_pieces_of_their_sequences(tmp_path: Path, lengths: bool) -> None:
    data = arrays(write(tmp_path, lengths))
    loader, starts = data.train_dataloader(), set()
    for epoch in range(30):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            view = data.train_views(batch, epoch).views[0]
            assert view.shape == (4, 8, 2)
            for x, i in zip(view, batch.index.tolist(), strict=True):
                assert (x[:, 0].diff() == 1).all()
                assert (x[:, 1] == i).all()
                assert x[-1, 0] < (i % 3 + 18 if lengths else 20)
                starts.add(int(x[0, 0]))
    assert starts == set(range(13))


def test_a_window_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    data = arrays(write(tmp_path))
    sampler = KeyedSampler(12, 4)
    source = data.train_source(sampler)
    together, alone = source.__getitems__([3, 7]), source.__getitems__([7])
    assert torch.equal(together.views[0][1:], alone.views[0])


def test_frames_are_standardized_by_the_training_set(tmp_path: Path) -> None:
    data = arrays(write(tmp_path, lengths=True), standardize=True)
    found = [data.eval_views(batch).views[0] for batch in data.eval_dataloaders().bank]
    own = torch.cat([x[:n] for view in found for x, n in zip(*view, strict=True)])
    torch.testing.assert_close(own.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(own.std(0, correction=0), torch.ones(2))
    assert all((x[n:] == 0).all() for view in found for x, n in zip(*view, strict=True))


def test_npy_files_have_no_labels(tmp_path: Path) -> None:
    data = arrays(write(tmp_path, kind="npy"))
    assert (data.num_samples, data.num_classes, len(data.sets.query)) == (12, None, 6)
    assert arrays(tmp_path, val_fraction=0.25).num_samples == 9


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_cpc_trains_on_arrays(tmp_path: Path) -> None:
    data = arrays(write(tmp_path / "data", lengths=True), standardize=True)
    torch.manual_seed(0)
    backbone = SequenceEncoder(FrameMLP(2, 6), Recurrent(6, 5))
    method = CPC(
        backbone, LinearSteps(5, 6, 3), optimizer=lambda params: torch.optim.Adam(params, 1e-3)
    )
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, datamodule=data)
    assert method.step == 6
    loaders = data.eval_dataloaders()
    found = extract(method, loaders.query, loaders)
    assert found.features.shape == (6, 5)
    assert found.label.tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold train\.npz or train\.npy"):
        arrays(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match=r"at least 30 frames .* 12 of 12"):
        arrays(tmp_path, window=30)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        arrays(tmp_path, window=0)
    np.savez(tmp_path / "val.npz", values=np.zeros((3, 20, 5)))
    with pytest.raises(ValueError, match="must have the same F, got 2 and 5"):
        arrays(tmp_path)
    np.savez(tmp_path / "val.npz", values=np.zeros((3, 20, 2)), label=np.zeros(4))
    with pytest.raises(ValueError, match=r"label .* must be \(3,\), got \(4,\)"):
        arrays(tmp_path)
    np.savez(tmp_path / "val.npz", x=np.zeros((3, 20)))
    with pytest.raises(ValueError, match=r"must hold values \(N, T, F\), got \['x'\]"):
        arrays(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"values": np.full((4, 5, 2), np.nan)}, "values in .* must be finite, got NaN"),
        ({"values": np.full((4, 5, 2), 1e300)}, "values in .* must be finite, got NaN or inf"),
        ({"values": np.full((4, 5, 2), "a")}, "values in .* must be numbers, got <U1"),
        ({"values": np.zeros((4, 5, 2), np.complex64)}, "must be numbers, got complex64"),
        ({"values": np.zeros((0, 5, 2))}, r"must hold values \(N, T, F\), got"),
        ({"label": np.array(["a"] * 4)}, "must be numbers, got <U1"),
        ({"label": np.array([0, 1, np.nan, 2])}, "label in .* must be finite, got NaN"),
        ({"lengths": np.array([1, 2, 3, 6])}, r"must be from 1 to 5 \(T\), got 1 to 6"),
        ({"lengths": np.array([0, 2, 3, 5])}, r"must be from 1 to 5 \(T\), got 0 to 5"),
    ],
)
def test_numbers_are_finite_numbers(tmp_path: Path, changes: Any, said: str) -> None:
    given = {"values": np.zeros((4, 5, 2)), **changes}
    np.savez(tmp_path / "train.npz", **given)
    with pytest.raises(ValueError, match=said):
        arrays(tmp_path, window=1, batch_size=2, standardize=False)
