"""The log: a line for each record, whatever clients put into it, and nothing of what requests say."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import chat_body
from served_process import Served, wait_for_running

from specdec.logs import FIELDS, REQUEST_ID, JsonFormatter, TextFormatter

CHAT = "/v1/chat/completions"
SPECDEC = str(Path(sys.executable).with_name("specdec"))


def record(message: str, fields: dict[str, object], error: BaseException | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("specdec.x", logging.INFO, "", 0, "%s", (message,), info)
    setattr(made, FIELDS, fields)
    return made


ANY_FIELDS = st.dictionaries(st.sampled_from(["path", "prompt", "status"]), st.text() | st.integers() | st.none())


@given(message=st.text(), fields=ANY_FIELDS)
def test_a_record_is_one_line_of_json_that_says_it_all(message: str, fields: dict[str, object]) -> None:
    line = JsonFormatter().format(record(message, fields, ValueError(message)))
    assert line.splitlines() == [line]
    assert line.isascii()
    read = json.loads(line)
    assert read["message"] == message
    assert {name: read[name] for name in fields} == fields
    assert list(read)[:4] == ["time", "level", "logger", "message"]
    assert read["exception"].startswith("ValueError")


@given(message=st.text(), fields=ANY_FIELDS)
def test_no_text_of_a_client_begins_a_line(message: str, fields: dict[str, object]) -> None:
    line = TextFormatter().format(record(message, fields, ValueError(message)))
    first, *rest = line.splitlines()
    assert " INFO specdec.x: " in first
    assert [each for each in rest if not each.startswith("    ")] == []


def test_records_say_which_request_they_are_about() -> None:
    token = REQUEST_ID.set("abc")
    try:
        assert json.loads(JsonFormatter().format(record("m", {})))["request_id"] == "abc"
        assert TextFormatter().format(record("m", {})).endswith("m request_id=abc")
    finally:
        REQUEST_ID.reset(token)


def lines(log: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.splitlines()]


def access(log: str) -> list[dict[str, object]]:
    return [line for line in lines(log) if line["logger"] == "specdec.access"]


@pytest.fixture
def post(served: Callable[..., Served]) -> Callable[..., httpx.Response]:
    """A guarded server, whose log is JSON."""
    server = served(api_keys=["very-secret"], log_format="json")

    def send(body: dict[str, object], path: str = CHAT, **headers: str) -> httpx.Response:
        headers = {"authorization": "Bearer very-secret", **headers}
        return httpx.post(server.url + path, json=body, headers=headers, timeout=30)

    send.server = server
    return send


def test_every_request_has_one_line_without_prompts_and_keys(post: Callable[..., httpx.Response]) -> None:
    prompt = [{"role": "user", "content": "a private matter"}]
    body = chat_body(messages=prompt, max_tokens=4, ignore_eos=True)
    post({**body, "n": 2}, **{"x-request-id": "mine-1"})
    post({**body, "stream": True}, **{"x-request-id": "mine-2"})
    post({**body, "max_tokens": 0}, **{"x-request-id": "mine-3"})
    post(body, **{"x-request-id": "mine-4", "authorization": "Bearer wrong-secret"})
    post(body, path='/nowhere%0a{"level":"error"}?api_key=very-secret', **{"x-request-id": "mine-5"})
    httpx.get(post.server.url + "/health")
    code, log, _ = post.server.stop()
    assert code == 0
    for private in ("private", "very-secret", "wrong-secret"):
        assert private not in log
    found = access(log)
    caller = found[0]["caller"]
    assert len(caller) == 12
    shared = {"level": "info", "logger": "specdec.access", "message": "request", "method": "POST"}
    counts = {"prompt_tokens": found[0]["prompt_tokens"], "caller": caller}
    expected = [
        {"request_id": "mine-1", "path": CHAT, "status": 200, "completion_tokens": 8, **counts,
         "finish_reasons": ["length", "length"]},
        {"request_id": "mine-2", "path": CHAT, "status": 200, "completion_tokens": 4, **counts,
         "finish_reasons": ["length"]},
        {"request_id": "mine-3", "path": CHAT, "status": 400, "caller": caller},
        {"request_id": "mine-4", "path": CHAT, "status": 401},
        {"request_id": "mine-5", "path": '/nowhere\n{"level":"error"}', "status": 404, "caller": caller},
    ]  # fmt: skip
    assert [{**shared, **line} for line in expected] == [
        {name: value for name, value in line.items() if name not in {"time", "duration_ms"}} for line in found
    ]
    assert all(line["duration_ms"] > 0 for line in found)


@pytest.fixture(scope="module")
def full_log(tiny_model_folder: Path) -> list[dict[str, object]]:
    """All that a server says, prompts included, of a probe, of an answer, and of one whose client left."""
    server = Served(tiny_model_folder, log_format="json", log_requests=True, log_level="debug")
    try:
        httpx.get(server.url + "/health", headers={"x-request-id": "probe"})
        httpx.post(server.url + CHAT, json=chat_body(max_tokens=1), headers={"x-request-id": "mine"}, timeout=30)
        body = chat_body(stream=True, ignore_eos=True)
        headers = {"x-request-id": "left"}
        with httpx.stream("POST", server.url + CHAT, json=body, headers=headers, timeout=30) as response:
            next(response.iter_lines())
        wait_for_running(server.url, 0)
        _, log, _ = server.stop()
        return lines(log)
    finally:
        server.process.kill()
        server.process.communicate(timeout=60)


def of_logger(log: list[dict[str, object]], logger: str, request_id: str) -> dict[str, object]:
    """The one line that a logger has of a request."""
    [line] = [line for line in log if (line["logger"], line.get("request_id")) == (logger, request_id)]
    return line


def test_prompts_are_logged_on_request_alone(full_log: list[dict[str, object]]) -> None:
    assert "Hello" in of_logger(full_log, "specdec.requests", "mine")["prompt"]


def test_the_engine_process_logs_in_the_same_format(served: Callable[..., Served]) -> None:
    server = served(log_format="json", die_at=5)
    httpx.post(server.url + CHAT, json=chat_body(ignore_eos=True), timeout=30)
    _, log = server.end()
    assert any("injected" in str(line.get("exception")) for line in lines(log)), log


def test_the_log_of_people_has_a_line_for_every_request(served: Callable[..., Served]) -> None:
    server = served()
    httpx.post(server.url + CHAT, json=chat_body(max_tokens=1, ignore_eos=True), timeout=30)
    _, log, _ = server.stop()
    assert f"method=POST path={CHAT} status=200 duration_ms=" in log
    assert 'finish_reasons=["length"]' in log
    assert "Hello" not in log


def test_probes_are_logged_for_those_who_debug(full_log: list[dict[str, object]]) -> None:
    assert of_logger(full_log, "specdec.access", "probe")["path"] == "/health"


def test_a_client_that_leaves_is_logged_with_an_answer_that_did_not_finish(full_log: list[dict[str, object]]) -> None:
    line = of_logger(full_log, "specdec.access", "left")
    assert line["finish_reasons"] == [None]
    assert 0 < line["completion_tokens"] < 1000


def test_on_the_command_line_all_of_the_log_is_json(tiny_model_folder: Path) -> None:
    command = [SPECDEC, "serve", str(tiny_model_folder), "--port", "0", "--host", "0.0.0.0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        found = []
        while not found or found[-1]["message"] != "ready":
            found.append(json.loads(server.stderr.readline()))
        assert httpx.get(found[-1]["url"] + "/v1/models").status_code == 200
        server.send_signal(signal.SIGTERM)
        found += lines(server.stderr.read())
    assert server.returncode == 0
    assert found[0]["stage"] == "loading"
    assert [line["message"] for line in found if line["level"] == "warning"] == [
        "whoever reaches 0.0.0.0 can use this server; guard it with --api-key-file"
    ]
    assert [line["path"] for line in found if line["logger"] == "specdec.access"] == ["/v1/models"]
