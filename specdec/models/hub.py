"""Models of the Hugging Face hub: configuration, tokenizer and safetensors, and never a file that holds code."""

from __future__ import annotations

from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from specdec.errors import CheckpointError, ModelNotFoundError, PullError
from specdec.models.loader import INDEX_FILE, SINGLE_FILE, checkpoint_files

DESCRIPTION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    INDEX_FILE,
)
"""Everything but the weights; patterns of the hub client."""


def pull_from_hub(model_id: str) -> Path:
    """The snapshot folder of a hub model in the hub client's own cache, downloaded where it is not whole there.

    A model that is whole in the cache is used as it is, without asking the hub for a newer one. Raises
    ModelNotFoundError for an id that the hub does not know, PullError where it cannot be reached or refuses.
    """
    try:
        folder = Path(huggingface_hub.snapshot_download(model_id, local_files_only=True))
        if _is_whole(folder):
            return folder
    except LocalEntryNotFoundError:
        pass  # not in the cache
    try:
        folder = Path(huggingface_hub.snapshot_download(model_id, allow_patterns=list(DESCRIPTION_FILES)))
        shards = [file.name for file in checkpoint_files(folder)] if (folder / INDEX_FILE).is_file() else [SINGLE_FILE]
        # Of the same commit: a snapshot folder is named by it.
        huggingface_hub.snapshot_download(model_id, revision=folder.name, allow_patterns=shards)
    except GatedRepoError as error:
        raise PullError(
            f"{model_id} is gated: accept its terms on its page, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"no model is called {model_id!r}: it is no name of the catalog, no folder, and no model of the "
            "Hugging Face hub that can be seen without further rights"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise PullError(
            f"{model_id} is no name of the catalog and no folder, and the Hugging Face hub cannot be reached for "
            f"it ({type(error).__name__}: {error}); fetch it by hand on another machine with "
            f"`hf download {model_id}` and name the folder instead"
        ) from error
    if not _is_whole(folder):
        raise CheckpointError(
            f"{model_id} lacks config.json, tokenizer.json or safetensors weights ({SINGLE_FILE} or {INDEX_FILE}); "
            "other formats are not read"
        )
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        files = checkpoint_files(folder)
    except CheckpointError:
        return False
    return all(file.is_file() for file in (folder / "config.json", folder / "tokenizer.json", *files))
