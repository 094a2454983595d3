"""`sslzoo report`: what is in the page, that a browser shows it, and that it loads nothing."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from sslzoo.backbones import SmallResNet, small_vit
from sslzoo.commands import report
from sslzoo.report.charts import line_chart, scatter
from sslzoo.report.page import Layout, attention_png
from sslzoo.report.pictures import neighbors, shown
from sslzoo.report.samples import plane, spectrum
from sslzoo.report.write import write
from sslzoo.runs.encoders import build_data
from sslzoo.runs.run import Curve, differences, read_curves, read_runs
from tests.commands.command import arguments, run

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]
LAYOUT = Layout(maps=("pca",), num_queries=2, num_neighbors=3)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished SimCLR run."""
    out = tmp_path_factory.mktemp("run")
    run([*arguments(folder, out, "simclr"), "--trainer.max_epochs=1"], out)
    return out / "version_0"


@pytest.fixture(scope="module")
def other(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second run: the first one's folder with another temperature, and without its weights."""
    there = tmp_path_factory.mktemp("other") / "version_0"
    shutil.copytree(finished, there)
    config = yaml.safe_load((there / "config.yaml").read_text())
    config["model"]["init_args"]["temperature"] = 0.25
    (there / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(there / "checkpoints")
    (there / "run.json").unlink()
    return there


@pytest.fixture(scope="module")
def page(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run."""
    target = tmp_path_factory.mktemp("page") / "report.html"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write([str(finished)], str(target), samples=20, images=3, layout=LAYOUT)


@pytest.fixture(scope="module")
def pair(finished: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs, the second of them without weights, with a result file."""
    folder = tmp_path_factory.mktemp("pair")
    result = {"models": [{"model": "m<1>", "metrics": {"knn_top1_k20_t0.07": 0.123456}}]}
    (folder / "eval.json").write_text(json.dumps(result))
    with pytest.warns(UserWarning, match=r"skipped maps.*checkpoints/last.ckpt"):
        return write(
            [str(finished), str(other)],
            str(folder / "both.html"),
            results=[str(folder / "eval.json")],
            samples=20,
            images=1,
            layout=LAYOUT,
        )


class Elements(HTMLParser):
    """All tags with their attributes, and whether they are closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.found if name == tag)


def test_the_run_records_how_it_was_made(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert record["command"].startswith("sslzoo fit --config simclr/folder_small_10ep ")
    assert "--data.batch_size=12" in record["command"]
    assert record["ranks"] == 1
    assert {"python", "torch", "lightning"} <= record["versions"].keys()
    assert record["date"]
    assert record["processor"]
    assert 0 < record["seconds"] < 300


def test_the_page_tells_the_run(finished: Path, page: Path) -> None:
    text = page.read_text()
    elements = Elements(text)
    assert elements.open == []
    sections = [attributes.get("id") for attributes in elements.of("section")]
    assert sections == [
        *("runs", "curves", "features", "neighbors", "views", "configs"),
    ]
    record = json.loads((finished / "run.json").read_text())
    assert record["command"] in text
    assert record["versions"]["torch"] in text
    assert "class_path: sslzoo.methods.SimCLR" in text  # the config, as it was saved
    knn = read_curves(finished / "metrics.csv")
    for name in (name for name in knn if name.startswith("val/")):
        assert f"{knn[name].values[-1]:.4g}" in text
    images = list(elements.of("img"))
    classes = [image.get("class") for image in images]
    maps = [svg for svg in elements.of("svg") if svg.get("class") == "map"]
    assert [svg.get("aria-label") for svg in maps] == ["PCA"]
    assert sum(1 for _ in elements.of("circle")) == 20
    assert classes.count("query") == 2
    assert classes.count("same") + classes.count("other") == 2 * 3
    assert sum(image.get("alt") == "view" for image in images) == 3 * 2
    assert all(image.get("alt") for image in images)


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    elements = Elements(text)
    assert not list(elements.of("script"))
    assert not list(elements.of("link"))
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:image/png;base64,", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in text
    ids = [attributes["id"] for _, attributes in elements.found if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_several_runs_stand_side_by_side(finished: Path, other: Path, pair: Path) -> None:
    text = pair.read_text()
    elements = Elements(text)
    assert elements.open == []
    assert "0.1235" in text
    assert "m&lt;1&gt;" in text  # names are not read as HTML
    names = [run.name for run in read_runs([str(finished), str(other)])]
    assert len(set(names)) == 2
    for name in names:
        assert re.search(rf"<span><svg [^>]*>.*?</svg>{name}</span>", text)  # the legend
        assert f'<th scope="col">{name}</th>' in text
    curves = read_curves(finished / "metrics.csv")
    charts = [svg for svg in elements.of("svg") if svg.get("role") == "img"]
    assert len(charts) == len(curves) - 1 + 2  # without nt_xent, the loss; PCA and the spectrum
    assert all(chart.get("aria-label") for chart in charts)
    assert "model.init_args.temperature" in text
    assert "0.25" in text
    assert "not recorded" in text


def test_without_data_the_logged_part_is_there(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    with pytest.warns(UserWarning, match="nowhere"):
        write([str(finished)], str(target), root=str(tmp_path / "nowhere"))
    text = target.read_text()
    assert "<svg" in text
    assert 'id="neighbors"' not in text
    assert "nowhere" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{empty}"], "config.yaml"),
        (["{run}", "{run}"], "must be distinct"),
        (["{run}", "--samples=2"], "samples must be at least 3"),
        (["{run}", "--results", "[{run}/run.json]"], "sslzoo eval --output"),
    ],
)
def test_errors_are_one_line(
    args: list[str], message: str, finished: Path, tmp_path: Path, capsys: Any
) -> None:
    words = [arg.format(empty=tmp_path, run=finished) for arg in args]
    with pytest.raises(SystemExit) as stopped:
        report.main([*words, "--pictures=false", f"--output={tmp_path / 'out.html'}"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_curves_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/x\n0,9,1.5,\n0,19,nan,\n0,29,inf,0.25\n")
    curves = read_curves(path)
    assert curves == {"train/loss": Curve([9], [1.5], 2), "val/x": Curve([29], [0.25], 0)}
    assert read_curves(tmp_path / "none.csv") == {}


def test_differences_are_the_settings_that_differ(finished: Path, other: Path) -> None:
    found = differences(read_runs([str(finished), str(other)]))
    assert list(found) == ["model.init_args.temperature"]


def test_neighbors_are_brute_forces() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    queries = torch.tensor([3, 17])
    for query, row in zip(queries.tolist(), neighbors(x, queries, 4).tolist(), strict=True):
        cosine = {i: torch.cosine_similarity(x[query], x[i], dim=0).item() for i in range(30)}
        del cosine[query]
        assert row == sorted(cosine, key=cosine.__getitem__, reverse=True)[:4]
    assert neighbors(x[:3], torch.tensor([0]), 10).shape == (1, 2)


def test_views_are_shown_as_pixels() -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    normal = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(shown(normal, mean, std), pixels)
    torch.testing.assert_close(shown(pixels, None, None), pixels)
    stretched = shown(pixels * 9 - 4, None, None)
    assert stretched.amin() == 0
    assert stretched.amax() == 1


def test_the_views_are_those_of_training(finished: Path) -> None:
    """`preview` gives what the loader and the device make of the same samples in that epoch."""
    section = yaml.safe_load((finished / "config.yaml").read_text())["data"]
    data: Any = build_data(section)
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    want = data.train_views(raw, 0)
    got = data.preview(raw.index.tolist(), 0)
    for one, two in zip(got.views, want.views, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(data.preview(raw.index.tolist(), 1).views[0], want.views[0])


def test_spectrum_of_two_directions() -> None:
    x = torch.tensor([[2.0, 0, 5], [-2, 0, 5], [0, 1, 5], [0, -1, 5]])
    assert spectrum(x) == pytest.approx([0.8, 0.2, 0.0], abs=1e-12)


def test_maps() -> None:
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    for kind in ("pca", "tsne"):
        assert plane(x, kind).shape == (12, 2)
    assert np.array_equal(plane(x, "tsne"), plane(x, "tsne"))
    with pytest.raises(ValueError, match="got 'som'"):
        plane(x, "som")
    with pytest.raises(ValueError, match="got 2"):
        plane(x[:2], "pca")


def test_attention_of_vits_only() -> None:
    images = torch.rand(2, 3, 16, 16)
    png = attention_png(small_vit(16, 4, width=16, depth=1, num_heads=2), images)
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert attention_png(SmallResNet((8, 16)), images) is None


def test_a_drawing_follows_the_page() -> None:
    lines = {"b": ([1, 2], [3.0, 4.0])}
    drawn = line_chart("a <title>", lines, "step", "loss", ["a", "b"])
    assert drawn.startswith("<svg")
    assert "currentColor" in drawn
    assert "#010203" not in drawn
    assert 'aria-label="a &lt;title&gt;"' in drawn
    assert drawn == line_chart("a <title>", lines, "step", "loss", ["a", "b"])


def test_dots_name_their_class() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    groups = {"cat": np.array([0, 2]), "dog <1>": np.array([1])}
    drawn = scatter("PCA", points, groups)
    assert drawn.count("<circle") == 3
    assert re.search(r"<g [^>]*><title>cat</title>(<circle [^>]*>){2}</g>", drawn)
    assert "<title>dog &lt;1&gt;</title>" in drawn
    assert 'cy="390.0"' in drawn  # the lowest point is at the bottom
    assert drawn.count("<text") == 2
