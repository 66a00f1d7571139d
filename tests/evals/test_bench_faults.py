"""What breaks is broken for real, on the tiny model: killed processes, and clients that say what they saw."""

import asyncio
import json
import sys
import time

import pytest
from typer.testing import CliRunner

from specdec.errors import EngineError
from specdec.evals import bench_cli, fault_scenarios
from specdec.evals.fault_bodies import bodies
from specdec.evals.fault_clients import ARRIVAL_S, FINISHED, LOST, NOT_CONNECTED, FaultClients
from specdec.evals.fault_server import FaultServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes as Linux does")


@pytest.fixture(scope="module")
def report(tiny_model_folder):
    """All three scenarios, as the command tells them."""
    arguments = ["--model", str(tiny_model_folder), "--concurrency", "8", "--grace", "1", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        # How soon is for a machine that does nothing else.
        patch.setattr(fault_scenarios, "SOON_S", 60.0)
        finished = CliRunner().invoke(bench_cli.app, ["faults", *arguments])
    shown = json.loads(finished.stdout.splitlines()[-1])
    assert finished.exit_code == 0, shown["failures"]
    return {fault["name"].split()[0] + fault["name"].split()[1]: fault for fault in shown["faults"]}


def outcomes(fault):
    return {name.partition(": ")[2]: count["num"] for name, count in fault["in_flight"].items()}


@pytest.mark.slow
def test_every_client_of_a_killed_engine_is_told_and_the_server_ends_with_1(report):
    fault = report["theengine"]
    assert sum(count["num"] for count in fault["in_flight"].values()) == 8
    assert {name.partition(", ")[2] for name in fault["in_flight"]} == {
        "stream: error frame engine_dead", "whole: status 500 engine_dead"
    }  # fmt: skip
    assert fault["exit_code"] == 1
    assert 0 < fault["seconds_to_503"] < fault["seconds_to_exit"]


@pytest.mark.slow
def test_the_end_of_a_worker_is_noticed_by_its_request_alone(report):
    fault = report["acompile"]
    noticed = {name: count["num"] for name, count in fault["in_flight"].items() if name.startswith("victim")}
    assert list(noticed.values()) == [1]
    assert "status 503 engine_busy" in next(iter(noticed))
    assert set(fault["sent_later"]) == {FINISHED}


@pytest.mark.slow
def test_what_does_not_end_in_its_grace_period_is_cut_with_an_error(report):
    fault = report["SIGTERM,1"]
    assert outcomes(fault).keys() >= {FINISHED}
    assert fault["exit_code"] == 0
    assert fault["seconds_to_exit"] >= 1


def test_a_server_that_does_not_start_is_an_error_with_its_log(tmp_path):
    with pytest.raises(EngineError, match=r"before it was ready: .*nowhere"):
        FaultServer(str(tmp_path / "nowhere"))


def test_an_unknown_scenario_is_named():
    finished = CliRunner().invoke(bench_cli.app, ["faults", "--only", "meteor"], env={"COLUMNS": "200"})
    assert finished.exit_code == 2
    assert "'meteor' is none of engine, worker, sigterm" in finished.output


def test_bodies_take_turns_and_are_long_as_often_as_they_are_to_be():
    asked = bodies("m", long_every=2, max_model_len=2048)
    drawn = [next(asked) for _ in range(16)]
    assert sum(name == "long" for name, _ in drawn) == 8
    for name in ("long", "short"):
        kinds = {("stream" in body, "response_format" in body) for each, body in drawn if each == name}
        assert len(kinds) == 4
    assert all(name == "short" for name, _ in (next(bodies("m", long_every=0, max_model_len=99)) for _ in range(8)))


ERROR = b'{"error": {"message": "x", "code": "engine_dead"}}'
CHUNK = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
END = b'data: {"choices": [{"finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("status", "content", "is_streamed", "outcome"),
    [
        (200, CHUNK + END + DONE, True, FINISHED),
        (200, b'{"choices": [{"finish_reason": "stop"}]}', False, FINISHED),
        (200, CHUNK + b"data: " + ERROR + b"\n\n" + DONE, True, "error frame engine_dead"),
        (200, CHUNK + END, True, LOST),
        (200, CHUNK + DONE, True, "a stream without finish_reason"),
        (200, b"{}", False, "an answer without choices"),
        (200, b'{"choi', False, LOST),
        (500, ERROR, True, "status 500 engine_dead"),
        (502, b"<html>", False, "status 502 without an error object"),
    ],
)
async def test_an_outcome_is_what_came_over_the_wire(status, content, is_streamed, outcome):
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n".encode()

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + content)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        clients = FaultClients(f"http://127.0.0.1:{port}", iter(()), 0, 5.0)
        async with clients.asking():
            seen = await clients.ask("one", {"stream": is_streamed})
    assert seen.outcome == outcome
    assert clients.seen == [seen]
    assert len(seen.chunk_times) == content.count(b"data: {")


async def test_a_connection_that_breaks_and_one_that_is_refused_are_told_apart():
    async def leave(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + CHUNK)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(leave, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        clients = FaultClients(f"http://127.0.0.1:{port}", iter(()), 0, 5.0)
        async with clients.asking():
            assert (await clients.ask("one", {"stream": True})).outcome == LOST
            server.close()
            assert (await clients.ask("two", {"stream": True})).outcome == NOT_CONNECTED


async def test_clients_ask_again_and_what_was_in_flight_at_a_moment_is_known():
    num_asked, have_asked_again, may_end = 0, asyncio.Event(), asyncio.Event()

    async def answer(reader, writer):
        nonlocal num_asked
        num_asked += 1
        is_again = num_asked > 3
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + CHUNK)
        if is_again:
            if num_asked == 6:
                have_asked_again.set()
            await may_end.wait()
        writer.write(END + DONE)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        endless = iter(lambda: ("short", {"stream": True}), None)
        clients = FaultClients(f"http://127.0.0.1:{port}", endless, 3, 5.0)
        async with clients.asking():
            await have_asked_again.wait()
            await clients.all_answered()
            await asyncio.sleep(2 * ARRIVAL_S)
            moment = time.perf_counter()
            may_end.set()
            await clients.stop()
    assert [each.outcome for each in clients.seen] == [FINISHED] * 6
    in_flight = [each for each in clients.seen if each.was_in_flight(moment)]
    assert len(in_flight) == 3
    assert all(each.chunk_times[0] <= moment for each in in_flight)
    assert all(each.longest_gap_s(each.sent_at, each.ended_at) > ARRIVAL_S for each in in_flight)
    assert all(each.longest_gap_s(each.sent_at, moment) == 0 for each in in_flight)
