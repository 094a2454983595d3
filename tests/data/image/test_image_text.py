"""Folders and tables of images with texts: pairs, draws, cut texts, and what is refused."""

from __future__ import annotations

import csv
import importlib
import math
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from PIL import Image
from torch.utils.data import DataLoader

from sslzoo.batch import Tokens
from sslzoo.callbacks import OnlineRetrieval, OnlineZeroShot
from sslzoo.data import HFTokenizer, ImageList, ImageTextFolder, ImageTextList, TextLines
from sslzoo.data.text.tokenizer import WordPiece, _canonical, cleaned
from sslzoo.transforms import clip_views, plain_text, simclr_views
from tests.data.toys import clip, quiet
from tests.ranks import Ranks

pytest.importorskip("tokenizers")

COLORS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 30, 210)}


def write(folder: Path, name: str, color: str, captions: list[str] | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(name) + sum(map(ord, name)))
    pixels = np.clip(draw.normal(COLORS[color], 30, (16, 16, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    if captions is not None:
        (folder / f"{name}.txt").write_text("\n".join(captions) + "\n")


def tree(root: Path, per_color: int = 4) -> Path:
    for part in ("train", "val"):
        for color in COLORS:
            for i in range(per_color):
                captions = [f"a {color} square", f"{color}, number {i}"][: 1 + i % 2]
                write(root / part / color, f"{color}{i}", color, captions)
    return root


def folder(root: Path, **changes: Any) -> ImageTextFolder:
    options: dict[str, Any] = {"batch_size": 6, "num_workers": 0, "seed": 0, "max_length": 12}
    return ImageTextFolder(str(root), clip_views(16), WordPiece(100), **{**options, **changes})


def warns(message: str) -> Any:
    return pytest.warns(UserWarning, match=message)


def words(data: Any, tokens: Tokens) -> list[str]:
    """The texts that ids stand for, lower-cased."""
    special = set(data.tokenizer.special)
    decode = data.tokenizer._ready().decode
    rows = zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)
    return [decode([i for i in ids[:n] if i not in special]) for ids, n in rows]


def test_images_and_texts_stay_together(tmp_path: Path) -> None:
    data = folder(tree(tmp_path))
    data.setup("fit")
    seen: dict[int, set[str]] = {}
    for epoch in range(6):
        batch = data.preview(list(range(12)), epoch)
        image, text = batch.views
        assert image.shape == (12, 3, 16, 16)
        for i, said in zip(batch.index.tolist(), words(data, text), strict=True):
            own = [" ".join(t.replace(",", " ,").split()) for t in data.sets.train.captions.of(i)]
            assert said in own
            seen.setdefault(i, set()).add(said)
    assert {len(found) for found in seen.values()} == {1, 2}  # several captions are all drawn


def test_a_caption_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    data = folder(tree(tmp_path))
    data.setup("fit")
    whole = data.preview(list(range(12)), 3)
    part = data.preview([7, 2], 3)
    for row, index in enumerate((7, 2)):
        length = int(part.views[1].lengths[row])
        assert torch.equal(part.views[1].ids[row, :length], whole.views[1].ids[index, :length])


def test_evaluation_has_every_caption(tmp_path: Path) -> None:
    data = folder(tree(tmp_path), labels=True)
    data.setup("validate")
    assert data.classes == sorted(COLORS)
    batch = next(iter(data.eval_loader(data.sets.query)))
    texts = data.eval_views(batch).views[1]
    assert texts.ids.shape[:2] == (12, 2)
    assert (texts.lengths > 2).sum(1).tolist() == [1 + int(i) % 2 for i in batch.index]


def test_a_subset_keeps_its_captions_and_the_fingerprint_has_them(tmp_path: Path) -> None:
    data = folder(tree(tmp_path))
    data.setup("fit")
    part = data.sets.train.subset(torch.tensor([5, 0]))
    batch = data.eval_source(part).__getitems__([0, 1])
    texts = data.eval_views(batch).views[1]
    flat = Tokens(texts.ids[:, 0], texts.lengths[:, 0])
    assert words(data, flat) == ["a green square", "a blue square"]
    before = data.fingerprint()
    (tmp_path / "val" / "red" / "red0.txt").write_text("another")
    other = folder(tmp_path)
    other.setup("fit")
    assert other.fingerprint() != before


def unequal(root: Path) -> list[str]:
    """The captions of one image, which has many; all others have one or two."""
    tree(root)
    many = [f"{a} {b} square, number {i}" for a in COLORS for b in COLORS for i in range(9)]
    write(root / "val" / "green", "green2", "green", many)
    return many


def retrieved(rank: int, root: Path, world: int) -> dict[str, float]:
    warnings.filterwarnings("ignore", module="lightning")
    torch.manual_seed(0)
    method, trainer = clip(), quiet([OnlineRetrieval((1, 3, 20))])
    if world > 1:
        trainer = Trainer(
            accelerator="cpu", devices=world, strategy="ddp", plugins=[TorchElasticEnvironment()],
            callbacks=[OnlineRetrieval((1, 3, 20))], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
    found = trainer.validate(method, folder(root, eval_batch_size=5), verbose=False)[0]
    return dict(found)


def test_a_file_of_a_tokenizer_pads_and_cuts_nothing(tmp_path: Path) -> None:
    """As that of sentence-transformers' models, which brings both."""
    whole = WordPiece(60)
    whole.prepare(["a red square", "a green square"])
    wanted = whole.encode(["a red square", "a"])
    whole._tokenizer.enable_padding(length=16)
    whole._tokenizer.enable_truncation(2)
    whole.save(str(tmp_path / "tokenizer.json"))
    again = WordPiece(path=str(tmp_path / "tokenizer.json"))
    again.prepare([])
    assert again.encode(["a red square", "a"]) == wanted
    assert WordPiece.from_json(whole.to_json()).encode(["a red square", "a"]) == wanted


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
def test_two_ranks_retrieve_the_same(tmp_path: Path, ranks: Ranks) -> None:
    unequal(tmp_path)
    one = retrieved(0, tmp_path, 1)
    assert len(one) == 6
    assert ranks(2, retrieved, tmp_path, 2) == [pytest.approx(one, abs=1e-6)] * 2


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
def test_retrieval_of_very_unequal_captions_is_exact_and_embeds_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = unequal(tmp_path)
    data, method, ks = folder(tmp_path, eval_batch_size=5), clip(), (1, 3, 20)
    embed, seen = method.embed_text, list[int]()
    trainer = quiet([OnlineRetrieval(ks)])
    monkeypatch.setattr(method, "embed_text", lambda x: seen.append(len(x.ids)) or embed(x))
    trainer.validate(method, data, verbose=False)
    assert sum(seen) == 17 + len(many)
    assert max(seen) == 5  # at most as many texts at a time as images
    batches = list(data.eval_loader(data.sets.query))
    assert sorted(batch.views[1].ids.shape[1] for batch in batches) == [2, 2, len(many)]
    query = data.sets.query
    whole = data.eval_views(query.__getitems__(list(range(12))))
    texts = [(text, i) for i in range(12) for text in query.captions.of(i)]
    with torch.no_grad():
        images = method.eval().embed_image(whole.views[0])
        scores = images @ embed(data.tokens([text for text, _ in texts])).T
    owner = torch.tensor([i for _, i in texts])
    own = owner == torch.arange(12)[:, None]
    best = scores.masked_fill(~own, -1).amax(1, keepdim=True)
    ranks = {
        "image_to_text": ((scores >= best) & ~own).sum(1),
        "text_to_image": ((scores >= scores.masked_fill(~own, -1).amax(0)) & ~own).sum(0),
    }
    for way, rank in ranks.items():
        for k in ks:
            found = trainer.callback_metrics[f"val/{way}_r{k}"].item()
            assert found == pytest.approx((rank < k).float().mean().item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decode", ["array", "workers"])
def test_it_trains_and_finds_texts_and_classes(tmp_path: Path, workers: int, decode: str) -> None:
    data = folder(tree(tmp_path), labels=True, num_workers=workers, decode=decode, max_length=9)
    torch.manual_seed(0)
    epochs = 25 if workers == 0 and decode == "array" else 1
    retrieval = OnlineRetrieval((1, 5), every_n_epochs=30)
    zero_shot = OnlineZeroShot(templates=["a {} square"], every_n_epochs=30)
    trainer = quiet([retrieval, zero_shot], epochs)
    trainer.fit(clip(max_length=9), data)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert set(found) >= {"val/image_to_text_r1", "val/text_to_image_r5", "val/zero_shot_top1"}
    if epochs == 25:
        assert found["val/zero_shot_top1"] > 0.6


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    tree(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "red" / "red0.txt").write_text("red " * 40)
    data = folder(tmp_path)
    with warns("1 of 18 training texts are longer than 12"), warns("1 of 18 validation texts are"):
        data.setup("fit")
    batch = data.preview(list(range(12)))
    assert batch.views[1].lengths.max() == 12


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
def test_texts_without_tokens_are_counted_and_missing(tmp_path: Path) -> None:
    """A combining accent is stripped by the tokenizer."""
    tree(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "red" / "red0.txt").write_text("\u0301\n", encoding="utf-8")
    data = folder(tmp_path)
    with warns("1 of 18 training texts have no tok"), warns("1 of 18 validation texts have no to"):
        data.setup("fit")
    texts = data.eval_views(next(iter(data.eval_loader(data.sets.query)))).views[1]
    assert (texts.lengths == 0).sum(1).tolist().count(2) == 1
    method, trainer = clip(), quiet([OnlineRetrieval((1, 20))])
    with warns("1 of 18 training texts have no tok"), warns("1 of 18 validation texts have no to"):
        trainer.fit(method, folder(tmp_path))
    assert trainer.callback_metrics["val/image_to_text_r20"] > 0
    for path in (tmp_path / "val").rglob("*.txt"):
        path.write_text("\u0301\n", encoding="utf-8")
    wanted = "must have tokens, but 12 of 12 validation texts have no"
    with warns("1 of 18 training texts"), pytest.raises(ValueError, match=wanted):
        folder(tmp_path).setup("fit")


def without_start(folder: Path, more: dict[str, str] | None = None, **options: Any) -> HFTokenizer:
    """A SentencePiece-like tokenizer, which has a token of the end alone."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<pad>", "</s>", "<unk>", "\u2581a", "\u2581red", "\u2581green", "\u2581square"]
    model = tokenizers.models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **(more or {})}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)
    fast.save_pretrained(folder / "tokenizer")
    return HFTokenizer(str(folder / "tokenizer"), local_files_only=True, **options)


def test_a_token_of_the_start_that_a_tokenizer_does_not_use_is_not_added(tmp_path: Path) -> None:
    """As Gemma's in SigLIP 2."""
    tokenizer = without_start(tmp_path, {"bos_token": "\u2581green"})
    tokenizer.prepare([])
    assert (tokenizer.special.cls, tokenizer.special.sep) == (-1, 1)


def test_canonical_texts_have_neither_case_nor_punctuation(tmp_path: Path) -> None:
    plain, canonical = without_start(tmp_path), without_start(tmp_path, canonical=True)
    for tokenizer in (plain, canonical):
        tokenizer.prepare([])
    assert plain.encode(["A, red_square!"]) != canonical.encode(["A, red_square!"])
    assert canonical.encode(["A, red_square!"]) == [[3, 4, 6]]
    assert plain.digest != canonical.digest


# By _clean_whitespace and _clean_canonicalize of open_clip_torch 3.3.0 with ftfy 6.3.1.
CLEANED = [
    ("schÃ¶ne KÃ¼ste", "schöne Küste", "schöne küste"),
    ("Tom &amp;amp; Jerry &lt;3", "Tom & Jerry <3", "tom jerry 3"),
    ("  a\t red \n dog  ", "a red dog", "a red dog"),
    ("\u201cquoted\u201d it\u2019s", '"quoted" it\'s', "quoted its"),
    ("\ufb01re &eacute;tude", "fire étude", "fire étude"),
    ("A_b, c!  D&amp;D", "A_b, c! D&D", "a b c dd"),
    ("cafe\u0301", "caf\xe9", "caf\xe9"),
    ("\x1b[31mred\x1b[0m \ufeffend", "red end", "red end"),
    ("a&nbsp;b", "a b", "a b"),
]


@pytest.mark.parametrize(("text", "clean", "canonical"), CLEANED)
def test_texts_are_cleaned_as_open_clips(text: str, clean: str, canonical: str) -> None:
    pytest.importorskip("ftfy")
    assert cleaned(text) == clean
    assert _canonical(cleaned(text)) == canonical


def test_cleaning_comes_before_the_tokenizer_and_needs_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [{}, {"clean": True}, {"clean": True, "canonical": True}]
    every = [without_start(tmp_path, **each) for each in options]
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ValueError, match=r"clean needs the package ftfy.*sslzoo\[text\]"):
        every[1].prepare([])
    monkeypatch.setitem(sys.modules, "ftfy", SimpleNamespace(fix_text=str.strip))
    for tokenizer in every:
        tokenizer.prepare([])
    plain, clean, both = ([t.encode(["&lt;red  &amp;lt;A"])[0]] for t in every)
    assert (clean, both) == (every[0].encode(["<red <A"]), [[4, 3]])
    assert plain != clean
    assert len({tokenizer.digest for tokenizer in every}) == 3


def test_a_tokenizer_without_a_start_frames_texts_by_the_end_alone(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "train", f"r{number}", "red", ["red"] if number else ["a red square"])
    data = ImageTextFolder(
        *(str(tmp_path), clip_views(16), without_start(tmp_path), 2, 9), num_workers=0, val_dir=None
    )
    data.setup("fit")
    (_, text) = data.preview([0, 1]).views
    assert text.ids.tolist() == [[3, 4, 6, 1], [4, 1, 0, 0]]
    assert text.lengths.tolist() == [4, 2]
    with pytest.warns(UserWarning, match="1 of 2 zero-shot texts are longer than 9 tokens"):
        data.check_texts(["a" + " a" * 7, "a" + " a" * 8], "zero-shot")
    assert data.tokens(["a" + " a" * 8]).ids.tolist() == [[3] * 8 + [1]]
    batch = data.eval_source(data.sets.train).__getitems__([0, 1])
    assert data.eval_views(batch).views[1].lengths.tolist() == [[4], [2]]  # none counts as missing
    (tmp_path / "lines.txt").write_text("a red square\n" * 8)
    lines = TextLines(
        str(tmp_path / "lines.txt"), plain_text(), without_start(tmp_path / "b"), batch_size=2
    )
    with pytest.raises(ValueError, match="tokenizer must have a token of the start"):
        lines.setup("fit")


def test_an_unreadable_image_is_replaced_with_its_text(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "train" / "blue" / "blue1.png").write_bytes(b"no image")
    data = folder(tmp_path, on_broken="skip")
    data.setup("fit")
    with pytest.warns(UserWarning, match="skipped an unreadable image"):
        batch = data.preview(list(range(12)))
    captions = data.sets.train.captions
    for i, said in zip(batch.index.tolist(), words(data, batch.views[1]), strict=True):
        assert said.split()[0] in " ".join(captions.of(i))
        assert i != 1


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec")
@pytest.mark.filterwarnings("ignore:skipped .* unreadable")
def test_the_first_validation_images_may_be_unreadable(tmp_path: Path) -> None:
    tree(tmp_path)
    for number in range(3):  # more than a rehearsal reads
        (tmp_path / "val" / "blue" / f"blue{number}.png").write_bytes(b"no image")
    data = folder(tmp_path, on_broken="skip", labels=True)
    trainer = quiet([OnlineRetrieval((1,)), OnlineZeroShot()])
    trainer.fit(clip(), data)
    assert "val/image_to_text_r1" in trainer.callback_metrics
    assert data.sets.query.num_broken == 3


def test_state_has_the_tokenizer(tmp_path: Path) -> None:
    data = folder(tree(tmp_path))
    data.setup("fit")
    state = data.state_dict()
    data.load_state_dict(state)
    with pytest.raises(ValueError, match="tokenizer's digest must be that of the checkpoint"):
        data.load_state_dict({**state, "tokenizer": "other"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "red0.txt").unlink(), "1 images without a .txt file, such as .*red0.png"),
        (lambda f: (f / "red0.png").unlink(), "1 texts without an image, such as .*red0.txt"),
        (lambda f: (f / "red0.txt").write_text(" \n\n"), "1 empty texts, such as .*red0.txt"),
    ],
)
def test_what_is_alone_is_named_or_left_out(tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(tree(tmp_path) / "train" / "red")
    with pytest.raises(ValueError, match=message):
        folder(tmp_path).setup("fit")
    data = folder(tmp_path, unpaired="skip")
    data.setup("fit")
    assert data.num_samples == 11


def test_other_wrong_folders_are_refused(tmp_path: Path) -> None:
    (tree(tmp_path) / "train" / "red" / "red0.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"texts must be UTF-8, got .*red0.txt"):
        folder(tmp_path).setup("fit")
    with pytest.raises(ValueError, match=r"must be a folder, got .*nowhere"):
        folder(tmp_path / "nowhere").setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must have images with texts, got none"):
        folder(tmp_path / "empty").setup("fit")
    with pytest.raises(ValueError, match=r"validation folder \(val_dir\) must be a folder"):
        folder(tmp_path, val_dir="test").setup("fit")
    two = ImageTextFolder(str(tmp_path), simclr_views(16), WordPiece(100), 6, unpaired="skip")
    (tmp_path / "train" / "red" / "red0.txt").write_text("")
    with pytest.raises(ValueError, match=r"transform must make one view of the image .* got 2"):
        two.setup("fit")
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        folder(tmp_path, batch_size=1)
    (tmp_path / "train" / "red" / "red0.txt").unlink()
    (tmp_path / "train" / "red" / "red0.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"texts must be readable files, got .*red0.txt"):
        folder(tmp_path).setup("fit")
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        folder(tmp_path, max_length=2)
    with pytest.raises(ValueError, match="unpaired must be"):
        folder(tmp_path, unpaired="drop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ids": 10}, "num_ids of text_backbone must be at least .*, got 10"),
        ({"max_length": 8}, "max_length of text_backbone must be at least 12, the data's, got 8"),
    ],
)
def test_a_tower_that_is_too_small_is_refused(
    tmp_path: Path, options: dict[str, int], message: str
) -> None:
    given = {"num_ids": 100, "max_length": 12, **options}
    with pytest.raises(ValueError, match=message):
        quiet([]).fit(clip(**given), folder(tree(tmp_path)))


def table(root: Path, rows: list[list[str]], name: str = "pairs.csv") -> str:
    path = root / name
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows(rows)
    return str(path)


def listed(file: str, **changes: Any) -> ImageTextList:
    options: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "seed": 0, "max_length": 12}
    return ImageTextList(file, clip_views(16), WordPiece(100), **{**options, **changes})


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
def test_rows_of_one_path_are_captions_of_one_image(tmp_path: Path, name: str) -> None:
    tree(tmp_path)
    rows = [["path", "caption", "split", "kind"]]
    for part in ("train", "val"):
        for i in range(4):
            rows += [[f"{part}/red/red{i}.png", f"a red one, {i}", part, "red"]]
            rows += [[f"{part}/red/red{i}.png", "again red", part, "red"]] * (i % 2)
    data = listed(table(tmp_path, rows, name), label_column="kind")
    data.setup("fit")
    assert (data.num_samples, data.classes) == (4, ["red"])
    assert data.sets.train.captions.of(1) == ["a red one, 1", "again red"]
    assert len(data.sets.query) == 4


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (["", "a text"], {}, "1 texts without an image, such as row 2"),
        (["train/red/red1.png", " "], {}, "1 empty texts, such as row 2"),
        (["train/red/none.png", "a text"], {}, "must be of existing files, got 'train/red/none"),
        (["train/red/red1.png", "x"], {"text_column": "title"}, "among the columns .* 'title'"),
        (["train/red/red1.png", "x"], {"split_column": "part"}, "split_column must be one of"),
    ],
)
def test_wrong_tables_are_refused(
    tmp_path: Path, row: list[str], options: dict[str, Any], message: str
) -> None:
    tree(tmp_path)
    file = table(tmp_path, [["path", "caption"], ["train/red/red0.png", "a red one"], row])
    with pytest.raises(ValueError, match=message):
        listed(file, **options).setup("fit")


def parquet(root: Path, columns: dict[str, list[Any]], **options: Any) -> ImageTextList:
    arrow = pytest.importorskip("pyarrow")
    tree(root)
    paths = [f"train/red/red{i}.png" for i in range(len(columns["caption"]))]
    made = arrow.table({"path": paths, **columns})
    importlib.import_module("pyarrow.parquet").write_table(made, root / "pairs.parquet")
    return listed(str(root / "pairs.parquet"), **options)


def test_a_list_of_texts_is_several_captions(tmp_path: Path) -> None:
    data = parquet(tmp_path, {"caption": [["a  red", "b", ""], ["c"]]})
    data.setup("fit")
    assert [data.sets.train.captions.of(i) for i in range(2)] == [["a red", "b"], ["c"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": [1, 2]}, "a caption must be a text or a list of texts, got 1 in row 1 of"),
        ({"caption": [["a"], []]}, "1 empty texts, such as row 2"),
        (
            {"caption": ["a", "b"], "kind": [1.0, math.nan]},
            "must have a value, but row 2 has",
        ),
    ],
)
def test_wrong_values_of_parquet_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parquet(tmp_path, columns, label_column="kind" if "kind" in columns else None).setup("fit")


def test_broken_parquet_is_named_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"^a table must be a whole Parquet file .*pairs.parquet$"):
        listed(str(tmp_path / "pairs.parquet")).setup("fit")


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    """As those of `ImageList`: names that are given by class number fit."""
    tree(tmp_path)
    rows = [[f"train/red/red{i}.png", "red", kind] for i, kind in enumerate(["10", "9", "2"])]
    data = listed(table(tmp_path, [["path", "caption", "kind"], *rows]), label_column="kind")
    data.setup("fit")
    assert data.classes == ["2", "9", "10"]
    assert data.sets.train.labels.tolist() == [2, 1, 0]


def test_quote_marks_of_a_tsv_are_characters(tmp_path: Path) -> None:
    tree(tmp_path)
    lines = ["path\tcaption", 'train/red/red0.png\t"a 5 inch one', 'train/red/red1.png\tred" b']
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    data = listed(str(tmp_path / "pairs.tsv"))
    data.setup("fit")
    assert data.sets.train.captions.walk() == ['"a 5 inch one', 'red" b']


def test_an_image_is_one_however_its_path_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ["red1.png", "./red0.png", "../red/red0.png", str(tmp_path / "train/red/red0.png")]
    rows = [["path", "caption"], *([path, f"red {i}"] for i, path in enumerate(paths))]
    data = listed(table(tmp_path, rows), root="~/train/red")
    data.setup("fit")
    captions = data.sets.train.captions
    assert [captions.of(i) for i in range(len(captions))] == [
        ["red 0"],
        ["red 1", "red 2", "red 3"],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,caption\na.png,red\nb.png,caf\xe9\n", "must be UTF-8, got .* in line 3 of .*.csv"),
        ("path,caption\na.png,red\n".encode("utf-16"), "must be UTF-8, got .* in line 1 of"),
        (b"path,caption\na.png," + b"a" * 200_000, "field larger than field limit .* in line 2"),
        (b"path;caption\na.png;red\n", "got 'path'; columns are separated by a comma in .csv"),
        (b"path;caption\na.png;red, big\n", "got another number in line 2 .* by a comma in .csv"),
        (
            b'path,caption\na.png,"b\nc.png,d\n',
            "unexpected end of data in line",
        ),  # would be one row
        (b'path,caption\na.png,"b\nc.png,"d\n', "expected after .* in line"),
        (b"path,caption,caption\na.png,b,c\n", "different names, got 'caption' twice"),
        (b"path,caption\na.png,a\0b\n", "must be UTF-8 without NUL, got 'a.* in row 1"),
    ],
)
def test_a_table_of_another_form_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        listed(str(tmp_path / "pairs.csv")).setup("fit")


@pytest.mark.parametrize("labels", [None, ["", ""]])
def test_a_label_column_that_is_not_there_is_refused(
    tmp_path: Path, labels: list[str] | None
) -> None:
    tree(tmp_path)
    rows = [["path", "caption"], ["train/red/red0.png", "a"], ["train/red/red1.png", "b"]]
    if labels is not None:
        rows = [[*row, end] for row, end in zip(rows, ["label", *labels], strict=True)]
    with pytest.raises(ValueError, match=r"label_column must be a column of .*, got 'label'"):
        listed(table(tmp_path, rows), label_column="label").setup("fit")


def test_a_missing_table_or_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a table must be an existing file of .csv"):
        listed(str(tmp_path / "none.csv")).setup("fit")
    tree(tmp_path)
    rows = [["path", "caption", "split"], ["train/red/red0.png", "red", "all"]]
    with pytest.raises(ValueError, match=r"train_split must be one of the splits \['all'\]"):
        listed(table(tmp_path, rows)).setup("fit")


def test_rows_of_other_splits_are_said(tmp_path: Path, caplog: Any) -> None:
    tree(tmp_path)
    splits = ["train", "train", "val", "train ", "test"]
    rows = [[f"train/red/red{i % 4}.png", "red", split] for i, split in enumerate(splits)]
    file = table(tmp_path, [["path", "caption", "split"], *rows])
    for data in (listed(file), ImageList(file, clip_views(16), batch_size=2)):
        with caplog.at_level("INFO"):
            data.setup("fit")
        assert f"the rows of the splits 'train ' (1), 'test' (1) of {file}" in caplog.text
        caplog.clear()


@pytest.mark.filterwarnings("ignore:skipped .* unreadable")
def test_missing_files_may_be_skipped_unless_there_is_no_other(tmp_path: Path) -> None:
    tree(tmp_path)
    names = ["none.png", "train/red/red0.png", "train/red/red1.png"]
    file = table(tmp_path, [["path", "caption"], *([name, "red"] for name in names)])
    data = listed(file, on_broken="skip")
    for each in (data, ImageList(file, clip_views(16), batch_size=2, on_broken="skip")):
        each.setup("fit")
        assert each.num_samples >= 2
    data.preview([0, 1, 2])
    assert data.num_broken == 1
    file = table(tmp_path, [["path", "caption"], ["none.png", "red"], ["no.png", "red"]])
    for each in (
        listed(file, on_broken="skip"),
        ImageList(file, clip_views(16), batch_size=2, on_broken="skip"),
    ):
        with pytest.raises(ValueError, match="must be of existing files, got 'none"):
            each.setup("fit")


def test_two_images_of_one_name_are_refused_and_other_files_are_said(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "train" / "red" / "notes.md").write_text("about")
    with pytest.warns(UserWarning, match=r"notes\.md"):
        folder(tmp_path).setup("fit")
    (tmp_path / "train" / "red" / "notes.md").unlink()
    write(tmp_path / "train" / "red", "red0", "red", ["a red square"])
    Image.new("RGB", (16, 16)).save(tmp_path / "train" / "red" / "red0.jpg")
    with pytest.raises(ValueError, match=r"images must have different names, .*red0\.(png|jpg)"):
        folder(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": []}, r"names must be a list of different texts, got \[\]"),
        ({"names": "abc"}, "names must be a list of different texts, got 'abc'"),
        ({"names": [1, 2, 3]}, "names must be a list of different texts"),
        ({"names": ["a", "", "c"]}, "names must be a list of different texts"),
        ({"names": ["a", "a", "c"]}, "names must be a list of different texts"),
        ({"templates": "a {}"}, "templates must be a list of different texts, got 'a {}'"),
        ({"templates": ["a {name}"]}, "every template must have {} for the name, got 'a {name}'"),
        ({"ks": (0,)}, "ks must be at least 1, got 0"),
    ],
)
def test_wrong_names_and_templates_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineZeroShot(**options)


@pytest.mark.filterwarnings("ignore")  # of cut texts
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a", "b"]}, "names must be those of the 3 classes, got 2 names"),
        ({"ks": (1, 5)}, "ks must be at most the 3 classes, got 5"),
        ({"names": ["red", "Red", "blue"]}, "names must differ .*, got 'red' and 'Red' with"),
        ({"templates": ["a " * 12 + "{}"]}, "names must differ in .*; longer texts than max_leng"),
    ],
)
def test_classes_that_a_tower_cannot_tell_apart_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    method = clip()
    with pytest.raises(ValueError, match=message):
        quiet([OnlineZeroShot(**options)]).fit(method, folder(tree(tmp_path), labels=True))
    assert method.step == 0


class WithoutTexts(LightningDataModule):
    """Batches as `ImageTextFolder` gives them, of a module that cannot make texts."""

    def __init__(self, data: ImageTextFolder) -> None:
        super().__init__()
        self.data, self.classes = data, data.classes

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([self.data.preview(list(range(6)))], batch_size=None)  # type: ignore[arg-type]

    def eval_dataloaders(self) -> Any:
        return self.data.eval_dataloaders()


@pytest.mark.filterwarnings("ignore")  # Lightning's, of loaders
@pytest.mark.parametrize("callback", [OnlineRetrieval, OnlineZeroShot])
def test_data_without_texts_is_refused_before_the_first_step(tmp_path: Path, callback: Any) -> None:
    data = folder(tree(tmp_path), labels=True)
    data.setup("fit")
    method = clip()
    with pytest.raises(ValueError, match=r"must be one of images with texts for .* WithoutTexts"):
        quiet([callback()]).fit(method, WithoutTexts(data))
    assert method.step == 0
