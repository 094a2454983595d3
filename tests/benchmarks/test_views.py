"""The comparison of views: its recipe, its kNN and its table."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks import table
from benchmarks.views import VIEWS, knn, recipe, rows_of


def test_a_row_has_the_first_views_of_the_recipe() -> None:
    for row, chosen in rows_of().items():
        if chosen is None:
            continue
        num_views, mode = chosen
        config = recipe(num_views, mode, "scenes")
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        assert model["mode"] == mode
        towers, heads = model["backbone"]["init_args"], model["projector"]["init_args"]["heads"]
        assert len(towers["towers"]) == len(towers["channels"]) == len(heads) == num_views
        kinds = [modality["kind"] for modality in data["modalities"]]
        assert kinds == ["image", "depth", "normals", "labels"][: num_views - 1]
        assert mode == "full_graph" or row == f"L + {', '.join(VIEWS[1:num_views])}"


def test_knn_finds_classes_that_features_separate() -> None:
    torch.manual_seed(0)
    labels = {"train": torch.zeros(24, 8, 8, dtype=torch.long)}
    labels["train"][:, :, 4:] = 1
    labels["val"] = labels["train"][:3].flip(2)
    maps = {n: F.one_hot(t[:, ::4, ::4], 2).permute(0, 3, 1, 2).float() for n, t in labels.items()}
    assert knn(maps, labels) == {"miou": 100.0, "accuracy": 100.0}


def test_the_table_has_means_and_ranges() -> None:
    def seed(miou: float) -> dict[str, object]:
        return {"linear": {"miou": miou, "accuracy": 50.0}, "cpu_seconds": 30.0}

    about = {"config": "c", "scenes": {"train": 2000, "val": 500}, "cpu": "CPU", "cores": 2}
    rows = {"L + ab": {"0": seed(10), "1": seed(12)}}
    text = table.views_table({"rows": rows, "about": {**about, "commit": "abc"}})
    assert "| L + ab | 11.0 (10.0 to 12.0) | 50.0 (50.0 to 50.0) | - | - | 2 | 30 |" in text
    assert "1.0 minutes of one core in all, CPU, 2 cores, commit abc" in text
    assert table.views_table(None) == table.NOT_RUN
