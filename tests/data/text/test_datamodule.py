"""Data modules of text: lines by offsets, vocabularies, views, resume, files that are wrong."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sslzoo.backbones import SentenceConv, SentenceSequence, SmallTransformer
from sslzoo.batch import Batch, Tokens, ViewSpec
from sslzoo.data import STSB, HFText, HFTokenizer, TextLines, WordPiece
from sslzoo.data.text import lines
from sslzoo.data.text.lines import (
    FileLines,
    ListLines,
    Sentences,
    Text,
    read_labeled,
    read_pairs,
    walk,
)
from sslzoo.heads import LinearSteps, Recurrent, TanhHead
from sslzoo.methods import CPC, SimCSE
from sslzoo.random import sample_keys
from sslzoo.transforms import SpanDeletion, WordDeletion, clear_views, plain_text
from sslzoo.transforms.text.special import Special
from tests.ranks import Ranks

pytest.importorskip("tokenizers")
pytestmark = [
    # Lightning 2.6.6 flattens loaders with an old spelling of torch's pytree.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # Lightning saves checkpoints here more often than anybody would want to be told.
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty"),
    # A resumed run here saves nothing.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

WORDS = [
    "a",
    "man",
    "plays",
    "the",
    "red",
    "guitar",
    "two",
    "dogs",
    "run",
    "over",
    "green",
    "grass",
]


def sentences(count: int = 23) -> list[str]:
    draw = torch.Generator().manual_seed(0)
    out = []
    for number in range(count):
        size = 1 + number % 9
        which = torch.randint(len(WORDS), (size,), generator=draw).tolist()
        out.append(" ".join(WORDS[i] for i in which))
    return out


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(sentences()) + "\n")
    return path


def data(path: Path, **changes: Any) -> TextLines:
    plain: dict[str, Any] = {"batch_size": 4, "max_length": 8, "seed": 5}
    plain["transform"] = clear_views([WordDeletion(), SpanDeletion()])
    return TextLines(str(path), tokenizer=WordPiece(60), **{**plain, **changes})


@pytest.mark.parametrize("block", [1, 7, 1 << 26])
@pytest.mark.parametrize(
    "content",
    ["one\ntwo\n", "one\ntwo", "\n\none\n\ntwo\n\n", "one\r\ntwo\r\n", "ü\nβeta gamma\n\nx", "a"],
)
def test_lines_are_those_of_the_file(
    content: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK", block)
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    wanted = [line for line in content.splitlines() if line]
    found = FileLines(path)
    assert list(walk(found)) == wanted
    again = pickle.loads(pickle.dumps(found))
    assert again.read([len(wanted) - 1, 0]) == [wanted[-1], wanted[0]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_neighbor_is_of_the_same_document(end: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(end.join(["a", "b", "c", "", "alone", "", "", "x", "y"]).encode())
    found = FileLines(path)
    rows = list(range(len(found)))
    assert found.read(found.neighbors(rows)) == ["b", "c", "b", "alone", "y", "x"]


def test_neighbors_are_the_second_view_in_training_alone(text: Path) -> None:
    module = data(text, transform=plain_text(2), neighbors=True)
    module.setup("fit")
    raw = module.train_dataloader()._loader.dataset.__getitems__([3, 22])
    views = module.train_views(raw, 0).views
    plain = data(text, transform=plain_text())
    plain.setup("fit")
    source = plain.train_dataloader()._loader.dataset
    first, second = (
        plain.train_views(source.__getitems__(x), 0).views[0] for x in ([3, 22], [4, 21])
    )
    for view, wanted in zip(views, (first, second), strict=True):
        assert torch.equal(view.ids, wanted.ids)
        assert torch.equal(view.lengths, wanted.lengths)
    assert len(next(iter(module.eval_dataloaders().bank)).views) == 1
    assert module.has_pairs()
    assert not plain.has_pairs()
    with pytest.raises(ValueError, match=r"at least two views for neighbors, got 1"):
        data(text, transform=plain_text(), neighbors=True)


def test_long_text_is_cut_and_short_text_padded() -> None:
    tokenizer = WordPiece(60)
    text = ListLines(["a man", "a man plays the red guitar", "!"])
    tokenizer.prepare(walk(text))
    batch = Sentences(Text(text), tokenizer, 4).__getitems__([1, 0, 2])
    assert batch.views[0].lengths.tolist() == [4, 2, 1]
    assert batch.views[0].ids.shape == (3, 4)
    ids = [tokenizer.id_of(word) for word in ("a", "man", "plays", "the", "red")]
    assert batch.views[0].ids.tolist()[:2] == [ids[:4], [*ids[:2], 0, 0]]
    assert batch.index.tolist() == [1, 0, 2]


def test_a_vocabulary_depends_on_the_text_alone(tmp_path: Path) -> None:
    """Not on the order in which a process hashes its words, which no two have alike."""
    tokenizer = WordPiece(60)
    tokenizer.prepare(sentences())
    assert tokenizer.digest == "a1e4e736d2c202f73f67c3049cb8be338fbfcdc71bc452ecb395f985871afd53"
    assert tokenizer.special == Special()
    path = str(tmp_path / "vocabulary.json")
    tokenizer.save(path)
    loaded = WordPiece(path=path)
    loaded.prepare([])
    assert loaded.digest == tokenizer.digest
    assert loaded.num_ids == tokenizer.num_ids <= 60
    assert loaded.encode(["A m\u00e1n PLAYS"]) == tokenizer.encode(["a man plays"])
    assert tokenizer.id_of("man") is not None
    assert tokenizer.id_of("unheard-of") is None
    assert tokenizer.encode(["mans"]) == [[tokenizer.id_of("man"), tokenizer.id_of("##s")]]


def test_deletion_is_added_to_a_vocabulary_that_lacks_it(tmp_path: Path) -> None:
    import tokenizers

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "man": 5}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    path = str(tmp_path / "bert.json")
    tokenizers.Tokenizer(model).save(path)
    loaded = WordPiece(path=path)
    loaded.prepare([])
    assert loaded.special.deleted == 6
    assert loaded.num_ids == 7
    del vocabulary["[MASK]"]
    tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")).save(path)
    with pytest.raises(ValueError, match=r"lacks \['\[MASK\]'\]"):
        WordPiece(path=path).prepare([])


def test_views_depend_on_seed_epoch_and_index_alone(text: Path) -> None:
    module = data(text)
    module.setup("fit")
    train = module.train_dataloader()._loader.dataset
    whole = module.train_views(train.__getitems__([3, 8, 11]), 2)
    alone = module.train_views(train.__getitems__([3]), 2)
    for view, one in zip(whole.views, alone.views, strict=True):
        n = int(one.lengths)
        assert int(view.lengths[0]) == n
        assert torch.equal(view.ids[0, :n], one.ids[0, :n])
    other = module.train_views(train.__getitems__([3, 8, 11]), 3)
    assert not torch.equal(whole.views[0].ids, other.views[0].ids)
    assert torch.equal(whole.views[2].ids, other.views[2].ids)
    assert torch.equal(module.eval_views(train.__getitems__([3, 8, 11])).views[0].ids,
                       whole.views[2].ids)  # fmt: skip


class Recorder(LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        views = [
            [row[:n] for row, n in zip(view.ids.tolist(), view.lengths.tolist(), strict=True)]
            for view in batch.views
        ]
        self.seen.append((batch.index.tolist(), views))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.views[0].ids[0, 0] == Special().cls


def fit(path: Path, folder: Path, resume: Path | None = None, **changes: Any) -> Recorder:
    module = Recorder()
    save = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[] if resume else [save],
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data(path, **changes), ckpt_path=resume)
    return module


@pytest.mark.parametrize("workers", [0, 2])
def test_every_checkpoint_resumes_exactly(text: Path, tmp_path: Path, workers: int) -> None:
    whole = fit(text, tmp_path / "runs")
    assert len(whole.seen) == 15
    for step in (1, 4, 5, 7, 10) if workers == 0 else (7,):
        path = tmp_path / "runs" / f"{step}.ckpt"
        assert fit(text, tmp_path, path, num_workers=workers).seen == whole.seen[step:]


def test_another_vocabulary_is_refused(text: Path, tmp_path: Path) -> None:
    fit(text, tmp_path / "runs")
    text.write_text(text.read_text().replace("guitar", "violin"))
    with pytest.raises(ValueError, match="digest must be that of the checkpoint"):
        fit(text, tmp_path, tmp_path / "runs" / "7.ckpt")


def first_batch(rank: int, path: Path) -> tuple[list[int], list[list[int]]]:
    module = data(path)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    view = module.train_views(batch, 0).views[0]
    rows = [row[:n] for row, n in zip(view.ids.tolist(), view.lengths.tolist(), strict=True)]
    return batch.index.tolist(), rows


def test_two_ranks_share_the_batch_of_one(text: Path, ranks: Ranks) -> None:
    index, views = first_batch(0, text)
    parts = ranks(2, first_batch, text)
    assert [row for part in parts for row in part[0]] == index
    assert [row for part in parts for row in part[1]] == views


def test_labeled_sentences_and_pairs(text: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("no\ta man\nyes\tthe dogs\tsing\nno\tgrass\n")
    (tmp_path / "test.tsv").write_text("yes\tred\n")
    (tmp_path / "dev.csv").write_text('"a man, red",the dogs,2.5\ngrass,green grass,4\n')
    module = data(
        text,
        labeled_train=str(tmp_path / "train.tsv"),
        labeled_test=str(tmp_path / "test.tsv"),
        pairs={"dev": str(tmp_path / "dev.csv")},
    )
    module.setup()
    assert module.num_classes == 2
    loaders = module.eval_dataloaders()
    (bank,), (query,) = list(loaders.bank), list(loaders.query)
    assert bank.label.tolist() == [0, 1, 0]
    assert query.label.tolist() == [1]
    (pairs,) = list(module.similarity_dataloaders()["dev"].bank)
    assert pairs.label.tolist() == [2.5, 2.5, 4, 4]
    assert module.sets.pairs["dev"].lines.read([0, 1]) == ["a man, red", "the dogs"]
    (tmp_path / "other.tsv").write_text("maybe\tred\n")
    with pytest.raises(ValueError, match=r"training lacks: \['maybe'\]"):
        read_labeled(tmp_path / "other.tsv", ["no", "yes"])
    (tmp_path / "other.tsv").write_text("a man\n")
    with pytest.raises(ValueError, match=r"line 1 is 'a man'"):
        read_labeled(tmp_path / "other.tsv")


def test_stsb_trains_on_distinct_sentences(tmp_path: Path) -> None:
    folder = tmp_path / "stsb"
    folder.mkdir()
    (folder / "train.csv").write_text("a man,the dogs,1.0\nthe dogs,red grass,2.0\n")
    (folder / "dev.csv").write_text("a man,the man,5.0\n")
    (folder / "test.csv").write_text("a man,two men,4.2\n")
    for root in (tmp_path, folder):
        module = STSB(str(root), plain_text(), WordPiece(60), batch_size=2)
        module.setup("fit")
        assert list(walk(module.sets.train.lines)) == ["a man", "the dogs", "red grass"]
        assert list(module.similarity_dataloaders()) == ["dev", "test"]
    (folder / "dev.csv").write_text("a man,the man\n")
    with pytest.raises(ValueError, match=r"row 1 is \['a man', 'the man'\]"):
        STSB(str(root), plain_text(), WordPiece(60)).setup()


def test_errors_name_what_they_got(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must exist and not be empty"):
        FileLines(tmp_path / "none.txt")
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="must have a line of text"):
        FileLines(tmp_path / "blank.txt")
    with pytest.raises(ValueError, match="scored pairs must exist"):
        read_pairs(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        data(text, max_length=2)
    with pytest.raises(ValueError, match="must be given together, got 'x' and None"):
        data(text, labeled_train="x")
    with pytest.raises(ValueError, match="num_ids must be at least 7, got 6"):
        WordPiece(6).prepare(["a"])
    with pytest.raises(ValueError, match=r"call prepare\(lines\)"):
        WordPiece(60).encode(["a"])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'sslzoo\[text\]'"):
        WordPiece(60).prepare(["a"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        HFTokenizer("bert-base-uncased").prepare([])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        HFText("ag_news", plain_text(), WordPiece(60)).setup()


def test_a_file_or_folder_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text("no JSON")
    with pytest.raises(ValueError, match=r"path must be a JSON file of `tokenizers`, got .*words"):
        WordPiece(path=str(tmp_path / "words.json")).prepare([])
    pytest.importorskip("transformers")
    for local in (False, True):
        with pytest.raises(ValueError, match=r"name must be that of a tokenizer on .*/none/at/all"):
            HFTokenizer("/none/at/all", local_files_only=local).prepare([])


def test_a_tokenizer_of_clip_has_its_tokens_of_start_and_end(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    made = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    made.save_pretrained(tmp_path / "saved")
    tokenizer = HFTokenizer(str(tmp_path / "saved"), local_files_only=True)
    tokenizer.prepare([])
    assert tokenizer.num_ids == len(words)  # none is added
    assert (tokenizer.special.cls, tokenizer.special.sep) == (5, 6)
    assert tokenizer.encode(["ab", "b"]) == [[4], [3]]


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets")
def test_hugging_face_data_set(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = "".join(f'{{"text": "{line}", "label": {i % 2}}}\n' for i, line in
                       enumerate(sentences(8)))  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text(rows)
    module = HFText(str(tmp_path), plain_text(), WordPiece(60), label="label", batch_size=4)
    module.setup("fit")
    assert module.num_samples == 8
    assert module.num_classes == 2
    (bank,) = list(module.eval_dataloaders().bank)
    assert bank.label.tolist() == [0, 1] * 4


def test_windows_are_consecutive_lines_at_an_offset_of_the_epoch(text: Path) -> None:
    module = data(text, transform=plain_text(), window=3)
    module.setup("fit")
    assert module.num_samples == (23 - 2) // 3
    loader, offsets = module.train_dataloader(), set()
    single = module.eval_source(module.sets.train)
    for epoch in range(12):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            (view,) = module.train_views(batch, epoch).views
            assert view.ids.shape[:2] == (4, 3)
            for row, i in enumerate(batch.index.tolist()):
                found = [
                    o
                    for o in range(3)
                    if view.lengths[row].tolist()
                    == [min(6, 1 + (3 * i + o + s) % 9) + 2 for s in range(3)]
                ]
                (offset,) = found
                offsets.add((epoch, offset))
                lines = list(range(3 * i + offset, 3 * i + offset + 3))
                (wanted,) = module.eval_views(single.__getitems__(lines)).views
                inside = wanted.mask
                size = wanted.ids.shape[1]
                assert torch.equal(view.ids[row, :, :size][inside], wanted.ids[inside])
    assert len(offsets) == 12
    assert {offset for _, offset in offsets} == {0, 1, 2}


def test_each_line_of_a_window_has_draws_of_its_own() -> None:
    views = clear_views([WordDeletion(0.5)], original=False)
    ids = torch.arange(6, 18).expand(2, 4, 12)
    (first, second) = views(
        Tokens(ids, torch.full((2, 4), 12)), sample_keys(0, 0, torch.arange(2)), Special()
    )
    kept = [tuple(row) for view in (first, second) for row in view.ids.flatten(0, 1).tolist()]
    assert len(set(kept)) == 16


def test_a_text_shorter_than_its_windows_is_named(text: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 25 lines \(2 window - 1\), got 23"):
        data(text, transform=plain_text(), window=13).setup("fit")
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        data(text, window=0)


def test_windows_are_refused_by_methods_of_single_sentences(text: Path) -> None:
    batch = Batch(
        [Tokens(torch.zeros(2, 3, 4, dtype=torch.int64), torch.ones(2, 3))], torch.arange(2)
    )
    with pytest.raises(ValueError, match=r"single sentences, .*; set window=1 in the data module"):
        ViewSpec(1, 1, kind="tokens").check(batch, "SimCSE")


def test_cpc_trains_on_windows_of_lines(text: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = SentenceSequence(SentenceConv(60, 8, 6), Recurrent(8, 10))
    method = CPC(backbone, LinearSteps(10, 8, 2), optimizer=torch.optim.SGD)
    module = data(text, transform=plain_text(), window=4, batch_size=2)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(method, module)
    assert method.step == 2
    assert method(module.encoder_input()(["a man", "two dogs run"])).shape == (2, 8)


def fits(module: TextLines, folder: Path, **options: Any) -> SimCSE:
    torch.manual_seed(0)
    sizes = {"width": 8, "depth": 1, "heads": 2, **options}
    method = SimCSE(
        SmallTransformer(60, **sizes), TanhHead(8), optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_steps=1, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(method, module)
    return method


def test_simcse_without_dropout_needs_a_second_view(text: Path, tmp_path: Path) -> None:
    one = data(text, transform=plain_text())
    assert fits(one, tmp_path).step == 1
    with pytest.raises(ValueError, match=r"the backbone of SimCSE must have dropout, .* got equal"):
        fits(one, tmp_path, dropout=0.0)
    two = data(text, transform=plain_text(2), neighbors=True)
    assert fits(two, tmp_path, dropout=0.0).step == 1


def test_a_backbone_with_fewer_positions_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length of backbone must be at least .*, got 5"):
        fits(data(text, transform=plain_text()), tmp_path, max_length=5)
