"""Repositories of the Hugging Face Hub that are on this machine, found without any request.

With `local_files_only`, huggingface_hub and transformers download no file, but the first call of a
process may still ask the Hub for its list of programs that use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def folder_on_disk(
    name: str, revision: str | None = None, wanted: Sequence[str] = ("config.json",)
) -> str:
    """The folder of a repository in the Hub's cache; a folder's own name is returned as it is.

    Args:
        name: OWNER/REPOSITORY, or a folder.
        revision: branch, tag or commit; None: "main".
        wanted: files of which it must have one.

    Raises:
        OSError: it is not there.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).is_dir():
        return name
    with suppress(HFValidationError):
        for file in wanted:
            found = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                return str(Path(found).parent)
    raise OSError(
        f"{name} must be a folder or in the Hub's cache on this machine, with {' or '.join(wanted)}"
    )
