"""`specdec bench serve` against real servers: specdec's on the tiny model, and others that know less or misbehave."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading

import httpx
import pytest
import uvicorn
from live_server import chat_body, serving, slowed, wait_until
from typer.testing import CliRunner

from specdec import EngineProcess
from specdec.cli import app as cli
from specdec.engine import Engine, EngineConfig
from specdec.evals import bench_cli, bench_metrics
from specdec.evals.bench_malformed import MALFORMED
from specdec.server import ServerConfig
from specdec.speculative import SpeculativeConfig
from specdec.tokenizer import Detokenizer


def engine_of(folder):
    # A fixed number: as many as pay may be none on a machine that does much else.
    speculative = SpeculativeConfig(method="chain", num_speculative_tokens=4)
    return Engine(EngineConfig(model=str(folder), num_kv_blocks=2000, speculative=speculative))


@pytest.fixture(scope="module")
def live(tiny_model_folder):
    config = ServerConfig(served_model_names=("tiny",), api_keys=("secret",))
    with serving(engine_of(tiny_model_folder), config) as server:
        yield server


TASKS = [
    {"prompt": "Say yes or no.", "schema": {"enum": ["yes", "no"]}},
    {"prompt": "A place.", "schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}},
                                      "required": ["city"], "additionalProperties": False}},
    {"prompt": "A number between one and nine.", "schema": {"type": "integer", "minimum": 1, "maximum": 9}},
    {"prompt": "Once upon a time"},
    {"prompt": "one two three one two three one two", "prediction": "three one two three"},
]  # fmt: skip
SHIPPED = "shipped"


def bench(url, path, *arguments):
    """Exit code, and the JSON that was written."""
    tasks = path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    arguments = [each for each in arguments if each != SHIPPED] + ["--dataset", str(tasks)] * (SHIPPED not in arguments)
    file = path / "bench.json"
    finished = CliRunner().invoke(bench_cli.app, ["serve", "--base-url", url, "--json", str(file), *arguments])
    assert file.exists(), finished.output
    return finished.exit_code, json.loads(file.read_text())


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_sweep_over_specdec_reports_every_figure_and_leaves_nothing_behind(live, tmp_path, endpoint):
    exit_code, shown = bench(
        live.url + "/v1", tmp_path, "--api-key", "secret", "--endpoint", endpoint, "--concurrency", "1,6",
        "--num-prompts", "24", "--max-tokens", "16", "--constrained", "0.5", "--aborted", "0.3", "--malformed", "0.2",
        "--slo", "ttft:60000 tpot:60000", "--warmup", "2", "--temperature", "0.8", "--watch-pid", str(os.getpid()),
    )  # fmt: skip
    assert exit_code == 0, shown["failures"]
    assert shown["target"]["is_specdec"]
    assert shown["target"]["has_running_usage"]
    for point, concurrency in zip(shown["points"], (1, 6), strict=True):
        assert (point["concurrency"], point["request_rate"]) == (concurrency, None)
        ended = [point[f"num_{name}"] for name in ("completed", "aborted", "refused", "turned_away", "failed")]
        assert sum(ended) == point["num_sent"] == 24
        assert min(ended[:3]) > 0 == ended[3] == ended[4]
        assert sum(point["statuses"].values()) == 24
        for name in ("ttft_ms", "tpot_ms", "itl_chunk_ms", "itl_token_ms", "e2e_ms"):
            assert 0 <= point[name]["p50"] <= point[name]["p90"] <= point[name]["p99"] <= point[name]["max"], name
        assert point["ttft_ms"]["count"] == point["e2e_ms"]["count"] == point["num_completed"]
        assert point["itl_token_ms"]["count"] >= point["itl_chunk_ms"]["count"] > 0
        assert point["output_tokens_per_s"] == pytest.approx(point["num_output_tokens"] / point["seconds"])
        assert point["goodput_requests_per_s"] == pytest.approx(point["requests_per_s"])
        assert point["validity"]["num_valid"] == point["validity"]["num_answers"] > 0
        assert point["acceptance"]["source"] == "metrics"
        # What a model of random weights accepts is chance.
        assert 0 <= point["acceptance"]["acceptance_rate"] <= 1 <= point["acceptance"]["mean_acceptance_length"]
        assert point["held"] == {}
        cost = point["cost"]
        assert cost["num_tokens"] >= point["num_output_tokens"]
        assert cost["wall_ms"] == pytest.approx(cost["engine_ms"] + cost["overhead_ms"])
        assert cost["engine_ms"] > 0 < cost["overhead_ms"]
        assert cost["server_cpu_ms"] is None, "the engine is a thread here"
    assert shown["memory"]["peak_mb"] >= shown["memory"]["last_mb"] > 50
    assert shown["memory"]["mb_per_minute"] is None


def test_every_malformed_request_is_refused_with_the_status_that_is_due(live, tmp_path):
    num_requests = 12 * len(MALFORMED)
    exit_code, shown = bench(
        live.url, tmp_path, "--api-key", "secret", "--num-prompts", str(num_requests), "--malformed", "0.95",
        "--max-tokens", "2", "--concurrency", "4", "--seed", "3",
    )  # fmt: skip
    assert exit_code == 0, shown["failures"]
    assert {"400", "404", "405", "413", "415"} <= shown["points"][0]["statuses"].keys()


def test_requests_come_at_the_rate_and_objectives_that_are_missed_are_not_good(live, tmp_path):
    exit_code, shown = bench(
        live.url, tmp_path, "--api-key", "secret", "--request-rate", "100,inf", "--num-prompts", "30",
        "--max-tokens", "4", "--slo", "e2el:0.001", "--constrained", "0", "--unique-prompts", "--ignore-eos",
    )  # fmt: skip
    assert exit_code == 0, shown["failures"]
    paced, at_once = shown["points"]
    assert paced["request_rate"] == 100
    assert paced["lateness_ms"]["count"] == 30
    assert at_once["lateness_ms"] is None
    assert paced["num_output_tokens"] == at_once["num_output_tokens"] == 30 * 4
    assert paced["goodput_requests_per_s"] == at_once["goodput_requests_per_s"] == 0


def test_a_point_ends_with_its_duration(live, tmp_path):
    exit_code, shown = bench(
        live.url, tmp_path, SHIPPED, "--api-key", "secret", "--duration", "2", "--concurrency", "2",
        "--max-tokens", "4", "--constrained", "0", "--speculative", "off",
    )  # fmt: skip
    assert exit_code == 0, shown["failures"]
    point = shown["points"][0]
    assert 2 <= point["seconds"] < 60
    assert point["num_completed"] > 2
    assert point["acceptance"] is None, "nothing was drafted"


def test_memory_and_processor_time_are_the_servers_own_as_it_says(tiny_model_folder, tmp_path):
    with serving(EngineProcess.launch(EngineConfig(model=str(tiny_model_folder), num_kv_blocks=600))) as server:
        exit_code, shown = bench(server.url, tmp_path, "--num-prompts", "24", "--max-tokens", "16")
    assert exit_code == 0, shown["failures"]
    assert set(shown["memory"]["parts"]) == {"server", "engine", "workers"}
    assert min(part["last_mb"] for part in shown["memory"]["parts"].values()) > 20
    assert shown["memory"]["mb_per_minute"] is None
    (point,) = shown["points"]
    assert point["cost"]["server_cpu_ms"] > 0
    assert point["cost"]["engine_cpu_ms"] > 0


def test_acceptance_is_that_of_the_requests_where_the_server_says_it(tiny_model_folder, tmp_path):
    config = ServerConfig(served_model_names=("tiny",), per_request_spec_decode_metrics="summary")
    with serving(engine_of(tiny_model_folder), config) as server:
        exit_code, shown = bench(server.url, tmp_path, "--num-prompts", "6", "--constrained", "1", "--max-tokens", "8")
        counted = server.engine.stats().speculation
    assert exit_code == 0, shown["failures"]
    acceptance = shown["points"][0]["acceptance"]
    assert acceptance["source"] == "requests"
    assert acceptance["counts"]["num_accepted_tokens"] == counted.num_accepted_tokens > 0
    compared = counted.num_accepted_tokens + counted.num_rejected_tokens
    assert acceptance["acceptance_rate"] == pytest.approx(counted.num_accepted_tokens / compared)


# Faults that must be found


def test_answers_that_break_their_schema_fail_the_run(live, tmp_path, monkeypatch):
    push = Detokenizer.push
    monkeypatch.setattr(Detokenizer, "push", lambda self, ids: push(self, ids).replace('"', ""))
    exit_code, shown = bench(
        live.url, tmp_path, "--api-key", "secret", "--num-prompts", "4", "--constrained", "1", "--max-tokens", "8"
    )
    assert exit_code == 1
    assert shown["points"][0]["validity"]["num_violations"] == 3, "all but the number, which has no quotes"
    assert "no instances of their schemas" in shown["failures"][0]


def test_what_the_server_still_holds_fails_the_run(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_metrics, "_SETTLE_S", 0.3)
    with (
        serving(slowed(engine_of(tiny_model_folder), 0.02)) as server,
        httpx.stream(
            "POST", server.url + "/v1/chat/completions", json=chat_body(stream=True, ignore_eos=True)
        ) as other,
    ):
        assert other.status_code == 200
        wait_until(lambda: server.num_blocks_in_use() > 0, "the other's request to run")
        exit_code, shown = bench(server.url, tmp_path, "--num-prompts", "2", "--max-tokens", "2", "--constrained", "0")
    assert exit_code == 1
    assert shown["points"][0]["held"]["num_requests_running"] == 1
    assert shown["points"][0]["held"]["kv_blocks_in_use"] > 0
    assert "nothing runs any more, and num_requests_running is 1" in shown["failures"][0]


PAUSE_S = 0.01
"""Between what an OtherServer sends."""


class OtherServer:
    """An API of its own: a list of models, no metrics, and whatever a test has it answer to a completion."""

    def __init__(self, answer):
        self.bodies = []
        self._answer = answer

    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        if scope["path"] == "/v1/models":
            return await self._send(send, 200, [b'{"object": "list", "data": [{"id": "other"}]}'])
        if scope["path"] != "/v1/chat/completions":
            return await self._send(send, 404, [b'{"detail": "Not Found"}'])
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message["body"], message["more_body"]
        try:
            body = json.loads(content)
        except ValueError:
            return await self._send(send, 200, [b"{}"])
        self.bodies.append(body)
        if len(body["stream_options"]) > 1:
            return await self._send(send, 400, [b'{"error": {"message": "unknown field"}}'])
        return await self._send(send, *self._answer(len(self.bodies) - 2))

    async def _send(self, send, status, pieces):
        await send({"type": "http.response.start", "status": status, "headers": []})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(PAUSE_S)
        await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def other_server(answer):
    app = OtherServer(answer)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the other server to start")
    try:
        yield app, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def frame(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TEXTS, THOUGHTS = (
    [frame(choices=[{"index": 0, "delta": {name: text}, "finish_reason": None}]) for text in "abcd"]
    for name in ("content", "reasoning")
)
END = frame(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = frame(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19})
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("texts", [TEXTS, THOUGHTS], ids=["an answer", "thoughts"])
def test_a_server_that_knows_less_is_measured_with_what_it_says(tmp_path, texts):
    with other_server(lambda _: (200, [b": hello\n\n", *texts, END, USAGE, DONE])) as (app, url):
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "5", "--constrained", "0", "--concurrency", "2")
    assert exit_code == 0, shown["failures"]
    assert not shown["target"]["is_specdec"]
    assert not shown["target"]["has_running_usage"]
    assert app.bodies[-1]["stream_options"] == {"include_usage": True}
    assert app.bodies[-1]["model"] == "other"
    assert app.bodies[-1].keys().isdisjoint({"speculative", "prediction", "ignore_eos"})
    point = shown["points"][0]
    assert (point["num_prompt_tokens"], point["num_output_tokens"]) == (35, 60)
    assert point["tokens_per_chunk"] == 3
    assert point["itl_chunk_ms"]["count"] == 15
    assert point["itl_chunk_ms"]["p50"] >= 1000 * PAUSE_S / 2
    assert point["itl_token_ms"] is None
    assert point["acceptance"] is None
    assert any("does not count the tokens of each chunk" in warning for warning in shown["warnings"])


def test_a_server_without_counts_has_its_chunks_counted(tmp_path):
    with other_server(lambda _: (200, [*TEXTS, END, DONE])) as (_, url):
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "3", "--constrained", "0")
    assert exit_code == 0
    assert shown["points"][0]["num_output_tokens"] == 12
    assert shown["points"][0]["are_tokens_chunks"]
    assert any("every chunk was taken for one" in warning for warning in shown["warnings"])


@pytest.mark.parametrize(
    ("status", "pieces", "complaint"),
    [
        (500, [b"{}"], "status 500 where 200 was due"),
        (200, [*TEXTS, END], "the stream ended without [DONE]"),
        (200, [*TEXTS, DONE], "the stream gave no finish_reason"),
        (200, [TEXTS[0], frame(error={"message": "lost its way"}), DONE], "error frame: lost its way"),
        (200, [b"data: {not json}\n\n", DONE], "JSON is malformed"),
    ],
)
def test_an_answer_that_fails_midway_fails_the_run(tmp_path, status, pieces, complaint):
    answers = [(200, [*TEXTS, END, DONE]), (200, [*TEXTS, END, DONE]), (status, pieces)]
    with other_server(lambda index: answers[min(index, 2)]) as (_, url):
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "2", "--constrained", "0", "--concurrency", "1")
    assert exit_code == 1
    assert shown["points"][0]["num_failed"] == shown["points"][0]["num_completed"] == 1
    assert complaint in shown["failures"][0]


def test_a_full_server_turns_requests_away_and_is_not_wrong(tmp_path):
    busy = (503, [b'{"error": {"message": "full"}}'])
    with other_server(lambda index: busy if index > 2 else (200, [*TEXTS, END, DONE])) as (_, url):
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "4", "--constrained", "0", "--concurrency", "1")
    assert exit_code == 0, shown["failures"]
    assert shown["points"][0]["num_turned_away"] == 2
    assert any("turned away" in warning for warning in shown["warnings"])


def test_a_server_that_takes_malformed_requests_fails_the_run(tmp_path):
    with other_server(lambda _: (200, [*TEXTS, END, DONE])) as (_, url):
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "30", "--malformed", "0.9", "--constrained", "0")
    assert exit_code == 1
    assert any("malformed: cut JSON: status 200 where 400 or 422 was due" in failure for failure in shown["failures"])
    assert "malformed: unknown route" not in " ".join(shown["failures"])


def test_a_run_too_short_to_say_how_memory_grows_does_not_pass_for_one_that_says_so(tmp_path):
    with other_server(lambda _: (200, [*TEXTS, END, DONE])) as (_, url):
        watch = ("--watch-pid", str(os.getpid()), "--max-memory-growth", "1")
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "2", "--constrained", "0", *watch)
    assert exit_code == 1
    assert "too short" in shown["failures"][0]


def test_memory_that_the_server_does_not_tell_does_not_pass_for_memory_that_does_not_grow(tmp_path):
    with other_server(lambda _: (200, [*TEXTS, END, DONE])) as (_, url):
        exit_code, shown = bench(url, tmp_path, "--num-prompts", "2", "--constrained", "0", "--max-memory-growth", "1")
    assert exit_code == 1
    assert shown["memory"] is None
    assert "--watch-pid" in shown["failures"][0]


# Mistakes


def test_help_needs_no_torch_and_has_its_flags_in_groups():
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom specdec.cli import app\n"
        "print(CliRunner().invoke(app, ['bench', 'serve', '--help'], env={'COLUMNS': '160'}).output)\n"
        "print('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *shown, has_torch = finished.stdout.split()
    assert has_torch == "False"
    assert {"Server", "Workload", "Load", "Faults", "Speculation", "Output"} <= set(shown)


def test_no_server_is_an_error_that_says_so():
    finished = CliRunner().invoke(cli, ["bench", "serve", "--base-url", "http://127.0.0.1:9"])
    assert finished.exit_code == 1
    assert "is a server running there" in finished.output


def test_a_key_that_is_missing_is_an_error_that_names_it(live, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    finished = CliRunner().invoke(cli, ["bench", "serve", "--base-url", live.url])
    assert finished.exit_code == 1
    assert "--api-key" in finished.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--slo", "itl:5"], "is no objective"),
        (["--concurrency", "0"], "no list of numbers"),
        (["--request-rate", "0"], "no list of positive rates"),
        (["--request-rate", "inf", "--duration", "3"], "say how many"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--json", "/nowhere/at/all.json"], "there is no folder"),
        (["--aborted", "1.5"], "--aborted"),
    ],
)
def test_a_mistake_in_the_parameters_is_named(arguments, complaint):
    finished = CliRunner().invoke(bench_cli.app, ["serve", *arguments], env={"COLUMNS": "200"})
    assert finished.exit_code == 2
    assert complaint in finished.output
