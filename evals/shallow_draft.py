"""A draft model made of a target's first layers, with its embedding, final norm and head.

Untrained, so it drafts badly; it is there to be a second, smaller model with the target's vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import filelock
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from specdec.errors import ConfigError
from specdec.models.catalog import cache_home
from specdec.models.config import ModelConfig
from specdec.models.loader import checkpoint_files

DEFAULT_NUM_LAYERS = 6
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


def shallow_draft(target: Path, *, num_layers: int = DEFAULT_NUM_LAYERS, cache: Path | None = None) -> Path:
    """The folder of the draft; written once per target and depth, complete or not at all.

    Raises ConfigError for a target that has no more layers than that.
    """
    num_target_layers = ModelConfig.from_folder(target).num_hidden_layers
    if num_layers >= num_target_layers:
        raise ConfigError(
            f"the target has {num_target_layers} layers; a draft of its first {num_layers} would not be smaller"
        )
    home = cache if cache is not None else cache_home() / "shallow-drafts"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"{target.name}-{_fingerprint(target)}-{num_layers}-layers"
    with filelock.FileLock(home / f"{folder.name}.lock"):
        if not folder.is_dir():
            part = Path(tempfile.mkdtemp(dir=home, prefix=".part-"))
            try:
                _write(target, part, num_layers)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def _fingerprint(target: Path) -> str:
    """Changes when the target's files do: their names, sizes and times."""
    digest = hashlib.sha256()
    for path in (target / "config.json", *checkpoint_files(target)):
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _write(target: Path, folder: Path, num_layers: int) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint_files(target):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, not a dict
                layer = _LAYER.match(key)
                if layer is None or int(layer[1]) < num_layers:
                    tensors[key] = file.get_tensor(key)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = num_layers
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in _COPIED:
        if (target / name).is_file():
            shutil.copyfile(target / name, folder / name)
