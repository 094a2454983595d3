"""Models to evaluate: encoders of runs, zoo entries and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from lightning import LightningDataModule, seed_everything
from torch import nn

import sslzoo
from sslzoo.data.inputs import TextInput
from sslzoo.run_folder import RunFolder
from sslzoo.trust import build
from sslzoo.zoo.build import build_backbone
from sslzoo.zoo.preprocess import vocabulary
from sslzoo.zoo.safe_read import read


class Model(NamedTuple):
    """An encoder to evaluate.

    Args:
        name: the name as requested.
        encoder: module (B, ...) -> (B, num_features).
        config: the run's config, or the card's recipe.
        trained_on: the run's data module, not set up; None: the model is not a run directory, or
            its checkpoint contains the preprocessing.
        checkpoint: the Lightning checkpoint that it was loaded from; None: another kind of file.
    """

    name: str
    encoder: nn.Module
    config: dict[str, Any]
    trained_on: LightningDataModule | None = None
    checkpoint: Path | None = None

    def preprocess(self) -> Any | None:
        """The preprocessing that the encoder expects; None if unknown.

        Raises:
            ValueError: a run's data is missing, or its vocabulary has changed.
        """
        if self.trained_on is None:
            return getattr(self.encoder, "preprocess", None)
        give = getattr(self.trained_on, "encoder_input", None)
        try:
            own = None if give is None else give()
        except (ValueError, OSError) as error:
            raise ValueError(f"the training data of {self.name!r} is needed: {error}") from None
        self.check_vocabulary(own)
        return own

    def check_vocabulary(self, given: Any) -> None:
        """Check that token ids are from the checkpoint's vocabulary.

        Args:
            given: the preprocessing of the samples, for any kind of data.

        Raises:
            ValueError: the vocabularies differ; the error names both.
        """
        if self.checkpoint is None or not isinstance(given, TextInput):
            return
        wanted, now = vocabulary(read(self.checkpoint)), given.tokenizer.digest
        if wanted not in (None, now):
            raise ValueError(
                f"the tokenizer's digest must be that of {self.name!r}, {wanted[:12]}, got "
                f"{now[:12]}; use the training text of the run, or give its run directory or zoo "
                "entry, which include the tokenizer"
            )


def read_model(name: str, trust: bool = False) -> Model:
    """Load a model from a run directory, or from anything that `sslzoo.load` takes.

    Args:
        name: the run directory, or see `sslzoo.load`.
        trust: see `sslzoo.load`; for a run directory it also applies to the config's data.

    Raises:
        ValueError: the folder has no finished run, or see `sslzoo.load`.
    """
    folder = Path(name)
    if not folder.is_dir():
        given: Any = sslzoo.load(name, trust=trust)
        card = getattr(given, "card", None)
        about = {} if card is None else json.loads(card.to_json())
        saved = folder if folder.suffix == ".ckpt" and folder.is_file() else None
        return Model(name, given, about, checkpoint=saved)
    run = RunFolder(folder)
    checkpoint = run.checkpoint_file
    if not run.config_file.is_file() or not checkpoint.is_file():
        raise ValueError(
            f"a run directory must have config.yaml and checkpoints/last.ckpt, got {name!r}"
        )
    content = run.config()
    encoder: Any = sslzoo.load(str(checkpoint), trust=trust)
    data = None
    if getattr(encoder, "preprocess", None) is None:  # a checkpoint from version 0.1
        data = build_data(content["data"], str(run.config_file), trust)
    return Model(name, encoder, content, data, checkpoint)


def build_data(
    section: dict[str, Any], where: str = "the config", trust: bool = False
) -> LightningDataModule:
    """Build the data module of a run's config.

    Args:
        section: `class_path` and `init_args`.
        where: the config, for errors.
        trust: see `sslzoo.load`.

    Raises:
        ValueError: the section names a class that a file may not name, or does not fit the class.
    """
    return build(section, LightningDataModule, where, trust)  # type: ignore[no-any-return]


def untrained(model: Model, trust: bool = False) -> nn.Module:
    """Build the same network with new weights from seed 0.

    Args:
        model: the model, whose config or card describes the network.
        trust: see `sslzoo.load`.

    Raises:
        ValueError: neither a config nor a card describes the network.
    """
    init = model.config.get("model", {}).get("init_args", {})
    backbone = init.get("backbone") or model.config.get("backbone")
    if backbone is None:
        raise ValueError(
            f"{model.name!r} must have a config or card with its backbone, got none; omit "
            "--untrained"
        )
    seed_everything(0, verbose=False)
    return build_backbone(backbone, model.name, trust).eval()
