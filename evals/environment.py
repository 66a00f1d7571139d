"""Environment: what a figure depends on beside the code under test, recorded beside every figure."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import msgspec

_PACKAGES = (
    *("specdec-engine", "torch", "triton", "transformers", "tokenizers"),
    *("numpy", "numba", "llvmlite", "jsonschema"),
)
LOAD_PER_CPU_LIMIT = 0.25


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    processor: str
    num_processors: int
    """Those that this process may use."""
    memory_bytes: int | None
    platform: str
    python: str
    versions: dict[str, str]
    commit: str | None
    """What SPECDEC_COMMIT says, else the checkout's; ends in "-dirty" where tracked files differ from the commit."""
    num_threads: int | None
    """Of torch's own pool, where torch was loaded."""
    thread_settings: dict[str, str]
    load_average: tuple[float, float, float] | None
    """Over 1, 5 and 15 minutes, taken before the eval began."""


def describe_environment() -> Environment:
    """The environment as it is now; call it before the work that would load the machine."""
    return Environment(
        processor=_processor(),
        num_processors=_num_processors(),
        memory_bytes=_memory_bytes(),
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
        commit=_commit(),
        num_threads=None,
        thread_settings={
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "KMP_AFFINITY")
            if name in os.environ
        },
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
    )


def load_warning(environment: Environment) -> str | None:
    """Why timings taken now would mislead; None on a quiet machine."""
    if environment.load_average is None:
        return None
    load, limit = environment.load_average[0], LOAD_PER_CPU_LIMIT * environment.num_processors
    if load <= limit:
        return None
    return (
        f"the machine is busy: its load over the last minute is {load:.2f} on {environment.num_processors} "
        f"processors (quiet is at most {limit:.2f}); timings are not to be trusted"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    # A copy may lie in the checkout of another commit.
    told = os.environ.get("SPECDEC_COMMIT")
    if told:
        return told
    folder = Path(__file__).resolve().parent
    try:
        commit = _git("rev-parse", "HEAD", folder=folder)
        is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no", folder=folder))
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if is_dirty else commit


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(  # noqa: S603, constant arguments
        ["git", *arguments],  # noqa: S607, whichever git the user has
        cwd=folder,
        capture_output=True,
        check=True,
        text=True,
        timeout=20,
    )
    return done.stdout.strip()
