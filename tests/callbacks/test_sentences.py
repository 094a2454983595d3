"""Spearman during training and the final table: on pairs that the encoder can and cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from sslzoo.backbones import SmallTransformer
from sslzoo.callbacks import OnlineSpearman, SentenceTable
from sslzoo.data import TextLines, WordPiece
from sslzoo.heads import TanhHead
from sslzoo.methods import SimCSE
from sslzoo.transforms import plain_text
from tests.callbacks.toy import quiet
from tests.data.text.test_datamodule import sentences
from tests.ranks import Ranks

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def write(folder: Path) -> Path:
    """23 lines; pairs whose score is the share of equal words; labels that say if "man" is in."""
    lines = sentences()
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    pairs = [(a, b) for a in lines[5:9] for b in lines[3:12]]
    rows = [
        f"{a},{b},{len(set(a.split()) & set(b.split())) / len(set(a.split() + b.split()))}"
        for a, b in pairs
    ]
    (folder / "dev.csv").write_text("\n".join(rows))
    labeled = [f"{'man' in line.split()}\t{line}" for line in lines]
    (folder / "labeled.tsv").write_text("\n".join(labeled))
    return folder


def data(folder: Path) -> TextLines:
    return TextLines(
        str(folder / "text.txt"),
        plain_text(),
        WordPiece(60),
        batch_size=4,
        max_length=16,
        labeled_train=str(folder / "labeled.tsv"),
        labeled_test=str(folder / "labeled.tsv"),
        pairs={"dev": str(folder / "dev.csv")},
        eval_batch_size=5,
        seed=0,
    )


def method() -> SimCSE:
    torch.manual_seed(0)
    backbone = SmallTransformer(60, width=16, depth=1, heads=2, max_length=16)
    # Adam would turn the rounding of gradients that are zero into steps that ranks disagree on.
    return SimCSE(backbone, TanhHead(16), optimizer=lambda params: torch.optim.SGD(params, lr=1e-2))


def fit(rank: int, folder: Path, world: int) -> dict[str, float]:
    quiet()
    options = {"strategy": "ddp", "plugins": [TorchElasticEnvironment()]} if world > 1 else {}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=world,
        logger=False,
        callbacks=[OnlineSpearman(), SentenceTable()],
        default_root_dir=folder / str(world),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(method(), datamodule=data(folder))
    return {"logged": float(trainer.callback_metrics["val/spearman_dev"])}


def test_table_and_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged = fit(0, write(tmp_path), 1)["logged"]
    table = json.loads((tmp_path / "1" / "sentence_table.json").read_text())
    assert list(table) == [
        "trained", "untrained", "trained_tokens", "untrained_tokens", "words",
    ]  # fmt: skip
    assert table["trained"]["spearman_dev"] == pytest.approx(logged, abs=1e-6)
    assert table["trained"] != table["untrained"]
    assert table["words"]["spearman_dev"] > 0.8  # the score is a share of words
    assert table["words"]["linear"] == 1
    assert "bag of words" in capsys.readouterr().out


def test_two_ranks_find_the_same(tmp_path: Path, ranks: Ranks) -> None:
    one = fit(0, write(tmp_path), 1)
    two = ranks(2, fit, tmp_path, 2)
    for result in two:
        assert result["logged"] == pytest.approx(one["logged"], abs=1e-4)
    tables = [json.loads((tmp_path / w / "sentence_table.json").read_text()) for w in "12"]
    assert tables[0].keys() == tables[1].keys()
    for row, scores in tables[0].items():
        for name, score in scores.items():
            # Ranks of cosines that float32 sums in another order may change places.
            assert tables[1][row][name] == pytest.approx(score, abs=5e-3), (row, name)


def test_a_data_module_without_pairs_is_refused(tmp_path: Path) -> None:
    class Plain(LightningModule):
        pass

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="similarity_dataloaders"):
        OnlineSpearman().on_fit_start(trainer, Plain())
