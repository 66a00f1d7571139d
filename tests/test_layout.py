"""The layout of docs/design/001: four links, one installed name, nothing importable under a bare folder name."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ["kernels", "grammars", "server", "evals"]


def python(program, cwd=ROOT, **environment):
    """What the program prints, run as a user's own process would run it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))}
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.strip()


@pytest.mark.parametrize("name", LINKED)
def test_the_folders_are_linked_into_the_package_by_relative_paths(name):
    link = ROOT / "specdec" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"
    assert link.resolve() == ROOT / name
    assert link.is_dir()


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """The files of a wheel built from a copy of the sources, so that no build folder appears in the checkout."""
    source = tmp_path_factory.mktemp("source") / "specdec"
    source.mkdir()
    without_caches = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ["specdec", *LINKED]:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=without_caches)
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    wheels = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", wheels, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_installs_one_name(wheel_names):
    top_level = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert top_level == {"specdec"}


def test_the_wheel_holds_the_linked_folders_as_files(wheel_names):
    installed = set(wheel_names)
    for folder in ["specdec", *LINKED]:
        for file in (ROOT / folder).rglob("*.py"):
            relative = file.relative_to(ROOT)
            expected = relative if folder == "specdec" else Path("specdec") / relative
            assert str(expected) in installed
    assert "specdec/py.typed" in installed
    assert any(name.endswith("licenses/LICENSE") for name in installed)


@pytest.mark.parametrize("name", LINKED)
def test_a_bare_folder_name_is_not_importable_from_elsewhere(name, tmp_path):
    program = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    assert python(program, cwd=tmp_path) == "None"
    assert python(program, cwd=ROOT, PYTHONSAFEPATH="1") == "None"


@pytest.mark.slow  # `make check` runs this file whole.
def test_transformers_imports_with_the_checkout_as_working_directory():
    # transformers probes for a package called `kernels`; from here it finds ours, whose __init__ does nothing.
    assert python("import transformers; print(transformers.PreTrainedModel.__name__)") == "PreTrainedModel"


@pytest.mark.parametrize("module", ["specdec", "specdec.grammars", "specdec.cli", "specdec.errors", "specdec.request"])
def test_light_modules_import_no_torch(module):
    heavy = ["torch", "transformers", "triton", "outlines", "litestar"]
    program = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    assert python(program) == "[]"


def test_every_public_name_is_found_where_the_package_says():
    program = "import specdec; print(sorted(name for name in specdec.__all__ if getattr(specdec, name, None) is None))"
    assert python(program) == "[]"


def test_the_import_contracts_are_kept():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    order = [name.strip() for layer in layers for name in layer.split("|")]
    assert order.index("specdec.cli") < order.index("specdec.evals") < order.index("specdec.server")
    assert order.index("specdec.server") < order.index("specdec.engine") < order.index("specdec.kernels")
    assert "specdec.kernels | specdec.grammars" in layers
    forbidden = {contract["source_modules"][0]: contract for contract in contracts if contract["type"] == "forbidden"}
    assert {"torch", "transformers"} <= set(forbidden["specdec.grammars"]["forbidden_modules"])
    assert {"specdec.engine", "specdec.grammars"} <= set(forbidden["specdec.kernels"]["forbidden_modules"])
    lint = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
