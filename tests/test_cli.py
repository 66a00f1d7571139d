"""The command line: flags become the configuration they name, mistakes one line with the way out."""

import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import patient_http  # noqa: F401
import pytest
import typer
from tiny_tokenizer import write_tiny_tokenizer
from typer.testing import CliRunner

from specdec import Engine, Request, SamplingParams, SpeculativeParams
from specdec.cli import app
from specdec.cli.draft_colours import DraftColours
from specdec.cli.engine_flags import EngineFlags, parse_size, takes_engine_flags
from specdec.cli.serve import _is_loopback, request_limits
from specdec.config import EngineConfig
from specdec.errors import ConfigError, ModelError
from specdec.grammars import Limits
from specdec.models.progress import ModelProgress, progress_bars
from specdec.proposer_colours import COLOURS
from specdec.server import RequestLimits
from specdec.speculative import SpeculativeConfig, Verification

SPECDEC = [sys.executable, "-P", "-W", "error", str(Path(sys.executable).with_name("specdec"))]
COMMANDS = ["serve", "run", "pull", "version"]


def invoke(*arguments, **options):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160", "NO_COLOR": "1"}, **options)


def config_of(*arguments):
    """The EngineConfig that a command with engine flags gets from the command line."""
    made = []
    probe = typer.Typer()

    @probe.command()
    @takes_engine_flags
    def command(engine: EngineFlags) -> None:
        made.append(engine.config())

    result = CliRunner().invoke(probe, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return made[0]


# Flags


def test_without_flags_the_configuration_is_the_default_one():
    assert config_of() == EngineConfig()


def test_flags_have_the_names_that_vllm_users_know():
    config = config_of(
        *["some/model", "--dtype", "float16", "--device", "cpu", "--max-model-len", "100", "--seed", "7", "--exact"],
        *["--max-num-seqs", "3", "--max-num-batched-tokens", "200", "--block-size", "8"],
        *["--kv-cache-memory", "2GiB", "--no-enable-prefix-caching", "--check-outputs", "--enforce-eager"],
        "--no-async-scheduling",
        *["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3}'],
    )
    assert config == EngineConfig(
        model="some/model",
        dtype="float16",
        device="cpu",
        max_model_len=100,
        seed=7,
        exact=True,
        enforce_eager=True,
        async_scheduling=False,
        max_num_seqs=3,
        max_num_batched_tokens=200,
        block_size=8,
        kv_cache_memory=2**31,
        enable_prefix_caching=False,
        check_outputs=True,
        speculative=SpeculativeConfig(method="ngram", num_speculative_tokens=5, prompt_lookup_max=3),
    )
    assert config_of("--num-kv-blocks", "9").num_kv_blocks == 9
    assert config_of("--gpu-memory-utilization", "0.5").gpu_memory_utilization == 0.5


@pytest.mark.parametrize("name", Limits.__struct_fields__)
def test_every_limit_of_the_compiler_can_be_set(name):
    limits = config_of("--grammar-limit", f"{name}=123", "--grammar-limit", "max_compile_seconds=2.5").grammar_limits
    expected = {name: 123, "max_compile_seconds": 2.5}
    assert limits == Limits(**expected)


def test_a_server_takes_bodies_that_hold_the_schemas_it_was_told_to_take():
    assert request_limits(EngineConfig()) == RequestLimits()
    limits = request_limits(config_of("--grammar-limit", "max_schema_bytes=8000000"))
    assert limits.max_schema_bytes == 8_000_000
    assert limits.max_body_bytes > 2 * limits.max_schema_bytes


def test_every_field_of_the_configuration_has_its_flag():
    spread_over = {
        "speculative": {"spec", "draft", "num_speculative_tokens", "verification", "speculative_config"},
        "grammar_limits": {"grammar_limit"},
    }
    expected = set().union(*(spread_over.get(name, {name}) for name in EngineConfig.__struct_fields__))
    assert set(EngineFlags.__dataclass_fields__) == expected


@pytest.mark.parametrize(
    ("arguments", "speculative"),
    [
        (["--spec", "none"], None),
        (["--spec", "ngram"], SpeculativeConfig(method="ngram")),
        (
            ["--spec", "ngram", "--num-speculative-tokens", "7"],
            SpeculativeConfig(method="ngram", num_speculative_tokens=7),
        ),
        (["--spec", "chain"], SpeculativeConfig()),
        (["--spec", "grammar+ngram"], SpeculativeConfig(method="grammar+ngram")),
        (["--num-speculative-tokens", "3"], SpeculativeConfig(method="grammar", num_speculative_tokens=3)),
        (["--verification", "rejection"], SpeculativeConfig(method="grammar", verification=Verification.REJECTION)),
        (["--draft", "small"], SpeculativeConfig(method="chain", model="small")),
        (["--spec", "chain", "--draft", "small"], SpeculativeConfig(method="chain", model="small")),
        (["--spec", "draft_model", "--draft", "small"], SpeculativeConfig(method="draft_model", model="small")),
        (
            ["--spec", "grammar+draft_model", "--draft", "small", "--verification", "block"],
            SpeculativeConfig(method="grammar+draft_model", model="small", verification=Verification.BLOCK),
        ),
        (["--speculative-config", "{}"], SpeculativeConfig()),
        (["--speculative-config", '{"method": "none"}'], SpeculativeConfig(method="none")),
        (
            ["--speculative-config", '{"method": "synthetic", "synthetic_acceptance_rates": [0.9, 0.5]}'],
            SpeculativeConfig(method="synthetic", synthetic_acceptance_rates=(0.9, 0.5)),
        ),
        (
            ["--speculative-config", '{"method": "draft_model", "model": "small"}'],
            SpeculativeConfig(method="draft_model", model="small"),
        ),
    ],
)
def test_the_short_forms_of_speculation_mean_the_long_one(arguments, speculative):
    assert config_of(*arguments).speculative == speculative


@pytest.mark.parametrize(
    ("name", "verification"), [("standard", Verification.REJECTION), ("block", Verification.BLOCK)]
)
def test_vllms_name_of_a_verification_means_ours(name, verification):
    config = config_of("--speculative-config", json.dumps({"method": "ngram", "rejection_sample_method": name}))
    assert config.speculative.plan == config_of("--spec", "ngram", "--verification", verification).speculative.plan


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--spec", "eagle"], "--spec: speculative method 'eagle' is unknown; it is chain, none, one of grammar, pred"),
        (["--spec", "ngram+"], "--spec: speculative method '' is unknown"),
        (["--spec", ""], "--spec: speculative method '' is unknown"),
        (["--spec", "synthetic"], "synthetic needs its rates, which only --speculative-config takes"),
        (["--spec", "draft_model"], "--spec: draft_model needs a model; name one with --draft"),
        (["--spec", "ngram", "--draft", "m"], "drop --draft, or use --spec ngram+draft_model"),
        (["--spec", "none", "--draft", "m"], "--draft: --spec none drafts nothing"),
        (["--draft", ""], "--draft: the draft model has no name"),
        (["--spec", "none", "--num-speculative-tokens", "3"], "--num-speculative-tokens: --spec none drafts nothing"),
        (["--spec", "none", "--verification", "block"], "--verification: --spec none drafts nothing"),
        (["--verification", "hope"], "--verification"),
        (["--num-speculative-tokens", "65"], "--num-speculative-tokens: num_speculative_tokens is 65; it must be betw"),
        (["--spec", "ngram", "--num-speculative-tokens", "0"], "--num-speculative-tokens: num_speculative_tokens is 0"),
        (["--speculative-config", "{}", "--spec", "ngram"], "--spec says the same as --speculative-config"),
        (["--speculative-config", "{}", "--draft", "m"], "--draft says the same as --speculative-config"),
        (["--speculative-config", "{}", "--verification", "block"], "--verification says the same as --speculative-"),
        (["--speculative-config", "{}", "--num-speculative-tokens", "1"], "--num-speculative-tokens says the same as"),
        (["--speculative-config", "{"], "--speculative-config: Input data was truncated; it takes a JSON object"),
        (["--speculative-config", '{"method": "eagle"}'], "--speculative-config: speculative method 'eagle'"),
        (["--speculative-config", '{"verification": "hope"}'], "--speculative-config: Invalid enum value 'hope'"),
        (
            ["--speculative-config", '{"rejection_sample_method": "block", "verification": "block"}'],
            "--speculative-config: rejection_sample_method and verification say the same",
        ),
        (["--speculative-config", '{"method": "ngram", "model": "m"}'], "method ngram takes no `model`"),
        (["--speculative-config", '{"method": "ngram", "x": 1}'], "unknown field `x`; it takes a JSON object with"),
        (["--speculative-config", '{"method": "draft_model"}'], "--speculative-config: method draft_model needs"),
        (["--num-kv-blocks", "5", "--kv-cache-memory", "1GB"], "--num-kv-blocks and --kv-cache-memory each size"),
        (["--kv-cache-memory", "1GB", "--gpu-memory-utilization", "0.5"], "keep one of them"),
        (["--kv-cache-memory", "much"], "'much' is no size; write 512MiB, 2GiB, 2GB or a number of bytes"),
        (["--max-num-seqs", "0"], "--max-num-seqs: max_num_seqs is 0"),
        (["--max-model-len", "1"], "--max-model-len: max_model_len is 1"),
        (["--gpu-memory-utilization", "2"], "--gpu-memory-utilization: gpu_memory_utilization is 2"),
        (["--grammar-limit", "max_deph=9"], "--grammar-limit: max_deph=9 cannot be read: Object contains unknown"),
        (["--grammar-limit", "max_depth"], "--grammar-limit: max_depth cannot be read"),
        (["--grammar-limit", "max_depth=many"], "--grammar-limit: max_depth=many cannot be read"),
        (["--grammar-limit", "max_depth=0"], "--grammar-limit: max_depth is 0; it must be positive"),
        (["--dtype", "int4"], "'int4' is not one of"),
        (["--max-modle-len", "5"], "--max-model-len"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_flag_that_cannot_work_is_named_with_the_fix(command, arguments, complaint):
    result = invoke(command, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("2048", 2048),
        ("1B", 1),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1k", 1024),
        ("2GB", 2 * 10**9),
        ("2GiB", 2**31),
        ("2g", 2**31),
        ("1.5 MiB", 3 * 2**19),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_read_as_people_write_them(text, num_bytes):
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "2XiB", "2 Gi B", "\u0661GB", "inf"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(typer.BadParameter, match="is no size"):
        parse_size(text)


# Help and versions


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_command(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f" {command} [OPTIONS]" in result.stdout
    assert command in invoke("--help").stdout


@pytest.mark.parametrize("command", ["serve", "run"])
def test_help_groups_the_flags_of_the_engine(command):
    text = invoke(command, "--help").stdout
    panels = ["─ Model ─", "─ Speculation ─", "─ Scheduling & memory ─"]
    positions = [text.index(panel) for panel in panels]
    assert positions == sorted(positions)
    assert text.count("─ Model ─") == 1
    assert positions[0] < text.index("--dtype") < positions[1] < text.index("--draft") < positions[2]


def test_versions_are_printed():
    assert re.fullmatch(r"specdec \d+\.\d+\.\d+\n", invoke("--version").stdout)
    assert invoke("version").stdout.startswith(invoke("--version").stdout)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["serve", "--spec", "ngram", "--draft", "m"]])
def test_help_and_mistyped_flags_import_no_torch(arguments):
    program = (
        "import sys\n"
        "from specdec.cli import app\n"
        "try:\n"
        f"    app(args={arguments!r})\n"
        "except SystemExit as stop:\n"
        f"    assert stop.code == {0 if '--help' in arguments else 2}\n"
        "print('HEAVY', [name for name in ('torch', 'litestar', 'transformers', 'numba') if name in sys.modules])\n"
    )
    finished = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "HEAVY []"


# Errors


def test_an_error_of_the_engine_is_one_line_without_a_traceback():
    result = invoke("pull", "no-such-model")
    assert result.exit_code == 1
    assert re.fullmatch(r"error: no model is called 'no-such-model': .*\n", result.stderr)


def test_an_error_that_is_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_arguments, **_options):
        raise AssertionError("an invariant broke")

    monkeypatch.setattr("specdec.models.catalog.resolve_model", broken)
    assert isinstance(invoke("pull").exception, AssertionError)


def test_brackets_in_a_message_are_printed_as_they_are(monkeypatch):
    def refuse(*_arguments, **_options):
        raise ModelError("the shape is [3, 4], not [bold]")

    monkeypatch.setattr("specdec.models.catalog.resolve_model", refuse)
    assert invoke("pull").stderr == "error: the shape is [3, 4], not [bold]\n"


def test_a_port_in_use_is_named_before_the_model_is_looked_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = subprocess.run(
            [*SPECDEC, "serve", "no-such-model", "--port", port], capture_output=True, text=True, check=False
        )
    assert result.returncode == 2
    assert re.fullmatch(rf"error: .*:{port}: .* in use; .*--port\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--temperature", "-1"], "--temperature: temperature is -1.0"),
        (["--max-tokens", "0"], "--max-tokens: max_tokens is 0"),
        (["--schema", "nowhere.json"], "--schema: nowhere.json cannot be read: No such file"),
        (["--prompt", " "], "--prompt: the prompt is empty"),
    ],
)
def test_run_checks_its_flags_before_it_looks_at_the_model(arguments, complaint):
    result = invoke("run", "no-such-model", *arguments, input="hello")
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


def test_a_schema_file_that_holds_no_json_is_refused(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text("{'a': 1}")
    result = invoke("run", "no-such-model", "--schema", str(file), "--prompt", "x")
    assert result.exit_code == 2
    assert "schema.json holds no JSON" in result.stderr


# Schemas


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def test_schema_check_prints_what_is_enforced(tmp_path):
    file = write(tmp_path, "a.json", {"title": "x", "type": "object", "properties": {"a": {"maxLength": 3}}})
    result = invoke("schema", "check", file)
    assert result.exit_code == 0
    for line in ("maxLength .* enforced", "title .* annotation", "/properties .* restricted: .*order"):
        assert re.search(line, result.stdout), line
    shown = json.loads(invoke("schema", "check", file, "--json").stdout)
    assert shown["enforcement"]["enforced"] == ["maxLength", "properties", "type"]
    assert shown["enforcement"]["annotations"] == ["title"]
    assert "/properties" in {each["pointer"] for each in shown["enforcement"]["restrictions"]}


def test_schema_check_says_the_smallest_budget_of_a_vocabulary(tmp_path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = str(tmp_path / "tokenizer.json")
    file = write(tmp_path, "a.json", {"type": "array", "minItems": 3, "items": {"const": 1}})
    shown = json.loads(invoke("schema", "check", file, "--vocabulary", tokenizer, "--json").stdout)
    assert 1 < shown["minimum_tokens"] <= len("[1,1,1]")
    assert f"smallest max_tokens that is taken is {shown['minimum_tokens']}" in invoke(
        "schema", "check", file, "--vocabulary", tokenizer
    ).stdout.replace("\n", " ")
    assert "minimum_tokens" not in json.loads(invoke("schema", "check", file, "--json").stdout)
    refused = invoke("schema", "check", file, "--vocabulary", "no-such-model")
    assert refused.exit_code == 2
    assert "no-such-model" in refused.stderr


def test_schema_check_names_the_error_of_a_refused_schema(tmp_path):
    file = write(tmp_path, "a.json", {"properties": {"a": {"pattern": "(a)\\1"}}})
    result = invoke("schema", "check", file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "UnsupportedSchemaError: " in result.stderr
    assert "/properties/a/pattern" in result.stderr
    refused = invoke("schema", "check", file, "--json")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"].items() >= {
        "name": "UnsupportedSchemaError", "keyword": "pattern", "pointer": "/properties/a/pattern",
    }.items()  # fmt: skip
    unsatisfiable = invoke("schema", "check", write(tmp_path, "b.json", {"not": {}}), "--json")
    assert json.loads(unsatisfiable.stdout)["error"]["name"] == "UnsatisfiableSchemaError"


def test_schema_check_takes_the_options(tmp_path):
    file = write(tmp_path, "a.json", {"$ref": "urn:a", "format": "nonsense"})
    document = write(tmp_path, "b.json", {"format": "uuid", "const": "a"})
    assert invoke("schema", "check", file).exit_code == 1
    options = ["--unknown-format", "annotation", "--document", f"urn:a={document}"]
    assert "Unsatisfiable" in invoke("schema", "check", file, *options).stderr
    assert invoke("schema", "check", file, *options, "--format", "annotation").exit_code == 0
    others = ["--property-order", "any", "--additional-properties", "closed", "--whitespace", "flexible"]
    plain = write(tmp_path, "c.json", {"type": "object"})
    assert invoke("schema", "check", plain, *others, "--max-whitespace", "3").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.json"], "nowhere.json cannot be read"),
        ([__file__], "holds no JSON"),
        (["nowhere.json", "--document", "urn:a"], "--document: 'urn:a' is no document; write URI=FILE"),
        (["nowhere.json", "--document", "urn:a=nothing.json"], "--document: nothing.json cannot be read"),
        (["nowhere.json", "--whitespace", "none"], "--whitespace"),
    ],
)
def test_schema_check_says_what_is_wrong_with_its_arguments(arguments, complaint):
    result = invoke("schema", "check", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


# Commands


def test_pull_prints_the_folder_and_nothing_else(tiny_model_folder):
    result = invoke("pull", str(tiny_model_folder))
    assert result.exit_code == 0
    assert result.stdout == f"{tiny_model_folder}\n"


@pytest.fixture
def evals_double(monkeypatch):
    """specdec.evals.cli with one command, which notes its arguments."""
    calls = []
    evals = typer.Typer()

    @evals.callback()
    def nothing() -> None:
        pass

    @evals.command()
    def acceptance(spec: str = "none", as_json: bool = typer.Option(False, "--json"), fail: bool = False) -> None:
        calls.append((spec, as_json))
        if fail:
            raise typer.Exit(3)
        if spec == "bad":
            raise ConfigError("it cannot work", flag="--spec")

    module = types.ModuleType("specdec.evals.cli")
    module.app = evals
    monkeypatch.setitem(sys.modules, "specdec.evals.cli", module)
    return calls


def test_eval_hands_its_arguments_and_its_exit_code_on(evals_double):
    assert invoke("eval", "acceptance", "--spec", "ngram", "--json").exit_code == 0
    assert evals_double == [("ngram", True)]
    assert invoke("eval", "acceptance", "--fail").exit_code == 3
    failed = invoke("eval", "acceptance", "--spec", "bad")
    assert (failed.exit_code, failed.stderr) == (2, "error: --spec: it cannot work\n")
    assert invoke("eval", "acceptance", "--nonsense").exit_code == 2
    assert "acceptance" in invoke("eval").stdout
    assert "--json" in invoke("eval", "acceptance", "--help").stdout


def run_tiny(folder, *arguments, **options):
    command = [*SPECDEC, "run", str(folder), "--dtype", "float32", "--max-tokens", "24", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def run_here(folder, *arguments):
    """The same in this process."""
    return invoke("run", str(folder), "--dtype", "float32", "--max-tokens", "24", *arguments)


@pytest.mark.slow
def test_run_prints_the_answer_alone_and_speculation_leaves_it_the_same(tiny_model_folder):
    plain = run_tiny(tiny_model_folder, "--prompt", "a b a b a b")
    assert plain.returncode == 0, plain.stderr
    assert len(plain.stdout) > 1
    assert re.search(r"^\d+ tokens, [\d.]+ tok/s$", plain.stderr, re.MULTILINE)
    piped = run_tiny(tiny_model_folder, "--spec", "chain", "--exact", input="a b a b a b")
    exact = run_tiny(tiny_model_folder, "--exact", "--prompt", "a b a b a b")
    assert (piped.returncode, piped.stdout) == (0, exact.stdout), piped.stderr


def test_run_says_who_drafted_how_many_tokens_and_how_many_were_accepted(tiny_model_folder, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"const": "a string that is long enough"}))
    options = ["--schema", str(file), "--num-speculative-tokens", "4", "--prompt", "Say it."]
    finished = run_here(tiny_model_folder, *options)
    said = re.search(
        r"tok/s, (\d+) of (\d+) draft tokens accepted \(grammar (\d+) of (\d+)\)$", finished.stderr, re.MULTILINE
    )
    assert said is not None, finished.stderr
    accepted, drafted, *by_grammar = map(int, said.groups())
    assert by_grammar == [accepted, drafted]
    assert 0 <= accepted <= drafted
    assert drafted > 0


def test_the_banner_says_who_drafts_with_which_model_and_how_it_is_verified(tiny_model_folder, tiny_draft_folder):
    arguments = ["--draft", str(tiny_draft_folder), "--num-speculative-tokens", "3", "--verification", "block"]
    with served(str(tiny_model_folder), "--num-kv-blocks", "50", *arguments) as (_process, banner):
        assert f"drafts     chain with {tiny_draft_folder}, 3 tokens each, verification block\n" in banner


def test_run_with_a_schema_prints_json_that_satisfies_it(tiny_model_folder, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"enum": ["red", "green", {"blue": True}]}))
    finished = run_here(tiny_model_folder, "--schema", str(file), "--prompt", "colour?", "--check-outputs")
    assert finished.exit_code == 0, finished.stderr
    assert json.loads(finished.stdout) in ["red", "green", {"blue": True}]


def test_run_refuses_a_schema_whose_answers_do_not_fit_max_tokens(tiny_model_folder, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "string", "minLength": 500}))
    finished = run_here(tiny_model_folder, "--schema", str(file), "--prompt", "story?")
    assert finished.exit_code == 1
    assert re.search(r"the shortest answer that the engine guarantees has \d+ tokens", finished.stderr)
    assert finished.stdout == ""


class Terminal:
    """A process with a terminal for its standard streams, as a person has one."""

    def __init__(self, command, **environment):
        self._controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, env=os.environ | {"TERM": "dumb"} | environment
        )
        os.close(terminal)
        self._seen = ""

    def type(self, line):
        os.write(self._controller, line.encode() + b"\n")

    def expect(self, pattern, timeout_s=90.0):
        """What was printed up to the pattern and with it; the next call looks after it."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._controller], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self._seen!r}"
            try:
                chunk = os.read(self._controller, 4096)
            except OSError:  # the other side has closed
                chunk = b""
            assert chunk, f"the process ended without {pattern!r}: {self._seen!r}"
            self._seen += chunk.decode(errors="replace")
        text, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return text

    def interrupt_until(self, pattern):
        """Interrupt as a person would, again if nothing happens: readline sees signals only while it waits."""
        for _ in range(30):
            self.process.send_signal(signal.SIGINT)
            with suppress(AssertionError):
                return self.expect(pattern, timeout_s=2.0)
        raise AssertionError(f"no interrupt brought {pattern!r}: {self._seen!r}")

    def close(self):
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._controller)


def test_a_chat_answers_remembers_and_survives_mistakes(tiny_model_folder, tmp_path):
    (tmp_path / "schema.json").write_text('{"const": "yes"}')
    (tmp_path / "wrong.json").write_text('{"type": "nonsense"}')
    terminal = Terminal([*SPECDEC, "run", str(tiny_model_folder), "--max-tokens", "8", "--max-model-len", "200"])
    try:
        terminal.expect(r"/help lists the commands")
        terminal.expect(r"> ")
        for line, reaction in [
            ("/help", r"/schema FILE"),
            ("hello", r"\d+ tokens, [\d.]+ tok/s"),
            ("/nonsense", r"error: there is no /nonsense"),
            ("/schema", r"error: /schema takes a file, or off"),
            ("/schema nowhere.json", r"error: nowhere.json cannot be read"),
            (f"/schema {tmp_path}/wrong.json", r"answers satisfy"),
            ("well?", r"error: "),
            (f"/schema {tmp_path}/schema.json", r"answers satisfy"),
            ("well?", r'"yes"'),
            ("/schema off", r"free text"),
            ("long " * 150, r"error: .*/reset starts anew"),
            ("/reset", r"starts anew"),
            ("again", r"\d+ tokens, [\d.]+ tok/s"),
        ]:
            terminal.type(line)
            terminal.expect(reaction)
            terminal.expect(r"> ")
        terminal.interrupt_until(r"Ctrl-D leaves")
        terminal.type("/exit")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()


def test_show_drafts_colours_tokens_by_who_drafted_them(tiny_model_folder, tmp_path):
    (tmp_path / "schema.json").write_text('{"const": "a string that is long enough"}')
    arguments = ["--schema", str(tmp_path / "schema.json"), "--spec", "grammar+ngram", "--num-speculative-tokens", "4"]
    arguments += ["--temperature", "0", "--show-drafts", "--prompt", "Say it."]
    terminal = Terminal(
        [*SPECDEC, "run", str(tiny_model_folder), *arguments], TERM="xterm-256color", COLORTERM="truecolor"
    )
    try:
        shown = terminal.expect(r"tok/s, \d+ of \d+ draft tokens accepted")
    finally:
        terminal.close()
    red, green, blue = (int(COLOURS["grammar"][i : i + 2], 16) for i in (1, 3, 5))
    colour = f"\x1b[38;2;{red};{green};{blue}m"
    legend, answer = (line for line in shown.splitlines() if colour in line)
    assert "grammar" in legend
    assert "ngram" in legend
    assert "draft_model" not in legend
    assert re.sub(r"\x1b\[[0-9;]*m", "", answer) == '"a string that is long enough"'
    assert re.search(r"\x1b\[0m[^\x1b]", answer), "what follows a draft is the target's"
    # Where there are no colours the answer is as it always is.
    piped = run_here(tiny_model_folder, *arguments)
    assert piped.stdout == '"a string that is long enough"\n', piped.stderr


def test_the_coloured_parts_of_an_answer_join_to_its_text_and_follow_its_tokens(tiny_model_folder):
    engine = Engine(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=50))
    request = Request(
        request_id="r",
        prompt_token_ids=tuple(engine.tokenizer.encode("a b a b a b")),
        sampling_params=SamplingParams(max_tokens=60, seed=1, ignore_eos=True),
        speculative=SpeculativeParams(method="ngram", num_speculative_tokens=2),
        prediction="x y",
        trace=True,
    )
    engine.add_request(request)
    colours = DraftColours(engine.tokenizer, skip_special_tokens=True)
    num_by_target = 0
    while engine.has_unfinished_requests():
        for delta in engine.step():
            parts = list(colours.parts(delta))
            assert "".join(text for text, _ in parts) == delta.text
            num_by_target += sum(proposer is None for _, proposer in parts)
            assert len([proposer for _, proposer in parts if proposer]) <= sum(d.num_accepted for d in delta.drafts)
    assert num_by_target > 10


def test_show_drafts_with_nothing_to_show_is_a_mistake():
    result = invoke("run", "no-such-model", "--spec", "none", "--show-drafts", "--prompt", "x")
    assert result.exit_code == 2
    assert "--show-drafts: nothing is drafted" in result.stderr


@contextmanager
def served(*arguments, **environment):
    """A `specdec serve` on a free port, with the banner it printed."""
    process = subprocess.Popen(
        [*SPECDEC, "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        banner = ""
        for line in process.stderr:
            banner += line
            if line.startswith("curl "):
                break
        yield process, banner
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def send_curl(line, **fields):
    """What the server answers to a curl command line, as a shell would read it; the fields go into its body."""
    words = shlex.split(line)
    headers = dict(words[index + 1].split(": ") for index, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1]
    content = json.dumps({**json.loads(body), **fields}) if fields else body
    return httpx.post(words[1], headers=headers, content=content, timeout=60)


def test_serve_greets_with_what_a_user_needs_and_ends_cleanly_on_ctrl_c(tiny_model_folder):
    with served(str(tiny_model_folder), "--spec", "ngram", "--num-kv-blocks", "50") as (process, banner):
        assert process.poll() is None, banner
        assert re.search(rf"model +{re.escape(str(tiny_model_folder))}, float32 on cpu, \d+ threads", banner)
        assert re.search(r"KV cache +50 blocks of 16 tokens, .* MiB: 0\.4 sequences of 2048 tokens", banner)
        assert re.search(r"drafts +ngram, up to 32 tokens, as many as pay\n", banner)
        url = re.search(r"ready +(http://127\.0\.0\.1:\d+)/v1 in [\d.]+ s", banner)[1]
        assert httpx.get(f"{url}/v1/models").status_code == 200
        answer = send_curl(banner.splitlines()[-1])
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"].startswith("{")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()


def test_serve_guards_with_the_key_of_the_environment_and_serves_the_name_it_was_given(tiny_model_folder):
    arguments = [str(tiny_model_folder), "--served-model-name", "tiny", "--gpu-memory-utilization", "0.5"]
    arguments += ["--per-request-spec-decode-metrics", "detailed"]
    with served(*arguments, SPECDEC_API_KEY="sesame") as (_process, banner):
        assert f"{tiny_model_folder} as tiny" in banner
        assert "sesame" not in banner
        url = re.search(r"ready +(\S+) in", banner)[1]
        assert httpx.get(f"{url}/models").status_code == 401
        models = httpx.get(f"{url}/models", headers={"Authorization": "Bearer sesame"}).json()
        assert [model["id"] for model in models["data"]] == ["tiny"]
        curl = banner.splitlines()[-1]
        assert send_curl(curl).status_code == 401
        # As many as pay may be none on a machine that does much else.
        answer = send_curl(curl.replace("YOUR_KEY", "sesame"), speculative={"num_speculative_tokens": 4})
        assert answer.status_code == 200
        speculation = answer.json()["metrics"]["speculative_decoding"]
        assert sum(speculation["per_step_drafted"]) == speculation["num_draft_tokens"] > 0
    assert re.search(r"drafts +grammar, up to 32 tokens, as many as pay; --spec chain drafts from everything\n", banner)


def test_serve_takes_a_file_of_keys_and_runs_the_engine_on_a_thread_where_told_to(tiny_model_folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    arguments = ["--api-key-file", str(keys), "--engine-in-process", "--rate-limit", "2", "--public-metrics"]
    arguments += ["--num-kv-blocks", "50", "--spec", "none"]
    with served(str(tiny_model_folder), *arguments) as (process, banner):
        assert "drafts     none (--spec chain turns speculation on)\n" in banner
        url = re.search(r"ready +(\S+)/v1 in", banner)[1]
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "engine_child"], capture_output=True, check=False
        )
        assert not children.stdout
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/metrics").status_code == 200
        post = {"url": f"{url}/v1/completions", "json": {}, "headers": {"x-api-key": "sesame"}}
        assert [httpx.post(**post).status_code for _ in range(3)] == [400, 400, 429]


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("my-machine", False)],
)  # fmt: skip
def test_only_addresses_of_this_machine_are_taken_for_loopback(host, is_loopback):
    assert _is_loopback(host) == is_loopback


def test_progress_of_a_pull_and_of_loading_is_drawn_and_full_bars_are_let_go(capsys):
    with progress_bars() as show:
        show(ModelProgress(stage="waiting", description="another pull [of m] is under way"))
        show(ModelProgress(stage="downloading", description="Downloading m", completed=5 * 10**6, total=10**7))
        show(ModelProgress(stage="downloading", description="Downloading m", completed=10**7, total=10**7))
        show(ModelProgress(stage="converting", description="Converting m", completed=3, total=3))
        show(ModelProgress(stage="done", description="m is in the cache"))
        show(ModelProgress(stage="loading", description="Loading m", completed=10**6, total=2 * 10**6))
        show(ModelProgress(stage="loading", description="Loading m", completed=2 * 10**6, total=2 * 10**6))
        drawn = capsys.readouterr().err
    assert capsys.readouterr().err == ""
    parts = ["of m] is under way", "Downloading m", "10.0/10.0 MB", "Converting m", "3/3", "m is in the cache"]
    positions = [drawn.index(part) for part in [*parts, "Loading m", "2.0/2.0 MB"]]
    assert positions == sorted(positions)
    assert drawn.count("Downloading m") == 1
