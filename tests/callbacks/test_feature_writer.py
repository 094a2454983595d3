"""FeatureWriter: one file of all ranks' features in the order of the index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sslzoo.callbacks.feature_writer import FeatureWriter
from tests.callbacks.toy import FILTERS, Toy, ToyData, data, make_loader, quiet, trainer

pytestmark = FILTERS


def read(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path) as arrays:
        return dict(arrays)


def predict_on_ranks(rank, world_size, folder, file_format, labeled=True):
    quiet()
    run = trainer(folder, FeatureWriter(format=file_format), world_size=world_size)
    loader = make_loader(31, 1, 4, labeled, sharded=True)
    run.predict(Toy(), loader, return_predictions=False)


@pytest.mark.parametrize("file_format", ["safetensors", "npz"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_file_has_every_sample_in_order(ranks, tmp_path, world_size, file_format):
    ranks(world_size, predict_on_ranks, world_size, str(tmp_path), file_format)
    (path,) = tmp_path.iterdir()
    arrays = read(path)
    module = Toy().eval()
    images, label = data(31, 1)
    with torch.no_grad():
        np.testing.assert_allclose(arrays["features"], module(images).numpy(), atol=1e-5)
    assert arrays["index"].tolist() == list(range(31))
    assert arrays["label"].tolist() == label.tolist()


def test_data_without_labels_has_none_in_the_file(tmp_path):
    predict_on_ranks(0, 1, str(tmp_path), "npz", labeled=False)
    assert sorted(read(tmp_path / "features.npz")) == ["features", "index"]


class Bare(Toy):
    def predict_step(self, batch, batch_idx):
        return self(batch.views[0])


def test_wrong_values_are_named(tmp_path):
    with pytest.raises(ValueError, match="got 'csv'"):
        FeatureWriter(format="csv")
    with pytest.raises(ValueError, match=r"dict of features, index and label .*, got Tensor"):
        trainer(tmp_path, FeatureWriter()).predict(Bare(), datamodule=ToyData())
