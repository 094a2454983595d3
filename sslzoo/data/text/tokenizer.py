"""Tokenizers: text to ids without [CLS] and [SEP]; trained on the data, or pre-trained."""

from __future__ import annotations

import hashlib
import html
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslzoo.atomic_write import atomic_write
from sslzoo.batch import Tokens
from sslzoo.checks import check_at_least
from sslzoo.transforms.text.special import Special, with_special
from sslzoo.trust.hub_cache import folder_on_disk

NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEL]")  # in the order of `Special`

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextTokenizer(ABC):
    """Base class of the tokenizers; `prepare` must be called before any other method.

    Attributes:
        special: ids of the special tokens; [DEL] is a token of the vocabulary.
    """

    special: Special

    @abstractmethod
    def prepare(self, lines: Iterable[str]) -> None:
        """Load, or train on the training text; called once, on every rank."""

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """Size of the vocabulary: the largest id plus 1."""

    @abstractmethod
    def id_of(self, word: str) -> int | None:
        """The id of a word that is a single token, else None."""

    @abstractmethod
    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Tokenize lines to ids, without [CLS] and [SEP]."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hash of the vocabulary, stored in checkpoints."""

    def room(self, max_length: int) -> int:
        """Tokens of a text beside those of start and end, of `max_length` in all."""
        return max_length - (1 if self.special.cls < 0 else 2)

    def cut(self, texts: Sequence[str], max_length: int) -> Tokens:
        """Texts as ids without special tokens, cut so that these still fit. (B, L)."""
        words = [each[: self.room(max_length)] for each in self.encode(texts)]
        ids = np.full((len(words), max(1, *map(len, words), 0)), self.special.pad)
        for row, line in zip(ids, words, strict=True):
            row[: len(line)] = line
        return Tokens(torch.from_numpy(ids), torch.tensor([len(line) for line in words]))

    def tokens(self, texts: Sequence[str], max_length: int) -> Tokens:
        """Texts as a text tower takes them, with the tokens of start and end. (B, L)."""
        return with_special(self.cut(texts, max_length), self.special)


class WordPiece(TextTokenizer):
    """WordPiece of the `tokenizers` package, lower-cased, without accents.

    By default it is trained on the data: the vocabulary is its characters and most frequent words,
    and any other word is split into its longest known prefix and characters. This is simpler than
    BERT's vocabulary but deterministic, which the package's own WordPiece trainer (0.23) is not.
    For gigabytes of text, train it once, `save` it and pass the file.

    Args:
        num_ids: size of the trained vocabulary, including special tokens.
        path: JSON file of `tokenizers` to load instead, from `save` or a BERT's tokenizer.json;
            [DEL] is added if missing.
    """

    def __init__(self, num_ids: int = 8000, path: str | None = None) -> None:
        self.wanted, self.path = num_ids, path
        self._tokenizer: Any = None

    def prepare(self, lines: Iterable[str]) -> None:
        if self._tokenizer is not None:
            return
        tokenizers = _tokenizers()
        if self.path is None:
            self._tokenizer = _train(tokenizers, lines, self.wanted)
        else:
            if not Path(self.path).is_file():
                raise ValueError(f"path must be a JSON file of `tokenizers`, got {self.path!r}")
            try:
                self._tokenizer = tokenizers.Tokenizer.from_file(self.path)
            except Exception as error:  # the package raises no narrower class
                raise ValueError(
                    f"path must be a JSON file of `tokenizers`, got {self.path!r}: {error}"
                ) from None
            self._tokenizer.add_special_tokens(["[DEL]"])
        self._find_special(repr(self.path))

    @classmethod
    def from_json(cls, text: str) -> WordPiece:
        """Build a prepared tokenizer from the output of `to_json`.

        Raises:
            ValueError: the JSON is malformed or lacks a special token, or the package is missing.
        """
        made, package = cls(), _tokenizers()
        try:
            made._tokenizer = package.Tokenizer.from_str(text)
        except Exception as error:  # the package raises no narrower class
            raise ValueError(f"the text must be JSON of `tokenizers`: {error}") from None
        made._find_special("the text")
        return made

    def to_json(self) -> str:
        """The tokenizer as JSON, for `from_json` or a file."""
        return self._ready().to_str()

    def save(self, path: str) -> None:
        """Write the JSON file."""
        atomic_write(Path(path), self.to_json())

    def _find_special(self, source: str) -> None:
        found = [self._tokenizer.token_to_id(name) for name in NAMES]
        if None in found:
            missing = [name for name, number in zip(NAMES, found, strict=True) if number is None]
            raise ValueError(f"a tokenizer must have {NAMES}, {source} lacks {missing}")
        self.special = Special(*found)
        self._tokenizer.no_padding()  # a file may bring both, as those of sentence-transformers
        self._tokenizer.no_truncation()

    @property
    def num_ids(self) -> int:
        return self._ready().get_vocab_size()

    def id_of(self, word: str) -> int | None:
        return self._ready().token_to_id(word)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        encoded = self._ready().encode_batch(list(lines), add_special_tokens=False)
        return [line.ids for line in encoded]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._ready().to_str().encode()).hexdigest()

    def _ready(self) -> Any:
        if self._tokenizer is None:
            raise ValueError("the tokenizer must be prepared first; call prepare(lines)")
        return self._tokenizer


class HFTokenizer(TextTokenizer):
    """A Hugging Face tokenizer by name.

    One without [CLS] and [SEP], such as CLIP's, has its tokens of start and end in their place; one
    that begins no text with a token of the start, such as SigLIP's, T5's and Gemma's in SigLIP 2,
    that of the end alone. Both have no [MASK] or [DEL]: they are for methods of images and texts,
    and not for those that mask tokens.

    Args:
        name: a name such as "bert-base-uncased" or "openai/clip-vit-base-patch32", or a folder.
        local_files_only: use local files only, without a download.
        canonical: whether texts lose case and punctuation before, as SigLIP's and SigLIP 2's.
        clean: whether texts are repaired before that, as open_clip does for all of these: wrongly
            decoded characters (by the package ftfy, of the extra `text`), then HTML's entities,
            then spaces.
    """

    def __init__(
        self,
        name: str,
        local_files_only: bool = False,
        canonical: bool = False,
        clean: bool = False,
    ) -> None:
        self.name, self.local_files_only = name, local_files_only
        self.canonical, self.clean = canonical, clean
        self._tokenizer: Any = None

    def prepare(self, lines: Iterable[str]) -> None:
        if self.clean:
            cleaned("")  # raises without ftfy
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ValueError(
                "HFTokenizer needs the package transformers, which is not installed; run: "
                "pip install transformers"
            ) from error
        name = self.name
        try:
            if self.local_files_only:
                name = folder_on_disk(name, wanted=("tokenizer_config.json", "tokenizer.json"))
            t = self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                "name must be that of a tokenizer on the Hugging Face Hub, or a folder with its "
                f"files, got {self.name!r}: {error}"
            ) from error
        if t.cls_token_id is None and t.eos_token_id is not None:
            unknown, pad = t.unk_token_id, t.pad_token_id
            unknown = t.eos_token_id if unknown is None else unknown
            pad = t.eos_token_id if pad is None else pad
            start = t.bos_token_id if t.bos_token_id in t("")["input_ids"][:1] else -1
            self.special = Special(pad, unknown, start, t.eos_token_id, unknown, unknown)
            return
        t.add_special_tokens({"additional_special_tokens": ["[DEL]"]})
        deleted = t.convert_tokens_to_ids("[DEL]")
        ids = (t.pad_token_id, t.unk_token_id, t.cls_token_id, t.sep_token_id, t.mask_token_id)
        if None in ids:
            raise ValueError(f"{self.name!r} must have {NAMES[:5]}, got ids {ids}")
        self.special = Special(*ids, deleted)

    @property
    def num_ids(self) -> int:
        return len(self._tokenizer)

    def id_of(self, word: str) -> int | None:
        found = self._tokenizer.convert_tokens_to_ids(word)
        return None if found == self.special.unknown else found

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        texts = [cleaned(line) for line in lines] if self.clean else list(lines)
        texts = [_canonical(line) for line in texts] if self.canonical else texts
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    @property
    def digest(self) -> str:
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        about = repr(vocabulary) + " canonical" * self.canonical + " clean" * self.clean
        return hashlib.sha256(about.encode()).hexdigest()


def cleaned(text: str) -> str:
    """A text without wrongly decoded characters, HTML's entities and more than single spaces.

    Reference code: mlfoundations/open_clip at 89fb801, src/open_clip/tokenizer.py, basic_clean and
    whitespace_clean.

    Raises:
        ValueError: the package ftfy is not installed.
    """
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ValueError(
            "clean needs the package ftfy, which is not installed; run: pip install 'sslzoo[text]'"
        ) from error
    return " ".join(html.unescape(html.unescape(fix_text(text))).split())


def _canonical(text: str) -> str:
    """A text in lower case without ASCII punctuation; an underscore is a space."""
    return " ".join(text.replace("_", " ").translate(_WITHOUT_PUNCTUATION).lower().split())


def tokenizer_state(tokenizer: TextTokenizer) -> dict[str, Any]:
    """The digest for a checkpoint, and the JSON of a tokenizer that may have been trained."""
    state: dict[str, Any] = {"tokenizer": tokenizer.digest}
    if isinstance(tokenizer, WordPiece):
        state["tokenizer_json"] = tokenizer.to_json()
    return state


def check_tokenizer(tokenizer: TextTokenizer, state: dict[str, Any]) -> None:
    """Refuse another tokenizer than that of a checkpoint.

    Raises:
        ValueError: the digests differ.
    """
    if state["tokenizer"] != tokenizer.digest:
        raise ValueError(
            "the tokenizer's digest must be that of the checkpoint, "
            f"{state['tokenizer'][:12]}, got {tokenizer.digest[:12]}; use the same "
            "training text, or the tokenizer's file"
        )


def check_tower(module: Any, name: str, num_ids: int, max_length: int) -> None:
    """Refuse a text backbone with fewer ids or positions than the data have.

    Args:
        module: the method, or None.
        name: of its backbone.
        num_ids: the tokenizer's.
        max_length: the data's.
    """
    tower = getattr(module, name, None)
    for what, needed in (("num_ids", num_ids), ("max_length", max_length)):
        has = getattr(tower, what, None)
        if isinstance(has, int) and has < needed:
            raise ValueError(f"{what} of {name} must be at least {needed}, the data's, got {has}")


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "WordPiece needs the package tokenizers, which is not installed; run: "
            "pip install 'sslzoo[text]'"
        ) from error
    return tokenizers


def _train(tokenizers: Any, lines: Iterable[str], num_ids: int) -> Any:
    check_at_least("num_ids", num_ids, len(NAMES) + 1)
    counter = _reader(tokenizers, tokenizers.models.WordLevel(unk_token="[UNK]"))
    every = tokenizers.trainers.WordLevelTrainer(
        vocab_size=1 << 30, special_tokens=[], show_progress=False
    )
    counter.train_from_iterator(lines, every)
    ids = counter.get_vocab()
    words = sorted(ids, key=ids.__getitem__)  # by frequency, ties by the alphabet
    characters = list(dict.fromkeys(character for word in words for character in word))
    characters = characters[: num_ids // 4]  # some scripts have thousands
    pieces = [*NAMES, *(form for c in characters for form in (c, f"##{c}")), *words]
    vocabulary = {piece: i for i, piece in enumerate(list(dict.fromkeys(pieces))[:num_ids])}
    tokenizer = _reader(tokenizers, tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(NAMES))
    return tokenizer


def _reader(tokenizers: Any, model: Any) -> Any:
    """A tokenizer with BERT's uncased normalization and word splitting."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer
