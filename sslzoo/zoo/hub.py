"""Hub: push an entry to the Hugging Face Hub, from where `hf://` loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sslzoo.zoo.card import Card


class Api(Protocol):
    """Protocol of the part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> Any:
        """Create the repository."""

    def upload_file(self, *, path_or_fileobj: Any, path_in_repo: str, repo_id: str) -> Any:
        """Upload one file."""


def readme(card: Card, repository: str) -> str:
    """Text of the repository's README page."""
    scores = "\n".join(f"| {metric} | {value:.4f} |" for metric, value in card.score.items())
    return (
        f"---\nlibrary_name: sslzoo\ntags: [self-supervised-learning]\n---\n\n# {card.name}\n\n"
        f"{card.method} on {card.data}, {card.epochs} epochs. Weights: {card.license['weights']}; "
        f"code: {card.license['code']}.\n\n"
        f"    sslzoo.load('hf://{repository}/{card.file}')\n\n"
        f"| metric ({card.protocol}) | value |\n|---|---|\n{scores}\n"
    )


def refuse_others(card: Card) -> None:
    """Refuse to push weights that others released.

    Raises:
        ValueError: the card describes weights released by others.
    """
    if card.layout is not None:
        raise ValueError(
            f"an entry to push must be your own, got {card.name!r}, which its authors released "
            f"({card.source})"
        )


def push(card: Card, weights: Path, repository: str, api: Api | None = None) -> str:
    """Upload weights, card and README, and return the URL for `load`.

    Args:
        card: card of the weights.
        weights: weights file.
        repository: OWNER/NAME.
        api: client; None: `huggingface_hub.HfApi()` with the token stored by `hf auth login`.

    Raises:
        ValueError: the weights are others' (`layout`), or the repository is not OWNER/NAME.
        OSError: the Hub cannot be reached or refuses: no token, no permission, unknown owner.
    """
    refuse_others(card)
    if len([part for part in repository.split("/") if part]) != 2:
        raise ValueError(f"repository must be OWNER/NAME, got {repository!r}")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    files: dict[str, Any] = {
        card.file: str(weights),
        f"{Path(card.file).stem}.json": card.to_json().encode(),
        "README.md": readme(card, repository).encode(),
    }
    try:
        api.create_repo(repository, exist_ok=True)
        for name, content in files.items():
            api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repository)
    except Exception as error:  # errors of the Hub's client and of its HTTP client
        text = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot push to {repository!r}: {text}") from error
    return f"hf://{repository}/{card.file}"
