"""Models that every test folder shares; `tiny_model` and `tiny_tokenizer` can be imported by any test."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# How long an example takes says what else the machine does.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# --import-mode=importlib puts no test folder on the path. The fixtures, not this file, import torch:
# a run of the grammars' tests does not wait for it.
sys.path.insert(0, str(Path(__file__).parent / "support"))


def pytest_configure(config: pytest.Config) -> None:
    """The same surroundings for all tests, however they were started."""
    # A shell's background job has it ignored, and so would every process that is interrupted here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A GPU is for the tests that are marked so: an engine whose device is `auto` would take it in all others.
    chosen = config.getoption("markexpr", "")
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    # Time on a GPU is short: the first example that fails says enough.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    settings.register_profile("gpu", settings.get_profile("patient"), phases=phases)
    settings.load_profile("gpu")


def pytest_runtest_logfinish() -> None:
    """Behind a wrong address a GPU does nothing more for a process; xdist starts another one."""
    torch = sys.modules.get("torch")
    if torch is not None and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, sched: object) -> None:
    """Where files are shared out, xdist would give the test that ended a worker to the next one, again and again."""
    for units in (getattr(sched, "workqueue", {}), *getattr(sched, "assigned_work", {}).values()):
        for unit in units.values():
            if crashitem in unit:
                unit[crashitem] = True


_LONG = (
    ("test_interpreter.py", "test_device_path_interpreted.py", "evals/test_equivalence.py", "test_budget.py"),
    ("engine/test_equivalence.py", "test_engine_process.py", "tests/test_cli.py", "test_soundness.py"),
)
"""Files of minutes, and of a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that none is left to run alone."""
    items.sort(key=lambda item: [not str(item.path).endswith(names) for names in _LONG])


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 4 query heads over 2 key/value heads, tied, fp32, byte-level BPE."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "target", seed=1)


@pytest.fixture(scope="session")
def tiny_draft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary of `tiny_model_folder`; one layer, and another width, head size and head count."""
    from tiny_model import write_tiny_model

    return write_tiny_model(
        tmp_path_factory.mktemp("tiny") / "draft",
        seed=2,
        num_layers=1,
        hidden_size=48,
        intermediate_size=96,
        num_heads=3,
        num_kv_heads=1,
        head_dim=8,
    )


@pytest.fixture(scope="session")
def tiny_untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything `tiny_model_folder` is not: untied, biased, llama3 rope, bf16, in shards, a padded head."""
    from tiny_model import LLAMA3_ROPE, write_tiny_model

    return write_tiny_model(
        tmp_path_factory.mktemp("tiny") / "untied",
        seed=3,
        num_layers=3,
        dtype="bfloat16",
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling=LLAMA3_ROPE,
        num_shards=3,
        num_padding_rows=32,
    )


@pytest.fixture(scope="session")
def tiny_sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece-style vocabulary with byte fallback."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "sp", seed=4, tokenizer="sentencepiece")


@pytest.fixture(scope="session")
def default_model_folder() -> Path:
    """The catalog's default model, pulled if it is not in the cache; for tests marked `model`."""
    from specdec.errors import PullError
    from specdec.models.catalog import resolve_model

    try:
        return resolve_model("smollm2-135m-instruct")
    except PullError as error:
        pytest.skip(f"the default model is not in the cache and cannot be pulled: {error}")
